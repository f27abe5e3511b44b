//! Distinct rules under small numbers.

use std::collections::HashMap;

use memwatch_common::unwind::{FIXED_RULES, MAX_RULES, RULE_UNSUPPORTED, Row, Rule};

use super::table::Table;

/// Gives every distinct rule a number. Numbers are given in order and never change or go away, so that the kernel's
/// copy only ever grows.
#[derive(Clone, Debug)]
pub struct Interner {
    rules: Vec<Rule>,
    numbers: HashMap<Rule, u16>,
    refused: u64,
}

impl Default for Interner {
    fn default() -> Self {
        Self::new()
    }
}

impl Interner {
    /// Has the fixed rules only.
    pub fn new() -> Self {
        Self {
            rules: FIXED_RULES.to_vec(),
            numbers: FIXED_RULES.into_iter().zip(0..).collect(),
            refused: 0,
        }
    }

    /// The rule's number, or none when there are [`MAX_RULES`] others already.
    pub fn intern(&mut self, rule: Rule) -> Option<u16> {
        if let Some(&number) = self.numbers.get(&rule) {
            return Some(number);
        }
        let number = u16::try_from(self.rules.len())
            .ok()
            .filter(|&number| usize::from(number) < MAX_RULES);
        let Some(number) = number else {
            self.refused += 1;
            return None;
        };
        self.rules.push(rule);
        self.numbers.insert(rule, number);
        Some(number)
    }

    /// All rules, by number. To update the kernel's copy after [`Self::translate`], write what is new at the end.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// How often a new rule found no room.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The rows of a table with the shared numbers in place of the table's own.
    pub fn translate(&mut self, table: &Table) -> Vec<Row> {
        let shared: Vec<u16> = table
            .rules
            .iter()
            .map(|&rule| self.intern(rule).unwrap_or(RULE_UNSUPPORTED))
            .collect();
        let number = |own: u16| shared.get(usize::from(own)).copied().unwrap_or(RULE_UNSUPPORTED);
        table
            .rows
            .iter()
            .map(|row| Row {
                pc_low: row.pc_low,
                rule: number(row.rule),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use memwatch_common::unwind::{RULE_ENTRY, RULE_FRAME_POINTER, RULE_NONE, x86_64::CFA_RSP};

    use super::*;

    #[test]
    fn equal_rules_share_a_number_and_numbers_stay() {
        let mut interner = Interner::new();
        let a = interner.intern(Rule::new(CFA_RSP, 8));
        let b = interner.intern(Rule::new(CFA_RSP, 16));
        assert_eq!((a, b), (Some(RULE_ENTRY), Some(4)));
        assert_eq!(interner.intern(Rule::new(CFA_RSP, 16)), b);
        assert_eq!(interner.intern(Rule::FRAME_POINTER), Some(RULE_FRAME_POINTER));
        assert_eq!(interner.intern(Rule::default()), Some(RULE_NONE));
        assert_eq!(interner.intern(Rule::UNSUPPORTED), Some(RULE_UNSUPPORTED));
        assert_eq!(interner.rules().len(), 5);
    }

    #[test]
    fn the_table_is_bounded_and_says_what_it_refused() {
        let mut interner = Interner::new();
        let given = (0..20_000)
            .filter_map(|n| interner.intern(Rule::new(CFA_RSP, n)))
            .count();
        // One of them, 8, has been there from the start.
        assert_eq!(given, MAX_RULES - FIXED_RULES.len() + 1);
        assert_eq!(interner.rules().len(), MAX_RULES);
        assert_eq!(interner.refused(), 20_000 - given as u64);
        assert_eq!(
            interner.intern(Rule::new(CFA_RSP, 5)),
            Some(9),
            "what is known stays known"
        );

        let table = Table {
            rules: vec![
                Rule::default(),
                Rule::UNSUPPORTED,
                Rule::new(CFA_RSP, 5),
                Rule::new(CFA_RSP, 30_000),
            ],
            rows: (0..4).map(|n| Row { pc_low: n, rule: n }).collect(),
            ..Table::default()
        };
        let rules: Vec<u16> = interner.translate(&table).iter().map(|row| row.rule).collect();
        assert_eq!(rules, [RULE_NONE, RULE_UNSUPPORTED, 9, RULE_UNSUPPORTED]);
    }
}
