//! The processes that are or were watched, by instance number.

use std::collections::{BTreeMap, BTreeSet};

use memwatch_common::{Domain, ProcessState};

use serde::{Deserialize, Serialize};

use super::counts::Counts;
use super::exit::Exit;
use super::report::{Container, Inherited, Pod, Runtime, Totals};

/// Ended instances kept before the oldest are let go: a day of a build machine's short-lived children fits
/// into a few megabytes.
pub const MAX_ENDED: usize = 1024;

/// What `/proc` and the container runtime tell of a process; found out by the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessFacts {
    pub ppid: Option<u32>,
    /// RFC 3339.
    pub start_time: Option<String>,
    pub comm: String,
    pub exe: Option<String>,
    pub cmdline: Vec<String>,
    pub cgroup: Option<String>,
    pub container: Option<Container>,
    pub pod: Option<Pod>,
    pub runtimes: Vec<Runtime>,
    pub rss_bytes: Option<u64>,
    pub peak_rss_bytes: Option<u64>,
}

/// One program under one pid: a fork and an exec each begin a new one.
#[derive(Clone, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four things that are true of a process or not, each by itself"
)]
pub struct Instance {
    pub pid: Option<u32>,
    /// The instance it was forked from or that it replaced.
    pub parent: Option<u32>,
    pub facts: ProcessFacts,
    /// Whether the controller has described it; if not, a child goes by its parent's facts.
    pub described: bool,
    pub state: Option<ProcessState>,
    pub exited: bool,
    /// How it ended, where that is known.
    pub exit: Option<Exit>,
    /// Another program took its place.
    pub replaced: bool,
    /// Its small Python objects are counted where they are handed out; pools only tell what is in use of them.
    pub counts_small: bool,
    /// What was in pools when they were first looked at.
    pub from_before: Counts,
    /// Indexed by [`Domain`].
    pub counts: [Counts; Domain::ALL.len()],
}

impl Instance {
    pub const fn ended(&self) -> bool {
        self.exited || self.replaced
    }

    pub fn inherited(&self) -> Option<Inherited> {
        let state = self.state.as_ref().filter(|state| state.inherited_objects > 0)?;
        Some(Inherited {
            objects: state.inherited_objects,
            bytes: state.inherited_bytes,
            freed_objects: state.inherited_frees,
            freed_bytes: state.inherited_freed_bytes,
        })
    }

    /// What the kernel side counts by process and not by domain stands with `native`: the calls in question are
    /// those of the C allocator.
    pub fn native_totals(&self) -> Totals {
        let mut totals = totals(&self.counts[Domain::Native as usize]);
        if let Some(state) = &self.state {
            totals.untracked_frees = state.untracked_frees;
            totals.untracked_freed_bytes = (state.untracked_frees == 0 || state.untracked_freed_bytes > 0)
                .then_some(state.untracked_freed_bytes);
            totals.failed_allocations = state.failed_allocations;
        }
        totals
    }
}

pub fn totals(counts: &Counts) -> Totals {
    Totals {
        allocations: counts.alloc_objects,
        frees: counts.freed_objects,
        allocated_bytes: counts.alloc_bytes,
        freed_bytes: counts.freed_bytes,
        inuse_bytes: counts.inuse_bytes(),
        inuse_objects: counts.inuse_objects(),
        ..Totals::default()
    }
}

/// All instances, with a bound on those that have ended.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    instances: BTreeMap<u32, Instance>,
    /// In the order in which they ended.
    ended: BTreeSet<(u64, u32)>,
    next_end: u64,
    /// Let go: what the kernel side may still tell of them is not to bring them back.
    forgotten: BTreeSet<u32>,
}

impl Processes {
    pub fn get(&self, instance: u32) -> Option<&Instance> {
        self.instances.get(&instance)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Instance)> {
        self.instances
            .iter()
            .map(|(number, instance)| (*number, instance))
    }

    pub fn is_forgotten(&self, instance: u32) -> bool {
        self.forgotten.contains(&instance)
    }

    /// None for an instance that was let go.
    pub fn entry(&mut self, instance: u32) -> Option<&mut Instance> {
        if self.forgotten.contains(&instance) {
            return None;
        }
        Some(self.instances.entry(instance).or_default())
    }

    /// What `/proc` tells is told of a pid, so the controller may have it before any event has come.
    pub fn describe(&mut self, instance: u32, facts: ProcessFacts) {
        if let Some(entry) = self.entry(instance) {
            entry.facts = facts;
            entry.described = true;
        }
    }

    pub fn fork(&mut self, child: u32, child_pid: u32, parent: u32, parent_pid: u32) {
        let facts = self
            .instances
            .get(&parent)
            .map(|parent| parent.facts.clone())
            .unwrap_or_default();
        let Some(entry) = self.entry(child) else { return };
        entry.pid = Some(child_pid);
        entry.parent = Some(parent);
        if !entry.described {
            entry.facts = ProcessFacts {
                ppid: Some(parent_pid),
                start_time: None,
                rss_bytes: None,
                peak_rss_bytes: None,
                ..facts
            };
        }
    }

    pub fn exec(&mut self, new: u32, pid: u32, old: u32) {
        let before = self
            .instances
            .get(&old)
            .map(|old| old.facts.clone())
            .unwrap_or_default();
        if let Some(entry) = self.entry(new) {
            entry.pid = Some(pid);
            entry.parent = Some(old);
            if !entry.described {
                // The program is another one; where it runs is not.
                entry.facts = ProcessFacts {
                    ppid: before.ppid,
                    cgroup: before.cgroup,
                    container: before.container,
                    pod: before.pod,
                    comm: before.comm,
                    ..ProcessFacts::default()
                };
            }
        }
        if self.end(old) {
            // Also when it was missing from the list of processes before this event came: it is the same process.
            self.instances
                .entry(old)
                .and_modify(|old| (old.replaced, old.exited) = (true, false));
        }
    }

    pub fn exit(&mut self, instance: u32, exit: Option<Exit>) {
        if self.end(instance) {
            self.instances.entry(instance).and_modify(|entry| {
                entry.exited = !entry.replaced;
                entry.exit = entry.exit.or(exit).filter(|_| entry.exited);
            });
        }
    }

    /// Puts in place what was saved of an instance; how much it allocated comes from its sites.
    pub fn restore(&mut self, number: u32, saved: Instance) {
        let ends = saved.ended();
        let Some(entry) = self.entry(number) else { return };
        let (counts, counts_small, had_ended) = (entry.counts, entry.counts_small, entry.ended());
        let from_before = entry.from_before;
        *entry = Instance {
            counts_small,
            from_before,
            counts,
            ..saved
        };
        if ends && !had_ended {
            self.ended.insert((self.next_end, number));
            self.next_end += 1;
        }
    }

    /// Takes instances out for good.
    pub fn remove(&mut self, gone: &BTreeSet<u32>) {
        self.instances.retain(|number, _| !gone.contains(number));
        self.ended.retain(|(_, number)| !gone.contains(number));
        self.forgotten.extend(gone);
    }

    /// False when there is no such instance.
    fn end(&mut self, instance: u32) -> bool {
        let Some(entry) = self.instances.get(&instance) else {
            return false;
        };
        if !entry.ended() {
            self.ended.insert((self.next_end, instance));
            self.next_end += 1;
        }
        true
    }

    /// Those that were there in an earlier tick and are gone: their exit event was lost.
    pub fn end_missing(&mut self, alive: &BTreeSet<u32>) {
        let missing = |(number, instance): (&u32, &Instance)| {
            (instance.state.is_some() && !instance.ended() && !alive.contains(number)).then_some(*number)
        };
        let gone: Vec<u32> = self.instances.iter().filter_map(missing).collect();
        for instance in gone {
            self.exit(instance, None);
        }
    }

    /// Lets the longest ended go, down to `keep` of them.
    pub fn forget(&mut self, keep: usize) -> Vec<u32> {
        let mut gone = Vec::new();
        while self.ended.len() > keep {
            let Some((_, instance)) = self.ended.pop_first() else {
                break;
            };
            self.instances.remove(&instance);
            self.forgotten.insert(instance);
            gone.push(instance);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(comm: &str) -> ProcessFacts {
        ProcessFacts {
            comm: comm.into(),
            rss_bytes: Some(1),
            ppid: Some(1),
            ..ProcessFacts::default()
        }
    }

    #[test]
    fn a_child_goes_by_its_parents_facts_until_it_is_described() {
        let mut processes = Processes::default();
        processes.describe(1, facts("server"));
        processes.fork(2, 200, 1, 100);
        let child = processes.get(2).unwrap();
        assert_eq!((child.pid, child.parent), (Some(200), Some(1)));
        assert_eq!(
            (child.facts.comm.as_str(), child.facts.ppid),
            ("server", Some(100))
        );
        assert_eq!(child.facts.rss_bytes, None);
        processes.describe(2, facts("worker"));
        processes.fork(2, 200, 1, 100);
        assert_eq!(processes.get(2).unwrap().facts.comm, "worker");
    }

    #[test]
    fn what_was_saved_of_a_process_is_put_back() {
        let mut processes = Processes::default();
        let saved = Instance {
            pid: Some(100),
            exited: true,
            ..Instance::default()
        };
        processes.restore(1, saved.clone());
        processes.restore(1, saved.clone());
        assert_eq!(processes.ended.len(), 1);
        processes.remove(&BTreeSet::from([1]));
        processes.restore(1, saved);
        assert!(processes.get(1).is_none() && processes.ended.is_empty());
    }

    #[test]
    fn exec_ends_the_old_program_and_not_the_process() {
        let mut processes = Processes::default();
        processes.describe(1, facts("sh"));
        processes.exec(2, 100, 1);
        let old = processes.get(1).unwrap();
        assert!(old.replaced && !old.exited);
        assert_eq!(processes.get(2).unwrap().facts.exe, None);
        processes.exit(1, None);
        assert!(!processes.get(1).unwrap().exited);
    }

    #[test]
    fn an_exec_that_is_told_late_is_no_exit() {
        let mut processes = Processes::default();
        processes.entry(1).unwrap().state = Some(ProcessState::new(1, 0));
        processes.end_missing(&BTreeSet::new());
        assert!(processes.get(1).unwrap().exited);
        processes.exec(2, 100, 1);
        assert!(processes.get(1).unwrap().replaced && !processes.get(1).unwrap().exited);
        assert_eq!(processes.forget(0), [1]);
    }

    #[test]
    fn a_process_whose_exit_was_not_told_is_missed() {
        let mut processes = Processes::default();
        for number in 1..=3 {
            processes.entry(number).unwrap().state = (number < 3).then(|| ProcessState::new(number, 0));
        }
        processes.end_missing(&BTreeSet::from([1]));
        let ended: Vec<u32> = processes
            .iter()
            .filter(|(_, i)| i.exited)
            .map(|(n, _)| n)
            .collect();
        assert_eq!(ended, [2]);
    }

    #[test]
    fn the_longest_ended_are_let_go_and_do_not_come_back() {
        let mut processes = Processes::default();
        for number in 1..=5 {
            processes.entry(number);
        }
        for number in [4, 2, 5] {
            processes.exit(number, None);
        }
        assert_eq!(processes.forget(1), [4, 2]);
        assert!(processes.entry(4).is_none() && processes.is_forgotten(2));
        assert_eq!(processes.iter().map(|(n, _)| n).collect::<Vec<_>>(), [1, 3, 5]);
    }

    #[test]
    fn sizes_of_untracked_frees_are_unknown_unless_the_allocator_tells() {
        let mut instance = Instance {
            state: Some(ProcessState::new(1, 0)),
            ..Instance::default()
        };
        assert_eq!(instance.native_totals().untracked_freed_bytes, Some(0));
        instance.state = Some(ProcessState {
            untracked_frees: 3,
            ..ProcessState::new(1, 0)
        });
        assert_eq!(instance.native_totals().untracked_freed_bytes, None);
        assert_eq!(instance.native_totals().untracked_frees, 3);
    }
}
