//! `memwatch doctor`: what this kernel and this target allow, and what is missing.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context as _, Result, anyhow};

use super::{
    error::{ExitCode, Failure},
    output::Output,
    resolve::{Format, Resolved, TargetSpec, Verbosity},
    run::bounds,
};
use crate::{
    probe::{
        attach::{Attacher, Scope},
        capabilities::{KERNEL_BTF, TaskLayout, kernel_version},
        links::{Method, UprobePrograms},
        load::{KernelSide, OBJECT},
        plan::{Abilities, ModulePlan, Point},
        preflight::{self, ReturnProbes},
        price::Prices,
    },
    target::{
        ProcRoot,
        select::{Selector, Target},
    },
    watch::{clock, start::load_only},
};

/// One thing that was looked at.
#[derive(Clone, Debug, serde::Serialize)]
struct Check {
    name: String,
    ok: bool,
    /// What was found, and when it is not well: what to do.
    found: String,
}

#[derive(Debug, Default, serde::Serialize)]
struct Checks {
    schema: &'static str,
    #[serde(rename = "checks")]
    list: Vec<Check>,
    probes: Vec<Probe>,
}

/// One probe of a target, with its price.
#[derive(Clone, Debug, serde::Serialize)]
struct Probe {
    module: String,
    symbol: String,
    aliases: Vec<&'static str>,
    offset: u64,
    offset_from_entry: u32,
    instruction: String,
    nanoseconds: u64,
}

impl Checks {
    fn add(&mut self, name: impl Into<String>, result: Result<String>) {
        let (ok, found) = match result {
            Ok(found) => (true, found),
            Err(error) => (false, format!("{error:#}")),
        };
        self.list.push(Check {
            name: name.into(),
            ok,
            found,
        });
    }

    fn all_ok(&self) -> bool {
        self.list.iter().all(|check| check.ok)
    }
}

pub fn run(resolved: &Resolved, verify: bool) -> Result<ExitCode> {
    let mut output = Output::open(&resolved.output.destination)?;
    let mut checks = Checks {
        schema: "memwatch.doctor/1",
        ..Checks::default()
    };
    kernel(&mut checks);
    let mut prices = Prices::default();
    if let Ok(mut side) = loaded(&mut checks, resolved) {
        programs(&mut checks, &side);
        if verify {
            tracepoints(&mut checks, &mut side);
        }
        let return_probes = return_probes(&mut checks, &side);
        prices = self::prices(&mut checks, &side, return_probes);
    }
    if let Some(target) = &resolved.target {
        self::target(&mut checks, target, &prices)?;
    }
    let text = match resolved.output.format {
        Some(Format::Json) => format!("{}\n", serde_json::to_string(&checks)?),
        _ => text(&checks, resolved.output.verbosity >= Verbosity::Verbose),
    };
    // Whether anybody reads on makes no difference: there is only one block.
    let _ = output.write(&text)?;
    output.finish()?;
    if checks.all_ok() {
        return Ok(ExitCode::Done);
    }
    Err(Failure::new(
        ExitCode::NotPermitted,
        anyhow!("not everything that memwatch needs is there"),
    )
    .hint("the lines marked FAIL say what to do")
    .into())
}

fn kernel(checks: &mut Checks) {
    let (major, minor) = kernel_version();
    let version = format!("Linux {major}.{minor}");
    checks.add(
        "kernel",
        if (major, minor) >= (5, 15) {
            Ok(version)
        } else {
            Err(anyhow!(
                "{version}: memwatch needs Linux 5.15 or newer (bpf_get_attach_cookie)"
            ))
        },
    );
    checks.add(
        "kernel type information",
        TaskLayout::of_running_kernel().map(|_| KERNEL_BTF.to_owned()),
    );
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    checks.add(
        "lockdown",
        if lockdown.contains("[confidentiality]") {
            Err(anyhow!("the kernel is locked down for confidentiality: BPF may not read memory; boot with lockdown=integrity or none"))
        } else {
            Ok(if lockdown.is_empty() { "off".to_owned() } else { lockdown.trim().to_owned() })
        },
    );
    checks.add("capabilities", capabilities());
    checks.add("lock-free uprobes", Ok(if (major, minor) >= (6, 13) {
        "yes".to_owned()
    } else {
        format!("no: Linux {major}.{minor} serialises probe hits of all processors; watch few busy processes at a time")
    }));
}

/// What of CAP_SYS_ADMIN, CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE this process has.
fn capabilities() -> Result<String> {
    const NEEDED: [(&str, u32); 3] = [("CAP_BPF", 39), ("CAP_PERFMON", 38), ("CAP_SYS_PTRACE", 19)];
    const SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .context("no CapEff in /proc/self/status")?;
    let effective = u64::from_str_radix(line.trim(), 16).context("CapEff is not a number")?;
    let has = |bit: u32| effective >> bit & 1 == 1;
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(_, bit)| !(has(*bit) || has(SYS_ADMIN) && *bit > 30))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Ok("CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE".to_owned());
    }
    Err(anyhow!(
        "missing {}: run as root, or `setcap cap_bpf,cap_perfmon,cap_sys_ptrace,cap_dac_read_search+ep` on memwatch",
        missing.join(", ")
    ))
}

fn loaded(checks: &mut Checks, resolved: &Resolved) -> Result<KernelSide, ()> {
    match load_only(&bounds(resolved), resolved.method) {
        Ok(side) => {
            checks.add(
                "kernel side",
                Ok(format!("loads; probes by {}", side.programs.method.name())),
            );
            Ok(side)
        }
        Err(error) => {
            checks.add("kernel side", Err(error));
            Err(())
        }
    }
}

/// Every way of probing, through the verifier.
fn programs(checks: &mut Checks, side: &KernelSide) {
    let (major, minor) = kernel_version();
    for (method, since) in [
        (Method::Session, (6, 13)),
        (Method::Multi, (6, 6)),
        (Method::PerfEvent, (5, 15)),
    ] {
        let loaded = UprobePrograms::load(OBJECT, &side.ebpf, method)
            .and_then(|programs| Ok(programs.verified_instructions()?))
            .map(|instructions| format!("loads; the verifier went through {instructions:?} instructions"));
        let loaded = match loaded {
            Err(_) if (major, minor) < since => {
                Ok(format!("not on this kernel: since Linux {}.{}", since.0, since.1))
            }
            other => other,
        };
        checks.add(method.name(), loaded);
    }
}

fn tracepoints(checks: &mut Checks, side: &mut KernelSide) {
    checks.add(
        "fork, exec, exit",
        side.attach_lifecycle().map(|()| "attached".to_owned()),
    );
    checks.add(
        "mmap, munmap, mremap, brk",
        side.attach_mappings().map(|()| "attached".to_owned()),
    );
}

fn return_probes(checks: &mut Checks, side: &KernelSide) -> ReturnProbes {
    let tried = preflight::return_probes(side);
    let verdict = match &tried {
        Ok(ReturnProbes::Safe) => Ok("safe, tried on a child with a strict seccomp filter".to_owned()),
        Ok(ReturnProbes::KillFiltered) => Err(anyhow!(
            "kill processes that have a seccomp filter on this kernel; memwatch refuses those (mended in Linux 6.14)"
        )),
        Err(error) => Err(anyhow!("{error:#}")),
    };
    checks.add("return probes", verdict);
    tried.unwrap_or(ReturnProbes::KillFiltered)
}

/// What they cost here.
fn prices(checks: &mut Checks, side: &KernelSide, return_probes: ReturnProbes) -> Prices {
    let measured = Prices::measure(side, return_probes, clock::thread_cpu);
    let said = match &measured {
        Ok(prices) => prices.to_string(),
        Err(error) => format!("not known what a hit costs: {error:#}"),
    };
    checks.add("probes", Ok(said));
    measured.unwrap_or_default()
}

fn target(checks: &mut Checks, target: &TargetSpec, prices: &Prices) -> Result<()> {
    let target = match target.clone() {
        TargetSpec::Pids(pids) => Target::Pids(pids),
        TargetSpec::Comm(glob) => Target::Comm(glob),
        TargetSpec::Cgroup(path) => Target::Cgroup(path),
        TargetSpec::All | TargetSpec::Command(_) => Target::All,
    };
    let proc = ProcRoot::default();
    let (major, minor) = kernel_version();
    // As a watch would do without options.
    let abilities = Abilities {
        pools: true,
        ..Abilities::of_kernel(major, minor, true)
    };
    let mut attacher = Attacher::new(proc, abilities, Scope::Process);
    let exactly = Abilities {
        python: true,
        ..abilities
    };
    let mut exact = Attacher::new(ProcRoot::default(), exactly, Scope::Process);
    for selected in Selector::default().select(&target)? {
        let (plans, why_not) = attacher.look(selected.pid)?;
        let allocators = plans.iter().filter(|plan| plan.is_allocator());
        let names: Vec<&str> = allocators.map(|plan| plan.module.as_str()).collect();
        checks.add(
            format!("process {}", selected.pid),
            if names.is_empty() {
                Err(anyhow!(
                    "no allocator that can be watched: {}",
                    why_not
                        .unwrap_or_else(|| "nothing that it has mapped has allocation functions".to_owned())
                ))
            } else {
                Ok(format!("allocators: {}", names.join(", ")))
            },
        );
        let (exactly, _) = exact.look(selected.pid)?;
        if let Some(found) = exactly.iter().find_map(|plan| each_object(plan)) {
            checks.add(format!("process {} with --python exact", selected.pid), Ok(found));
        }
        for plan in plans {
            checks.probes.extend(probes(&plan, prices));
        }
    }
    checks
        .probes
        .sort_by(|a, b| (&a.module, a.offset).cmp(&(&b.module, b.offset)));
    checks
        .probes
        .dedup_by(|a, b| (&a.module, a.offset) == (&b.module, b.offset));
    Ok(())
}

/// What `--python exact` shows of a file with a CPython.
fn each_object(plan: &ModulePlan) -> Option<String> {
    if let Some(inlined) = &plan.inlined {
        let how = match inlined.found {
            0 => format!("where {} does so", inlined.module),
            found => format!(
                "at {} of {found} places ({} has its allocator inlined)",
                inlined.probed, inlined.module
            ),
        };
        return Some(format!(
            "counts small objects as they are handed out, {how}; what is in use of them is estimated"
        ));
    }
    let python = plan.points.iter().any(Point::is_python);
    python.then(|| format!("follows each block ({} calls its allocator)", plan.module))
}

fn probes<'a>(plan: &'a ModulePlan, prices: &'a Prices) -> impl Iterator<Item = Probe> + 'a {
    plan.points.iter().map(|point| Probe {
        module: plan.module.clone(),
        symbol: point.symbol.to_owned(),
        aliases: point.aliases.clone(),
        offset: point.offset,
        offset_from_entry: point.placement.offset_from_entry,
        instruction: point.placement.instruction.clone(),
        nanoseconds: point.nanoseconds(prices),
    })
}

fn text(checks: &Checks, verbose: bool) -> String {
    let mut out = String::new();
    let width = checks
        .list
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    for check in &checks.list {
        let mark = if check.ok { "ok  " } else { "FAIL" };
        let _ = writeln!(out, "{mark}  {:width$}  {}", check.name, check.found);
    }
    if verbose {
        for probe in &checks.probes {
            let module = Path::new(&probe.module)
                .file_name()
                .map_or(probe.module.clone(), |name| name.to_string_lossy().into_owned());
            let aliases = if probe.aliases.is_empty() {
                String::new()
            } else {
                format!(" (= {})", probe.aliases.join(", "))
            };
            let _ = writeln!(
                out,
                "      {module}: {}{aliases} at +{:#x} `{}`, about {} ns a call",
                probe.symbol, probe.offset_from_entry, probe.instruction, probe.nanoseconds
            );
        }
    }
    out
}
