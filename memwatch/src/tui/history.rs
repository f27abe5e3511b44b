//! The course of the resident memory, kept in bounded room.

use std::collections::{BTreeMap, VecDeque};

use crate::model::report::Process;

/// Most samples kept of one course: more than the widest screen has columns.
const SAMPLES: usize = 512;
/// Most processes of which a course of their own is kept.
const PROCESSES: usize = 256;

/// The last samples of one number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course(VecDeque<u64>);

impl Course {
    fn push(&mut self, value: u64) {
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// The last `most` samples, oldest first.
    pub fn last(&self, most: usize) -> impl Iterator<Item = u64> {
        self.0.iter().skip(self.0.len().saturating_sub(most)).copied()
    }
}

/// Resident memory of the target as a whole and of each of its processes, one sample a tick.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub total: Course,
    processes: BTreeMap<u32, Course>,
}

impl History {
    /// A process whose size is not known (any more) adds nothing; one that left the report is forgotten.
    pub fn push(&mut self, processes: &[Process]) {
        let living = || processes.iter().filter(|process| is_living(process));
        if let Some(total) = sum(living().map(|process| process.rss_bytes)) {
            self.total.push(total);
        }
        self.processes
            .retain(|pid, _| processes.iter().any(|process| process.pid == *pid));
        for process in living() {
            let Some(rss) = process.rss_bytes else { continue };
            if self.processes.len() < PROCESSES || self.processes.contains_key(&process.pid) {
                self.processes.entry(process.pid).or_default().push(rss);
            }
        }
    }

    pub fn set_total(&mut self, samples: impl Iterator<Item = u64>) {
        self.total = Course::default();
        for sample in samples {
            self.total.push(sample);
        }
    }

    pub fn process(&self, pid: u32) -> Option<&Course> {
        self.processes.get(&pid)
    }
}

pub fn is_living(process: &Process) -> bool {
    !process.exited && !process.replaced
}

/// The sum of what is known; nothing when nothing is known.
pub fn sum(values: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    values.flatten().fold(None, |sum, value| {
        Some(sum.unwrap_or(0_u64).saturating_add(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, rss_bytes: Option<u64>, exited: bool) -> Process {
        Process {
            pid,
            rss_bytes,
            exited,
            ..Process::default()
        }
    }

    #[test]
    fn the_total_counts_living_processes_of_known_size_only() {
        let mut history = History::default();
        history.push(&[
            process(1, Some(10), false),
            process(2, Some(5), true),
            process(3, None, false),
        ]);
        history.push(&[process(2, Some(5), true)]);
        history.push(&[process(1, Some(12), false)]);
        assert_eq!(history.total.last(9).collect::<Vec<_>>(), [10, 12]);
        assert_eq!(
            history.process(1).map(|course| course.last(9).collect()),
            Some(vec![12])
        );
        assert_eq!(history.process(2), None);
    }

    #[test]
    fn memory_of_the_past_is_bounded() {
        let mut history = History::default();
        for rss in 0..2000 {
            history.push(&[process(1, Some(rss), false)]);
        }
        assert_eq!(history.total.last(usize::MAX).count(), SAMPLES);
        assert_eq!(history.total.last(2).collect::<Vec<_>>(), [1998, 1999]);
        let many: Vec<Process> = (0..1000).map(|pid| process(pid, Some(1), false)).collect();
        history.push(&many);
        assert_eq!(history.processes.len(), PROCESSES);
    }
}
