//! What is different in two recordings: of two runs, two machines, or two versions of a program.
//!
//! Instance numbers, pids and addresses mean nothing across recordings. So the processes of both are paired first, then in
//! each pair the stacks: by build id and address where these are the same, else by function, file and line. What only the
//! older one has is added to the newer one's model with nothing left of it. From there on it is a difference like any
//! other, with all groupings, filters and orders.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use memwatch_common::Domain;

use super::Moment;
use crate::model::counts::{Counting, Counts, SiteId};
use crate::model::group::QueryError;
use crate::model::label::base_name;
use crate::model::mappings::MappingKind;
use crate::model::processes::Instance;
use crate::model::query::Query;
use crate::model::report::{Frame, FrameKind, Kind, Report};
use crate::model::state::{Baseline, Model, Site};
use crate::symbolize::names::{NamedStack, StackNames};

/// The state of `new` with its differences to `old`. The model of `new` is not that of one recording any more then.
pub fn compare(old: &mut Moment<'_>, new: &mut Moment<'_>, query: &Query) -> Result<Report, QueryError> {
    let pairs = pair_processes(old.model, new.model);
    let numbers = Numbers::new(&pairs, new.model);
    let old_sites = sites(
        old.model,
        |instance| numbers.of(instance),
        |id| old.names.stack(id.instance, id.stack),
    );
    let new_sites = sites(
        new.model,
        |instance| instance,
        |id| new.names.stack(id.instance, id.stack),
    );
    let mut paired = pair_sites(&old_sites, &new_sites);
    let mut counts: HashMap<SiteId, Counts> = HashMap::new();
    let mut gone = Vec::new();
    for site in &old_sites {
        let id = paired.remove(&site.id).unwrap_or_else(|| {
            let id = free_id(new.model, site);
            new.model
                .add_gone(id, old.model.processes().get(site.id.instance));
            gone.push((id, site.id));
            id
        });
        *counts.entry(id).or_default() += site.counts;
    }
    let baseline = Baseline::of(old.model.at_ns(), counts);
    let stacks = gone.iter().map(|(id, old_id)| {
        let stack = old.names.stack(old_id.instance, old_id.stack);
        ((id.instance, id.stack), stack)
    });
    let gone = stacks.collect();
    new.report_with(query, Kind::Diff, Some(&baseline), &gone)
}

/// A site of either recording, under the instance numbers of the newer.
struct Place {
    id: SiteId,
    /// Its instance in the newer recording.
    instance: u32,
    counts: Counts,
    /// Its stack, to the same address, and to the same line.
    exact: u64,
    named: u64,
}

impl Place {
    fn group(&self) -> (u32, Domain, Option<MappingKind>, Counting) {
        (self.instance, self.id.domain, self.id.mapping, self.id.counting)
    }
}

fn sites(
    model: &Model,
    instance: impl Fn(u32) -> u32,
    mut stack: impl FnMut(&SiteId) -> Arc<NamedStack>,
) -> Vec<Place> {
    let place = |(id, site): (&SiteId, &Site)| {
        // Only what identifies it is kept: all names of a large recording would take a hundred times the room.
        let stack = stack(id);
        Place {
            id: *id,
            instance: instance(id.instance),
            counts: Counts::from(&site.totals),
            exact: identity(&stack, true),
            named: identity(&stack, false),
        }
    };
    let mut places: Vec<Place> = model.sites().map(place).collect();
    places.sort_unstable_by_key(|place| place.id);
    places
}

/// Whether the second goes on with what the first did.
type Rule = fn(&Instance, &Instance) -> bool;

/// Old instances and the new ones that go on with what they did.
fn pair_processes(old: &Model, new: &Model) -> BTreeMap<u32, u32> {
    let mut pairs = BTreeMap::new();
    let mut taken = HashSet::new();
    // The same process, recorded twice, comes first; then the same program, in the order in which they were seen.
    let same_process = |a: &Instance, b: &Instance| {
        a.pid.is_some()
            && a.pid == b.pid
            && a.facts.start_time.is_some()
            && a.facts.start_time == b.facts.start_time
            && a.facts.exe == b.facts.exe
    };
    let same_command =
        |a: &Instance, b: &Instance| a.facts.comm == b.facts.comm && a.facts.cmdline == b.facts.cmdline;
    let same_name = |a: &Instance, b: &Instance| a.facts.comm == b.facts.comm;
    let rules: [Rule; 3] = [same_process, same_command, same_name];
    for rule in rules {
        for (number, instance) in old.processes().iter() {
            if pairs.contains_key(&number) {
                continue;
            }
            let found = new
                .processes()
                .iter()
                .find(|(candidate, other)| !taken.contains(candidate) && rule(instance, other));
            if let Some((candidate, _)) = found {
                pairs.insert(number, candidate);
                taken.insert(candidate);
            }
        }
    }
    // One program each, renamed or moved: who else should it be?
    if let ([(number, _)], [(candidate, _)]) = (
        &old.processes().iter().collect::<Vec<_>>()[..],
        &new.processes().iter().collect::<Vec<_>>()[..],
    ) {
        pairs.insert(*number, *candidate);
    }
    pairs
}

/// The numbers of old instances in the newer recording; those without a pair get new ones.
struct Numbers {
    numbers: BTreeMap<u32, u32>,
    next: u32,
}

impl Numbers {
    fn new(pairs: &BTreeMap<u32, u32>, new: &Model) -> Self {
        let used = new.processes().iter().map(|(number, _)| number);
        let used = used.chain(new.sites().map(|(id, _)| id.instance));
        Self {
            numbers: pairs.clone(),
            next: used.max().unwrap_or(0).saturating_add(1),
        }
    }

    fn of(&self, old: u32) -> u32 {
        let unpaired = self.next.wrapping_add(old);
        self.numbers.get(&old).copied().unwrap_or(unpaired)
    }
}

/// Each old site's new one.
fn pair_sites(old: &[Place], new: &[Place]) -> HashMap<SiteId, SiteId> {
    let mut pairs = HashMap::new();
    let mut taken = HashSet::new();
    for exact in [true, false] {
        let mut free: HashMap<_, VecDeque<SiteId>> = HashMap::new();
        let mut first: HashMap<_, SiteId> = HashMap::new();
        for place in new {
            let key = (place.group(), if exact { place.exact } else { place.named });
            first.entry(key).or_insert(place.id);
            if !taken.contains(&place.id) {
                free.entry(key).or_default().push_back(place.id);
            }
        }
        for place in old {
            if pairs.contains_key(&place.id) {
                continue;
            }
            let key = (place.group(), if exact { place.exact } else { place.named });
            let next = free.get_mut(&key).and_then(VecDeque::pop_front);
            // Several that cannot be told apart are one.
            if let Some(id) = next.or_else(|| first.get(&key).copied()) {
                pairs.insert(place.id, id);
                taken.insert(id);
            }
        }
    }
    pairs
}

/// What makes two stacks of different recordings the same, as a number.
fn identity(stack: &NamedStack, exact: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    for frame in &stack.frames {
        FrameIdentity::new(frame, exact).hash(&mut hasher);
    }
    hasher.finish()
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum FrameIdentity<'a> {
    /// The same instruction of the same file. Functions that were inlined share an address.
    Place(&'a str, u64, Option<&'a str>),
    /// The same line of the same function.
    Name(FrameKind, &'a str, Option<&'a str>, Option<u32>),
    /// Nothing better is known than the file it is in.
    Unnamed(Option<&'a str>, Option<u64>),
}

impl<'a> FrameIdentity<'a> {
    fn new(frame: &'a Frame, exact: bool) -> Self {
        if exact && let (Some(build_id), Some(address)) = (&frame.build_id, frame.address) {
            return Self::Place(build_id, address, frame.function.as_deref());
        }
        match &frame.function {
            Some(function) => Self::Name(frame.kind, function, frame.file.as_deref(), frame.line),
            None => Self::Unnamed(frame.module.as_deref().map(base_name), frame.address),
        }
    }
}

/// An id that the newer recording does not use.
fn free_id(new: &Model, place: &Place) -> SiteId {
    let mut id = SiteId {
        instance: place.instance,
        ..place.id
    };
    while new.site(&id).is_some() {
        id.stack = id.stack.wrapping_add(1);
    }
    id
}

/// Names of the newer recording, and of what only the older one has.
pub(super) struct WithGone<'a> {
    pub names: &'a mut dyn StackNames,
    pub gone: &'a HashMap<(u32, u64), Arc<NamedStack>>,
}

impl StackNames for WithGone<'_> {
    fn stack(&mut self, instance: u32, stack_hash: u64) -> Arc<NamedStack> {
        match self.gone.get(&(instance, stack_hash)) {
            Some(stack) => Arc::clone(stack),
            None => self.names.stack(instance, stack_hash),
        }
    }
}

#[cfg(test)]
#[path = "tests/compare.rs"]
mod tests;
