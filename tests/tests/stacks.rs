//! memwatch's stacks against gdb's, on real programs.
//!
//! Each program does the same work over and over. First gdb stops it a thousand times at the entry of an allocation
//! function and unwinds; then memwatch watches the same process until it has seen each of those stacks, or for so many
//! ticks. What gdb found must be among what memwatch found, return address for return address, up to the start of the
//! thread. An unwinder that went wrong anywhere would have to invent the very addresses that gdb found.
//!
//! Not both at one time: a debugger's breakpoint and a probe of the kernel cannot share an instruction, and stepping
//! over one with the other's help ends the program (also with bpftrace's probes). Not in two runs: in one process all
//! addresses are the same. Only return addresses are compared: gdb shows inlined functions as frames of their own, and
//! a probe may sit behind the function's first instruction. A call of an allocation function out of another is compared
//! from the outer one on, which is the one that memwatch shows.

use std::path::{Path, PathBuf};
use std::process::Command;

use memwatch::model::report::Report;
use memwatch_tests::bcc;
use memwatch_tests::binary::{can_watch, skip, target_directory, workspace};
use memwatch_tests::gdb::GdbStack;
use memwatch_tests::server::{self, Server, Session};
use memwatch_tests::stacks::{Comparison, Seen};
use memwatch_tests::{Flavour, Memwatch, Recipe, Target, gdb, need};

const STOPS: u32 = 1000;
/// Of half a second each.
const TICKS: usize = 40;

/// What holds of a program's stacks in which code without unwind information takes part.
#[derive(Clone, Copy, PartialEq)]
enum Code {
    /// All of it has unwind information.
    Described,
    /// Some is made by the program itself, with frame pointers, and gdb does not follow those: compared is what lies
    /// further in.
    Compiled,
}

/// Rounds for a program that makes its code itself: the way to a place that it has compiled anew since gdb was there will
/// never be seen again. The next round finds it settled.
const ROUNDS: usize = 3;

/// Measures bcc's memleak on the same processes instead, for the record. gdb has no part in it.
const MEASURE_BCC: &str = "MEMWATCH_MEASURE_BCC";

fn measure_bcc(name: &str, pid: u32) {
    const SECONDS: u32 = 5;
    let mut watch = Memwatch::of_process(pid, &["--python", "off"]);
    let mut report = watch.next_report();
    for _ in 0..2 * SECONDS {
        report = watch.next_report();
    }
    drop(watch);
    let seen = Seen::of(&report, pid);
    println!("{name}: memwatch: {}", complete(&report, &seen));
    let roots = seen.roots();
    let share =
        bcc::share(pid, SECONDS, |place| roots.contains(place)).unwrap_or_else(|why| panic!("{name}: {why}"));
    println!("{name}: {share}");
}

fn compare(name: &str, pid: u32, code: Code) {
    if std::env::var_os(MEASURE_BCC).is_some() {
        return measure_bcc(name, pid);
    }
    let rounds = if code == Code::Compiled { ROUNDS } else { 1 };
    for round in 1..=rounds {
        let stacks = need!(gdb::stacks(pid, STOPS));
        let (comparison, report) = watch_for(&stacks, pid, code);
        let seen = Seen::of(&report, pid);
        println!("{name}: {comparison}");
        println!("{name}: {}", complete(&report, &seen));
        assert!(
            seen.whole_objects * 1000 >= seen.objects * 999,
            "{name}: stacks end early: {}",
            complete(&report, &seen)
        );
        if equal(&comparison, code) * 1000 >= comparison.stops * 999 {
            return;
        }
        assert!(round < rounds, "{name}: stacks differ from gdb's: {comparison}");
    }
}

/// Until all of gdb's stacks have been seen, or for so many ticks.
fn watch_for(stacks: &[GdbStack], pid: u32, code: Code) -> (Comparison, Report) {
    // The interpreter's own frames too, in place of those of Python.
    let mut watch = Memwatch::of_process(pid, &["--python", "off"]);
    let mut report = watch.next_report();
    let mut comparison = Comparison::new(stacks, &Seen::of(&report, pid));
    for _ in 0..TICKS {
        if equal(&comparison, code) == comparison.stops {
            break;
        }
        report = watch.next_report();
        comparison = Comparison::new(stacks, &Seen::of(&report, pid));
    }
    (comparison, report)
}

fn equal(comparison: &Comparison, code: Code) -> usize {
    match code {
        Code::Described => comparison.equal(),
        Code::Compiled => comparison.equal() + comparison.gdb_ends_early(),
    }
}

fn complete(report: &Report, seen: &Seen) -> String {
    let counters: Vec<String> = report
        .health
        .counters
        .iter()
        .filter(|(name, count)| name.starts_with("stack") && **count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    let share = seen.whole_objects as f64 * 100.0 / seen.objects.max(1) as f64;
    format!(
        "{share:.3} % of {} allocations have whole stacks; {}",
        seen.objects,
        counters.join(", ")
    )
}

fn compare_program(name: &str, command: &mut Command) {
    need!(can_watch());
    let target = Target::start_command(command);
    compare(name, target.pid(), Code::Described);
}

fn compare_built(name: &str, recipe: &Recipe) {
    need!(can_watch());
    compare_program(name, &mut Command::new(need!(recipe.build())));
}

fn c(level: &str) {
    compare_built(
        &format!("C {level}"),
        &Recipe::c("shapes.c").flavour(Flavour::Optimised).arg(level),
    );
}

#[test]
fn c_o0() {
    c("-O0");
}

#[test]
fn c_o2() {
    c("-O2");
}

#[test]
fn c_o3() {
    c("-O3");
}

#[test]
fn c_os() {
    c("-Os");
}

#[test]
fn cpp_with_exceptions() {
    compare_built("C++", &Recipe::cpp("shapes.cpp").flavour(Flavour::Optimised));
}

#[test]
fn rust_release() {
    compare_built("Rust", &Recipe::rust("shapes.rs").flavour(Flavour::Optimised));
}

fn script(name: &str) -> PathBuf {
    workspace().join("tests/targets").join(name)
}

#[test]
fn python_of_the_distribution() {
    compare_program(
        "/usr/bin/python3",
        Command::new("/usr/bin/python3").arg(script("shapes.py")),
    );
}

/// Every interpreter that pyenv has built.
fn pyenv() -> Result<Vec<PathBuf>, String> {
    let none = || "pyenv has no Python".to_owned();
    let home = std::env::var_os("HOME").ok_or_else(none)?;
    let versions = Path::new(&home).join(".pyenv/versions");
    let mut found: Vec<PathBuf> = std::fs::read_dir(versions)
        .map_err(|_| none())?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("bin/python").exists())
        .collect();
    found.sort();
    if found.is_empty() { Err(none()) } else { Ok(found) }
}

#[test]
fn pythons_of_pyenv() {
    for version in need!(pyenv()) {
        let name = version.file_name().unwrap_or_default().display().to_string();
        compare_program(
            &name,
            Command::new(version.join("bin/python")).arg(script("shapes.py")),
        );
    }
}

/// Runs a command that must succeed; what it prints.
fn output(command: &mut Command) -> Result<String, String> {
    match command.output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        }
        Ok(output) => Err(format!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
        Err(error) => Err(format!("{command:?} cannot be run: {error}")),
    }
}

#[test]
fn extension_in_c() {
    let python = "/usr/bin/python3";
    let include = "import sysconfig; print(sysconfig.get_path('include'))";
    let include = need!(output(Command::new(python).args(["-c", include])));
    if !Path::new(&include).join("Python.h").exists() {
        return skip("python3-dev is not installed");
    }
    let recipe = Recipe::c("shapes_ext.c").flavour(Flavour::Optimised).shared();
    let built = need!(recipe.arg(&format!("-I{include}")).build());
    let folder = tempfile::tempdir().expect("a directory can be made");
    std::fs::copy(built, folder.path().join("shapes_ext.so")).expect("it can be copied");
    let mut command = Command::new(python);
    command.arg(script("shapes.py")).arg("shapes_ext");
    compare_program("C extension", command.env("PYTHONPATH", folder.path()));
}

/// An interpreter with numpy out of a manylinux wheel.
fn with_numpy() -> Result<PathBuf, String> {
    let folder = target_directory().join("test-targets/numpy");
    let python = folder.join("bin/python");
    if output(Command::new(&python).args(["-c", "import numpy"])).is_err() {
        output(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let pip = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--only-binary",
            ":all:",
            "numpy",
        ];
        output(Command::new(&python).args(pip))?;
    }
    Ok(python)
}

#[test]
fn numpy_from_a_wheel() {
    let python = need!(with_numpy());
    compare_program(
        "numpy",
        Command::new(python).arg(script("shapes.py")).arg("numpy"),
    );
}

#[test]
fn nginx() {
    need!(can_watch());
    let nginx = need!(server::program("nginx", &["/usr/sbin"]));
    let directory = tempfile::tempdir().expect("a directory can be made");
    let (root, port) = (directory.path().to_owned(), server::free_port());
    let configuration = format!(
        "daemon off; worker_processes 1; user root; pid nginx.pid; error_log stderr;
         events {{ worker_connections 64; }}
         http {{
             access_log off; gzip on; gzip_min_length 1; gzip_types *;
             client_body_temp_path body; proxy_temp_path proxy;
             fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
             server {{
                 listen 127.0.0.1:{port}; root {};
                 location /proxied {{ proxy_pass http://127.0.0.1:{port}/page; }}
                 location /moved {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
             }}
         }}",
        root.display()
    );
    std::fs::write(root.join("nginx.conf"), configuration).expect("it can be written");
    std::fs::write(root.join("page"), "some text\n".repeat(2000)).expect("it can be written");
    let mut command = Command::new(nginx);
    command
        .arg("-p")
        .arg(&root)
        .arg("-c")
        .arg(root.join("nginx.conf"));
    let mut server = Server::start(&mut command, directory);
    drop(server::connect(port));
    let worker = server.worker();
    server.under_load(move || {
        for path in ["page", "proxied", "moved/page", "no-such-page"] {
            for coding in ["gzip", "identity"] {
                let request = format!(
                    "GET /{path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: {coding}\r\nConnection: close\r\n\r\n"
                );
                server::ask_once(port, request.as_bytes());
            }
        }
    });
    compare("nginx", worker, Code::Described);
}

#[test]
fn redis() {
    need!(can_watch());
    let redis = need!(server::program("redis-server", &[]));
    let directory = tempfile::tempdir().expect("a directory can be made");
    let port = server::free_port();
    let mut command = Command::new(redis);
    command.args([
        "--port",
        &port.to_string(),
        "--save",
        "",
        "--bind",
        "127.0.0.1",
        // Under gdb any command is slow, under memwatch none is: the notes of slow ones would only ever be gdb's.
        "--slowlog-log-slower-than",
        "-1",
        "--dir",
    ]);
    let mut server = Server::start(command.arg(directory.path()), directory);
    drop(server::connect(port));
    let script = "local t = {} for i = 1, 50 do t[i] = redis.call('INCR', 'n' .. i) end \
                  return table.concat(t, ',') .. cjson.encode(t)";
    let mut commands = String::new();
    for n in 0..40 {
        let long = "v".repeat(50 * n + 1);
        for line in [
            format!("SET key{n} {long}"),
            format!("APPEND key{n} {long}"),
            format!("LPUSH list{} {long} b c", n % 5),
            format!("HSET hash{} f{n} {long}", n % 3),
            format!("ZADD sorted {n} member{n}"),
            format!("SADD set {n} x{n}"),
            format!("XADD stream MAXLEN 10 * f {long}"),
            format!("PFADD logs {n}"),
            "SORT set ALPHA".to_owned(),
            format!("EVAL \"{script}\" 0"),
            format!("DEL list{}", n % 5),
        ] {
            commands += &line;
            commands += "\r\n";
        }
    }
    commands += "KEYS *\r\nFLUSHALL\r\nQUIT\r\n";
    server.under_load(move || server::ask_once(port, commands.as_bytes()));
    compare("redis", server.pid(), Code::Described);
}

/// The folder of the newest PostgreSQL of the distribution.
fn postgres_programs() -> Result<PathBuf, String> {
    let none = || "postgresql is not installed".to_owned();
    let versions = std::fs::read_dir("/usr/lib/postgresql").map_err(|_| none())?;
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
    found.retain(|folder| folder.join("postgres").exists() && folder.join("initdb").exists());
    found.sort();
    found.pop().ok_or_else(none)
}

const QUERIES: &str = "
CREATE TEMP TABLE IF NOT EXISTS t AS SELECT n, 'text ' || n AS s, n % 7 AS k FROM generate_series(1, 3000) n;
SELECT k, count(*), string_agg(s, ',' ORDER BY s DESC) FROM t GROUP BY k ORDER BY k;
SELECT a.s, b.s FROM t a JOIN t b ON a.n = b.n + 1 WHERE a.s LIKE '%9%' ORDER BY b.s;
WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 200) SELECT sum(n), array_agg(n) FROM r;
SELECT jsonb_agg(jsonb_build_object('a', n, 'b', s)) FROM t WHERE n < 300;
SELECT regexp_replace(s, '(\\d)(\\d)', '\\2\\1', 'g') FROM t WHERE n < 100;
DO $$ DECLARE i int; BEGIN FOR i IN 1..20 LOOP BEGIN PERFORM 1 / (i - 10);
    EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$;
SELECT no_such_column;
";

#[test]
fn postgres() {
    need!(can_watch());
    let programs = need!(postgres_programs());
    let directory = tempfile::tempdir().expect("a directory can be made");
    let data = directory.path().join("data");
    let as_user = |program: &Path| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]);
        command.arg(program);
        command
    };
    let port = server::free_port();
    need!(output(
        Command::new("chown").arg("postgres").arg(directory.path())
    ));
    let mut initdb = as_user(&programs.join("initdb"));
    need!(output(
        initdb.args(["--auth", "trust", "--no-sync", "-D"]).arg(&data)
    ));
    let mut command = as_user(&programs.join("postgres"));
    command
        .arg("-D")
        .arg(&data)
        .args(["-p", &port.to_string(), "-c", "fsync=off", "-c", "autovacuum=off"]);
    command
        .args(["-c", "max_parallel_workers_per_gather=0", "-k"])
        .arg(directory.path());
    let server = Server::start(&mut command, directory);
    let psql = || {
        let mut command = Command::new(programs.join("psql"));
        command.args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-p",
            &port.to_string(),
            "-X",
            "-q",
            "-t",
        ]);
        command
    };
    server::wait_for("postgres", || output(psql().args(["-c", "SELECT 1"])).ok());
    let session = Session::start(&mut psql(), QUERIES);
    compare("postgres", session.backend(), Code::Described);
    drop(session);
    drop(server);
}

#[test]
fn node() {
    need!(can_watch());
    let node = need!(server::program("node", &[]));
    // V8's optimiser runs when it likes: what it allocates under may not come again.
    let target = Target::start_command(Command::new(node).args(["--no-opt"]).arg(script("shapes.js")));
    compare("node", target.pid(), Code::Compiled);
}
