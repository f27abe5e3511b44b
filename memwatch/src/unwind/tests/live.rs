//! Walks of real stacks of this process, against libgcc's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::{fs, ptr, thread};

use memwatch_common::unwind::Rule;
use memwatch_common::unwind::x86_64::{Frame, Step};

use crate::target::vdso;
use crate::unwind::interpret::{Walk, walk};
use crate::unwind::{Table, build};

/// The code of this process.
struct Process {
    tables: Vec<Table>,
    /// Start, end, bias, table.
    mappings: Vec<(u64, u64, u64, usize)>,
}

impl Process {
    fn current() -> Self {
        let mut process = Self {
            tables: Vec::new(),
            mappings: Vec::new(),
        };
        let mut known = HashMap::new();
        for line in fs::read_to_string("/proc/self/maps").expect("maps").lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [range, permissions, offset, _, _, name] = fields[..] else {
                continue;
            };
            if !permissions.contains('x') || !(name.starts_with('/') || name == "[vdso]") {
                continue;
            }
            let number = |text| u64::from_str_radix(text, 16).expect("a number");
            let (start, end) = range
                .split_once('-')
                .map(|(start, end)| (number(start), number(end)))
                .expect("two");
            let at = *known.entry(name.to_owned()).or_insert_with(|| {
                let bytes = if name == "[vdso]" {
                    vdso::image().expect("a vdso")
                } else {
                    fs::read(name).expect("a file")
                };
                process.tables.push(build(&bytes).expect("a table"));
                process.tables.len() - 1
            });
            let bias = process.tables[at].bias(start, number(offset)).expect("code");
            process.mappings.push((start, end, bias, at));
        }
        process
    }

    fn rule(&self, address: u64) -> Rule {
        let mapping = self
            .mappings
            .iter()
            .find(|(start, end, ..)| (*start..*end).contains(&address));
        mapping.map_or(Rule::default(), |(_, _, bias, at)| {
            self.tables[*at].rule(address.wrapping_sub(*bias))
        })
    }

    fn walk(&self, frame: Frame, read: impl FnMut(u64) -> Option<u64>) -> Walk {
        walk(frame, 200, |address| self.rule(address), read)
    }
}

/// Reads own memory, wherever: the kernel says when there is none.
fn read_self(address: u64) -> Option<u64> {
    let mut value = 0_u64;
    let local = libc::iovec {
        iov_base: (&raw mut value).cast(),
        iov_len: 8,
    };
    let remote = libc::iovec {
        iov_base: address as *mut c_void,
        iov_len: 8,
    };
    // SAFETY: `local` is eight writable bytes; the remote side is checked by the kernel.
    let read =
        unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    (read == 8).then_some(value)
}

/// The frame of the code that this is expanded in.
macro_rules! here {
    () => {{
        let (rip, rsp, rbp): (u64, u64, u64);
        // SAFETY: reads three registers.
        unsafe {
            std::arch::asm!("lea {}, [rip]", "mov {}, rsp", "mov {}, rbp",
                out(reg) rip, out(reg) rsp, out(reg) rbp, options(nomem, nostack));
        }
        Frame::first(rip, rsp, rbp)
    }};
}

#[inline(never)]
fn libgcc_stack(into: &mut [u64]) -> usize {
    // SAFETY: writes at most `len` addresses.
    unsafe { libc::backtrace(into.as_mut_ptr().cast(), into.len() as c_int) as usize }
}

/// Walks the stack both ways: ours and libgcc's. The first frame is here, at another instruction; libgcc's walk began
/// one call further in.
#[inline(never)]
fn both(process: &Process) -> (Walk, Vec<u64>) {
    let mut expected = [0; 200];
    let count = libgcc_stack(&mut expected);
    let walk = process.walk(here!(), read_self);
    (walk, expected[2..count].to_vec())
}

#[track_caller]
fn assert_same((walk, expected): &(Walk, Vec<u64>), at_least: usize) {
    assert_eq!(&walk.addresses[1..], expected, "{walk:x?}");
    assert_eq!(walk.end, Step::End);
    assert!(expected.len() >= at_least, "{expected:x?}");
}

#[test]
fn own_stack_is_walked_to_where_it_begins() {
    let process = Process::current();
    assert_same(&both(&process), 5);
}

#[test]
fn stacks_through_callbacks_of_libc_are_walked() {
    thread_local! {
        static FOUND: RefCell<Option<(Walk, Vec<u64>)>> = const { RefCell::new(None) };
    }
    unsafe extern "C" fn compare(a: *const c_void, b: *const c_void) -> c_int {
        FOUND.with_borrow_mut(|found| {
            found.get_or_insert_with(|| both(&Process::current()));
        });
        // SAFETY: qsort passes pointers to elements.
        unsafe { (*a.cast::<u32>()).cmp(&*b.cast::<u32>()) as c_int }
    }
    let mut numbers: Vec<u32> = (0..100).rev().collect();
    // SAFETY: 100 elements of four bytes.
    unsafe { libc::qsort(numbers.as_mut_ptr().cast(), 100, 4, Some(compare)) };
    assert!(numbers.is_sorted());
    assert_same(&FOUND.take().expect("a comparison"), 7);
}

/// One signal's disposition belongs to the whole process: tests take turns.
fn signal_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn install(signal: c_int, flags: c_int, handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)) {
    // SAFETY: a zeroed sigaction is valid; the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | flags;
        assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
    }
}

#[test]
fn stacks_through_signal_frames_are_walked() {
    static PROCESS: OnceLock<Process> = OnceLock::new();
    static FOUND: Mutex<Option<(Walk, Vec<u64>)>> = Mutex::new(None);
    extern "C" fn handler(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
        // Raised by the thread itself at a known place, so that locks and memory are fine here.
        let process = PROCESS.get().expect("tables");
        *FOUND.lock().unwrap_or_else(PoisonError::into_inner) = Some(both(process));
    }
    let _turn = signal_turn();
    PROCESS.get_or_init(Process::current);
    // On the same stack, and on one of its own.
    let mut stack = vec![0_u8; 1 << 18];
    let alternate = libc::stack_t {
        ss_sp: stack.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: stack.len(),
    };
    let mut before = libc::stack_t {
        ss_sp: ptr::null_mut(),
        ss_flags: 0,
        ss_size: 0,
    };
    for flags in [0, libc::SA_ONSTACK] {
        install(libc::SIGUSR1, flags, handler);
        // SAFETY: the stack lives until it is taken back below.
        unsafe {
            assert_eq!(libc::sigaltstack(&raw const alternate, &raw mut before), 0);
            assert_eq!(libc::raise(libc::SIGUSR1), 0);
            assert_eq!(libc::sigaltstack(&raw const before, ptr::null_mut()), 0);
        }
        let found = FOUND
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .expect("a signal");
        assert_same(&found, 8);
        let process = PROCESS.get().expect("tables");
        assert!(
            found
                .0
                .addresses
                .iter()
                .any(|rip| process.rule(rip - 1) == Rule::SIGNAL)
        );
    }
}

const SAMPLES: usize = 300;
const STACK_WORDS: usize = 8192;

/// Below the stack pointer lies what epilogues have just taken off the stack; the unwind information still refers to
/// it, and signals leave this much of it as it is.
const RED_ZONE: u64 = 128;

/// A stack at some instruction, as the handler found it.
struct Sample {
    frame: Frame,
    /// From the red zone on.
    stack: [u64; STACK_WORDS],
    words: usize,
    expected: [u64; 200],
    count: usize,
}

/// Where the handler puts samples; made before the first signal.
static SAMPLES_AT: AtomicUsize = AtomicUsize::new(0);
static SAMPLED: AtomicUsize = AtomicUsize::new(0);
static STACK_TOP: AtomicU64 = AtomicU64::new(0);

/// Runs at any instruction of the worker: neither memory nor locks may be taken here.
extern "C" fn sample(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    let at = SAMPLED.load(Ordering::Relaxed);
    if at >= SAMPLES {
        return;
    }
    let slots = SAMPLES_AT.load(Ordering::Relaxed) as *mut Sample;
    // SAFETY: `slots` are SAMPLES samples that only this handler touches while the worker runs; the kernel passes a
    // ucontext; the stack is readable up to its top.
    unsafe {
        let slot = &mut *slots.add(at);
        let registers = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let register = |index: c_int| registers[index as usize] as u64;
        slot.frame = Frame::first(
            register(libc::REG_RIP),
            register(libc::REG_RSP),
            register(libc::REG_RBP),
        );
        let start = slot.frame.rsp - RED_ZONE;
        let words = (STACK_TOP.load(Ordering::Relaxed) - start) / 8;
        slot.words = (words as usize).min(STACK_WORDS);
        ptr::copy_nonoverlapping(start as *const u64, slot.stack.as_mut_ptr(), slot.words);
        slot.count = libgcc_stack(&mut slot.expected);
    }
    SAMPLED.store(at + 1, Ordering::Release);
}

/// Code of many kinds, some of it deep in libc.
#[inline(never)]
fn work(round: u64) -> u64 {
    unsafe extern "C" fn compare(a: *const c_void, b: *const c_void) -> c_int {
        // SAFETY: qsort passes pointers to elements.
        unsafe { (*a.cast::<u64>()).cmp(&*b.cast::<u64>()) as c_int }
    }
    let mut numbers: Vec<u64> = (0..64)
        .map(|n: u64| (n + round).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .collect();
    let mut text = [0_u8; 64];
    // SAFETY: 64 elements of eight bytes; the text has room for 64 bytes and ends with a zero.
    let value = unsafe {
        libc::qsort(numbers.as_mut_ptr().cast(), numbers.len(), 8, Some(compare));
        libc::snprintf(
            text.as_mut_ptr().cast(),
            64,
            c"%.15g".as_ptr(),
            numbers[3] as f64 / 7.0,
        );
        libc::strtod(text.as_ptr().cast(), ptr::null_mut())
    };
    let now = std::time::Instant::now();
    numbers.sort_unstable_by_key(|n| n.rotate_left(7));
    let text = format!("{value:e} {now:?}");
    numbers
        .iter()
        .fold(text.len() as u64, |sum, n| sum.wrapping_add(*n))
}

fn top_of_stack() -> u64 {
    let (mut start, mut size) = (ptr::null_mut(), 0);
    // SAFETY: asks for the attributes of this thread, and gives them back.
    unsafe {
        let mut attributes = std::mem::zeroed();
        assert_eq!(
            libc::pthread_getattr_np(libc::pthread_self(), &raw mut attributes),
            0
        );
        assert_eq!(
            libc::pthread_attr_getstack(&raw const attributes, &raw mut start, &raw mut size),
            0
        );
        libc::pthread_attr_destroy(&raw mut attributes);
    }
    start as u64 + size as u64
}

/// Interrupts a thread at work and returns what the handler saw.
fn take_samples() -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::with_capacity(SAMPLES);
    SAMPLED.store(0, Ordering::Relaxed);
    SAMPLES_AT.store(samples.as_mut_ptr() as usize, Ordering::Relaxed);
    // The first call loads libgcc.
    libgcc_stack(&mut [0; 4]);
    install(libc::SIGUSR2, 0, sample);
    let (ready, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            STACK_TOP.store(top_of_stack(), Ordering::Relaxed);
            // SAFETY: no preconditions.
            ready.store(unsafe { libc::pthread_self() }, Ordering::Release);
            let mut round = 0;
            while !stop.load(Ordering::Acquire) {
                std::hint::black_box(work(round));
                round += 1;
            }
        });
        let mut sent = 0;
        while !worker.is_finished() && SAMPLED.load(Ordering::Acquire) < SAMPLES {
            let thread = ready.load(Ordering::Acquire);
            if thread == 0 {
                thread::yield_now();
                continue;
            }
            // SAFETY: the worker ends only when it is told to, below.
            assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGUSR2) }, 0);
            sent += 1;
            // Steps that are no multiple of the work's period.
            thread::sleep(std::time::Duration::from_micros(50 + sent * 37 % 211));
        }
        stop.store(true, Ordering::Release);
    });
    // SAFETY: the handler has filled as many as it counted, each of them whole.
    unsafe { samples.set_len(SAMPLED.load(Ordering::Acquire)) };
    samples
}

#[test]
fn stacks_interrupted_anywhere_are_walked_as_libgcc_does() {
    let _turn = signal_turn();
    let samples = take_samples();
    assert_eq!(samples.len(), SAMPLES);
    let process = Process::current();
    let (mut complete, mut places) = (0, std::collections::HashSet::new());
    for sample in &samples {
        let read = |address: u64| {
            let at = address.checked_sub(sample.frame.rsp - RED_ZONE)?;
            sample.stack[..sample.words]
                .get(usize::try_from(at / 8).ok()?)
                .copied()
                .filter(|_| at % 8 == 0)
        };
        let walk = process.walk(sample.frame, read);
        let expected = &sample.expected[..sample.count];
        let start = expected
            .iter()
            .position(|rip| *rip == sample.frame.rip)
            .expect("the interrupted frame");
        assert_eq!(
            walk.addresses,
            expected[start..],
            "{:x?}: {walk:x?}",
            sample.frame
        );
        complete += usize::from(walk.end == Step::End);
        places.insert(sample.frame.rip);
    }
    assert!(places.len() > SAMPLES / 10, "{} places", places.len());
    // In a PLT entry or a leaf without unwind information both give up.
    assert!(complete * 100 >= SAMPLES * 95, "{complete} of {SAMPLES}");
}
