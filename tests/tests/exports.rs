//! Exports are read by the tools that they are for, and their totals are those of the JSON.

use std::path::{Path, PathBuf};
use std::time::Duration;

use memwatch_tests::binary::{can_watch, command, find};
use memwatch_tests::recorded::{self, LEAK};
use memwatch_tests::target::wait;
use memwatch_tests::tools::{self, interrupt, pprof, start, wait_for};
use memwatch_tests::truth::assert_true;
use memwatch_tests::watch::{parse, run_to_end};
use memwatch_tests::{Checks, Recipe, Target, need};
use serde_json::Value;
use tempfile::TempDir;

/// A recording and a folder for what is made of it.
struct Recorded {
    folder: TempDir,
}

impl Recorded {
    fn new() -> Result<Self, String> {
        find()?;
        let folder = TempDir::new().map_err(|error| format!("no folder for the test: {error}"))?;
        recorded::service(&folder.path().join("half.memwatch"), 30);
        recorded::service(&folder.path().join("whole.memwatch"), 60);
        Ok(Self { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn export(&self, recording: &str, form: &str, file: &str, options: &[&str]) -> PathBuf {
        let output = self.path(file);
        let mut command = command();
        command
            .arg("export")
            .arg(self.path(recording))
            .args(["--to", form, "-o"]);
        let ended = run_to_end(command.arg(&output).args(options));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stdout.is_empty() && ended.stderr.is_empty(), "{ended:?}");
        output
    }

    fn text(&self, form: &str, options: &[&str]) -> String {
        let path = self.export("whole.memwatch", form, form, options);
        std::fs::read_to_string(path).expect("it is text")
    }

    fn json(&self) -> Totals {
        let report = parse(&self.text("json", &[]));
        assert_eq!(report.total_rows, report.rows.len() as u64, "no row is left out");
        let mut totals = Totals::default();
        for row in &report.rows {
            let numbers = [
                row.alloc_objects,
                row.alloc_bytes,
                row.inuse_objects,
                row.inuse_bytes,
            ];
            totals.add(numbers);
        }
        let of_process: u64 = report
            .processes
            .iter()
            .flat_map(|process| process.totals.values())
            .map(|totals| totals.inuse_bytes)
            .sum();
        assert_eq!(
            totals.0[3], of_process,
            "rows add up to the totals of the process"
        );
        totals
    }
}

/// In the order of the sample types: blocks and bytes allocated, blocks and bytes in use.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals([u64; 4]);

impl Totals {
    fn add(&mut self, numbers: [u64; 4]) {
        for (sum, number) in self.0.iter_mut().zip(numbers) {
            *sum += number;
        }
    }
}

const SAMPLE_TYPES: [(&str, &str); 4] = [
    ("alloc_objects", "count"),
    ("alloc_space", "B"),
    ("inuse_objects", "count"),
    ("inuse_space", "B"),
];

/// `… of 123B total`
fn total(top: &str) -> u64 {
    let line = top
        .lines()
        .find(|line| line.contains("Showing nodes accounting for"))
        .unwrap_or_else(|| panic!("no totals in: {top}"));
    let word = line
        .split(" of ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or_else(|| panic!("no total in: {line}"));
    let digits: String = word.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no number in: {line}"))
}

#[test]
fn go_tool_pprof_reads_every_sample_type_and_agrees_with_the_json() {
    let recorded = need!(Recorded::new());
    let go = need!(tools::program("go", "golang-go"));
    let profile = recorded.export("whole.memwatch", "pprof", "whole.pb.gz", &[]);
    let profile = profile.to_str().expect("it is text");
    let expected = recorded.json();
    let home = recorded.folder.path();
    for ((name, unit), expected) in SAMPLE_TYPES.iter().zip(expected.0) {
        let index = format!("-sample_index={name}");
        let unit = format!("-unit={unit}");
        let (top, errors) = need!(pprof(
            &go,
            home,
            &["-top", "-nodecount=1000", &index, &unit, profile]
        ));
        assert_eq!(total(&top), expected, "{name}: {top}");
        assert!(errors.is_empty(), "{errors}");
    }
    let (top, _) = need!(pprof(&go, home, &["-top", "-lines", "-nodefraction=0", profile]));
    assert!(
        top.contains("Type: inuse_space"),
        "in use is what is shown by default: {top}"
    );
    assert!(top.contains("Duration: 60s"), "{top}");
    assert!(top.contains(LEAK), "{top}");
}

#[test]
fn go_tool_pprof_draws_trees_graphs_and_comments() {
    let recorded = need!(Recorded::new());
    let go = need!(tools::program("go", "golang-go"));
    need!(tools::program("dot", "graphviz"));
    let profile = recorded.export("whole.memwatch", "pprof", "whole.pb.gz", &[]);
    let profile = profile.to_str().expect("it is text");
    let home = recorded.folder.path();
    let (tree, _) = need!(pprof(&go, home, &["-tree", "-nodefraction=0", profile]));
    assert!(
        tree.contains("Server::handle") && tree.contains("parse_body"),
        "{tree}"
    );
    let (svg, _) = need!(pprof(&go, home, &["-svg", "-output=/dev/stdout", profile]));
    assert!(svg.contains("</svg>") && svg.contains("parse_body"), "no graph");
    let (comments, _) = need!(pprof(&go, home, &["-comments", profile]));
    assert!(comments.contains("process 4321: server --port 80"), "{comments}");
    let (tags, _) = need!(pprof(&go, home, &["-tags", profile]));
    for tag in ["pid:", "4321", "domain:", "python.object", "container:", "web"] {
        assert!(tags.contains(tag), "{tag} is not in {tags}");
    }
    let (raw, _) = need!(pprof(&go, home, &["-raw", profile]));
    assert!(
        raw.contains("/usr/bin/server") && raw.contains("[FN]"),
        "mappings: {raw}"
    );
    let inlined = raw.lines().find(|line| line.contains("make_unique"));
    assert!(
        inlined.is_some_and(|line| line.contains("0x")),
        "inlined functions share an address"
    );
}

#[test]
fn go_tool_pprof_compares_two_exports() {
    let recorded = need!(Recorded::new());
    let go = need!(tools::program("go", "golang-go"));
    let (old, new) = (
        recorded.export("half.memwatch", "pprof", "half.pb.gz", &[]),
        recorded.export("whole.memwatch", "pprof", "whole.pb.gz", &[]),
    );
    let base = format!("-diff_base={}", old.display());
    let options = [
        "-top",
        "-lines",
        "-nodefraction=0",
        "-unit=B",
        &base,
        new.to_str().expect("it is text"),
    ];
    let (top, _) = need!(pprof(&go, recorded.folder.path(), &options));
    let leak = top
        .lines()
        .find(|line| line.contains(LEAK))
        .unwrap_or_else(|| panic!("{top}"));
    let cumulative: Vec<&str> = leak.split_whitespace().collect();
    assert_eq!(
        cumulative[3], "300000B",
        "30 seconds of 100 blocks of 100 bytes: {leak}"
    );
}

#[test]
fn collapsed_stacks_and_csv_have_the_totals_of_the_json() {
    let recorded = need!(Recorded::new());
    let expected = recorded.json();
    for (options, index) in [
        (&["--view", "alloc", "--sort", "alloc-objects"][..], 0),
        (&["--view", "alloc"], 1),
        (&["--sort", "inuse-objects"], 2),
        (&[], 3),
    ] {
        let lines = recorded.text("collapsed", options);
        let sum: u64 = lines
            .lines()
            .map(|line| {
                line.rsplit(' ')
                    .next()
                    .expect("a weight")
                    .parse::<u64>()
                    .expect("a number")
            })
            .sum();
        assert_eq!(sum, expected.0[index], "{options:?}");
    }
    let csv = recorded.text("csv", &[]);
    let mut totals = Totals::default();
    for line in csv.split("\r\n").skip(1).filter(|line| !line.is_empty()) {
        let field = |index: usize| {
            line.split(',')
                .nth(index)
                .expect("a field")
                .parse()
                .expect("a number")
        };
        totals.add([field(7), field(6), field(5), field(4)]);
    }
    assert_eq!(totals, expected);
}

#[test]
fn speedscope_has_one_profile_for_each_number_with_its_total() {
    let recorded = need!(Recorded::new());
    let expected = recorded.json();
    let file: Value = serde_json::from_str(&recorded.text("speedscope", &[])).expect("it is JSON");
    let totals: Vec<u64> = (0..4)
        .map(|index| file["profiles"][index]["endValue"].as_u64().expect("a total"))
        .collect();
    assert_eq!(totals, expected.0);
}

/// The schema that speedscope publishes, by a validator that is not ours.
#[test]
fn speedscope_files_obey_the_published_schema() {
    let recorded = need!(Recorded::new());
    let file = recorded.export("whole.memwatch", "speedscope", "speedscope.json", &[]);
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/speedscope-schema.json");
    let script = "import json, sys, jsonschema\n\
                  schema, file = (json.load(open(path)) for path in sys.argv[1:3])\n\
                  jsonschema.validate(file, schema)\n\
                  file['profiles'][0]['unit'] = 'wrong'\n\
                  try: jsonschema.validate(file, schema)\n\
                  except jsonschema.ValidationError: print('valid')\n";
    let mut python = std::process::Command::new("/usr/bin/python3");
    let (said, _) = need!(tools::run(python.args(["-c", script]).arg(schema).arg(file)));
    assert_eq!(said.trim(), "valid");
}

#[test]
fn flame_graphs_are_drawn_of_what_is_and_of_what_changed() {
    let recorded = need!(Recorded::new());
    let svg = recorded.text("flamegraph", &[]);
    assert!(svg.contains("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(
        svg.contains("render (app/session.py:31)"),
        "Python lines are in it"
    );
    let difference = recorded.text("flamegraph", &["--baseline", "30s"]);
    assert!(
        difference.contains("change of bytes in use") && difference.contains("+0.0"),
        "differences are told"
    );
}

#[test]
fn texts_of_other_tools_name_what_holds_most() {
    let recorded = need!(Recorded::new());
    let memleak = recorded.text("memleak", &[]);
    assert!(
        memleak.contains("stacks with outstanding allocations:\n\t"),
        "{memleak}"
    );
    assert!(
        memleak.contains("600000 bytes in 6000 allocations from stack"),
        "{memleak}"
    );
    let heaptrack = recorded.text("heaptrack", &[]);
    assert!(
        heaptrack.contains("600.00KB leaked over 6000 calls from"),
        "{heaptrack}"
    );
}

#[test]
fn suppressed_stacks_are_left_out_and_told() {
    let recorded = need!(Recorded::new());
    let known = recorded.path("known");
    std::fs::write(&known, "# accepted\nleak:parse_body\n").expect("it can be written");
    let known = known.to_str().expect("it is text");
    let csv = recorded.text("csv", &["--suppressions", known]);
    assert!(
        !csv.contains("parse_body") && csv.contains("Cache::insert"),
        "{csv}"
    );
    let json = parse(&recorded.text("json", &["--suppressions", known]));
    assert!(
        json.health
            .reasons
            .iter()
            .any(|reason| reason.contains("leak:parse_body")),
        "{:?}",
        json.health.reasons
    );
    std::fs::write(recorded.path("bad"), "nonsense\n").expect("it can be written");
    let mut bad = command();
    bad.arg("export")
        .arg(recorded.path("whole.memwatch"))
        .args(["--to", "csv", "--suppressions"]);
    let ended = run_to_end(bad.arg(recorded.path("bad")));
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("line 1 `nonsense`"), "{ended:?}");
}

#[test]
fn a_failed_export_leaves_nothing_behind() {
    let recorded = need!(Recorded::new());
    let junk = recorded.path("junk");
    std::fs::write(&junk, "no recording").expect("it can be written");
    let output = recorded.path("out.pb.gz");
    let ended = run_to_end(
        command()
            .arg("export")
            .arg(&junk)
            .args(["--to", "pprof", "-o"])
            .arg(&output),
    );
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("not a memwatch recording"), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(!output.exists());
}

#[test]
fn a_running_process_is_exported_to_the_byte() {
    need!(can_watch());
    let folder = TempDir::new().expect("a folder");
    let output = folder.path().join("live.json");
    let mut target = Target::start(&need!(Recipe::c("c_basic.c").build()));
    let mut export = command();
    export.args([
        "export",
        "--pid",
        &target.pid().to_string(),
        "--to",
        "json",
        "-i",
        "200ms",
        "-o",
    ]);
    let (mut child, said) = start(export.arg(&output));
    wait_for(&said, "watching until Ctrl-C");
    let truths = target.go();
    // A tick after the last of its work.
    std::thread::sleep(Duration::from_millis(500));
    interrupt(&child);
    let status = wait(&mut child, "memwatch");
    assert!(status.success(), "{status}");
    target.exit();
    let text = std::fs::read_to_string(&output).expect("it was written");
    assert_true(&parse(&text), &truths, Checks::default());
}
