//! Uprobe programs and their links, made by hand beside aya: aya 0.14 knows neither `uprobe.multi` nor
//! `uprobe.session`. Maps come from [`aya::Ebpf`]; the program is relocated with aya-obj, loaded and linked with
//! plain bpf(2) calls. This file goes when aya can be used for it.

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use aya::{Ebpf, maps::Map};
use aya_obj::{
    Object,
    generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_info, bpf_prog_type},
};

use crate::named::UnknownName;

/// How probes are put in place, best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    #[default]
    /// One link for entry and return, where the entry can do without the return (Linux 6.13).
    Session,
    /// One link for all entries and one for all returns of a file (Linux 6.6).
    Multi,
    /// One perf event for each entry and each return (Linux 5.15, for the cookie).
    PerfEvent,
}

/// By the names of the command line.
impl std::str::FromStr for Method {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = Self::NAMES.iter().position(|known| *known == name);
        found.map(|index| Self::ALL[index]).ok_or_else(|| UnknownName {
            name: name.to_owned(),
            known: Self::NAMES,
        })
    }
}

impl Method {
    pub const NAMES: &'static [&'static str] = &["session", "multi", "perf-event"];
    pub const ALL: [Self; 3] = [Self::Session, Self::Multi, Self::PerfEvent];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Session => "uprobe.session",
            Self::Multi => "uprobe.multi",
            Self::PerfEvent => "perf-event",
        }
    }

    const fn attach_type(self) -> u32 {
        match self {
            Self::Session => BPF_TRACE_UPROBE_SESSION,
            Self::Multi => BPF_TRACE_UPROBE_MULTI,
            Self::PerfEvent => 0,
        }
    }
}

const BPF_TRACE_UPROBE_MULTI: u32 = 48;
const BPF_TRACE_UPROBE_SESSION: u32 = 57;
const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;
/// The most that Linux 5.15 takes. It keeps the beginning of what does not fit, and the reason stands at the end.
const VERIFIER_LOG: usize = (1 << 24) - 1;
/// A path that no kernel takes for a binary.
const NO_BINARY: &CStr = c"/";

/// A place to probe in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkPoint {
    /// Offset in the file.
    pub offset: u64,
    pub cookie: u64,
    pub has_return: bool,
}

/// The loaded uprobe programs of one method.
#[derive(Debug)]
pub struct UprobePrograms {
    pub method: Method,
    /// Of a session, the one program that sees both the entry and the return.
    entry: Program,
    /// `None` for sessions.
    on_return: Option<Program>,
    /// For sessions: sees what has no return. On a hit by another process than the link's own the kernel puts a return probe
    /// at every point of a session, which would overwrite what stands on the stack where no function begins.
    entry_only: Option<Program>,
}

#[derive(Debug)]
struct Program {
    fd: OwnedFd,
    attach_type: u32,
}

/// What keeps probes in place; they go when it is dropped, and with the process whatever its end.
#[derive(Debug)]
pub struct Links(Vec<OwnedFd>);

impl UprobePrograms {
    /// Loads the programs for `method`, against the maps of `ebpf`.
    pub fn load(object: &[u8], ebpf: &Ebpf, method: Method) -> Result<Self> {
        let loader = Loader::new(object, ebpf)?;
        let own = method.attach_type();
        let programs = match method {
            Method::Session => Self {
                method,
                entry: loader.load("alloc_session", own)?,
                on_return: None,
                entry_only: Some(loader.load("alloc_entry", BPF_TRACE_UPROBE_MULTI)?),
            },
            Method::Multi | Method::PerfEvent => Self {
                method,
                entry: loader.load("alloc_entry", own)?,
                on_return: Some(loader.load("alloc_return", own)?),
                entry_only: None,
            },
        };
        if method != Method::PerfEvent {
            programs.try_link()?;
        }
        Ok(programs)
    }

    /// Whether the kernel makes links of this kind. That it took the program says nothing: older kernels do not look at
    /// what a uprobe program is to be attached to. Nothing is probed by this.
    fn try_link(&self) -> Result<()> {
        let name = self.method.name();
        let try_once = |pid| link(&self.entry, NO_BINARY, &[0], &[0], pid, 0);
        // A kernel that knows the link finds that a folder is no binary.
        match try_once(None) {
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
            Err(error) => return Err(anyhow!(error).context(format!("this kernel makes no {name} links"))),
            Ok(_) => bail!("this kernel makes {name} links to what is no binary"),
        }
        // The first kernels with the link took the number of a process as that of a thread, and probed no other thread
        // of it. Those that do it right refuse an impossible number before they look at the path.
        match try_once(Some(u32::MAX)) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            _ => bail!("this kernel's {name} links to a process see only one of its threads"),
        }
    }

    /// Loads the program that does nothing but take the hit; only for measuring.
    pub fn load_empty(object: &[u8], ebpf: &Ebpf) -> Result<Self> {
        let loader = Loader::new(object, ebpf)?;
        Ok(Self {
            method: Method::Session,
            entry: loader.load("empty_session", BPF_TRACE_UPROBE_SESSION)?,
            on_return: None,
            entry_only: Some(loader.load("empty_entry", BPF_TRACE_UPROBE_MULTI)?),
        })
    }

    /// The best method that this kernel takes, at or after `first`.
    pub fn load_best(object: &[u8], ebpf: &Ebpf, first: Method) -> Result<Self> {
        let mut last = anyhow!("no way to put probes in place");
        for method in Method::ALL.into_iter().filter(|method| *method >= first) {
            match Self::load(object, ebpf, method) {
                Ok(programs) => return Ok(programs),
                Err(error) => last = error.context(format!("cannot load the {} programs", method.name())),
            }
        }
        Err(last)
    }

    /// Instructions that the verifier went through for each program, entry first.
    pub fn verified_instructions(&self) -> io::Result<Vec<u32>> {
        std::iter::once(&self.entry)
            .chain(&self.on_return)
            .chain(&self.entry_only)
            .map(|program| Ok(info(program.fd.as_fd())?.verified_insns))
            .collect()
    }

    /// Probes all `points` of the file at `path`: in one process, or wherever it is mapped.
    pub fn attach(&self, path: &CStr, points: &[LinkPoint], pid: Option<u32>) -> Result<Links> {
        let mut links = Vec::new();
        if points.is_empty() {
            return Ok(Links(links));
        }
        let (returning, others): (Vec<LinkPoint>, Vec<LinkPoint>) =
            points.iter().partition(|point| point.has_return);
        match (&self.entry_only, &self.on_return) {
            (Some(entry_only), _) => {
                // Frees first, so that no block is seen born whose end is not.
                links.extend(multi(entry_only, path, &others, pid, 0)?);
                links.extend(multi(&self.entry, path, &returning, pid, 0)?);
            }
            (None, Some(on_return)) if self.method == Method::Multi => {
                // Returns first, so that no call is seen beginning whose end is not.
                links.extend(multi(
                    on_return,
                    path,
                    &returning,
                    pid,
                    BPF_F_UPROBE_MULTI_RETURN,
                )?);
                links.extend(multi(&self.entry, path, points, pid, 0)?);
            }
            (None, on_return) => {
                for (program, point) in on_return
                    .iter()
                    .flat_map(|program| returning.iter().map(move |point| (program, point)))
                {
                    links.extend(perf_event(&program.fd, path, *point, pid, true)?);
                }
                for point in points {
                    links.extend(perf_event(&self.entry.fd, path, *point, pid, false)?);
                }
            }
        }
        Ok(Links(links))
    }
}

/// One link for all `points`, none where there are none.
fn multi(
    program: &Program,
    path: &CStr,
    points: &[LinkPoint],
    pid: Option<u32>,
    flags: u32,
) -> Result<Option<OwnedFd>> {
    if points.is_empty() {
        return Ok(None);
    }
    let offsets: Vec<u64> = points.iter().map(|point| point.offset).collect();
    let cookies: Vec<u64> = points.iter().map(|point| point.cookie).collect();
    let made = link(program, path, &offsets, &cookies, pid, flags);
    made.map(Some).map_err(other_tool).with_context(|| {
        format!(
            "cannot probe {} functions in {}",
            points.len(),
            path.to_string_lossy()
        )
    })
}

/// The kernel keeps one reference counter for each place, and some tools ask for one by mistake (bcc 0.26 does): nobody
/// else can probe there while they do.
fn other_tool(error: io::Error) -> anyhow::Error {
    let invalid = error.raw_os_error() == Some(libc::EINVAL);
    let error = anyhow::Error::from(error);
    if invalid {
        error.context("another tool may hold these places (the kernel's log then has `ref_ctr_offset mismatch`): end it first")
    } else {
        error
    }
}

fn link(
    program: &Program,
    path: &CStr,
    offsets: &[u64],
    cookies: &[u64],
    pid: Option<u32>,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    // SAFETY: plain integers in a union of plain integers; the pointers live until the call returns.
    unsafe {
        attr.link_create.__bindgen_anon_1.prog_fd = program.fd.as_raw_fd() as u32;
        attr.link_create.attach_type = program.attach_type;
        let multi = &mut attr.link_create.__bindgen_anon_3.uprobe_multi;
        multi.path = path.as_ptr() as u64;
        multi.offsets = offsets.as_ptr() as u64;
        multi.cookies = cookies.as_ptr() as u64;
        multi.cnt = offsets.len() as u32;
        multi.flags = flags;
        multi.pid = pid.unwrap_or(0);
    }
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

impl Links {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One probe by a perf event: the event and the link of the program to it.
fn perf_event(
    program: &OwnedFd,
    path: &CStr,
    point: LinkPoint,
    pid: Option<u32>,
    on_return: bool,
) -> Result<[OwnedFd; 2]> {
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    let kind = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")
        .context("cannot read the type of uprobe perf events (is CONFIG_UPROBE_EVENTS set?)")?;
    let kind: u32 = kind
        .trim()
        .parse()
        .context("the type of uprobe perf events is not a number")?;
    let mut attr = PerfEventAttr {
        kind,
        size: size_of::<PerfEventAttr>() as u32,
        ..PerfEventAttr::default()
    };
    attr.config = u64::from(on_return);
    attr.config1 = path.as_ptr() as u64;
    attr.config2 = point.offset;
    let (pid, cpu) = pid.map_or((-1, 0), |pid| (pid as libc::pid_t, -1));
    // SAFETY: attr is a live perf_event_attr of the size that it says; path lives until the call returns.
    let event = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            pid,
            cpu,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let event = owned(event)
        .map_err(other_tool)
        .with_context(|| format!("cannot probe {} at {:#x}", path.to_string_lossy(), point.offset))?;
    let mut attr = zeroed_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_fd = event.as_raw_fd() as u32;
    attr.link_create.attach_type = bpf_attach_type::BPF_PERF_EVENT as u32;
    attr.link_create.__bindgen_anon_3.perf_event.bpf_cookie = point.cookie;
    let link =
        bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).context("cannot link the program to the perf event")?;
    Ok([link, event])
}

/// `struct perf_event_attr` as far as uprobes need it (PERF_ATTR_SIZE_VER1).
#[repr(C)]
#[derive(Default)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
}

/// Loads programs of the object against maps that exist already.
struct Loader {
    object: Object,
    btf: Option<OwnedFd>,
}

impl Loader {
    fn new(bytes: &[u8], ebpf: &Ebpf) -> Result<Self> {
        let mut object = Object::parse(bytes).context("cannot parse the kernel side")?;
        let btf = match aya::features().btf() {
            Some(features) => object
                .fixup_and_sanitize_btf(features)?
                .map(|btf| load_btf(&btf.to_bytes()))
                .transpose()?,
            None => None,
        };
        let definitions = object.maps.clone();
        let fds: Vec<(String, RawFd)> = ebpf
            .maps()
            .filter_map(|(name, map)| Some((name.to_owned(), map_fd(map)?.as_raw_fd())))
            .collect();
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let maps = fds
            .iter()
            .filter_map(|(name, fd)| Some((name.as_str(), *fd, definitions.get(name)?)));
        object
            .relocate_maps(maps, &text)
            .context("cannot relocate maps")?;
        object.relocate_calls(&text).context("cannot relocate calls")?;
        object.sanitize_functions(aya::features());
        Ok(Self { object, btf })
    }

    fn load(&self, name: &str, attach_type: u32) -> Result<Program> {
        let fd = self.load_program(name, attach_type)?;
        Ok(Program { fd, attach_type })
    }

    fn load_program(&self, name: &str, attach_type: u32) -> Result<OwnedFd> {
        let program = self
            .object
            .programs
            .get(name)
            .with_context(|| format!("the kernel side has no program {name}"))?;
        let function = self
            .object
            .functions
            .get(&program.function_key())
            .with_context(|| format!("the kernel side has no code for {name}"))?;
        // Without a log first: it costs time, and only a refusal needs it.
        self.try_load(name, &program.license, function, attach_type, &mut [])
            .or_else(|error| {
                let mut log = vec![0; VERIFIER_LOG];
                match self.try_load(name, &program.license, function, attach_type, &mut log) {
                    Ok(fd) => Ok(fd),
                    Err(_) => Err(anyhow!(error).context(verifier_message(name, &log))),
                }
            })
    }

    fn try_load(
        &self,
        name: &str,
        license: &CStr,
        function: &aya_obj::Function,
        attach_type: u32,
        log: &mut [u8],
    ) -> io::Result<OwnedFd> {
        let func_info = function.func_info.func_info_bytes();
        let mut attr = zeroed_attr();
        // SAFETY: plain integers in a union of plain integers; the pointers live until the call returns.
        unsafe {
            let load = &mut attr.__bindgen_anon_3;
            load.prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE as u32;
            load.expected_attach_type = attach_type;
            load.insns = function.instructions.as_ptr() as u64;
            load.insn_cnt = function.instructions.len() as u32;
            load.license = license.as_ptr() as u64;
            for (to, from) in load.prog_name.iter_mut().zip(name.bytes().take(15)) {
                *to = from as std::ffi::c_char;
            }
            if !log.is_empty() {
                load.log_level = 1;
                load.log_buf = log.as_mut_ptr() as u64;
                load.log_size = log.len() as u32;
            }
            if let Some(btf) = self.btf.as_ref().filter(|_| function.func_info_rec_size > 0) {
                load.prog_btf_fd = btf.as_raw_fd() as u32;
                load.func_info = func_info.as_ptr() as u64;
                load.func_info_cnt = function.func_info.func_info.len() as u32;
                load.func_info_rec_size = function.func_info_rec_size as u32;
            }
        }
        bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)
    }
}

/// The verifier's last words, on one line.
fn verifier_message(name: &str, log: &[u8]) -> String {
    // Behind the end stands what the verifier wrote earlier and took back.
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    let last: Vec<&str> = text
        .lines()
        .rev()
        .filter(|line| !line.is_empty())
        .take(4)
        .collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    format!(
        "the kernel refused program {name}: {}",
        if last.is_empty() {
            "no reason given".to_owned()
        } else {
            last.join(" | ")
        }
    )
}

fn load_btf(bytes: &[u8]) -> Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_7.btf = bytes.as_ptr() as u64;
    attr.__bindgen_anon_7.btf_size = bytes.len() as u32;
    bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr)
        .context("the kernel refused the type information of the kernel side")
}

/// The descriptor of any map, those that aya has no type for included.
pub fn map_fd(map: &Map) -> Option<BorrowedFd<'_>> {
    let (Map::Array(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)
    | Map::PerCpuHashMap(data)
    | Map::RingBuf(data)
    | Map::PerfEventArray(data)
    | Map::Unsupported(data)) = map
    else {
        return None;
    };
    Some(data.fd().as_fd())
}

/// What the kernel says of a loaded program.
pub fn info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: all zeros is a valid bpf_prog_info.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attr = zeroed_attr();
    attr.info.bpf_fd = program.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = &raw mut info as u64;
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

pub(crate) fn zeroed_attr() -> bpf_attr {
    // SAFETY: all zeros is a valid bpf_attr.
    unsafe { std::mem::zeroed() }
}

/// A bpf(2) call that gives a plain result.
pub(crate) fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: attr is a bpf_attr whose used fields are set by the caller and point at live memory.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            &raw mut *attr,
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A bpf(2) call that gives a descriptor.
fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    call(command, attr).and_then(owned)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A path for the kernel.
pub fn c_path(path: &std::path::Path) -> Result<CString> {
    use std::os::unix::ffi::OsStrExt as _;
    ensure!(!path.as_os_str().is_empty(), "an empty path cannot be probed");
    match CString::new(path.as_os_str().as_bytes()) {
        Ok(path) => Ok(path),
        Err(_) => bail!("the path {} holds a zero byte", path.display()),
    }
}
