//! What the screen asks of the controller.

use std::sync::Arc;

use crate::model::query::{GroupBy, Query, SortBy, View};
use crate::model::report::Report;

use super::filter::Filter;
pub use super::input::{Direction, Step};

#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Quit,
    /// Answer with a report for the changed query.
    Query(QueryChange),
    /// From now on compare with what is known now.
    SetBaseline,
    ClearBaseline,
    /// While paused only changes of the query are answered, from the same sample.
    Pause(bool),
    /// Of a recording: show another tick.
    Time(Step),
    /// Save what is on the screen, and say where with [`State::message`](super::State::message).
    Freeze {
        report: Arc<Report>,
        format: FreezeFormat,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeFormat {
    Json,
    Text,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryChange {
    GroupBy(GroupBy),
    Sort(SortBy),
    View(View),
    Cumulative(bool),
    Filter(Filter),
}

impl QueryChange {
    /// The screen and the controller both change their query this way, so that they stay the same.
    pub fn apply(&self, query: &mut Query) {
        match self {
            Self::GroupBy(group_by) => query.group_by = *group_by,
            Self::Sort(sort) => query.sort = *sort,
            Self::View(view) => {
                query.view = *view;
                query.sort = sort_in(*view, query.sort);
            }
            Self::Cumulative(cumulative) => query.cumulative = *cumulative,
            Self::Filter(filter) => {
                query.include.clone_from(&filter.include);
                query.exclude.clone_from(&filter.exclude);
            }
        }
    }
}

/// The same order in the numbers that the view leads with.
const fn sort_in(view: View, sort: SortBy) -> SortBy {
    match (view, sort) {
        (View::Inuse, SortBy::AllocBytes) => SortBy::InuseBytes,
        (View::Inuse, SortBy::AllocObjects) => SortBy::InuseObjects,
        (View::Alloc, SortBy::InuseBytes) => SortBy::AllocBytes,
        (View::Alloc, SortBy::InuseObjects) => SortBy::AllocObjects,
        (_, sort) => sort,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_view_takes_the_order_along() {
        let mut query = Query::default();
        QueryChange::View(View::Alloc).apply(&mut query);
        assert_eq!((query.view, query.sort), (View::Alloc, SortBy::AllocBytes));
        QueryChange::Sort(SortBy::Growth).apply(&mut query);
        QueryChange::View(View::Inuse).apply(&mut query);
        assert_eq!((query.view, query.sort), (View::Inuse, SortBy::Growth));
    }

    #[test]
    fn a_filter_replaces_the_one_before() {
        let mut query = Query {
            include: vec!["*a*".to_owned()],
            ..Query::default()
        };
        QueryChange::Filter(Filter::parse("!b").unwrap()).apply(&mut query);
        assert_eq!((query.include.len(), query.exclude), (0, vec!["*b*".to_owned()]));
    }
}
