use memwatch_common::Domain;

use super::*;
use crate::cli::units::When;
use crate::model::query::{GroupBy, SortBy, View};
use crate::{
    format::Unit,
    probe::links::Method,
    watch::start::{PythonMode, ScopeChoice},
};

fn resolved(line: &str) -> Result<Resolved, UsageError> {
    let words = std::iter::once("memwatch").chain(line.split_whitespace());
    resolve(Cli::read(words).unwrap_or_else(|error| panic!("{line}: {error:?}")))
}

fn good(line: &str) -> Resolved {
    resolved(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn a_bare_target_is_top_with_every_default() {
    assert_eq!(
        good("--pid 1"),
        Resolved {
            command: Command::Top,
            target: Some(TargetSpec::Pids(vec![1])),
            follow: true,
            scope: ScopeChoice::Auto,
            method: Method::Session,
            python: PythonMode::Pools,
            force: false,
            cache: true,
            interval: Duration::from_secs(1),
            duration: None,
            ticks: None,
            query: Query::default(),
            limits: Limits {
                max_blocks: 1 << 21,
                max_blocks_per_process: 1 << 21,
                max_sites: 1 << 16,
                max_stacks: 1 << 16,
                max_processes: 1 << 13,
                max_unwind_rows: 1 << 24,
                max_depth: 127,
            },
            fail_on_growth: None,
            output: OutputSpec {
                format: None,
                destination: Destination::Stdout,
                bytes: ByteFormat::default(),
                color: ColorChoice::Auto,
                verbosity: Verbosity::Normal,
            },
        }
    );
    assert_eq!(good("--pid 1"), good("top --pid 1"));
}

#[test]
fn each_form_of_target() {
    let target = |line| good(line).target.unwrap();
    assert_eq!(target("-p 3,1,3 -p 1"), TargetSpec::Pids(vec![3, 1]));
    assert_eq!(target("--comm python*"), TargetSpec::Comm("python*".to_owned()));
    assert_eq!(
        target("--cgroup /system.slice/x.service"),
        TargetSpec::Cgroup("/system.slice/x.service".into())
    );
    assert_eq!(target("--all"), TargetSpec::All);
    assert_eq!(
        target("-- sleep 1 --all"),
        TargetSpec::Command(["sleep", "1", "--all"].map(Into::into).to_vec())
    );
    assert!(!good("--pid 1 --no-follow").follow);
}

#[test]
fn everything_that_is_asked_for_arrives() {
    let all = good(
        "top -p 1 -i 250ms -d 1m30s --count 7 -n 3 --group-by line --cumulative --sort growth --include libx* \
         --include *.py --exclude a --domain mmap,native -z 64 -Z 1M --older-than 10s --frames 5 --max-depth 32 \
         --max-blocks 1000 --max-blocks-per-process 500 --max-sites 10 --max-stacks 11 --max-processes 12 --max-unwind-rows 13 \
         --fail-on-growth 10MiB --unit mib --format json -o out.json --color never -vv --python off --sample-bytes 0",
    );
    assert_eq!(
        (all.interval, all.duration, all.ticks),
        (Duration::from_millis(250), Some(Duration::from_secs(90)), Some(7))
    );
    assert_eq!(
        all.query,
        Query {
            group_by: GroupBy::Line,
            sort: SortBy::Growth,
            view: View::Inuse,
            cumulative: true,
            include: vec!["libx*".to_owned(), "*.py".to_owned()],
            exclude: vec!["a".to_owned()],
            domains: vec![Domain::Native, Domain::Mmap],
            min_size: Some(64),
            max_size: Some(1 << 20),
            older_than: Some(Duration::from_secs(10)),
            limit: 3,
            frames: Some(5),
        }
    );
    assert_eq!(
        all.limits,
        Limits {
            max_blocks: 1000,
            max_blocks_per_process: 500,
            max_sites: 10,
            max_stacks: 11,
            max_processes: 12,
            max_unwind_rows: 13,
            max_depth: 32,
        }
    );
    assert_eq!(all.fail_on_growth, Some(10 << 20));
    assert_eq!(
        all.output,
        OutputSpec {
            format: Some(Format::Json),
            destination: Destination::File("out.json".into()),
            bytes: ByteFormat {
                unit: Unit::Mib,
                si: false
            },
            color: ColorChoice::Never,
            verbosity: Verbosity::Debug,
        }
    );
}

#[test]
fn defaults_that_depend_on_other_options() {
    assert_eq!(good("-p 1 --view alloc").query.sort, SortBy::AllocBytes);
    assert_eq!(good("-p 1 --view alloc --sort age").query.sort, SortBy::Age);
    assert_eq!(good("-p 1 --once").ticks, Some(1));
    assert_eq!(good("-p 1 --domain python,native").query.domains.len(), 4);
    assert_eq!(good("-p 1 --older-than 0s").query.older_than, None);
    assert_eq!(good("-p 1 -o -").output.destination, Destination::Stdout);
    assert_eq!(good("-p 1 -q").output.verbosity, Verbosity::Quiet);
    let share = |line| good(line).limits.max_blocks_per_process;
    assert_eq!(share("-- true"), 1 << 21);
    assert_eq!(share("-p 1,2"), 1 << 19);
    assert_eq!(share("--all --max-blocks 1"), 1);
}

#[test]
fn commands_beside_top() {
    assert_eq!(
        good("diff -p 1").command,
        Command::Diff {
            baseline: Duration::ZERO
        }
    );
    assert_eq!(
        good("diff -p 1 --baseline 10s -d 1m").command,
        Command::Diff {
            baseline: Duration::from_secs(10)
        }
    );
    let ps = good("ps");
    assert_eq!(
        (ps.command, ps.target, ps.ticks, ps.query.limit),
        (Command::Ps, None, Some(1), usize::MAX)
    );
    assert_eq!(good("ps --comm x -n 4 -d 5s").ticks, None);
    assert_eq!(good("doctor").command, Command::Doctor { verify: false });
    assert_eq!(
        good("doctor --verify -p 7").target,
        Some(TargetSpec::Pids(vec![7]))
    );
}

#[test]
fn recordings() {
    let record = good("record -p 1 -o a.memwatch -d 5m -z 64 --max-file-size 2M");
    assert_eq!(record.command, Command::Record { most_bytes: 2 << 20 });
    assert_eq!((record.query.min_size, record.query.max_size), (Some(64), None));
    assert_eq!(record.output.destination, Destination::File("a.memwatch".into()));
    let top = good("top a.memwatch --to 10m --group-by line --sort growth --include x --format json");
    let span = Span {
        from: None,
        to: Some(When::After(Duration::from_mins(10))),
    };
    let path = PathBuf::from("a.memwatch");
    assert_eq!(top.command, Command::TopFile { path, span });
    assert_eq!((top.target, top.query.sort), (None, SortBy::Growth));
    let diff = good("diff a.memwatch --from 7");
    let span = Span {
        from: Some(When::Tick(7)),
        to: None,
    };
    let path = PathBuf::from("a.memwatch");
    assert_eq!(diff.command, Command::DiffFile { path, span });
    let two = good("diff a b --sort inuse-bytes");
    let (old, new) = (PathBuf::from("a"), PathBuf::from("b"));
    assert_eq!(two.command, Command::DiffFiles { old, new });
    assert_eq!(two.query.sort, SortBy::InuseBytes);
}

#[test]
fn a_difference_begins_with_what_changed_most() {
    assert_eq!(good("diff -p 1").query.sort, SortBy::Difference);
    assert_eq!(good("diff a b").query.sort, SortBy::Difference);
    assert_eq!(good("diff a b --sort age").query.sort, SortBy::Age);
}

#[test]
fn the_full_screen_is_for_people_at_a_terminal() {
    let screen = |line, terminal| good(line).screen(terminal);
    assert_eq!(screen("-p 1", true), Screen::Full);
    assert_eq!(screen("diff -p 1 --count 5", true), Screen::Full);
    assert_eq!(screen("-p 1", false), Screen::Blocks(Format::Text));
    assert_eq!(screen("-p 1 --once", true), Screen::Blocks(Format::Text));
    assert_eq!(screen("-p 1 -o f", true), Screen::Blocks(Format::Text));
    assert_eq!(screen("-p 1 --format text", true), Screen::Blocks(Format::Text));
    assert_eq!(screen("-p 1 --format json", true), Screen::Blocks(Format::Json));
    assert_eq!(screen("ps", true), Screen::Blocks(Format::Text));
    assert_eq!(screen("top a.memwatch --to 5", true), Screen::Full);
    assert_eq!(
        screen("top a.memwatch --from 5", true),
        Screen::Blocks(Format::Text)
    );
    assert_eq!(screen("diff a.memwatch --from 5", true), Screen::Full);
    assert_eq!(screen("diff a b", true), Screen::Blocks(Format::Text));
    assert_eq!(screen("record -p 1 -o a", true), Screen::Blocks(Format::Text));
}

#[test]
fn colour_follows_the_terminal_unless_told() {
    assert!(ColorChoice::Auto.enabled(true, false));
    assert!(!ColorChoice::Auto.enabled(true, true));
    assert!(!ColorChoice::Auto.enabled(false, false));
    assert!(ColorChoice::Always.enabled(false, true));
    assert!(!ColorChoice::Never.enabled(true, false));
}

#[test]
fn contradictions_are_answered_in_one_line() {
    let lines = [
        "",
        "top",
        "diff",
        "top --pid 1 --all",
        "--comm x --cgroup /y",
        "--pid 1 -- ls",
        "--container web",
        "--pod default/web",
        "--pid 1 --once --count 3",
        "--pid 1 --interval 9ms",
        "--pid 1 --duration 0",
        "--pid 1 -z 2k -Z 1k",
        "--pid 1 --older-than 5s --view alloc",
        "--pid 1 --cumulative",
        "--pid 1 --format html",
        "diff --pid 1 --format markdown",
        "report --pid 1 --format xml",
        "--pid 1 --si --unit mib",
        "--pid 1 -v -q",
        "--pid 1 --comm [",
        "--comm [",
        "--pid 1 --include {a",
        "--pid 1 --sample-bytes 512k",
        "--pid 1 --max-overhead 5",
        "--pid 1 --max-blocks 10 --max-blocks-per-process 11",
        "--pid 1,2,3 --max-processes 2",
        "top a.memwatch --pid 1",
        "top a.memwatch -i 5s",
        "top a.memwatch -z 5",
        "top --pid 1 --from 3",
        "diff --pid 1 --to 3s",
        "diff a.memwatch -- ls",
        "diff a.memwatch --baseline 3s",
        "diff a.memwatch b.memwatch --from 3",
        "record --pid 1",
        "record -o a.memwatch",
        "record --pid 1 -o a.memwatch --format json",
        "record --pid 1 -o a.memwatch --max-file-size 1k",
        "diff --pid 1 --baseline 10s --duration 10s",
        "ps --all --pid 1",
        "doctor --container x",
    ]
    .map(|line| {
        let error = resolved(line).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        format!("memwatch {line}\n    {error}")
    });
    insta::assert_snapshot!("contradictions", lines.join("\n"));
}

#[test]
fn empty_values_are_refused() {
    for words in [&["--comm", ""][..], &["--pid", "1", "--exclude", ""], &["--", ""]] {
        let error = resolve(Cli::read([&["memwatch"], words].concat()).unwrap()).unwrap_err();
        assert!(error.to_string().ends_with("it is empty"), "{error}");
    }
}

#[test]
fn reports_and_exports_are_of_a_target_or_of_a_recording_and_of_whole_stacks() {
    let Command::Report(report) = good("report a.memwatch -n 3 --from 5 --format html").command else {
        panic!("no report");
    };
    assert_eq!((report.format, report.shown), (ReportFormat::Html, 3));
    assert_eq!(report.source.file, Some("a.memwatch".into()));
    let live = good("export --pid 1 --to csv -d 5s --view alloc");
    assert_eq!((live.query.limit, live.query.view), (usize::MAX, View::Alloc));
    assert_eq!(good("export --pid 1 --to csv -n 7").query.limit, 7);
    for (line, words) in [
        ("report", "needs to know on what"),
        (
            "report a.memwatch --pid 1",
            "FILE and a target cannot be used together",
        ),
        ("report --pid 1 --from 5s", "--from and a running target"),
        ("export --pid 1 --to csv --at 5s", "--at and a running target"),
        ("report --pid 1 --group-by line", "is made of whole stacks"),
        ("export --pid 1 --to csv --format json", "--format and --to"),
        (
            "export --pid 1 --to pprof --baseline 5s",
            "go tool pprof -diff_base",
        ),
        (
            "report --pid 1 -d 5s --baseline 5s",
            "the watch ends after --duration 5s",
        ),
    ] {
        let error = resolved(line).unwrap_err().to_string();
        assert!(error.contains(words), "{line}: {error}");
    }
}
