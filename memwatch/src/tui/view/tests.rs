//! Whole screens.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use insta::assert_snapshot;
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier};

use crate::format::ByteFormat;
use crate::model::query::Query;
use crate::model::report::{Kind, Limit, Process, Report, Row};
use crate::tui::sample;
use crate::tui::state::{Options, State};

fn empty_state(color: bool) -> State {
    State::new(
        "pid 1234",
        Options {
            units: ByteFormat::default(),
            color,
            query: Query::default(),
        },
    )
}

fn state_with(change: impl FnOnce(&mut Report)) -> State {
    let mut state = empty_state(true);
    for tick in 0..40 {
        state.update(Arc::new(sample::report(tick)));
    }
    let mut report = sample::report(40);
    change(&mut report);
    state.update(Arc::new(report));
    state
}

fn sample_state() -> State {
    state_with(|_| {})
}

fn press(state: &mut State, keys: &str) {
    for c in keys.chars() {
        let code = if c == '\n' {
            KeyCode::Enter
        } else {
            KeyCode::Char(c)
        };
        state.key(KeyEvent::new(code, KeyModifiers::NONE));
    }
}

fn drawn(state: &mut State, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| super::draw(frame, state)).unwrap();
    terminal.backend().buffer().clone()
}

/// The screen as text, a line each, without the spaces at the ends.
fn screen(state: &mut State, width: u16, height: u16) -> String {
    let buffer = drawn(state, width, height);
    let mut lines = Vec::new();
    for y in 0..height {
        let mut line = String::new();
        let mut x = 0;
        while x < width {
            let symbol = buffer[(x, y)].symbol();
            line.push_str(symbol);
            x += u16::try_from(crate::tui::text::width(symbol).max(1)).unwrap();
        }
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n")
}

fn many_rows(count: u64) -> Report {
    let rows = (0..count).map(|number| Row {
        key: format!("/srv/checkout/app/module_{number}.py:{}", number * 7),
        pid: Some(1234),
        inuse_bytes: (count - number) * 70_000,
        inuse_objects: count - number,
        ..Row::default()
    });
    Report {
        rows: rows.collect(),
        total_rows: count,
        ..sample::report(41)
    }
}

#[test]
fn a_small_terminal() {
    assert_snapshot!(screen(&mut sample_state(), 80, 24));
}

#[test]
fn a_usual_terminal() {
    assert_snapshot!(screen(&mut sample_state(), 120, 40));
}

#[test]
fn a_wide_terminal_has_the_stack_beside_the_table() {
    assert_snapshot!(screen(&mut sample_state(), 300, 80));
}

#[test]
fn attaching() {
    let mut state = empty_state(true);
    assert_snapshot!("attaching_begins", screen(&mut state, 60, 6));
    for step in [
        "found checkout-api, pid 1234",
        "41 probes planned",
        "attaching to libc.so.6",
    ] {
        state.progress(step);
    }
    assert_snapshot!("attaching_goes_on", screen(&mut state, 60, 8));
}

#[test]
fn no_rows_yet() {
    assert_snapshot!(screen(&mut state_with(|report| report.rows.clear()), 100, 24));
}

#[test]
fn one_row() {
    assert_snapshot!(screen(&mut state_with(|report| report.rows.truncate(1)), 100, 30));
}

#[test]
fn many_rows_scroll_with_the_selection() {
    let mut state = sample_state();
    press(&mut state, "g");
    state.update(Arc::new(many_rows(1000)));
    drawn(&mut state, 100, 24);
    state.key(KeyEvent::new(KeyCode::End, KeyModifiers::NONE));
    press(&mut state, "k");
    assert_snapshot!(screen(&mut state, 100, 24));
}

#[test]
fn losses_are_said_in_the_header_and_told_in_full_in_the_help() {
    let mut state = state_with(|report| {
        report.health.complete = false;
        report.health.reasons = vec![
            "14 blocks not kept: the map of live blocks is full (raise --max-blocks)".to_owned(),
            "3 stacks broke before their end".to_owned(),
        ];
    });
    assert_snapshot!("losses", screen(&mut state, 100, 24));
    let buffer = drawn(&mut state, 100, 24);
    assert_eq!(buffer[(1, 3)].fg, Color::Red);
    press(&mut state, "?");
    assert_snapshot!("losses_in_help", screen(&mut state, 100, 50));
}

#[test]
fn what_leaves_totals_exact_is_said_too_but_as_a_warning() {
    let why = "small objects are estimated from pools instead (--force watches each block all the same)";
    let mut state = state_with(|report| report.health.reasons = vec![why.to_owned()]);
    let text = screen(&mut state, 120, 24);
    assert!(text.contains(why) && text.contains("totals exact"), "{text}");
    assert!(
        !text.contains("INCOMPLETE") && !text.contains("nothing lost"),
        "{text}"
    );
    assert_eq!(drawn(&mut state, 120, 24)[(1, 3)].fg, Color::Yellow);
}

#[test]
fn nothing_lost_is_green() {
    let buffer = drawn(&mut sample_state(), 100, 24);
    assert!((0..100).any(|x| buffer[(x, 2)].fg == Color::Green));
}

#[test]
fn paused() {
    let mut state = sample_state();
    press(&mut state, " ");
    assert_snapshot!(screen(&mut state, 80, 24));
}

#[test]
fn a_filter_being_typed_and_one_refused() {
    let mut state = sample_state();
    press(&mut state, "/cache !js[");
    assert_snapshot!("filter_typed", screen(&mut state, 100, 12));
    press(&mut state, "\n");
    assert_snapshot!("filter_refused", screen(&mut state, 100, 12));
}

#[test]
fn nothing_matches_the_filter() {
    let mut state = sample_state();
    press(&mut state, "/nowhere\n");
    state.update(Arc::new(Report {
        rows: Vec::new(),
        total_rows: 0,
        ..sample::report(41)
    }));
    assert_snapshot!(screen(&mut state, 80, 24));
}

#[test]
fn help_on_a_small_terminal_scrolls() {
    let mut state = sample_state();
    press(&mut state, "?");
    assert_snapshot!("help_begins", screen(&mut state, 80, 24));
    state.key(KeyEvent::new(KeyCode::End, KeyModifiers::NONE));
    assert_snapshot!("help_ends", screen(&mut state, 80, 24));
}

#[test]
fn differences_with_a_baseline() {
    let mut state = sample_state();
    press(&mut state, "b");
    state.update(Arc::new(Report {
        kind: Kind::Diff,
        ..sample::report(130)
    }));
    assert_snapshot!(screen(&mut state, 120, 30));
}

#[test]
fn all_that_was_ever_allocated() {
    let mut state = sample_state();
    press(&mut state, "ac");
    assert_snapshot!(screen(&mut state, 120, 24));
}

#[test]
fn an_ended_target_keeps_its_last_numbers() {
    assert_snapshot!(screen(
        &mut state_with(|report| report.processes[0].exited = true),
        100,
        24
    ));
}

#[test]
fn the_whole_stack() {
    let mut state = sample_state();
    press(&mut state, "jj\n");
    assert_snapshot!(screen(&mut state, 120, 44));
}

#[test]
fn several_processes() {
    let mut state = state_with(|report| {
        report.processes = (0..9).map(|number| sample::process(1234 + number)).collect();
        report.processes[3].comm = "post\u{1b}gres".to_owned();
        report.processes[4].exited = true;
    });
    assert_snapshot!(screen(&mut state, 120, 24));
}

#[test]
fn a_message_takes_the_place_of_the_keys() {
    let mut state = sample_state();
    state.message("saved to memwatch-1234.json");
    assert_snapshot!(screen(&mut state, 60, 9));
}

#[test]
fn tiny() {
    assert_snapshot!(screen(&mut sample_state(), 30, 5));
}

#[test]
fn nothing_is_known_but_the_rows() {
    let mut state = empty_state(true);
    state.update(Arc::new(Report {
        rows: vec![Row::default()],
        ..Report::default()
    }));
    assert_snapshot!(screen(&mut state, 100, 20));
}

#[test]
fn without_colours_no_cell_has_one_and_the_selection_is_reversed() {
    let mut state = empty_state(false);
    state.update(Arc::new(sample::report(1)));
    press(&mut state, "b");
    for (width, height) in [(120, 40), (200, 60)] {
        let buffer = drawn(&mut state, width, height);
        let colored = buffer
            .content()
            .iter()
            .find(|cell| (cell.fg, cell.bg) != (Color::Reset, Color::Reset));
        assert_eq!(colored, None);
        assert!(buffer[(1, 6)].modifier.contains(Modifier::REVERSED));
    }
}

#[test]
fn growth_is_red_and_shrinking_is_green() {
    let buffer = drawn(&mut sample_state(), 120, 40);
    let colors = |sign: &str| -> Vec<Color> {
        (7..15)
            .flat_map(|y| (0..60).map(move |x| (x, y)))
            .map(|at| &buffer[at])
            .filter(|cell| cell.symbol() == sign)
            .map(|cell| cell.fg)
            .collect()
    };
    assert!(!colors("+").is_empty() && colors("+").iter().all(|color| *color == Color::Red));
    assert!(!colors("-").is_empty() && colors("-").iter().all(|color| *color == Color::Green));
}

#[test]
fn nothing_of_a_hostile_name_acts_on_the_terminal() {
    let evil = "\u{1b}]0;x\u{7}\u{9b}2J\u{202e}\r\n\t";
    let mut state = state_with(|report| {
        let process = &mut report.processes[0];
        process.comm = evil.to_owned();
        process.cmdline = vec![evil.to_owned(); 3];
        report.rows[0].key = evil.to_owned();
        report.rows[0].domain = Some(evil.to_owned());
        for frame in report.rows[0].frames.iter_mut().map(Arc::make_mut) {
            frame.function = Some(evil.to_owned());
            frame.file = Some(evil.to_owned());
            frame.module = Some(evil.to_owned());
        }
        report.health.complete = false;
        report.health.reasons = vec![evil.to_owned(); 2];
        report.health.limits = BTreeMap::from([(evil.to_owned(), Limit::default())]);
    });
    for keys in ["", "\n", "\n", "?", "/\u{9b}"] {
        press(&mut state, keys);
        for cell in drawn(&mut state, 200, 50).content() {
            let harmful = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
            assert!(!cell.symbol().chars().any(harmful), "{:?}", cell.symbol());
        }
    }
}

/// Every state that draws differently.
fn states() -> Vec<State> {
    let mut states: Vec<State> = ["", "\n", "\n\n", "?", "/日本cache", "b", "ac", "g", "/x[\n", " "]
        .into_iter()
        .map(|keys| {
            let mut state = sample_state();
            press(&mut state, keys);
            state
        })
        .collect();
    let mut attaching = empty_state(true);
    attaching.progress("found it");
    attaching.progress("attaching");
    states.push(attaching);
    states.push(empty_state(false));
    states.push(state_with(|report| {
        *report = Report {
            tick: 99,
            ..Report::default()
        }
    }));
    states.push(state_with(|report| {
        report.processes = (0..40)
            .map(|pid| Process {
                exited: pid > 3,
                ..sample::process(pid)
            })
            .collect();
    }));
    states.push(state_with(|report| report.health.complete = false));
    states
}

#[test]
fn where_there_is_little_room_losses_take_the_place_of_other_facts() {
    let mut state = state_with(|report| {
        report.health.complete = false;
        report.health.reasons =
            vec!["14 blocks not kept: the map of live blocks is full (raise --max-blocks)".to_owned()];
    });
    assert_snapshot!("losses_in_little_room", screen(&mut state, 100, 16));
    assert_snapshot!("losses_in_least_room", screen(&mut state, 60, 4));
}

#[test]
fn no_size_is_too_small() {
    for mut state in states() {
        for width in [1, 2, 3, 4, 6, 9, 14, 24, 45, 79] {
            for height in [1, 2, 3, 4, 5, 8, 11, 14, 20, 24] {
                drawn(&mut state, width, height);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn no_size_and_no_keys_break_the_screen(
        sizes in proptest::collection::vec(prop_oneof![(1_u16..330, 1_u16..90), (1_u16..40, 1_u16..20)], 1..4),
        keys in proptest::collection::vec(prop_oneof![
            proptest::sample::select("jksSgGac/ bBfFh?19\n".chars().map(KeyCode::Char).collect::<Vec<_>>()),
            proptest::sample::select(vec![KeyCode::Enter, KeyCode::Up, KeyCode::PageDown, KeyCode::End]),
            proptest::sample::select(vec![KeyCode::Left, KeyCode::Right, KeyCode::Backspace, KeyCode::Esc]),
            any::<char>().prop_map(KeyCode::Char),
        ], 0..12),
    ) {
        let mut state = sample_state();
        for (width, height) in sizes {
            for key in &keys {
                state.key(KeyEvent::new(*key, KeyModifiers::NONE));
            }
            drawn(&mut state, width, height);
        }
    }

    #[test]
    fn no_text_of_a_target_breaks_the_screen(
        text in any::<String>(),
        width in 1_u16..200,
        height in 1_u16..50,
    ) {
        let mut state = state_with(|report| {
            report.processes[0].comm.clone_from(&text);
            report.processes[0].cmdline = vec![text.clone()];
            report.since.clone_from(&text);
            for row in &mut report.rows {
                row.key.clone_from(&text);
                for frame in row.frames.iter_mut().map(Arc::make_mut) {
                    frame.function = Some(text.clone());
                    frame.file = Some(text.clone());
                }
            }
        });
        for keys in ["", "g", "\n", "?"] {
            press(&mut state, keys);
            drawn(&mut state, width, height);
        }
    }

    #[test]
    fn no_number_breaks_the_screen(
        (bytes, objects) in any::<(u64, u64)>(),
        (seconds, growth) in (proptest::num::f64::ANY, proptest::num::f64::ANY),
        width in 1_u16..330,
    ) {
        let mut state = state_with(|report| {
            report.watched_seconds = seconds;
            report.processes[0].rss_bytes = Some(bytes);
            for totals in report.processes[0].totals.values_mut() {
                totals.inuse_bytes = bytes;
            }
            for row in &mut report.rows {
                row.inuse_bytes = bytes;
                row.inuse_objects = objects;
                row.oldest_seconds = Some(seconds);
                row.growth_bytes_per_second = Some(growth);
                row.sizes.iter_mut().for_each(|bucket| bucket.objects = objects);
            }
        });
        press(&mut state, "5");
        drawn(&mut state, width, 40);
    }
}
