//! Bad input: one clear line on stderr, the right exit code, nothing broken.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use memwatch_tests::binary::{can_watch, command, find, workspace};
use memwatch_tests::watch::{Ended, run_to_end};
use memwatch_tests::{Recipe, Target, need};

fn run(arguments: &[&str]) -> Ended {
    run_to_end(command().args(arguments))
}

/// Exactly one line, and it names what was wrong.
fn assert_error(ended: &Ended, codes: &[i32], names: &str) {
    let code = ended
        .code
        .unwrap_or_else(|| panic!("it was ended by signal {:?}: {}", ended.signal, ended.stderr));
    assert!(
        codes.contains(&code),
        "exit code {code}, expected one of {codes:?}: {}",
        ended.stderr
    );
    let lines: Vec<_> = ended
        .stderr
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    assert_eq!(lines.len(), 1, "stderr shall be one line:\n{}", ended.stderr);
    assert_no_crash(ended);
    assert!(
        lines[0].contains(names),
        "it does not name {names:?}: {}",
        lines[0]
    );
    assert!(
        ended.stdout.is_empty(),
        "an error prints no data: {:?}",
        ended.stdout
    );
}

fn assert_no_crash(ended: &Ended) {
    for word in [
        "panicked",
        "RUST_BACKTRACE",
        "stack backtrace",
        "Os {",
        "unwrap()",
    ] {
        assert!(
            !ended.stderr.contains(word),
            "{word} in stderr:\n{}",
            ended.stderr
        );
    }
}

fn own_pid() -> String {
    std::process::id().to_string()
}

/// A pid that is not in use: larger than any that the kernel gives.
const NO_PID: &str = "4194999";

macro_rules! wrong_command_lines {
    ($($name:ident: [$($argument:expr),*], $names:expr;)+) => {
        mod command_line {
            use super::*;
            $(
                #[test]
                fn $name() {
                    need!(find());
                    assert_error(&run(&[$($argument),*]), &[2], $names);
                }
            )+
        }
    };
}

wrong_command_lines! {
    no_target: [], "";
    unknown_option: ["--pid", "1", "--no-such-option"], "--no-such-option";
    unknown_command: ["frobnicate"], "frobnicate";
    pid_is_no_number: ["--pid", "abc"], "abc";
    pid_is_negative: ["--pid=-5"], "-5";
    pid_is_zero: ["--pid", "0"], "0";
    pid_is_too_large: ["--pid", "99999999999"], "99999999999";
    pid_is_missing: ["--pid"], "--pid";
    second_pid_is_bad: ["--pid", "1,x"], "x";
    two_kinds_of_target: ["--pid", "1", "--all"], "--all";
    pid_and_command: ["--pid", "1", "--", "true"], "";
    no_command: ["--"], "";
    zero_interval: ["--pid", "1", "-i", "0s"], "0";
    bad_interval: ["--pid", "1", "-i", "soon"], "soon";
    bad_duration: ["--pid", "1", "--duration", "5 parsecs"], "5 parsecs";
    zero_count: ["--pid", "1", "--count", "0"], "0";
    once_and_count: ["--pid", "1", "--once", "--count", "3"], "--once";
    bad_group: ["--pid", "1", "--group-by", "colour"], "colour";
    bad_sort: ["--pid", "1", "--sort", "beauty"], "beauty";
    bad_view: ["--pid", "1", "--view", "sideways"], "sideways";
    bad_domain: ["--pid", "1", "--domain", "native,java"], "java";
    bad_python: ["--pid", "1", "--python", "maybe"], "maybe";
    bad_format: ["--pid", "1", "--format", "xml"], "xml";
    bad_color: ["--pid", "1", "--color", "purple"], "purple";
    bad_unit: ["--pid", "1", "--unit", "stone"], "stone";
    bad_size: ["--pid", "1", "--min-size", "big"], "big";
    bounds_crossed: ["--pid", "1", "-z", "10M", "-Z", "1k"], "size";
    bad_glob: ["--pid", "1", "--include", "[a"], "[a";
    verbose_and_quiet: ["--pid", "1", "-v", "-q"], "-q";
    depth_too_large: ["--pid", "1", "--max-depth", "100000"], "100000";
    bad_percent: ["--pid", "1", "--max-overhead", "-3"], "";
    record_to_nowhere: ["record", "--pid", "1"], "--output";
    record_of_nothing: ["record", "-o", "a.memwatch"], "what to watch";
    recording_and_target: ["top", "a.memwatch", "--pid", "1"], "--pid";
    recording_and_interval: ["top", "a.memwatch", "-i", "1s"], "--interval";
    recording_and_command: ["diff", "a.memwatch", "--", "true"], "COMMAND";
    three_recordings: ["diff", "a", "b", "c"], "c";
    past_of_a_running_target: ["diff", "--pid", "1", "--from", "3"], "--from";
    no_such_place_in_time: ["top", "a.memwatch", "--from", "soon"], "soon";
    report_of_nothing: ["report"], "report";
    export_to_no_form: ["export", "--pid", "1"], "--to";
    export_to_an_unknown_form: ["export", "--pid", "1", "--to", "svg"], "svg";
    serve_is_not_in_this_version: ["serve"], "serve";
    containers_are_not_in_this_version: ["--container", "no-such-container"], "--container";
    pods_are_not_in_this_version: ["--pod", "nowhere/no-such-pod"], "--pod";
    html_is_not_in_this_version: ["--pid", "1", "--format", "html"], "html";
    sampling_is_not_in_this_version: ["--pid", "1", "--sample-bytes", "1M"], "--sample-bytes";
    ages_of_threads_are_not_kept: ["--pid", "1", "--group-by", "thread", "--older-than", "10s"], "--older-than";
}

#[test]
fn help_and_version_are_no_errors() {
    need!(find());
    for arguments in [["--help"], ["--version"], ["-h"], ["-V"]] {
        let ended = run(&arguments);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
        assert!(!ended.stdout.is_empty());
        assert_eq!(ended.stderr, "");
    }
    for name in ["top", "diff", "record", "ps", "doctor"] {
        let ended = run(&[name, "--help"]);
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
    }
}

#[test]
fn pid_that_does_not_exist() {
    need!(can_watch());
    for name in ["top", "diff", "doctor"] {
        assert_error(&run(&[name, "--pid", NO_PID]), &[5], NO_PID);
    }
}

#[test]
fn one_pid_of_two_does_not_exist() {
    need!(can_watch());
    assert_error(
        &run(&["--pid", &format!("{},{NO_PID}", own_pid()), "--once"]),
        &[5],
        NO_PID,
    );
}

#[test]
fn no_process_of_that_name() {
    need!(can_watch());
    assert_error(
        &run(&["--comm", "surely-no-such-program*"]),
        &[5],
        "surely-no-such-program",
    );
}

#[test]
fn no_such_cgroup() {
    need!(can_watch());
    assert_error(&run(&["--cgroup", "/no/such/cgroup"]), &[5], "/no/such/cgroup");
}

#[test]
fn kernel_thread() {
    need!(can_watch());
    let name = fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if name.trim() != "kthreadd" {
        need!(Err::<(), _>(
            "no kernel threads are seen in this pid namespace".to_owned()
        ));
    }
    assert_error(&run(&["--pid", "2"]), &[4, 5], "kernel thread");
}

#[test]
fn zombie() {
    need!(can_watch());
    let mut child = Command::new("true").spawn().expect("true can be run");
    let pid = child.id().to_string();
    while !fs::read_to_string(format!("/proc/{pid}/stat"))
        .expect("it is not waited for")
        .contains(") Z ")
    {
        sleep(Duration::from_millis(5));
    }
    assert_error(&run(&["--pid", &pid]), &[5], &pid);
    child.wait().expect("it is our child");
}

#[test]
fn process_without_an_allocator() {
    need!(can_watch());
    let recipe = Recipe::c("bare.c")
        .arg("-static")
        .arg("-nostdlib")
        .arg("-ffreestanding");
    let program = need!(recipe.arg("-fno-stack-protector").arg("-s").build());
    let mut target = Target::start(&program);
    assert_error(&run(&["--pid", &target.pid().to_string()]), &[4, 5], "allocat");
    assert!(target.runs());
    assert!(target.exit().success());
}

/// It may be seen or not, it may end before or after: never a crash.
#[test]
fn process_that_ends_while_being_attached() {
    need!(can_watch());
    let program = need!(Recipe::c("c_basic.c").build());
    for round in 0..20_u64 {
        let mut target = Target::start(&program);
        let pid = target.pid().to_string();
        let mut start = command();
        start.args(["--pid", &pid, "--format", "json", "-i", "100ms"]);
        let watch = memwatch_tests::Memwatch::start(&mut start);
        sleep(Duration::from_millis(round * 17));
        target.kill();
        let ended = watch.finish();
        assert_no_crash(&ended);
        assert!(
            matches!(ended.code, Some(0 | 5)),
            "exit code {:?}: {}",
            ended.code,
            ended.stderr
        );
        if ended.code == Some(5) {
            let lines = ended
                .stderr
                .lines()
                .filter(|line| !line.trim().is_empty())
                .count();
            assert_eq!(lines, 1, "stderr shall be one line:\n{}", ended.stderr);
        }
        ended.reports(); // all that was printed is whole
    }
}

#[test]
fn command_that_cannot_be_started() {
    need!(can_watch());
    assert_error(&run(&["--", "/no/such/program"]), &[1, 5], "/no/such/program");
    assert_error(&run(&["--", "/etc/passwd"]), &[1, 5], "/etc/passwd");
}

/// A small recording of format version 1.
fn recording() -> Vec<u8> {
    let path = workspace().join("memwatch/tests/fixtures/version-1.memwatch");
    fs::read(path).expect("it is in the repository")
}

#[test]
fn files_that_are_no_recordings() {
    need!(find());
    let folder = tempfile::tempdir().expect("a directory can be made");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("it can be written");
        path
    };
    let whole = file("whole", &recording());
    let mut newer = recording();
    newer[8] = 200;
    for (path, says) in [
        (folder.path().join("missing"), "No such file"),
        (folder.path().to_owned(), "directory"),
        (file("empty", b""), "not a memwatch recording"),
        (
            file("text", b"{\"schema\": \"memwatch.report/1\"}\n"),
            "not a memwatch recording",
        ),
        (file("newer", &newer), "version 200"),
        (file("stump", &recording()[..40]), "cut off"),
    ] {
        for arguments in [&["top"][..], &["diff"], &["diff", as_text(&whole)]] {
            let mut all = arguments.to_vec();
            all.push(as_text(&path));
            let ended = run(&all);
            assert_error(&ended, &[1], says);
            assert!(ended.stderr.contains(as_text(&path)), "{}", ended.stderr);
        }
    }
    let all = ["top", as_text(&whole), "--older-than", "25h"];
    assert_error(&run(&all), &[2], "--older-than");
    let all = ["diff", as_text(&whole), "--from", "9", "--to", "1"];
    assert_error(&run(&all), &[2], "--from");
    let all = ["diff", as_text(&whole), "--fail-on-growth", "1k"];
    assert_eq!(run(&all).code, Some(3));
    let all = ["top", as_text(&whole), "-o", "/no/such/directory/out"];
    assert_error(&run(&all), &[1], "/no/such/directory/out");
}

/// It is shown up to its last whole tick, and one line tells of the rest.
#[test]
fn a_recording_that_was_cut_off() {
    need!(find());
    let folder = tempfile::tempdir().expect("a directory can be made");
    let path = folder.path().join("cut");
    let bytes = recording();
    fs::write(&path, &bytes[..bytes.len() - 20]).expect("it can be written");
    for name in ["top", "diff"] {
        let ended = run(&[name, as_text(&path), "--format", "json"]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        assert!(ended.stderr.contains("cut off"), "{}", ended.stderr);
        assert_eq!(ended.reports().len(), 1);
    }
    let ended = run(&["top", as_text(&path), "-q"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_recording_that_cannot_be_written_leaves_nothing() {
    need!(can_watch());
    let target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let pid = target.pid().to_string();
    let directory = tempfile::tempdir().expect("a directory can be made");
    let file = directory.path().join("old.memwatch");
    fs::write(&file, "precious").expect("it can be written");
    for path in [
        file.join("below"),
        directory.path().join("no/such"),
        directory.path().to_owned(),
    ] {
        assert_error(
            &run(&["record", "--pid", &pid, "-o", as_text(&path)]),
            &[1],
            as_text(&path),
        );
    }
    assert_error(
        &run(&["record", "--pid", NO_PID, "-o", as_text(&file)]),
        &[5],
        NO_PID,
    );
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "precious");
    assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 1);
}

fn as_text(path: &Path) -> &str {
    path.to_str().expect("a path of ours is UTF-8")
}

#[test]
fn output_that_cannot_be_written() {
    need!(can_watch());
    let target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let pid = target.pid().to_string();
    let directory = tempfile::tempdir().expect("a directory can be made");
    let file = directory.path().join("file");
    fs::write(&file, "precious").expect("it can be written");
    let below_a_file = file.join("out");
    let nowhere = directory.path().join("no/such/directory/out");
    for path in [below_a_file.as_path(), &nowhere, directory.path()] {
        for arguments in [
            &["top"][..],
            &["top", "--format", "json"],
            &["diff", "--format", "text"],
        ] {
            let mut all = arguments.to_vec();
            all.extend(["--pid", &pid, "-d", "1s", "-o", as_text(path)]);
            assert_error(&run(&all), &[1], as_text(path));
        }
    }
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "precious");
    let left: Vec<_> = fs::read_dir(directory.path())
        .expect("it is there")
        .flatten()
        .collect();
    assert_eq!(left.len(), 1, "nothing half-written is left: {left:?}");
}

#[test]
fn full_disk() {
    need!(can_watch());
    let mut target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let pid = target.pid().to_string();
    let ended = run(&["--pid", &pid, "-d", "1s", "-i", "200ms", "-o", "/dev/full"]);
    assert_no_crash(&ended);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("/dev/full"), "{}", ended.stderr);
    assert!(target.exit().success());
}

#[test]
fn failure_keeps_the_existing_file() {
    need!(can_watch());
    let directory = tempfile::tempdir().expect("a directory can be made");
    let file = directory.path().join("old.json");
    fs::write(&file, "precious").expect("it can be written");
    assert_error(
        &run(&["--pid", NO_PID, "--format", "json", "-o", as_text(&file)]),
        &[5],
        NO_PID,
    );
    assert_error(&run(&["--pid", "x", "-o", as_text(&file)]), &[2], "x");
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "precious");
    let left: Vec<_> = fs::read_dir(directory.path())
        .expect("it is there")
        .flatten()
        .collect();
    assert_eq!(left.len(), 1, "nothing half-written is left: {left:?}");
}

/// Without any capability: what is missing is said.
#[test]
fn no_capability() {
    need!(can_watch());
    let target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let directory = tempfile::tempdir().expect("a directory can be made");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    // Copied, as the build's directory may not be open to everybody.
    let copy = directory.path().join("memwatch");
    fs::copy(need!(find()), &copy).expect("it can be copied");
    let mut nobody = Command::new("setpriv");
    nobody.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]);
    nobody
        .arg(copy)
        .args(["--pid", &target.pid().to_string(), "--once"])
        .env("RUST_BACKTRACE", "1");
    nobody.current_dir("/");
    assert_error(&run_to_end(&mut nobody), &[4], "CAP_");
}
