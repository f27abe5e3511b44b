//! Whose rows make room for others'.

use std::cmp::Reverse;

/// A file whose rows are in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub number: u32,
    pub blocks: u32,
    pub pages: u32,
    /// Some watched process has it mapped.
    pub mapped: bool,
    /// How often its rows were looked for lately.
    pub score: u64,
}

/// What has to become free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    pub blocks: u32,
    pub pages: u32,
}

/// Who goes, so that a file of the given score has room: first what no process maps, then what is looked for least. None
/// when that does not suffice: what is mapped goes only for what is looked for more than twice as often, so that two
/// files do not drive each other out by turns.
pub(super) fn victims(candidates: &[Candidate], need: Need, score: u64) -> Option<Vec<u32>> {
    let mut sorted: Vec<&Candidate> = candidates.iter().collect();
    sorted.sort_by_key(|candidate| {
        (
            candidate.mapped,
            candidate.score,
            Reverse(candidate.blocks),
            candidate.number,
        )
    });
    let mut chosen: Vec<&Candidate> = Vec::new();
    let mut free = Need::default();
    let enough = |free: Need| free.blocks >= need.blocks && free.pages >= need.pages;
    for candidate in sorted {
        if enough(free) {
            break;
        }
        if candidate.mapped && candidate.score.saturating_mul(2) >= score {
            break;
        }
        free = add(free, candidate);
        chosen.push(candidate);
    }
    if !enough(free) {
        return None;
    }
    // Small ones at the beginning may not be needed any more beside a large one at the end. The most useful stays first.
    for at in (0..chosen.len()).rev() {
        let without = subtract(free, chosen[at]);
        if enough(without) {
            free = without;
            chosen.remove(at);
        }
    }
    Some(chosen.iter().map(|candidate| candidate.number).collect())
}

/// The pages of a mapped file stay, without rows.
const fn pages(candidate: &Candidate) -> u32 {
    if candidate.mapped { 0 } else { candidate.pages }
}

const fn add(free: Need, candidate: &Candidate) -> Need {
    Need {
        blocks: free.blocks + candidate.blocks,
        pages: free.pages + pages(candidate),
    }
}

const fn subtract(free: Need, candidate: &Candidate) -> Need {
    Need {
        blocks: free.blocks - candidate.blocks,
        pages: free.pages - pages(candidate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn candidate(number: u32, blocks: u32, mapped: bool, score: u64) -> Candidate {
        Candidate {
            number,
            blocks,
            pages: blocks,
            mapped,
            score,
        }
    }

    const fn blocks(blocks: u32) -> Need {
        Need { blocks, pages: 0 }
    }

    #[test]
    fn what_nobody_maps_goes_before_what_is_never_looked_for() {
        let all = [
            candidate(1, 5, true, 0),
            candidate(2, 5, false, 900),
            candidate(3, 5, false, 7),
        ];
        assert_eq!(victims(&all, blocks(0), 0), Some(vec![]));
        assert_eq!(victims(&all, blocks(5), 0), Some(vec![3]));
        assert_eq!(victims(&all, blocks(6), 0), Some(vec![3, 2]));
        assert_eq!(
            victims(&all, blocks(11), 0),
            None,
            "nothing is known of the newcomer"
        );
        assert_eq!(victims(&all, blocks(11), 1), Some(vec![3, 2, 1]));
        assert_eq!(victims(&all, blocks(16), 1), None);
    }

    #[test]
    fn mapped_files_go_by_how_often_they_are_looked_for() {
        let all = [
            candidate(1, 2, true, 10),
            candidate(2, 2, true, 3),
            candidate(3, 2, true, 100),
        ];
        assert_eq!(victims(&all, blocks(2), 6), None, "not more than twice as often");
        assert_eq!(victims(&all, blocks(2), 7), Some(vec![2]));
        assert_eq!(victims(&all, blocks(4), 20), None);
        assert_eq!(victims(&all, blocks(4), 21), Some(vec![2, 1]));
    }

    #[test]
    fn nobody_goes_in_vain() {
        let all = [
            candidate(1, 1, true, 0),
            candidate(2, 2, true, 1),
            candidate(3, 9, true, 2),
        ];
        assert_eq!(victims(&all, blocks(8), 50), Some(vec![3]));
        assert_eq!(victims(&all, blocks(10), 50), Some(vec![1, 3]));
    }

    #[test]
    fn only_unmapped_files_give_pages() {
        let all = [candidate(1, 5, true, 0), candidate(2, 5, false, 9)];
        let pages = |pages| Need { blocks: 0, pages };
        assert_eq!(victims(&all, pages(5), 9), Some(vec![2]));
        assert_eq!(victims(&all, pages(6), 9), None);
    }
}
