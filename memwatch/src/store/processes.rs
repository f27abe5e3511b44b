//! Processes: who they are as JSON, when that changes, and their numbers as differences.

use std::collections::HashMap;

use memwatch_common::ProcessState;
use serde::{Deserialize, Serialize};

use super::Bounds;
use super::section::Section;
use crate::model::exit::Exit;
use crate::model::mappings::Untracked;
use crate::model::processes::{Instance, ProcessFacts};
use crate::model::state::Model;
use crate::model::state::replay::Mapped;
use crate::numbers::Bad;
use crate::numbers::{Input, put, put_difference};

/// Who a process is.
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent facts, named in the file"
)]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Identity {
    instance: u32,
    pid: Option<u32>,
    parent: Option<u32>,
    /// Without the numbers that change all the time.
    facts: ProcessFacts,
    described: bool,
    exited: bool,
    exit: Option<Exit>,
    replaced: bool,
    /// Whether the kernel side told of it.
    state: bool,
}

/// In the order of the file; new ones are put at the end. Values that may be missing are one more than they are.
const NUMBERS: usize = 16;
type Numbers = [u64; NUMBERS];

fn plus_one(value: Option<u64>) -> u64 {
    value.map_or(0, |value| value.saturating_add(1))
}

fn numbers(instance: &Instance, mapped: &Mapped) -> Numbers {
    let state = instance.state.unwrap_or(ProcessState::new(0, 0));
    [
        plus_one(instance.facts.rss_bytes),
        plus_one(instance.facts.peak_rss_bytes),
        plus_one(mapped.allocator_bytes),
        mapped.untracked.calls,
        mapped.untracked.bytes,
        state.live_blocks,
        state.live_bytes,
        state.inherited_objects,
        state.inherited_bytes,
        state.inherited_frees,
        state.inherited_freed_bytes,
        state.untracked_frees,
        state.untracked_freed_bytes,
        state.failed_allocations,
        state.unaccounted_objects,
        state.unaccounted_bytes,
    ]
}

/// What was last written or read of one process.
#[derive(Clone, Debug, Default)]
struct Known {
    identity: Identity,
    numbers: Numbers,
}

impl Known {
    fn instance(&self) -> Instance {
        let [
            rss,
            peak,
            _,
            _,
            _,
            live_blocks,
            live_bytes,
            inherited_objects,
            inherited_bytes,
            inherited_frees,
            inherited_freed_bytes,
            untracked_frees,
            untracked_freed_bytes,
            failed_allocations,
            unaccounted_objects,
            unaccounted_bytes,
        ] = self.numbers;
        let identity = &self.identity;
        let state = ProcessState {
            live_blocks,
            live_bytes,
            inherited_objects,
            inherited_bytes,
            inherited_frees,
            inherited_freed_bytes,
            untracked_frees,
            untracked_freed_bytes,
            failed_allocations,
            unaccounted_objects,
            unaccounted_bytes,
            ..ProcessState::new(identity.instance, 0)
        };
        Instance {
            pid: identity.pid,
            parent: identity.parent,
            facts: ProcessFacts {
                rss_bytes: rss.checked_sub(1),
                peak_rss_bytes: peak.checked_sub(1),
                ..identity.facts.clone()
            },
            described: identity.described,
            state: identity.state.then_some(state),
            exited: identity.exited,
            exit: identity.exit,
            replaced: identity.replaced,
            ..Instance::default()
        }
    }

    fn mapped(&self) -> Mapped {
        let [_, _, allocator, calls, bytes, ..] = self.numbers;
        Mapped {
            allocator_bytes: allocator.checked_sub(1),
            untracked: Untracked { calls, bytes },
        }
    }
}

/// All processes as the file has them so far. Both sides keep one.
#[derive(Clone, Debug, Default)]
pub(super) struct Processes {
    known: HashMap<u32, Known>,
}

impl Processes {
    /// Writes what changed; gives the instances that the model let go.
    pub fn write(&mut self, model: &Model, out: &mut Vec<u8>) -> Result<Vec<u32>, serde_json::Error> {
        let (mut identities, mut changed) = (Vec::new(), Vec::new());
        for (number, instance) in model.processes().iter() {
            let now = Known {
                identity: identity(number, instance),
                numbers: numbers(
                    instance,
                    &Mapped {
                        allocator_bytes: model.allocator_mapped_bytes(number),
                        untracked: model.untracked_unmaps(number),
                    },
                ),
            };
            let is_new = !self.known.contains_key(&number);
            let before = self.known.entry(number).or_default();
            if is_new || before.identity != now.identity {
                identities.push(now.identity.clone());
            }
            if before.numbers != now.numbers {
                put_numbers(&mut changed, number, &now.numbers, &before.numbers);
            }
            *before = now;
        }
        if !identities.is_empty() {
            Section::Processes.put(out, &serde_json::to_vec(&identities)?);
        }
        Section::ProcessNumbers.put(out, &changed);
        Ok(self.write_forgotten(model, out))
    }

    fn write_forgotten(&mut self, model: &Model, out: &mut Vec<u8>) -> Vec<u32> {
        let is_gone = |number: &&u32| model.processes().get(**number).is_none();
        let mut gone: Vec<u32> = self.known.keys().filter(is_gone).copied().collect();
        gone.sort_unstable();
        let mut bytes = Vec::new();
        for number in &gone {
            self.known.remove(number);
            put(&mut bytes, u64::from(*number));
        }
        Section::Forgotten.put(out, &bytes);
        gone
    }

    /// The instances that are told of.
    pub fn read_identities(&mut self, bytes: &[u8], bounds: &Bounds) -> Result<Vec<u32>, Bad> {
        let identities: Vec<Identity> =
            serde_json::from_slice(bytes).map_err(|_| Bad("the list of processes cannot be read"))?;
        let mut told = Vec::new();
        for identity in identities {
            told.push(identity.instance);
            let known = self.known.entry(identity.instance).or_default();
            known.identity = identity;
        }
        if self.known.len() > bounds.processes {
            return Err(Bad("it has more processes than a recording can"));
        }
        Ok(told)
    }

    pub fn read_numbers(&mut self, bytes: &[u8]) -> Result<Vec<u32>, Bad> {
        let mut input = Input::new(bytes);
        let mut told = Vec::new();
        while !input.is_empty() {
            let number = input.small()?;
            let Some(known) = self.known.get_mut(&number) else {
                return Err(Bad("a process has numbers and no name"));
            };
            let mask = input.number()?;
            for (index, value) in known.numbers.iter_mut().enumerate() {
                if mask & (1 << index) != 0 {
                    *value = input.difference(*value)?;
                }
            }
            // Numbers that a later version added.
            for _ in 0..(mask >> NUMBERS).count_ones() {
                input.number()?;
            }
            told.push(number);
        }
        Ok(told)
    }

    pub fn read_forgotten(&mut self, bytes: &[u8]) -> Result<Vec<u32>, Bad> {
        let mut input = Input::new(bytes);
        let mut gone = Vec::new();
        while !input.is_empty() {
            let number = input.small()?;
            self.known.remove(&number);
            gone.push(number);
        }
        Ok(gone)
    }

    pub fn get(&self, number: u32) -> Option<(Instance, Mapped)> {
        let known = self.known.get(&number)?;
        Some((known.instance(), known.mapped()))
    }
}

fn identity(number: u32, instance: &Instance) -> Identity {
    Identity {
        instance: number,
        pid: instance.pid,
        parent: instance.parent,
        facts: ProcessFacts {
            rss_bytes: None,
            peak_rss_bytes: None,
            ..instance.facts.clone()
        },
        described: instance.described,
        exited: instance.exited,
        exit: instance.exit,
        replaced: instance.replaced,
        state: instance.state.is_some(),
    }
}

fn put_numbers(out: &mut Vec<u8>, number: u32, now: &Numbers, before: &Numbers) {
    put(out, u64::from(number));
    let differs = |index: &usize| now[*index] != before[*index];
    let mask = (0..NUMBERS).filter(differs).map(|index| 1_u64 << index).sum();
    put(out, mask);
    for index in (0..NUMBERS).filter(differs) {
        put_difference(out, now[index], before[index]);
    }
}
