//! Reports and keys in, what is selected and asked for out.

use std::sync::Arc;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::model::exit::Exit;
use crate::model::query::{GroupBy, Query, SortBy, View};
use crate::model::report::{Process, Report, Row};

use super::filter::Filter;
use super::request::{FreezeFormat, QueryChange, Request};
use super::sample;
use super::state::{Detail, Extent, Options, State};
use crate::format::ByteFormat;

fn state() -> State {
    State::new(
        "pid 1234",
        Options {
            units: ByteFormat::default(),
            color: true,
            query: Query::default(),
        },
    )
}

fn row(key: &str, inuse_bytes: u64, inuse_objects: u64) -> Row {
    Row {
        key: key.to_owned(),
        inuse_bytes,
        inuse_objects,
        ..Row::default()
    }
}

fn report(tick: u64, rows: Vec<Row>) -> Arc<Report> {
    Arc::new(Report {
        tick,
        rows,
        ..Report::default()
    })
}

fn press(state: &mut State, keys: &str) -> Option<Request> {
    let mut last = None;
    for c in keys.chars() {
        last = state.key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE));
    }
    last
}

fn special(state: &mut State, code: KeyCode) -> Option<Request> {
    state.key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn selected(state: &State) -> &str {
    state.row(state.selected).map_or("", |row| &row.key)
}

fn shown(state: &State) -> Vec<&str> {
    (0..state.order.len())
        .filter_map(|place| state.row(place))
        .map(|row| row.key.as_str())
        .collect()
}

fn room_for(state: &mut State, table_rows: usize) {
    state.fit(Extent {
        table_rows,
        ..Extent::default()
    });
}

#[test]
fn the_selection_stays_on_its_row_when_the_row_moves() {
    let mut state = state();
    state.update(report(1, vec![row("a", 3, 0), row("b", 2, 0), row("c", 1, 0)]));
    press(&mut state, "j");
    state.update(report(2, vec![row("c", 9, 0), row("a", 3, 0), row("b", 2, 0)]));
    assert_eq!(selected(&state), "b");
}

#[test]
fn before_the_user_moves_the_first_row_stays_selected_and_home_goes_back_to_that() {
    let mut state = state();
    state.update(report(1, vec![row("a", 3, 0), row("b", 2, 0)]));
    state.update(report(2, vec![row("b", 5, 0), row("a", 3, 0)]));
    assert_eq!(selected(&state), "b");
    press(&mut state, "j");
    special(&mut state, KeyCode::Home);
    state.update(report(3, vec![row("a", 6, 0), row("b", 5, 0)]));
    assert_eq!(selected(&state), "a");
}

#[test]
fn a_row_of_the_same_name_in_another_process_is_another_row() {
    let of = |pid| Row {
        pid: Some(pid),
        ..row("a", 1, 0)
    };
    let mut state = state();
    state.update(report(1, vec![of(1), of(2)]));
    press(&mut state, "j");
    state.update(report(2, vec![of(2), of(1)]));
    assert_eq!(state.selected, 0);
}

#[test]
fn when_the_selected_row_is_gone_the_selection_keeps_its_height() {
    let mut state = state();
    state.update(report(1, vec![row("a", 3, 0), row("b", 2, 0), row("c", 1, 0)]));
    special(&mut state, KeyCode::End);
    state.update(report(2, vec![row("a", 3, 0), row("b", 2, 0)]));
    assert_eq!(selected(&state), "b");
    state.update(report(3, Vec::new()));
    assert_eq!((state.selected, selected(&state)), (0, ""));
}

#[test]
fn the_selected_row_is_always_on_the_screen() {
    let mut state = state();
    state.update(report(
        1,
        (0..100).map(|n| row(&n.to_string(), 100 - n, 0)).collect(),
    ));
    room_for(&mut state, 10);
    press(&mut state, "jjjjjjjjjjjj");
    assert_eq!((state.selected, state.top), (12, 3));
    special(&mut state, KeyCode::PageDown);
    assert_eq!((state.selected, state.top), (21, 12));
    special(&mut state, KeyCode::End);
    assert_eq!((state.selected, state.top), (99, 90));
    room_for(&mut state, 30);
    assert_eq!((state.selected, state.top), (99, 70));
    press(&mut state, "k");
    room_for(&mut state, 1);
    assert_eq!((state.selected, state.top), (98, 98));
    special(&mut state, KeyCode::Home);
    assert_eq!((state.selected, state.top), (0, 0));
}

#[test]
fn moving_with_no_rows_or_no_report_does_nothing() {
    let mut state = state();
    assert_eq!(
        press(&mut state, "jkGg"),
        Some(Request::Query(QueryChange::GroupBy(GroupBy::Traceback)))
    );
    state.update(report(1, Vec::new()));
    special(&mut state, KeyCode::End);
    special(&mut state, KeyCode::PageUp);
    assert_eq!(state.selected, 0);
}

#[test]
fn another_order_is_shown_at_once_and_asked_for() {
    let mut state = state();
    let mut first = Report {
        tick: 1,
        rows: vec![row("a", 3, 1), row("b", 2, 9)],
        ..Report::default()
    };
    first.options.sort = "inuse-bytes".to_owned();
    state.update(Arc::new(first.clone()));
    assert_eq!(
        press(&mut state, "s"),
        Some(Request::Query(QueryChange::Sort(SortBy::InuseObjects)))
    );
    assert_eq!(shown(&state), ["b", "a"]);
    // A report that was under way in the order before does not put it back.
    state.update(Arc::new(first));
    assert_eq!(shown(&state), ["b", "a"]);
    assert_eq!(
        press(&mut state, "5"),
        Some(Request::Query(QueryChange::Sort(SortBy::Growth)))
    );
    assert_eq!(
        press(&mut state, "<"),
        Some(Request::Query(QueryChange::Sort(SortBy::AllocObjects)))
    );
    assert_eq!(press(&mut state, "9"), None);
}

#[test]
fn the_models_own_order_is_kept() {
    let mut state = state();
    let mut given = Report {
        rows: vec![row("b", 1, 0), row("a", 3, 0)],
        ..Report::default()
    };
    given.options.sort = "inuse-bytes".to_owned();
    state.update(Arc::new(given));
    assert_eq!(shown(&state), ["b", "a"]);
}

#[test]
fn grouping_view_and_cumulative_are_asked_for_and_grouping_starts_at_the_top() {
    let mut state = state();
    state.update(report(1, vec![row("a", 3, 0), row("b", 2, 0)]));
    press(&mut state, "j");
    assert_eq!(
        press(&mut state, "g"),
        Some(Request::Query(QueryChange::GroupBy(GroupBy::Line)))
    );
    assert_eq!(state.selected, 0);
    assert_eq!(
        press(&mut state, "GG"),
        Some(Request::Query(QueryChange::GroupBy(GroupBy::Size)))
    );
    assert_eq!(
        press(&mut state, "a"),
        Some(Request::Query(QueryChange::View(View::Alloc)))
    );
    assert_eq!(state.query.sort, SortBy::AllocBytes);
    assert_eq!(
        press(&mut state, "c"),
        Some(Request::Query(QueryChange::Cumulative(true)))
    );
    assert_eq!(
        press(&mut state, "c"),
        Some(Request::Query(QueryChange::Cumulative(false)))
    );
}

#[test]
fn a_filter_is_typed_applied_edited_and_cancelled() {
    let mut state = state();
    press(&mut state, "/cache !q");
    let filter = Filter::parse("cache !q").unwrap();
    assert_eq!(
        special(&mut state, KeyCode::Enter),
        Some(Request::Query(QueryChange::Filter(filter)))
    );
    assert_eq!(state.typing, None);

    press(&mut state, "/");
    assert_eq!(state.typing.as_deref(), Some("*cache* !*q*"));
    state.key(KeyEvent::new(KeyCode::Char('w'), KeyModifiers::CONTROL));
    assert_eq!(state.typing.as_deref(), Some("*cache* "));
    special(&mut state, KeyCode::Backspace);
    assert_eq!(special(&mut state, KeyCode::Esc), None);
    assert_eq!(state.query.exclude, ["*q*"]);

    press(&mut state, "/");
    state.key(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL));
    let none = Some(Request::Query(QueryChange::Filter(Filter::default())));
    assert_eq!(special(&mut state, KeyCode::Enter), none);
}

#[test]
fn a_filter_that_is_no_glob_is_not_sent_but_explained() {
    let mut state = state();
    press(&mut state, "/a[");
    assert_eq!(special(&mut state, KeyCode::Enter), None);
    assert_eq!(state.typing.as_deref(), Some("a["));
    assert!(
        state
            .message
            .as_deref()
            .is_some_and(|message| message.contains("not a glob"))
    );
}

#[test]
fn while_paused_newer_samples_wait_but_the_same_sample_may_be_seen_another_way() {
    let mut state = state();
    state.update(report(7, vec![row("a", 1, 0)]));
    assert_eq!(press(&mut state, " "), Some(Request::Pause(true)));
    state.update(report(8, vec![row("newer", 1, 0)]));
    assert_eq!(selected(&state), "a");
    state.update(report(7, vec![row("by line", 1, 0)]));
    assert_eq!(selected(&state), "by line");
    assert_eq!(press(&mut state, " "), Some(Request::Pause(false)));
    state.update(report(9, vec![row("newest", 1, 0)]));
    assert_eq!(selected(&state), "newest");
}

#[test]
fn hits_a_second_come_from_two_ticks_and_asking_a_tick_again_changes_nothing() {
    let at = |tick, hits, watched_seconds| {
        let mut report = Report {
            watched_seconds,
            tick,
            ..Report::default()
        };
        report.health.overhead.hits = hits;
        Arc::new(report)
    };
    let mut state = state();
    state.update(at(0, 0, 0.0));
    assert_eq!(state.hits_per_second, None);
    state.update(at(1, 1000, 2.0));
    assert_eq!(state.hits_per_second, Some(500.0));
    state.update(at(1, 1000, 2.0));
    assert_eq!(state.hits_per_second, Some(500.0));
    state.update(at(2, 4000, 3.0));
    assert_eq!(state.hits_per_second, Some(3000.0));
}

#[test]
fn a_baseline_can_be_set_and_cleared_but_not_before_there_are_numbers() {
    let mut state = state();
    assert_eq!(press(&mut state, "b"), None);
    assert!(state.message.is_some() && !state.is_diff());
    state.update(Arc::new(sample::report(3)));
    assert_eq!(press(&mut state, "b"), Some(Request::SetBaseline));
    assert!(state.is_diff());
    assert_eq!(press(&mut state, "B"), Some(Request::ClearBaseline));
    assert!(!state.is_diff());
}

#[test]
fn what_is_saved_is_what_is_on_the_screen() {
    let mut state = state();
    assert_eq!(press(&mut state, "f"), None);
    let report = Arc::new(sample::report(3));
    state.update(Arc::clone(&report));
    let request = |format| {
        Some(Request::Freeze {
            report: Arc::clone(&report),
            format,
        })
    };
    assert_eq!(press(&mut state, "f"), request(FreezeFormat::Json));
    assert_eq!(press(&mut state, "F"), request(FreezeFormat::Text));
    state.message("saved to memwatch-1234.json");
    press(&mut state, "j");
    assert_eq!(state.message, None);
}

#[test]
fn escape_leaves_help_then_the_whole_stack_then_memwatch() {
    let mut state = state();
    state.update(Arc::new(sample::report(1)));
    special(&mut state, KeyCode::Enter);
    assert_eq!(state.detail, Detail::Full);
    press(&mut state, "?");
    assert_eq!(special(&mut state, KeyCode::Esc), None);
    assert!(!state.help);
    assert_eq!(special(&mut state, KeyCode::Esc), None);
    assert_eq!(state.detail, Detail::Pane);
    assert_eq!(special(&mut state, KeyCode::Esc), Some(Request::Quit));
    assert_eq!(press(&mut state, "q"), Some(Request::Quit));
}

#[test]
fn the_whole_stack_scrolls_as_far_as_it_goes_and_arrows_sideways_change_the_row() {
    let mut state = state();
    state.update(Arc::new(sample::report(1)));
    special(&mut state, KeyCode::Enter);
    state.fit(Extent {
        table_rows: 0,
        detail_excess: 2,
        help_excess: 0,
    });
    press(&mut state, "jjjj");
    assert_eq!((state.detail_scroll, state.selected), (2, 0));
    special(&mut state, KeyCode::Right);
    assert_eq!((state.detail_scroll, state.selected), (0, 1));
    special(&mut state, KeyCode::Left);
    special(&mut state, KeyCode::Left);
    assert_eq!(state.selected, 0);
    special(&mut state, KeyCode::Enter);
    assert_eq!(state.detail, Detail::Hidden);
}

#[test]
fn a_target_has_ended_when_none_of_its_processes_lives() {
    let with = |processes| {
        Arc::new(Report {
            processes,
            ..Report::default()
        })
    };
    let gone = Process {
        exited: true,
        ..sample::process(1)
    };
    let mut state = state();
    state.update(with(vec![gone.clone(), sample::process(2)]));
    assert_eq!(state.why_ended(), None);
    state.update(with(vec![gone.clone()]));
    assert_eq!(state.why_ended().as_deref(), Some("the target ended"));
    let killed = Process {
        exit: Some(Exit {
            signal: Some(9),
            ..Exit::default()
        }),
        ..gone.clone()
    };
    state.update(with(vec![killed, gone]));
    assert_eq!(
        state.why_ended().as_deref(),
        Some("the target was killed by SIGKILL")
    );
}
