//! What the model asks of symbolization: the names of a stack of a process.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::report::Frame;

/// A stack with names, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedStack {
    /// Innermost first; functions that were inlined stand before the one they were inlined into.
    pub frames: Vec<Arc<Frame>>,
    /// The stack was cut or broke before its end, or is not known at all.
    pub truncated: bool,
    /// Some frames have no name yet and may have one the next time.
    pub raw: bool,
}

pub trait StackNames {
    fn stack(&mut self, instance: u32, stack_hash: u64) -> Arc<NamedStack>;
}

/// Names from a table: for tests, and for data that was saved with its names.
#[derive(Clone, Debug, Default)]
pub struct StackTable {
    stacks: HashMap<(u32, u64), Arc<NamedStack>>,
    unknown: Arc<NamedStack>,
}

impl StackTable {
    pub fn new() -> Self {
        let unknown = Arc::new(NamedStack {
            truncated: true,
            ..NamedStack::default()
        });
        Self {
            stacks: HashMap::new(),
            unknown,
        }
    }

    pub fn insert(&mut self, instance: u32, stack_hash: u64, stack: NamedStack) {
        self.stacks.insert((instance, stack_hash), Arc::new(stack));
    }
}

impl StackNames for StackTable {
    fn stack(&mut self, instance: u32, stack_hash: u64) -> Arc<NamedStack> {
        Arc::clone(self.stacks.get(&(instance, stack_hash)).unwrap_or(&self.unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_that_is_not_in_the_table_is_truncated_to_nothing() {
        let mut table = StackTable::new();
        table.insert(1, 2, NamedStack::default());
        assert!(!table.stack(1, 2).truncated);
        assert!(table.stack(2, 2).truncated && table.stack(2, 2).frames.is_empty());
    }
}
