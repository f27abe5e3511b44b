//! Putting the probes of a plan in place, in one process or wherever a file is mapped.

use std::{
    collections::{HashMap, HashSet},
    fs,
    rc::Rc,
};

use anyhow::{Context as _, Result};

use super::{
    links::{LinkPoint, Links, c_path},
    load::KernelSide,
    plan::{Abilities, ModulePlan, Point, plan_file},
    price::Prices,
};
use crate::{
    model::report::{InlinedNote, ProbeNote, Probes},
    target::{
        ProcRoot,
        file_id::{FileId, FileIds},
        modules::{Catalog, Module, ProcessModules},
    },
};

/// Where probes sit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In every process that maps a file: children are watched from their first instruction, and the others pay
    /// for the hits.
    Host,
    /// In the watched processes only: a child is probed some milliseconds after its fork.
    Process,
}

/// Plans files once, attaches them, and keeps what is attached.
pub struct Attacher {
    proc: ProcRoot,
    catalog: Catalog,
    abilities: Abilities,
    prices: Prices,
    plans: HashMap<FileId, Rc<ModulePlan>>,
    pub scope: Scope,
    attached: HashMap<(FileId, Option<u32>), (Links, usize)>,
    /// Links that count no more, until the calls that began under them have returned.
    leaving: HashMap<(FileId, Option<u32>), (Links, usize)>,
    skipped: Vec<ProbeNote>,
    failed: Vec<ProbeNote>,
    noted: HashSet<(String, String)>,
}

/// What attaching to a process came to.
#[derive(Debug, Default)]
pub struct Attached {
    pub modules: ProcessModules,
    /// Files that hand out blocks and are probed now, whether or not they were before.
    pub allocators: usize,
    /// Names of the allocator files that were probed just now.
    pub new_files: Vec<String>,
    /// Why nothing could be probed, where that is known.
    pub why_not: Option<String>,
}

impl Attacher {
    pub fn new(proc: ProcRoot, abilities: Abilities, scope: Scope) -> Self {
        Self {
            catalog: Catalog::new(proc.clone()),
            proc,
            abilities,
            prices: Prices::default(),
            plans: HashMap::new(),
            scope,
            attached: HashMap::new(),
            leaving: HashMap::new(),
            skipped: Vec::new(),
            failed: Vec::new(),
            noted: HashSet::new(),
        }
    }

    /// With what hits were measured to cost.
    #[must_use]
    pub fn priced(self, prices: Prices) -> Self {
        Self { prices, ..self }
    }

    pub const fn prices(&self) -> &Prices {
        &self.prices
    }

    /// Probes every allocator that the process has mapped and that is not probed yet.
    pub fn process(&mut self, kernel: &KernelSide, pid: u32) -> Result<Attached> {
        let modules = self
            .catalog
            .read(pid)
            .with_context(|| format!("cannot read the mappings of process {pid}"))?;
        let mut attached = Attached::default();
        for module in &modules.modules {
            let Some(plan) = self.plan(module) else { continue };
            if !plan.is_watched() {
                attached.why_not = attached.why_not.or_else(|| reason(&plan));
                continue;
            }
            match self.file(kernel, module, &plan, pid) {
                Ok(_) if !plan.is_allocator() => {}
                Ok(new) => {
                    attached.allocators += 1;
                    if new {
                        attached.new_files.push(plan.module.clone());
                    }
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    attached.why_not = Some(format!("{}: {reason}", plan.module));
                    self.fail("*", &plan.module, reason);
                }
            }
        }
        attached.modules = modules;
        Ok(attached)
    }

    /// The plans of a process's files that would be probed, without probing; and why there are none, where that is known.
    pub fn look(&mut self, pid: u32) -> Result<(Vec<Rc<ModulePlan>>, Option<String>)> {
        let modules = self
            .catalog
            .read(pid)
            .with_context(|| format!("cannot read the mappings of process {pid}"))?;
        let mut plans = Vec::new();
        let mut why_not = None;
        for module in &modules.modules {
            match self.plan(module) {
                Some(plan) if plan.is_watched() => plans.push(plan),
                Some(plan) => why_not = why_not.or_else(|| reason(&plan)),
                None => {}
            }
        }
        Ok((plans, why_not))
    }

    /// A library that the process is to load later: probed before it is there.
    pub fn library(&mut self, kernel: &KernelSide, path: &std::path::Path, pid: u32) -> Result<bool> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let plan = plan_file(&bytes, &path.display().to_string(), &self.abilities)?;
        if !plan.is_watched() {
            return Ok(false);
        }
        let id = FileIds::default().look_up(path)?.id;
        let links = attach_points(kernel, path, &plan, self.target_pid(pid))?;
        self.note_skipped(&plan);
        self.attached
            .insert((id, self.target_pid(pid)), (links, plan.points.len()));
        self.plans.insert(id, Rc::new(plan));
        Ok(true)
    }

    fn target_pid(&self, pid: u32) -> Option<u32> {
        (self.scope == Scope::Process).then_some(pid)
    }

    /// True when the file was not probed for this process before.
    fn file(&mut self, kernel: &KernelSide, module: &Module, plan: &ModulePlan, pid: u32) -> Result<bool> {
        let (Some(id), Some(path)) = (module.id, &module.access_path) else {
            anyhow::bail!("the file cannot be opened (deleted, or in a place that memwatch may not reach)");
        };
        let key = (id, self.target_pid(pid));
        if self.attached.contains_key(&key) {
            return Ok(false);
        }
        let links = attach_points(kernel, path, plan, key.1)?;
        self.attached.insert(key, (links, plan.points.len()));
        Ok(true)
    }

    fn plan(&mut self, module: &Module) -> Option<Rc<ModulePlan>> {
        let id = module.id?;
        if let Some(plan) = self.plans.get(&id) {
            return Some(Rc::clone(plan));
        }
        let name = module.path.display().to_string();
        let path = module.access_path.as_ref()?;
        let plan = match fs::read(path)
            .map_err(anyhow::Error::from)
            .and_then(|bytes| Ok(plan_file(&bytes, &name, &self.abilities)?))
        {
            Ok(plan) => plan,
            Err(error) => {
                self.skip("*", &name, format!("{error:#}"));
                ModulePlan::default()
            }
        };
        self.note_skipped(&plan);
        let plan = Rc::new(plan);
        self.plans.insert(id, Rc::clone(&plan));
        Some(plan)
    }

    fn note_skipped(&mut self, plan: &ModulePlan) {
        for note in plan.probe_notes() {
            self.skip(&note.symbol, &note.module, note.reason);
        }
    }

    pub fn skip(&mut self, symbol: &str, module: &str, reason: String) {
        if self.noted.insert((symbol.to_owned(), module.to_owned())) {
            self.skipped.push(ProbeNote {
                symbol: symbol.to_owned(),
                module: module.to_owned(),
                reason,
            });
        }
    }

    pub fn fail(&mut self, symbol: &str, module: &str, reason: String) {
        if self.noted.insert((symbol.to_owned(), module.to_owned())) {
            self.failed.push(ProbeNote {
                symbol: symbol.to_owned(),
                module: module.to_owned(),
                reason,
            });
        }
    }

    /// Files may have been replaced since the last look.
    pub fn look_again(&mut self) {
        self.catalog = Catalog::new(self.proc.clone());
    }

    /// The process has ended: its own links go.
    pub fn detach_process(&mut self, pid: u32) {
        self.attached.retain(|(_, of), _| *of != Some(pid));
    }

    /// From host-wide probes to probes in `pids` only, without missing or counting twice: the new links carry the
    /// next generation, which counts from the moment it is told to the kernel side.
    pub fn narrow(&mut self, kernel: &mut KernelSide, pids: &[u32]) -> Result<()> {
        self.leaving = std::mem::take(&mut self.attached);
        self.scope = Scope::Process;
        kernel.prepare_generation();
        for pid in pids {
            // One that has just ended has nothing to probe.
            let _ = self.process(kernel, *pid);
        }
        kernel.commit_generation()
    }

    /// Once a tick: links that were replaced in an earlier one go.
    pub fn let_go_of_replaced(&mut self) {
        self.leaving.clear();
    }

    /// Whether CPython's own functions are among what is probed.
    pub fn has_python(&self) -> bool {
        let points = self.plans.values().flat_map(|plan| &plan.points);
        points.into_iter().any(Point::is_python)
    }

    /// Before anything counts: takes all probes out again, so that those of CPython's functions are left out when the
    /// processes are probed anew.
    pub fn give_up_python(&mut self) {
        self.abilities.python = false;
        self.attached.clear();
        self.plans.clear();
        self.skipped.clear();
        self.failed.clear();
        self.noted.clear();
    }

    pub fn is_attached(&self) -> bool {
        !self.attached.is_empty()
    }

    pub fn report(&self, kernel: &KernelSide) -> Probes {
        Probes {
            attached: self.attached.values().map(|(_, points)| *points as u64).sum(),
            method: kernel.programs.method.name().to_owned(),
            skipped: self.skipped.clone(),
            failed: self.failed.clone(),
            inlined: self.inlined(),
        }
    }

    /// By name.
    fn inlined(&self) -> Vec<InlinedNote> {
        let mut notes: Vec<_> = self
            .plans
            .values()
            .filter_map(|plan| plan.inlined.clone())
            .collect();
        notes.sort_by(|a, b| a.module.cmp(&b.module));
        notes
    }

    /// The plans of all files looked at that hand out blocks or pools of them, by name.
    pub fn watched(&self) -> Vec<Rc<ModulePlan>> {
        let mut plans: Vec<_> = self
            .plans
            .values()
            .filter(|plan| plan.is_watched())
            .cloned()
            .collect();
        plans.sort_by(|a, b| a.module.cmp(&b.module));
        plans
    }
}

fn attach_points(
    kernel: &KernelSide,
    path: &std::path::Path,
    plan: &ModulePlan,
    pid: Option<u32>,
) -> Result<Links> {
    let generation = kernel.link_generation();
    let points: Vec<LinkPoint> = plan
        .points
        .iter()
        .map(|point| LinkPoint {
            offset: point.offset,
            cookie: point.cookie(generation).0,
            has_return: point.needs_return,
        })
        .collect();
    kernel.programs.attach(&c_path(path)?, &points, pid)
}

/// Why a file's functions get no probes.
fn reason(plan: &ModulePlan) -> Option<String> {
    plan.skipped
        .first()
        .map(|skipped| format!("{}: {}", plan.module, skipped.reason))
}

/// Whether a file hands out blocks; a file that cannot be read does not.
pub fn is_allocator(module: &Module, abilities: &Abilities) -> bool {
    let Some(bytes) = module.access_path.as_ref().and_then(|path| fs::read(path).ok()) else {
        return false;
    };
    plan_file(&bytes, "", abilities).is_ok_and(|plan| plan.is_allocator())
}
