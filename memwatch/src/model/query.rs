//! What of the recorded data is to be shown, and in which order: one question to a snapshot or a difference.

use std::time::Duration;

use memwatch_common::Domain;

use crate::named::{UnknownName, named};

named! {
    /// What makes two blocks belong to one row.
    GroupBy {
        /// The whole stack, the process and the domain.
        Traceback = "traceback",
        /// File and line of the innermost named frame.
        Line = "line",
        File = "file",
        Function = "function",
        /// Shared library, program or Python file.
        Module = "module",
        Thread = "thread",
        Process = "process",
        Container = "container",
        Domain = "domain",
        /// Power-of-two buckets of block sizes.
        Size = "size",
    }
}

named! {
    SortBy {
        InuseBytes = "inuse-bytes",
        InuseObjects = "inuse-objects",
        AllocBytes = "alloc-bytes",
        AllocObjects = "alloc-objects",
        Growth = "growth",
        /// Oldest live block first.
        Age = "age",
        /// What changed most, in either direction.
        Difference = "difference",
    }
}

named! {
    /// Which numbers a row leads with.
    View {
        /// What is alive now.
        Inuse = "inuse",
        /// All that was ever allocated, freed or not.
        Alloc = "alloc",
    }
}

/// Names that stand for one or more domains.
pub const DOMAIN_NAMES: &[&str] = &[
    "native",
    "python",
    "python.raw",
    "python.mem",
    "python.object",
    "mmap",
];

/// `native`, `mmap`, `python` for all three of Python's, or one of those by its full name.
pub fn parse_domains(name: &str) -> Result<&'static [Domain], UnknownName> {
    match name {
        "native" => Ok(&[Domain::Native]),
        "python" => Ok(&[Domain::PythonRaw, Domain::PythonMem, Domain::PythonObject]),
        "python.raw" => Ok(&[Domain::PythonRaw]),
        "python.mem" => Ok(&[Domain::PythonMem]),
        "python.object" => Ok(&[Domain::PythonObject]),
        "mmap" => Ok(&[Domain::Mmap]),
        _ => Err(UnknownName {
            name: name.to_owned(),
            known: DOMAIN_NAMES,
        }),
    }
}

/// Rows shown unless asked otherwise.
pub const DEFAULT_LIMIT: usize = 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub group_by: GroupBy,
    pub sort: SortBy,
    pub view: View,
    /// A block counts for every frame of its stack, not only for the innermost.
    pub cumulative: bool,
    /// Keep stacks of which any frame's file, function or module matches any of these globs; all when empty.
    pub include: Vec<String>,
    /// Drop stacks of which any frame matches any of these.
    pub exclude: Vec<String>,
    /// Sorted and without repetition; all when empty.
    pub domains: Vec<Domain>,
    /// Blocks of fewer bytes are not counted.
    pub min_size: Option<u64>,
    /// Blocks of more bytes are not counted.
    pub max_size: Option<u64>,
    /// Only live blocks at least this old.
    pub older_than: Option<Duration>,
    /// Most rows shown.
    pub limit: usize,
    /// Most frames shown of one stack; all when `None`.
    pub frames: Option<usize>,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            group_by: GroupBy::Traceback,
            sort: SortBy::InuseBytes,
            view: View::Inuse,
            cumulative: false,
            include: Vec::new(),
            exclude: Vec::new(),
            domains: Vec::new(),
            min_size: None,
            max_size: None,
            older_than: None,
            limit: DEFAULT_LIMIT,
            frames: None,
        }
    }
}

impl Query {
    pub fn wants(&self, domain: Domain) -> bool {
        self.domains.is_empty() || self.domains.contains(&domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_as_its_variant() {
        for group in GroupBy::ALL {
            assert_eq!(group.to_string().parse(), Ok(*group));
        }
        for sort in SortBy::ALL {
            assert_eq!(sort.to_string().parse(), Ok(*sort));
        }
        for view in View::ALL {
            assert_eq!(view.to_string().parse(), Ok(*view));
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = "inuse_bytes".parse::<SortBy>().unwrap_err().to_string();
        assert!(
            error.starts_with("`inuse_bytes` is not one of inuse-bytes, inuse-objects,"),
            "{error}"
        );
    }

    #[test]
    fn domain_names_cover_every_domain() {
        for domain in Domain::ALL {
            assert_eq!(parse_domains(domain.name()), Ok(&[domain][..]));
        }
        let all: Vec<Domain> = ["native", "python", "mmap"]
            .iter()
            .flat_map(|name| parse_domains(name).unwrap().iter().copied())
            .collect();
        assert_eq!(all, Domain::ALL);
        assert!(parse_domains("python.").is_err());
    }

    #[test]
    fn no_domain_named_means_every_domain() {
        let mut query = Query::default();
        assert!(Domain::ALL.iter().all(|domain| query.wants(*domain)));
        query.domains = vec![Domain::Mmap];
        assert!(query.wants(Domain::Mmap) && !query.wants(Domain::Native));
    }
}
