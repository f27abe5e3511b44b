//! `cargo xtask bench --python`: what the ways of watching Python's small objects cost, beside the tools that Python
//! people use.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Options,
    contestant::Contestant,
    pairs::{Pairs, Reading},
    stats::Summary,
    table::number,
};
use crate::shell;

/// Frames that tracemalloc keeps of each block.
const TRACEMALLOC_FRAMES: &str = "25";

/// An interpreter with the other tools beside it.
struct Interpreter {
    name: String,
    folder: PathBuf,
}

struct Way {
    contestant: Contestant,
    /// What the program is started with.
    arguments: &'static [&'static str],
    readings: Vec<Reading>,
    failure: Option<String>,
}

pub fn run(options: &Options, memwatch: &Path) -> Result<String> {
    let mut text = String::new();
    for (name, python) in interpreters() {
        let interpreter = prepare(&name, &python)?;
        let mut ways = ways(memwatch, &interpreter.folder);
        ways.retain(|way| options.wants(&way.contestant));
        for round in 1..=options.rounds {
            for way in ways.iter_mut().filter(|way| way.failure.is_none()) {
                measure(options, &interpreter, way);
                shell::say(format!("{name}, round {round}: {}", way.said()));
            }
        }
        text += &table(&interpreter, &ways);
        let broken = ways
            .iter()
            .any(|way| way.contestant.required && way.failure.is_some());
        ensure!(!broken, "memwatch itself could not be measured:\n{text}");
    }
    Ok(text)
}

/// The distribution's, whose allocator is inlined, and a pyenv one, whose is not.
fn interpreters() -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let system = PathBuf::from("/usr/bin/python3");
    if system.exists() {
        found.push(("Debian's, allocation inlined".to_owned(), system));
    }
    let versions = PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".pyenv/versions");
    let pyenv = std::fs::read_dir(&versions).into_iter().flatten().flatten();
    let pyenv = pyenv.map(|entry| entry.path().join("bin/python3.11"));
    found.extend(
        pyenv
            .filter(|python| python.exists())
            .map(|python| ("pyenv's, allocation called".to_owned(), python)),
    );
    found
}

/// The other tools belong to one interpreter: each has an environment of its own with them.
fn prepare(name: &str, python: &Path) -> Result<Interpreter> {
    let version = shell::output(Command::new(python).arg("--version"))?;
    let kind: String = name.chars().take_while(char::is_ascii_alphanumeric).collect();
    let folder = shell::target_folder()?
        .join("bench")
        .join(format!("python-{kind}-{}", version.trim().replace(' ', "-")));
    if !folder.join("bin/memray").exists() {
        shell::output(Command::new(python).args(["-m", "venv"]).arg(&folder))?;
        shell::output(Command::new(folder.join("bin/pip")).args(["install", "-q", "memray", "py-spy"]))
            .context("cannot install memray and py-spy")?;
    }
    Ok(Interpreter {
        name: format!("{} ({name})", version.trim()),
        folder,
    })
}

fn ways(memwatch: &Path, folder: &Path) -> Vec<Way> {
    let memwatch = memwatch.to_string_lossy();
    let ours = |mode: &str| {
        let line = format!("{memwatch} --pid {{pid}} --format json -i 1s --python {mode}");
        line.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    let scratch = folder.join("recorded");
    let (scratch, tools) = (scratch.to_string_lossy(), folder.join("bin"));
    let tools = tools.to_string_lossy();
    // It ends when it has begun; the shell stays until the end.
    let memray = format!(
        "trap 'exit 0' INT; rm -f {scratch}.memray; {tools}/memray attach -o {scratch}.memray {{pid}} >&2 || exit 1; echo attached; while :; do sleep 0.05; done"
    );
    let py_spy =
        format!("{tools}/py-spy record --native --rate 100 --duration 3600 -o {scratch}.svg --pid {{pid}}");
    let way = |contestant, arguments| Way {
        contestant,
        arguments,
        readings: Vec::new(),
        failure: None,
    };
    let plain = Contestant::plain("not watched");
    let mut tracemalloc = Contestant::plain("`tracemalloc.start(25)` in the program itself");
    tracemalloc.name = "tracemalloc";
    vec![
        way(plain, &[]),
        way(
            Contestant::ours("memwatch off", ours("off"), "`--python off`"),
            &[],
        ),
        way(
            Contestant::ours("memwatch pools", ours("pools"), "`--python pools`"),
            &[],
        ),
        way(
            Contestant::ours(
                "memwatch exact",
                ours("exact --force"),
                "`--python exact --force`",
            ),
            &[],
        ),
        way(tracemalloc, &[TRACEMALLOC_FRAMES]),
        way(
            Contestant::other(
                "memray",
                ["sh", "-c", &memray].map(str::to_owned).to_vec(),
                "attached",
                "`memray attach`",
            ),
            &[],
        ),
        way(
            Contestant::other(
                "py-spy",
                py_spy.split(' ').map(str::to_owned).collect(),
                "Sampling process",
                "`py-spy record --native`, 100 stacks a second: no memory at all, only its walk",
            ),
            &[],
        ),
    ]
}

fn measure(options: &Options, interpreter: &Interpreter, way: &mut Way) {
    let mut command = Command::new(interpreter.folder.join("bin/python"));
    command
        .arg(shell::workspace().join("tests/bench/objects.py"))
        .args(way.arguments);
    // Anew each time: nobody starts in what the one before left behind.
    let outcome = Pairs::start_command(&mut command)
        .and_then(|target| way.contestant.measure(&target, options.duration()));
    match outcome {
        Ok(reading) => way.readings.push(reading),
        Err(error) => way.failure = Some(format!("{error:#}")),
    }
}

impl Way {
    fn said(&self) -> String {
        match (&self.failure, self.readings.last()) {
            (Some(failure), _) => format!("{}: {failure}", self.contestant.name),
            (None, Some(reading)) => {
                format!(
                    "{}: {:.0} ns an object",
                    self.contestant.name, reading.cpu_ns_per_pair
                )
            }
            (None, None) => self.contestant.name.to_owned(),
        }
    }

    fn cost(&self) -> Option<Summary> {
        Summary::of(self.readings.iter().map(|reading| reading.cpu_ns_per_pair))
    }
}

fn table(interpreter: &Interpreter, ways: &[Way]) -> String {
    let plain = ways.first().and_then(Way::cost);
    let mut text = format!("\n### {}\n\n", interpreter.name);
    text += "| | CPU time of an object | times plain | objects a second |\n| --- | ---: | ---: | ---: |\n";
    for way in ways {
        let Some(cost) = way.cost().filter(|_| way.failure.is_none()) else {
            let why = way.failure.as_deref().unwrap_or("no reading").replace('|', "/");
            // Writing to a string cannot fail.
            _ = writeln!(
                text,
                "| {} | could not be measured: {why} | | |",
                way.contestant.name
            );
            continue;
        };
        let speed = Summary::of(way.readings.iter().map(|reading| reading.pairs_per_second));
        _ = writeln!(
            text,
            "| {} | {} ns ({}–{}) | {} | {} |",
            way.contestant.name,
            number(cost.median),
            number(cost.min),
            number(cost.max),
            plain
                .map(|plain| number(cost.median / plain.median))
                .unwrap_or_default(),
            speed.map(|speed| number(speed.median)).unwrap_or_default(),
        );
    }
    text
}

/// For readers of the tables.
pub fn legend(memwatch: &Path) -> String {
    let mut text = String::from("\n");
    for way in ways(memwatch, Path::new("")) {
        _ = writeln!(text, "- **{}**: {}", way.contestant.name, way.contestant.about);
    }
    text
}
