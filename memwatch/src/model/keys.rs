//! What a site belongs to under each way of grouping.

use std::sync::Arc;

use memwatch_common::Domain;
use memwatch_common::hist::size_bucket_below;
use memwatch_common::stack::STACK_BEFORE;

use super::counts::SiteId;
use super::label;
use super::plumbing;
use super::processes::{Instance, Processes};
use super::query::GroupBy;
use super::report::Frame;
use crate::python::classes;

/// Frames named in the key of a stack.
const KEY_FRAMES: usize = 5;

/// What makes two sites one group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GroupKey {
    Site(SiteId),
    Name(String),
    Instance(u32),
    /// None: of threads that are not known.
    Thread(u32, Option<u32>),
    Container(Option<String>),
    Domain(Domain),
    /// Index of a bucket, see [`memwatch_common::hist::size_bucket`].
    Size(usize),
}

impl GroupKey {
    /// Whether small Python objects of this size class can be in the group.
    pub fn has_class(&self, class: u8) -> bool {
        match self {
            Self::Size(bucket) => classes::is_in_bucket(class, *bucket),
            _ => true,
        }
    }

    /// The text of the row. `frames` are those of the group's largest stack.
    pub fn text(&self, frames: &[Arc<Frame>], processes: &Processes) -> String {
        match self {
            Self::Site(site) => stack_text(site, frames),
            Self::Name(name) => name.clone(),
            Self::Instance(instance) => process_text(*instance, processes.get(*instance)),
            Self::Thread(instance, thread) => thread_text(*thread, *instance, processes.get(*instance)),
            Self::Container(container) => container.clone().unwrap_or_else(|| "[no container]".to_owned()),
            Self::Domain(domain) => domain.name().to_owned(),
            Self::Size(bucket) => size_text(*bucket),
        }
    }
}

fn stack_text(site: &SiteId, frames: &[Arc<Frame>]) -> String {
    let Some(owner) = owner(site.domain, frames) else {
        return no_stack(site.stack).to_owned();
    };
    let labels: Vec<String> = frames[owner..]
        .iter()
        .take(KEY_FRAMES)
        .map(|frame| label::frame(frame))
        .collect();
    labels.join(";")
}

const fn no_stack(stack: u64) -> &'static str {
    match stack {
        STACK_BEFORE => label::BEFORE,
        _ => label::UNKNOWN_STACK,
    }
}

fn process_text(number: u32, instance: Option<&Instance>) -> String {
    let pid = instance.and_then(|instance| instance.pid);
    let comm = instance.map_or("", |instance| &instance.facts.comm);
    match pid {
        Some(pid) if comm.is_empty() => pid.to_string(),
        Some(pid) => format!("{pid} {comm}"),
        None => format!("[process {number}]"),
    }
}

fn thread_text(thread: Option<u32>, number: u32, instance: Option<&Instance>) -> String {
    let process = process_text(number, instance);
    match thread {
        Some(thread) => format!("thread {thread} of {process}"),
        None => format!("[thread not known] of {process}"),
    }
}

fn size_text(bucket: usize) -> String {
    let from = bucket.checked_sub(1).and_then(size_bucket_below).unwrap_or(0);
    match size_bucket_below(bucket) {
        Some(1) => "0 B".to_owned(),
        Some(below) if below - 1 == from => format!("{from} B"),
        Some(below) => format!("{from}-{} B", below - 1),
        None => format!("{from} B and more"),
    }
}

/// The frame that a block of this domain belongs to.
pub fn owner(domain: Domain, frames: &[Arc<Frame>]) -> Option<usize> {
    match domain {
        Domain::PythonRaw | Domain::PythonMem | Domain::PythonObject => plumbing::interpreted_owner(frames),
        Domain::Native | Domain::Mmap => plumbing::owner(frames),
    }
}

/// The names under which a stack counts; more than one only when `cumulative`.
pub fn names(group_by: GroupBy, site: &SiteId, frames: &[Arc<Frame>], cumulative: bool) -> Vec<String> {
    let name = match group_by {
        GroupBy::Line => label::line,
        GroupBy::File => label::file,
        GroupBy::Module => label::module,
        _ => label::frame,
    };
    let Some(owner) = owner(site.domain, frames) else {
        return vec![no_stack(site.stack).to_owned()];
    };
    if !cumulative {
        return vec![name(&frames[owner])];
    }
    let mut names: Vec<String> = frames.iter().map(|frame| name(frame)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::super::counts::Counting;
    use super::super::report::FrameKind;
    use super::*;

    fn frame(function: &str, file: &str, line: u32, module: &str) -> Frame {
        Frame {
            function: Some(function.into()),
            file: Some(file.into()),
            line: Some(line),
            module: Some(module.into()),
            ..Frame::default()
        }
    }

    fn site(domain: Domain) -> SiteId {
        SiteId {
            instance: 1,
            domain,
            stack: 5,
            mapping: None,
            counting: Counting::Blocks,
        }
    }

    fn recursive() -> Vec<Arc<Frame>> {
        Frame::shared([
            frame("malloc", "malloc.c", 9, "/lib/libc.so"),
            frame("walk", "tree.c", 5, "/bin/app"),
            frame("walk", "tree.c", 7, "/bin/app"),
            frame("walk", "tree.c", 7, "/bin/app"),
            frame("main", "main.c", 3, "/bin/app"),
        ])
    }

    #[test]
    fn a_block_belongs_to_one_place() {
        let frames = recursive();
        let one = |group_by| names(group_by, &site(Domain::Native), &frames, false);
        assert_eq!(one(GroupBy::Line), ["tree.c:5"]);
        assert_eq!(one(GroupBy::File), ["tree.c"]);
        assert_eq!(one(GroupBy::Function), ["walk"]);
        assert_eq!(one(GroupBy::Module), ["/bin/app"]);
    }

    #[test]
    fn cumulative_counts_each_place_of_a_stack_once() {
        let frames = recursive();
        let all = |group_by| names(group_by, &site(Domain::Native), &frames, true);
        assert_eq!(
            all(GroupBy::Line),
            ["main.c:3", "malloc.c:9", "tree.c:5", "tree.c:7"]
        );
        assert_eq!(all(GroupBy::Function), ["main", "malloc", "walk"]);
        assert_eq!(all(GroupBy::Module), ["/bin/app", "/lib/libc.so"]);
    }

    #[test]
    fn python_blocks_belong_to_python_lines_and_native_ones_do_not() {
        let python = Frame {
            kind: FrameKind::Python,
            ..frame("build", "cache.py", 88, "cache.py")
        };
        let frames = Frame::shared([frame("PyList_New", "listobject.c", 1, "libpython.so"), python]);
        assert_eq!(
            names(GroupBy::Line, &site(Domain::PythonObject), &frames, false),
            ["cache.py:88"]
        );
        assert_eq!(
            names(GroupBy::Line, &site(Domain::Native), &frames, false),
            ["listobject.c:1"]
        );
    }

    #[test]
    fn a_stack_is_called_by_its_innermost_frames_from_the_owner_on() {
        let key = GroupKey::Site(site(Domain::Native));
        let processes = Processes::default();
        assert_eq!(key.text(&recursive(), &processes), "walk;walk;walk;main");
        assert_eq!(key.text(&[], &processes), "[unknown stack]");
        let before = SiteId {
            stack: STACK_BEFORE,
            ..site(Domain::PythonObject)
        };
        assert_eq!(
            GroupKey::Site(before).text(&[], &processes),
            "[in use before it was watched]"
        );
        assert_eq!(
            names(GroupBy::Line, &before, &[], false),
            ["[in use before it was watched]"]
        );
        let deep = Frame::shared((0..20).map(|n| frame(&format!("f{n}"), "f.c", n, "f")));
        assert_eq!(key.text(&deep, &processes), "f0;f1;f2;f3;f4");
    }

    #[test]
    fn sizes_read_as_ranges() {
        assert_eq!(
            [0, 1, 2, 5, 31].map(size_text),
            ["0 B", "1 B", "2-3 B", "16-31 B", "1073741824 B and more"]
        );
    }

    #[test]
    fn processes_are_called_by_pid_and_name() {
        let mut processes = Processes::default();
        processes.fork(2, 200, 1, 100);
        let text = |processes: &Processes, n| GroupKey::Instance(n).text(&[], processes);
        assert_eq!(text(&processes, 2), "200");
        assert_eq!(text(&processes, 9), "[process 9]");
        let facts = super::super::processes::ProcessFacts {
            comm: "worker".into(),
            ..Default::default()
        };
        processes.describe(2, facts);
        assert_eq!(text(&processes, 2), "200 worker");
    }
}
