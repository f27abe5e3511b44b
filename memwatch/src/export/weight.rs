//! Which of a row's four numbers an export is made of. All exports with several take them in this order.

use crate::model::query::{Query, SortBy, View};
use crate::model::report::Row;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    AllocObjects,
    AllocBytes,
    InuseObjects,
    InuseBytes,
}

impl Weight {
    pub const ALL: [Self; 4] = [
        Self::AllocObjects,
        Self::AllocBytes,
        Self::InuseObjects,
        Self::InuseBytes,
    ];

    /// Bytes or blocks of the view: blocks when rows are to be sorted by them.
    pub const fn of_query(query: &Query) -> Self {
        let objects = matches!(query.sort, SortBy::InuseObjects | SortBy::AllocObjects);
        match (query.view, objects) {
            (View::Inuse, false) => Self::InuseBytes,
            (View::Inuse, true) => Self::InuseObjects,
            (View::Alloc, false) => Self::AllocBytes,
            (View::Alloc, true) => Self::AllocObjects,
        }
    }

    /// The name that heap profiles in pprof's format have for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllocObjects => "alloc_objects",
            Self::AllocBytes => "alloc_space",
            Self::InuseObjects => "inuse_objects",
            Self::InuseBytes => "inuse_space",
        }
    }

    /// The same in words.
    pub const fn title(self) -> &'static str {
        match self {
            Self::AllocObjects => "blocks allocated",
            Self::AllocBytes => "bytes allocated",
            Self::InuseObjects => "blocks in use",
            Self::InuseBytes => "bytes in use",
        }
    }

    pub const fn is_bytes(self) -> bool {
        matches!(self, Self::AllocBytes | Self::InuseBytes)
    }

    pub const fn of(self, row: &Row) -> u64 {
        match self {
            Self::AllocObjects => row.alloc_objects,
            Self::AllocBytes => row.alloc_bytes,
            Self::InuseObjects => row.inuse_objects,
            Self::InuseBytes => row.inuse_bytes,
        }
    }

    /// What it was at the baseline; the same as now where there is nothing to compare with.
    pub fn before(self, row: &Row) -> u64 {
        let change = row.delta.map_or(0, |delta| match self {
            Self::AllocObjects => delta.alloc_objects,
            Self::AllocBytes => delta.alloc_bytes,
            Self::InuseObjects => delta.inuse_objects,
            Self::InuseBytes => delta.inuse_bytes,
        });
        u64::try_from(i128::from(self.of(row)) - i128::from(change)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::Delta;

    #[test]
    fn what_was_before_is_what_is_now_without_the_change() {
        let row = Row {
            inuse_bytes: 10,
            alloc_objects: 3,
            delta: Some(Delta {
                inuse_bytes: -5,
                alloc_objects: 9,
                ..Delta::default()
            }),
            ..Row::default()
        };
        assert_eq!(Weight::InuseBytes.before(&row), 15);
        assert_eq!(
            Weight::AllocObjects.before(&row),
            0,
            "never below nothing, however torn the counters"
        );
        assert_eq!(Weight::InuseObjects.before(&row), 0);
    }

    #[test]
    fn the_view_chooses_and_sorting_by_blocks_means_blocks() {
        let query = |view, sort| Query {
            sort,
            view,
            ..Query::default()
        };
        let of = |view, sort| Weight::of_query(&query(view, sort));
        assert_eq!(of(View::Inuse, SortBy::Growth), Weight::InuseBytes);
        assert_eq!(of(View::Inuse, SortBy::InuseObjects), Weight::InuseObjects);
        assert_eq!(of(View::Alloc, SortBy::AllocBytes), Weight::AllocBytes);
        assert_eq!(of(View::Alloc, SortBy::AllocObjects), Weight::AllocObjects);
    }
}
