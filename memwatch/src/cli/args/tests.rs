use clap::CommandFactory;

use super::*;
use crate::cli::read::ReadError;

fn usage(arguments: &[&str]) -> String {
    match Cli::read([&["memwatch"], arguments].concat()) {
        Err(ReadError::Usage(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

fn help(command: &[&str], flag: &str) -> String {
    let arguments = [&["memwatch"], command, &[flag]].concat();
    let error = Cli::command()
        .term_width(100)
        .try_get_matches_from(arguments)
        .unwrap_err();
    error.render().to_string()
}

#[test]
fn clap_finds_no_fault_in_the_definition() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_has_help() {
    for command in std::iter::once(&Cli::command()).chain(Cli::command().get_subcommands()) {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for argument in command
            .get_arguments()
            .filter(|a| a.get_id() != "help" && a.get_id() != "version")
        {
            assert!(
                argument.get_help().is_some(),
                "{} {}",
                command.get_name(),
                argument.get_id()
            );
        }
    }
}

#[test]
fn defaults_in_the_help_are_those_of_the_kernel_side() {
    let text = help(&[], "--help");
    for number in [
        limits::DEFAULT_LIVE_BLOCKS,
        limits::DEFAULT_SITES,
        limits::DEFAULT_STACKS,
        limits::DEFAULT_PROCESSES,
        limits::MAX_FRAMES as u32,
    ] {
        assert!(text.contains(&format!("[default: {number}]")), "{number}");
    }
    assert!(text.contains(&format!("[default: {}]", query::DEFAULT_LIMIT)));
}

#[test]
fn help_texts() {
    insta::assert_snapshot!("help", help(&[], "--help"));
    insta::assert_snapshot!("help_short", help(&[], "-h"));
    insta::assert_snapshot!("help_top", help(&["top"], "--help"));
    insta::assert_snapshot!("help_diff", help(&["diff"], "--help"));
    insta::assert_snapshot!("help_record", help(&["record"], "--help"));
    insta::assert_snapshot!("help_ps", help(&["ps"], "--help"));
    insta::assert_snapshot!("help_doctor", help(&["doctor"], "--help"));
}

#[test]
fn help_and_version_are_answers_not_errors() {
    let Err(ReadError::Answer(text)) = Cli::read(["memwatch", "--version"]) else {
        panic!()
    };
    assert_eq!(text, format!("memwatch {}\n", env!("CARGO_PKG_VERSION")));
    assert!(matches!(
        Cli::read(["memwatch", "top", "-h"]),
        Err(ReadError::Answer(_))
    ));
}

#[test]
fn no_command_is_top() {
    let bare = Cli::read(["memwatch", "--pid", "1"]).unwrap();
    assert!(bare.command.is_none());
    assert_eq!(bare.top.target.select.pids, [1]);
    let Some(CommandArgs::Top(top)) = Cli::read(["memwatch", "top", "-p1,2", "-p", "3"])
        .unwrap()
        .command
    else {
        panic!()
    };
    assert_eq!(top.watch.target.select.pids, [1, 2, 3]);
}

#[test]
fn a_command_to_start_is_taken_as_it_is() {
    let cli = Cli::read(["memwatch", "--", "top", "--pid", "x"]).unwrap();
    assert!(cli.command.is_none());
    assert_eq!(cli.top.target.command, ["top", "--pid", "x"]);
    let Some(CommandArgs::Diff(diff)) = Cli::read(["memwatch", "diff", "--", "a", "b"]).unwrap().command
    else {
        panic!()
    };
    assert!(diff.files.is_empty());
    assert_eq!(diff.watch.target.command, ["a", "b"]);
}

#[test]
fn mistakes_are_answered_in_one_line() {
    let lines = [
        &["serve"][..],
        &["tpo"],
        &["1234"],
        &["--pdi", "1"],
        &["--pid", "x"],
        &["--pid", "0"],
        &["--pid", "-5"],
        &["--pid"],
        &["--pid", "1", "top"],
        &["--group-by", "lien"],
        &["--interval", "5parsecs"],
        &["--duration", "-5s"],
        &["--count", "0"],
        &["--limit", "0"],
        &["--limit", "many"],
        &["--max-depth", "128"],
        &["--max-blocks", "0"],
        &["--domain", "heap"],
        &["--min-size", "1.5"],
        &["--once", "--once"],
        &["top", "one", "two"],
        &["diff", "one", "two", "three"],
        &["top", "a.memwatch", "--from", "soon"],
        &["record", "a.memwatch"],
        &["ps", "--", "ls"],
        &["ps", "--group-by", "line"],
    ]
    .map(|arguments| {
        let line = usage(arguments);
        assert!(!line.contains('\n'), "{line}");
        format!("memwatch {}\n    {line}", arguments.join(" "))
    });
    insta::assert_snapshot!("mistakes", lines.join("\n"));
}
