//! One stack out of two: native frames, and the Python frames that some of them evaluate.
//!
//! Each native frame of the evaluating function stands for a run of Python frames: one up to 3.10, later as many as
//! were called without leaving it. The marks of the Python frames say where a run ends. Runs and native frames are
//! paired from the outermost inwards: the innermost evaluation may not have begun its first frame yet. Only where the
//! outer end of one of the stacks is missing they are paired from the innermost outwards.

use std::ops::Range;

use memwatch_common::python::{FRAME_ENTRY, FRAME_SHIM};

/// A frame of the merged stack, by its place in the list that it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    Native(usize),
    Python(usize),
}

/// The merged stack, innermost frame first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Evaluating native frames are replaced by the Python frames that they evaluate.
    pub frames: Vec<Frame>,
    /// Python frames that no native frame was found for. They stand at the outer end if one of the stacks is cut off,
    /// else at the inner.
    pub unpaired: usize,
}

/// What is missing at the outer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    pub native: bool,
    pub python: bool,
}

/// `evaluates` says of each native frame, `kinds` (`FRAME_*`) of each Python frame what it is; both innermost first.
pub fn merge(evaluates: &[bool], kinds: &[u8], whole: Whole) -> Merged {
    let evaluations: Vec<usize> = (0..evaluates.len()).filter(|&at| evaluates[at]).collect();
    let runs = runs(kinds);
    // How many runs are left over at the inner end, and how many evaluations.
    let (runs_first, evaluations_first) = if whole.native && whole.python {
        (
            runs.len().saturating_sub(evaluations.len()),
            evaluations.len().saturating_sub(runs.len()),
        )
    } else {
        (0, 0)
    };
    let mut merged = Merged::default();
    for run in &runs[..runs_first] {
        merged.add_unpaired(run, kinds);
    }
    let mut rest = runs[runs_first..].iter();
    let mut passed = 0;
    for (at, &evaluating) in evaluates.iter().enumerate() {
        if evaluating {
            passed += 1;
            if passed > evaluations_first
                && let Some(run) = rest.next()
            {
                merged.add(run, kinds);
                continue;
            }
        }
        merged.frames.push(Frame::Native(at));
    }
    for run in rest {
        merged.add_unpaired(run, kinds);
    }
    merged
}

impl Merged {
    fn add(&mut self, run: &Range<usize>, kinds: &[u8]) -> usize {
        let before = self.frames.len();
        let frames = run.clone().filter(|&at| kinds[at] != FRAME_SHIM);
        self.frames.extend(frames.map(Frame::Python));
        self.frames.len() - before
    }

    fn add_unpaired(&mut self, run: &Range<usize>, kinds: &[u8]) {
        self.unpaired += self.add(run, kinds);
    }
}

/// Python frames by evaluation. A run that is nothing but a shim is an evaluation that has not begun its first frame;
/// a shim right outside of another is the one that lies at the bottom of every thread since 3.15, and none.
fn runs(kinds: &[u8]) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut start = 0;
    for (at, &kind) in kinds.iter().enumerate() {
        let shim = kind == FRAME_SHIM;
        if shim && start == at && at > 0 {
            start = at + 1;
        } else if shim || kind == FRAME_ENTRY {
            runs.push(start..at + 1);
            start = at + 1;
        }
    }
    if start < kinds.len() {
        runs.push(start..kinds.len());
    }
    runs
}

#[cfg(test)]
mod tests {
    use memwatch_common::python::FRAME_INNER;
    use proptest::prelude::*;

    use super::*;

    const WHOLE: Whole = Whole {
        native: true,
        python: true,
    };

    /// `e`: evaluates, any other letter: another native frame. `i`, `e`, `s`: kinds of Python frames.
    fn merged(native: &str, python: &str, whole: Whole) -> String {
        let evaluates: Vec<bool> = native.chars().map(|frame| frame == 'e').collect();
        let kinds: Vec<u8> = python
            .chars()
            .map(|kind| match kind {
                'e' => FRAME_ENTRY,
                's' => FRAME_SHIM,
                _ => FRAME_INNER,
            })
            .collect();
        let merged = merge(&evaluates, &kinds, whole);
        let mut text: Vec<String> = merged
            .frames
            .iter()
            .map(|frame| match frame {
                Frame::Native(at) => native.chars().nth(*at).unwrap().to_string(),
                Frame::Python(at) => at.to_string(),
            })
            .collect();
        if merged.unpaired > 0 {
            text.push(format!("unpaired={}", merged.unpaired));
        }
        text.join(" ")
    }

    #[test]
    fn up_to_3_10_each_frame_is_one_evaluation() {
        assert_eq!(merged("mcefceem", "eee", WHOLE), "m c 0 f c 1 2 m");
    }

    #[test]
    fn in_3_11_a_flag_marks_the_outermost_of_a_run() {
        assert_eq!(merged("mefcem", "iieie", WHOLE), "m 0 1 2 f c 3 4 m");
    }

    #[test]
    fn from_3_12_on_a_shim_stands_outside_of_a_run() {
        assert_eq!(merged("mefcem", "iisis", WHOLE), "m 0 1 f c 3 m");
    }

    #[test]
    fn an_evaluation_may_have_no_frame_yet() {
        // 3.12 on: its shim is there.
        assert_eq!(merged("mefcem", "sis", WHOLE), "m f c 1 m");
        // Before: nothing is.
        assert_eq!(merged("mefcem", "ie", WHOLE), "m e f c 0 1 m");
    }

    #[test]
    fn the_shim_at_the_bottom_of_a_thread_is_no_evaluation() {
        assert_eq!(merged("mefcem", "iisiss", WHOLE), "m 0 1 f c 3 m");
        assert_eq!(merged("mefcem", "siss", WHOLE), "m f c 1 m");
        assert_eq!(merged("mm", "s", WHOLE), "m m");
    }

    #[test]
    fn cut_off_stacks_are_paired_from_the_inner_end() {
        let cut = |native, python| Whole { native, python };
        assert_eq!(merged("mef", "iisis", cut(false, true)), "m 0 1 f 3 unpaired=1");
        assert_eq!(merged("mefcem", "iisi", cut(true, false)), "m 0 1 f c 3 m");
        assert_eq!(merged("mefcem", "i", cut(true, false)), "m 0 f c e m");
    }

    #[test]
    fn frames_without_an_evaluation_are_counted_not_lost() {
        assert_eq!(merged("mem", "eie", WHOLE), "0 m 1 2 m unpaired=1");
        assert_eq!(merged("m", "ie", WHOLE), "0 1 m unpaired=2");
    }

    proptest! {
        #[test]
        fn each_frame_is_there_once_and_in_order(
            native in proptest::collection::vec(any::<bool>(), 0..20),
            python in proptest::collection::vec(0_u8..4, 0..20), a: bool, b: bool,
        ) {
            let merged = merge(&native, &python, Whole { native: a, python: b });
            let places = |of: fn(&Frame) -> Option<usize>| merged.frames.iter().filter_map(of).collect::<Vec<_>>();
            let natives = places(|frame| if let Frame::Native(at) = frame { Some(*at) } else { None });
            let pythons = places(|frame| if let Frame::Python(at) = frame { Some(*at) } else { None });
            prop_assert!(natives.is_sorted_by(|a, b| a < b) && pythons.is_sorted_by(|a, b| a < b));
            let others = (0..native.len()).filter(|&at| !native[at]);
            prop_assert!(others.into_iter().all(|at| natives.contains(&at)));
            let real = (0..python.len()).filter(|&at| python[at] != FRAME_SHIM).collect::<Vec<_>>();
            prop_assert_eq!(pythons, real);
        }
    }
}
