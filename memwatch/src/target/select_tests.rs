use std::{
    process::{Command, Stdio},
    thread,
};

use super::*;
use crate::target::fake::{FakeProc, Kind};

const ID: &str = "3f4e8c0f2b6a4d5e8f7a9b0c1d2e3f405162738495a6b7c8d9e0f1a2b3c4d5e6";
const OWN: u32 = 50;

/// A host with a bit of everything.
fn host() -> FakeProc {
    let proc = FakeProc::new();
    proc.process(1, "init", Kind::User).exe(1, "/sbin/init");
    proc.process(2, "kthreadd", Kind::Kernel);
    proc.process(10, "python3", Kind::User)
        .exe(10, "/usr/bin/python3.11");
    proc.process(11, "python3", Kind::User)
        .exe(11, "/opt/venv/bin/python3 (deleted)");
    proc.process(12, "my-long-process", Kind::User)
        .exe(12, "/opt/my-long-process-name");
    proc.process(13, "a-script-with-a", Kind::User)
        .exe(13, "/usr/bin/dash");
    proc.file("13/cmdline", "/bin/sh\0-e\0/opt/a-script-with-a-long-name.sh\0");
    proc.process(14, "bash", Kind::User).file("14/cmdline", "-bash\0");
    proc.process(20, "python3", Kind::Zombie);
    proc.process(OWN, "memwatch", Kind::User)
        .exe(OWN, "/usr/bin/memwatch");
    proc.file("61/status", "Name:\tworker\nTgid:\t10\nPid:\t61\n");
    proc.file("10/cgroup", format!("0::/system.slice/docker-{ID}.scope\n"));
    proc
}

fn selector(proc: &FakeProc) -> Selector {
    Selector::new(proc.root(), proc.outside_dir("cgroup"), Some(OWN))
}

fn select(proc: &FakeProc, target: &Target) -> Result<Vec<(u32, String)>, String> {
    match selector(proc).select(target) {
        Ok(found) => Ok(found
            .into_iter()
            .map(|selected| (selected.pid, selected.reason))
            .collect()),
        Err(error) => Err(error.to_string()),
    }
}

fn pids(proc: &FakeProc, target: &Target) -> Vec<u32> {
    select(proc, target)
        .unwrap()
        .into_iter()
        .map(|(pid, _)| pid)
        .collect()
}

fn comm(pattern: &str) -> Target {
    Target::Comm(pattern.to_owned())
}

#[test]
fn pids_are_taken_once_and_in_order() {
    assert_eq!(pids(&host(), &Target::Pids(vec![12, 10, 12])), [10, 12]);
}

#[test]
fn each_pid_that_cannot_be_watched_is_told_why_in_one_line() {
    let proc = host();
    for (pid, expected) in [
        (999, "there is no process 999; `memwatch ps` lists those that run"),
        (
            2,
            "process 2 (kthreadd) is a kernel thread: it has no memory of its own; name an ordinary process",
        ),
        (
            20,
            "process 20 (python3) has ended; only its parent has not taken notice yet (zombie)",
        ),
        (
            61,
            "61 is a thread of process 10, and processes are watched as a whole; use --pid 10",
        ),
        (
            OWN,
            "process 50 is memwatch itself, which cannot watch itself; name another process",
        ),
    ] {
        let error = select(&proc, &Target::Pids(vec![10, pid])).unwrap_err();
        assert_eq!(error, expected);
        assert!(!error.contains('\n'));
    }
}

#[test]
fn no_pid_at_all_is_an_error() {
    assert!(matches!(
        selector(&host()).select(&Target::Pids(vec![])),
        Err(SelectError::NoMatch { .. })
    ));
}

#[test]
fn names_match_by_the_kernels_name_the_program_and_the_first_argument() {
    let proc = host();
    for (pattern, expected) in [
        ("python3", vec![(10, "name python3"), (11, "name python3")]),
        ("python3.11", vec![(10, "program python3.11")]),
        ("my-long-process", vec![(12, "name my-long-process")]),
        ("my-long-process-name", vec![(12, "program my-long-process-name")]),
        ("*-process-*", vec![(12, "program my-long-process-name")]),
        ("sh", vec![(13, "command sh")]),
        (
            "a-script-with-a-long-name.sh",
            vec![(13, "command a-script-with-a-long-name.sh")],
        ),
        ("{init,ba?h}", vec![(1, "name init"), (14, "name bash")]),
    ] {
        let found = select(&proc, &comm(pattern)).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|(pid, reason)| (*pid, reason.as_str()))
            .collect();
        assert_eq!(found, expected, "{pattern}");
    }
}

#[test]
fn a_login_shell_matches_without_its_dash() {
    let proc = FakeProc::new();
    proc.process(14, "main", Kind::User).file("14/cmdline", "-zsh\0");
    assert_eq!(
        select(&proc, &comm("zsh")).unwrap(),
        [(14, "command zsh".to_owned())]
    );
}

#[test]
fn arguments_of_names_that_are_not_cut_do_not_match() {
    let proc = FakeProc::new();
    proc.process(14, "vi", Kind::User)
        .file("14/cmdline", "vi\0vi-notes.txt\0");
    assert!(select(&proc, &comm("vi-notes.txt")).is_err());
}

#[test]
fn a_name_that_only_unfit_processes_have_says_why_they_are_unfit() {
    let proc = host();
    assert!(
        select(&proc, &comm("kthread*"))
            .unwrap_err()
            .contains("kernel thread")
    );
    assert!(
        select(&proc, &comm("memwatch"))
            .unwrap_err()
            .contains("memwatch itself")
    );
    assert_eq!(
        select(&proc, &comm("postgres")).unwrap_err(),
        "no process is named \"postgres\"; `memwatch ps` lists what runs"
    );
}

#[test]
fn a_broken_pattern_is_named() {
    let error = select(&host(), &comm("py[thon")).unwrap_err();
    assert!(
        error.starts_with("\"py[thon\" is not a pattern: unclosed character class"),
        "{error}"
    );
}

#[test]
fn all_is_every_process_that_can_be_watched() {
    assert_eq!(pids(&host(), &Target::All), [1, 10, 11, 12, 13, 14]);
    assert!(
        select(&FakeProc::new(), &Target::All)
            .unwrap_err()
            .contains("no ordinary process")
    );
}

#[test]
fn containers_match_by_the_beginning_of_their_id() {
    let proc = host();
    for id in [ID, &ID[..12], "3"] {
        let found = select(&proc, &Target::Container(id.to_owned())).unwrap();
        assert_eq!(found, [(10, format!("container {ID}"))]);
    }
    for id in ["4", ""] {
        assert!(select(&proc, &Target::Container(id.to_owned())).is_err());
    }
}

#[test]
fn a_control_group_is_taken_with_all_below_it() {
    let proc = host();
    // 0 is a process of another pid namespace; 99 has just ended.
    let top = proc.outside("cgroup", "web.slice/cgroup.procs", b"0\n10\n99\n");
    proc.outside("cgroup", "web.slice/a/cgroup.procs", b"11\n2\n");
    proc.outside("cgroup", "web.slice/a/b/cgroup.procs", b"12\n");
    proc.outside("cgroup", "other/cgroup.procs", b"1\n");
    let dir = top.parent().unwrap();
    for path in [
        dir,
        Path::new("web.slice"),
        Path::new("/web.slice"),
        Path::new("web.slice/"),
    ] {
        let found = select(&proc, &Target::Cgroup(path.to_owned())).unwrap();
        assert_eq!(
            found.iter().map(|(pid, _)| *pid).collect::<Vec<_>>(),
            [10, 11, 12],
            "{path:?}"
        );
        assert!(found[0].1.starts_with("in /"), "{found:?}");
    }
    assert_eq!(pids(&proc, &Target::Cgroup("/web.slice/a/b".into())), [12]);
}

#[test]
fn version_1_keeps_groups_below_a_controller() {
    let proc = host();
    proc.outside("cgroup", "memory/docker/abc/cgroup.procs", b"10\n");
    assert_eq!(pids(&proc, &Target::Cgroup("/docker/abc".into())), [10]);
}

#[test]
fn what_is_no_control_group_or_an_empty_one_is_an_error() {
    let proc = host();
    proc.outside("cgroup", "empty/cgroup.procs", b"");
    let nothing = select(&proc, &Target::Cgroup("empty".into())).unwrap_err();
    assert!(
        nothing.contains("no process is in the control group"),
        "{nothing}"
    );
    for path in ["nowhere", "/tmp", "../../etc"] {
        let error = select(&proc, &Target::Cgroup(path.into())).unwrap_err();
        assert!(
            error.starts_with(&format!("{path:?} is not a control group")),
            "{error}"
        );
    }
}

#[test]
fn a_refusal_of_the_kernel_names_the_file_and_the_remedy() {
    let refused = access_error("/proc/7/maps".into(), io::ErrorKind::PermissionDenied.into());
    assert_eq!(
        refused.to_string(),
        "may not read \"/proc/7/maps\"; run as root or with CAP_SYS_PTRACE (see `memwatch doctor`)"
    );
    let broken = access_error("/proc/7/maps".into(), io::ErrorKind::Other.into());
    assert_eq!(broken.to_string(), "cannot read \"/proc/7/maps\"");
}

#[test]
fn the_real_own_process_is_refused_and_its_threads_are_recognised() {
    let selector = Selector::default();
    let own = std::process::id();
    assert!(matches!(selector.check(own), Err(SelectError::OwnProcess { pid }) if pid == own));
    let thread = thread::spawn(move || {
        // SAFETY: gettid has no preconditions.
        let tid = unsafe { libc::gettid() } as u32;
        selector.check(tid)
    });
    assert!(
        matches!(thread.join().unwrap(), Err(SelectError::ThreadNotProcess { tid, tgid }) if tgid == own && tid != own)
    );
}

#[test]
fn a_real_child_is_selected_by_pid_and_by_name_and_is_gone_afterwards() {
    let mut child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    let selector = Selector::default();
    let by_pid = selector.select(&Target::Pids(vec![pid]));
    let by_name = selector.select(&Target::Comm("ca?".to_owned()));
    drop(child.stdin.take());
    // The zombie stays until it is waited for.
    let ended = loop {
        match selector.check(pid) {
            Ok(_) => thread::yield_now(),
            Err(error) => break error,
        }
    };
    child.wait().unwrap();
    assert_eq!(by_pid.unwrap()[0].pid, pid);
    assert!(by_name.unwrap().iter().any(|selected| selected.pid == pid));
    assert!(matches!(ended, SelectError::Ended { .. }), "{ended:?}");
    assert!(matches!(
        selector.check(pid),
        Err(SelectError::NoSuchProcess { .. })
    ));
}
