//! Which probes a file gets. Pure: the file's content and the kernel's abilities in, a list out.

use std::cell::Cell;
use std::collections::HashMap;

use memwatch_common::cookie::FLAG_GLIBC;
use memwatch_common::{Cookie, Domain, Function};

use super::forward_x86::{self, Mode, Target};
use super::functions::{Family, Known};
use super::placer::{self, Code, Cost, Emulation, Placement};
use super::price::Prices;
use super::small;
use super::symbols::{FoundFunction, Import, Machine, ModuleSymbols, SymbolError};
use crate::model::report::{InlinedNote, ProbeNote};
use crate::python::allocator::PoolSite;
use crate::python::interpreter::PythonFile;
use crate::python::pymalloc::Geometry;

/// What the running kernel can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Return probes do not harm the processes to be watched.
    pub return_probes: bool,
    pub emulation: Emulation,
    /// CPython's own allocation functions are wanted too.
    pub python: bool,
    /// Where CPython's blocks are not seen one by one, the pools that it takes into use are.
    pub pools: bool,
}

impl Abilities {
    /// What is known of a kernel from its version alone; whether return probes are safe has to be tried.
    pub const fn of_kernel(major: u32, minor: u32, return_probes: bool) -> Self {
        let long_nops = major > 6 || major == 6 && minor >= 18;
        Self {
            return_probes,
            emulation: Emulation { long_nops },
            python: false,
            pools: false,
        }
    }
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Where in the file the probe is to sit.
    pub offset: u64,
    /// Where the function begins, as linked.
    pub address: u64,
    pub symbol: &'static str,
    /// Other names of the same function.
    pub aliases: Vec<&'static str>,
    pub function: Function,
    pub domain: Domain,
    /// `FLAG_*` of the cookie.
    pub flags: u8,
    pub id: u8,
    pub needs_return: bool,
    /// The totals would be wrong without this probe.
    pub required: bool,
    pub placement: Placement,
}

impl Point {
    pub const fn cookie(&self, generation: u32) -> Cookie {
        Cookie::new(
            self.function,
            self.domain,
            self.flags,
            self.id,
            generation,
            self.offset,
        )
    }

    /// One of CPython's blocks is handed out or taken back there.
    pub fn is_python(&self) -> bool {
        let python = matches!(
            self.domain,
            Domain::PythonRaw | Domain::PythonMem | Domain::PythonObject
        );
        python && !matches!(self.function, Function::PythonPool | Function::PythonPoolSite)
    }

    /// What one call of the function will cost more, in nanoseconds.
    pub const fn nanoseconds(&self, prices: &Prices) -> u64 {
        prices.of(&self.placement, self.needs_return)
    }
}

/// A function that gets no probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub symbol: String,
    pub reason: String,
}

/// All probes of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModulePlan {
    pub module: String,
    /// By address.
    pub points: Vec<Point>,
    pub skipped: Vec<Skipped>,
    /// What users should know about this file.
    pub notes: Vec<String>,
    pub glibc: bool,
    /// Where CPython's allocator was put into its callers, and each of its blocks is wanted: what was found of that.
    pub inlined: Option<InlinedNote>,
}

impl ModulePlan {
    /// The file hands out blocks.
    pub fn is_allocator(&self) -> bool {
        self.points.iter().any(|point| point.function.allocates())
    }

    /// The file hands out blocks or pools of them.
    pub fn is_watched(&self) -> bool {
        let hands_out = |point: &Point| {
            point.needs_return || matches!(point.function, Function::PythonPoolSite | Function::PythonSmall)
        };
        self.points.iter().any(hands_out)
    }

    /// The functions without a probe, as reports show them.
    pub fn probe_notes(&self) -> impl Iterator<Item = ProbeNote> + '_ {
        self.skipped.iter().map(|skipped| ProbeNote {
            symbol: skipped.symbol.clone(),
            module: self.module.clone(),
            reason: skipped.reason.clone(),
        })
    }

    fn skip(&mut self, symbol: &str, reason: impl Into<String>) {
        self.skipped.push(Skipped {
            symbol: symbol.to_owned(),
            reason: reason.into(),
        });
    }
}

/// Plans the file whose content is `bytes`.
pub fn plan_file(bytes: &[u8], module_name: &str, abilities: &Abilities) -> Result<ModulePlan, SymbolError> {
    Ok(plan(&ModuleSymbols::parse(bytes)?, bytes, module_name, abilities))
}

/// Plans the file whose content is `bytes` and whose symbols have been read.
pub fn plan(symbols: &ModuleSymbols, bytes: &[u8], module_name: &str, abilities: &Abilities) -> ModulePlan {
    let mut plan = ModulePlan {
        module: module_name.to_owned(),
        glibc: symbols.glibc,
        ..ModulePlan::default()
    };
    for unusable in &symbols.unusable {
        plan.skip(unusable.symbol, unusable.reason);
    }
    if let Some(reason) = unfit(symbols, *abilities) {
        for function in &symbols.functions {
            plan.skip(chosen(function).name, reason);
        }
        return plan;
    }
    let python = python_file(symbols, bytes, &plan.module, *abilities);
    let inlined = python.as_ref().filter(|python| python.allocator.is_inlined());
    let own = python.as_ref().map_or(Own::default(), |python| Own {
        inlined: python.allocator.is_inlined(),
        mimalloc: python.free_threaded,
    });
    let candidates = place_all(symbols, bytes, *abilities, own, &mut plan);
    let forwards = forwards(symbols, bytes, &candidates);
    let (mut allocates, mut frees) = (false, false);
    for candidate in candidates {
        let known = candidate.known;
        if known.function.has_return() {
            allocates = true;
        } else {
            frees = true;
        }
        if let Some(target) = forwards.get(&candidate.function.address) {
            plan.skip(
                known.name,
                format!("always leads to {target}, which is watched where it is"),
            );
        } else {
            plan.points.push(point(candidate, symbols.glibc));
        }
    }
    inherit_needs(symbols, &forwards, &mut plan.points);
    let blocks = !plan.points.is_empty();
    if let Some(python) = &python {
        plan.points
            .extend(pool_points(symbols, bytes, python, *abilities));
    }
    if let Some(python) = inlined.filter(|_| abilities.python) {
        let (points, note) = small::points(symbols, bytes, python, *abilities);
        plan.inlined = Some(InlinedNote {
            module: plan.module.clone(),
            ..note
        });
        plan.points.extend(points);
    }
    if blocks && !frees {
        plan.notes
            .push("no function that frees: its blocks will look alive for ever".to_owned());
    }
    if blocks && !allocates {
        plan.notes
            .push("no function that allocates: what it frees must come from elsewhere".to_owned());
    }
    plan
}

/// Why no function of the file can be probed.
fn unfit(symbols: &ModuleSymbols, abilities: Abilities) -> Option<&'static str> {
    if symbols.go {
        Some("part of a Go program: return probes break its stacks")
    } else if symbols.machine == Machine::Other {
        Some("memwatch cannot read the code of this machine type")
    } else if symbols
        .soname
        .as_deref()
        .is_some_and(|name| name.starts_with("ld-linux") || name == "ld64.so.2")
    {
        Some("the dynamic linker's own, used only until the C library is loaded")
    } else if !abilities.return_probes {
        Some("needs return probes, which on this kernel would end processes that filter system calls")
    } else {
        None
    }
}

/// A function that can be probed.
struct Candidate<'a> {
    function: &'a FoundFunction,
    known: &'static Known,
    placement: Placement,
}

/// The name that stands for a function of several names.
fn chosen(function: &FoundFunction) -> &'static Known {
    function.names[0]
}

/// What the CPython in a file has of its own.
#[derive(Clone, Copy, Default)]
struct Own {
    /// Its allocator was put into its callers.
    inlined: bool,
    /// All its objects are in a mimalloc that nobody else asks.
    mimalloc: bool,
}

fn place_all<'a>(
    symbols: &'a ModuleSymbols,
    bytes: &[u8],
    abilities: Abilities,
    own: Own,
    plan: &mut ModulePlan,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for function in &symbols.functions {
        let known = chosen(function);
        if known.family == Family::Python {
            if !abilities.python {
                continue;
            }
            if own.inlined {
                plan.skip(known.name, INLINED_PYTHON);
                continue;
            }
        }
        if own.mimalloc && known.family == Family::Mimalloc {
            plan.skip(known.name, OWN_MIMALLOC);
            continue;
        }
        for other in function
            .names
            .iter()
            .filter(|other| other.function != known.function)
        {
            plan.skip(
                other.name,
                format!("its code is that of {}, a function of another kind", known.name),
            );
        }
        let code = Code {
            bytes: symbols.code(bytes, function.address).unwrap_or(&[]),
            entry: function.address,
            size: function.size,
            limit: function.limit,
        };
        match placer::place(symbols.machine, &code, known.function, abilities.emulation) {
            Ok(placement) => candidates.push(Candidate {
                function,
                known,
                placement,
            }),
            Err(error) => plan.skip(known.name, error.to_string()),
        }
    }
    candidates
}

/// The CPython that is in the file, where its own functions are wanted. The interpreter itself is looked at later, when
/// it is known which process runs it.
fn python_file(
    symbols: &ModuleSymbols,
    bytes: &[u8],
    module: &str,
    abilities: Abilities,
) -> Option<PythonFile> {
    let python = |function: &FoundFunction| chosen(function).family == Family::Python;
    let mimalloc = |function: &FoundFunction| chosen(function).family == Family::Mimalloc;
    let wanted = abilities.python || abilities.pools || symbols.functions.iter().any(mimalloc);
    if !wanted || !symbols.functions.iter().any(python) {
        return None;
    }
    PythonFile::parse(bytes, module)?.ok()
}

/// Where CPython takes a pool for small objects into use.
fn pool_points(symbols: &ModuleSymbols, bytes: &[u8], file: &PythonFile, abilities: Abilities) -> Vec<Point> {
    if !abilities.pools || abilities.python && !file.allocator.is_inlined() {
        return Vec::new();
    }
    if file.free_threaded {
        // Of builds for debugging it is not known what is in a page.
        let page = file.fresh_page.filter(|_| !file.debug).and_then(|address| {
            // `f(heap, queue, size)`
            let point = new_pool_point(symbols, bytes, file, (address, Function::Reallocarray), abilities)?;
            Some(Point {
                symbol: "mimalloc (a page begins)",
                id: 0,
                ..point
            })
        });
        return page.into_iter().collect();
    }
    let function = file
        .allocator
        .new_pool
        .and_then(|address| new_pool_point(symbols, bytes, file, (address, Function::PythonPool), abilities));
    let sites = file.allocator.pool_sites.iter();
    let sites = sites.filter_map(|site| pool_site_point(symbols, site));
    function.into_iter().chain(sites).collect()
}

/// `like`: a function whose arguments are as those that are read of this one.
fn new_pool_point(
    symbols: &ModuleSymbols,
    bytes: &[u8],
    file: &PythonFile,
    (address, like): (u64, Function),
    abilities: Abilities,
) -> Option<Point> {
    let code = Code {
        bytes: symbols.code(bytes, address)?,
        entry: address,
        size: None,
        limit: None,
    };
    let placement = placer::place(symbols.machine, &code, like, abilities.emulation).ok()?;
    Some(Point {
        offset: symbols.code_offset(address)? + u64::from(placement.offset_from_entry),
        address,
        symbol: "allocate_from_new_pool",
        aliases: Vec::new(),
        function: Function::PythonPool,
        domain: Domain::PythonObject,
        flags: 0,
        id: Geometry::of(file.version).pool_bytes.trailing_zeros() as u8,
        needs_return: true,
        required: false,
        placement,
    })
}

/// The kernel emulates no store: it is single-stepped, once for each pool.
fn pool_site_point(symbols: &ModuleSymbols, site: &PoolSite) -> Option<Point> {
    Some(Point {
        offset: symbols.code_offset(site.address)?,
        address: site.address,
        symbol: "pymalloc (a pool begins)",
        aliases: Vec::new(),
        function: Function::PythonPoolSite,
        domain: Domain::PythonObject,
        flags: 0,
        id: site.register,
        needs_return: false,
        required: false,
        placement: Placement {
            offset_from_entry: 0,
            instruction: "mov dword ptr [pool], 1".to_owned(),
            cost: Cost::SingleStepped,
            fallback: None,
        },
    })
}

const OWN_MIMALLOC: &str = "of CPython's own mimalloc, which none but CPython asks";

const INLINED_PYTHON: &str =
    "its code was put into its callers when this CPython was built: the calls that are left are few";

fn point(candidate: Candidate<'_>, glibc: bool) -> Point {
    let Candidate {
        function,
        known,
        placement,
    } = candidate;
    let of_kind = || {
        function
            .names
            .iter()
            .filter(|other| other.function == known.function)
    };
    Point {
        offset: function.file_offset + u64::from(placement.offset_from_entry),
        address: function.address,
        symbol: known.name,
        aliases: of_kind().skip(1).map(|other| other.name).collect(),
        function: known.function,
        domain: known.domain(),
        flags: if glibc && known.family == Family::Libc {
            FLAG_GLIBC
        } else {
            0
        },
        id: known.id,
        needs_return: known.function.has_return(),
        required: of_kind().any(|other| other.is_required()),
        placement,
    }
}

/// A function that stands in for a required one is required.
fn inherit_needs(symbols: &ModuleSymbols, forwards: &HashMap<u64, &'static str>, points: &mut [Point]) {
    let named = |name: &str| {
        symbols
            .functions
            .iter()
            .find(|f| f.names.iter().any(|known| known.name == name))
    };
    for function in &symbols.functions {
        if !function.names.iter().any(|known| known.is_required()) {
            continue;
        }
        let mut at = function.address;
        for _ in 0..forwards.len() {
            match forwards.get(&at).and_then(|target| named(target)) {
                Some(next) => at = next.address,
                None => break,
            }
        }
        if let Some(point) = points.iter_mut().find(|point| point.address == at) {
            point.required = true;
        }
    }
}

/// Addresses of the functions that always lead to another watched one, with its name.
fn forwards(
    symbols: &ModuleSymbols,
    bytes: &[u8],
    candidates: &[Candidate<'_>],
) -> HashMap<u64, &'static str> {
    let mut forwards: HashMap<u64, &'static str> = HashMap::new();
    for candidate in candidates {
        if candidate.known.family == Family::Python {
            // Whoever it leads to, its blocks are of another domain.
            continue;
        }
        let frees = !candidate.known.function.has_return();
        let mode = match (candidate.known.family, frees) {
            (Family::Operator, _) => Mode::CallsAndJumps,
            (_, false) => Mode::JumpsThatAllocate,
            (_, true) => Mode::JumpsThatFree,
        };
        let around = Around {
            symbols,
            bytes,
            candidates,
            own: candidate.function.address,
            frees,
        };
        if let Some(target) = forward_x86::leads_to(&around, candidate.function.address, mode) {
            forwards.insert(candidate.function.address, target);
        }
    }
    break_circles(&mut forwards, candidates);
    forwards
}

/// Two functions that lead to each other must not both go.
fn break_circles(forwards: &mut HashMap<u64, &'static str>, candidates: &[Candidate<'_>]) {
    let address_of = |name: &str| {
        candidates
            .iter()
            .find(|candidate| candidate.function.names.iter().any(|known| known.name == name))
            .map(|candidate| candidate.function.address)
    };
    for candidate in candidates {
        let start = candidate.function.address;
        let at = Cell::new(start);
        let hop = || Some(address_of(forwards.get(&at.get())?)?).inspect(|&next| at.set(next));
        let circle = std::iter::from_fn(hop)
            .take(candidates.len())
            .any(|address| address == start);
        if circle {
            forwards.remove(&start);
        }
    }
}

/// What lies around a candidate's code.
struct Around<'a> {
    symbols: &'a ModuleSymbols,
    bytes: &'a [u8],
    candidates: &'a [Candidate<'a>],
    own: u64,
    frees: bool,
}

impl Around<'_> {
    fn watched(&self, known: &'static Known) -> Target<&'static str> {
        let same_direction = known.function.has_return() != self.frees;
        if same_direction {
            Target::Watched(known.name)
        } else {
            Target::Other
        }
    }
}

impl forward_x86::Surroundings for Around<'_> {
    type Function = &'static str;

    fn code(&self, address: u64) -> Option<&[u8]> {
        self.symbols.code(self.bytes, address)
    }

    fn function(&self, address: u64) -> Target<&'static str> {
        if self.symbols.never_returning.contains(&address) {
            return Target::NeverReturns;
        }
        self.candidates
            .iter()
            .find(|candidate| candidate.function.address == address && address != self.own)
            .map_or(Target::Other, |candidate| self.watched(candidate.known))
    }

    fn import(&self, slot: u64) -> Target<&'static str> {
        match self.symbols.imports.get(&slot) {
            Some(Import::NeverReturns) => Target::NeverReturns,
            Some(Import::Allocator(known)) if self.unwatched_here(known) => Target::Other,
            Some(Import::Allocator(known)) => self.watched(known),
            None => Target::Other,
        }
    }
}

impl Around<'_> {
    /// This file has the function and it is not watched, or it is the one that is being looked at.
    fn unwatched_here(&self, known: &Known) -> bool {
        let here = self
            .symbols
            .functions
            .iter()
            .find(|function| function.names.contains(&known));
        here.is_some_and(|function| {
            function.address == self.own
                || !self
                    .candidates
                    .iter()
                    .any(|candidate| candidate.function.address == function.address)
        })
    }
}
