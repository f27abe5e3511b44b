//! Rust: the system allocator under the standard collections, with every call written down by a global allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{BufRead, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicUsize, Ordering::SeqCst};

const SITES: [&str; 11] = [
    "", "rust_box", "rust_vec", "rust_vec_shrinks", "rust_string", "rust_hash_map", "rust_tree", "rust_zeroed",
    "rust_aligned", "rust_arc_of_slice", "rust_threads",
];
const SLOTS: usize = 1 << 16;

struct Counts {
    alloc_bytes: AtomicI64,
    alloc_objects: AtomicI64,
    inuse_bytes: AtomicI64,
    inuse_objects: AtomicI64,
}
static COUNTS: [Counts; SITES.len()] = [const {
    Counts {
        alloc_bytes: AtomicI64::new(0),
        alloc_objects: AtomicI64::new(0),
        inuse_bytes: AtomicI64::new(0),
        inuse_objects: AtomicI64::new(0),
    }
}; SITES.len()];
// Which site a block belongs to. An address is put in after it was born and taken out before it dies, so two threads
// never have the same one in hand. A slot is free when its address is 0 and gone when it is 1.
static ADDRESSES: [AtomicUsize; SLOTS] = [const { AtomicUsize::new(0) }; SLOTS];
static OWNERS: [AtomicU8; SLOTS] = [const { AtomicU8::new(0) }; SLOTS];

thread_local! { static SITE: Cell<u8> = const { Cell::new(0) }; }

struct Counting;

fn born(address: *mut u8, size: usize) {
    let site = SITE.with(Cell::get);
    if site == 0 || address.is_null() {
        return;
    }
    let counts = &COUNTS[site as usize];
    counts.alloc_bytes.fetch_add(size as i64, SeqCst);
    counts.alloc_objects.fetch_add(1, SeqCst);
    counts.inuse_bytes.fetch_add(size as i64, SeqCst);
    counts.inuse_objects.fetch_add(1, SeqCst);
    let mut slot = (address as usize >> 4).wrapping_mul(0x9E37_79B9) % SLOTS;
    loop {
        for empty in [0, 1] {
            if ADDRESSES[slot].compare_exchange(empty, address as usize, SeqCst, SeqCst).is_ok() {
                OWNERS[slot].store(site, SeqCst);
                return;
            }
        }
        slot = (slot + 1) % SLOTS;
    }
}

/// Takes the block out; its site, 0 for blocks that nobody wrote down.
fn dies(address: *mut u8, size: usize) -> u8 {
    let mut slot = (address as usize >> 4).wrapping_mul(0x9E37_79B9) % SLOTS;
    for _ in 0..SLOTS {
        match ADDRESSES[slot].load(SeqCst) {
            0 => return 0,
            found if found == address as usize => {
                let site = OWNERS[slot].load(SeqCst);
                ADDRESSES[slot].store(1, SeqCst);
                COUNTS[site as usize].inuse_bytes.fetch_sub(size as i64, SeqCst);
                COUNTS[site as usize].inuse_objects.fetch_sub(1, SeqCst);
                return site;
            }
            _ => slot = (slot + 1) % SLOTS,
        }
    }
    0
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let address = unsafe { System.alloc(layout) };
        born(address, layout.size());
        address
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let address = unsafe { System.alloc_zeroed(layout) };
        born(address, layout.size());
        address
    }
    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        dies(address, layout.size());
        unsafe { System.dealloc(address, layout) }
    }
    unsafe fn realloc(&self, address: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        dies(address, layout.size());
        let moved = unsafe { System.realloc(address, layout, new_size) };
        assert!(!moved.is_null(), "realloc failed");
        born(moved, new_size);
        moved
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// Runs the work with its allocations written down under this site.
fn at<T>(site: u8, work: impl FnOnce() -> T) -> T {
    SITE.with(|cell| cell.set(site));
    let result = work();
    SITE.with(|cell| cell.set(0));
    result
}

type Kept = Vec<Box<dyn std::any::Any + Send>>;

#[unsafe(no_mangle)]
#[inline(never)]
fn rust_box() -> Vec<Box<[u64; 9]>> {
    at(1, || {
        let mut kept = Vec::with_capacity(50);
        for i in 0..100_u64 {
            let block = black_box(Box::new([i; 9]));
            if i % 2 == 0 {
                kept.push(block);
            }
        }
        kept
    })
}
#[unsafe(no_mangle)]
#[inline(never)]
fn rust_vec() -> Vec<u32> {
    at(2, || {
        let mut numbers = Vec::new();
        for i in 0..50_000 {
            numbers.push(black_box(i)); // grows by realloc
        }
        numbers
    })
}
#[unsafe(no_mangle)]
#[inline(never)]
fn rust_vec_shrinks() -> Vec<u8> {
    at(3, || {
        let mut bytes = vec![7_u8; 10_000];
        bytes.truncate(1234);
        bytes.shrink_to_fit();
        black_box(bytes)
    })
}
#[unsafe(no_mangle)]
#[inline(never)]
fn rust_string() -> String {
    at(4, || {
        let mut text = String::new();
        for i in 0..2_000 {
            write!(text, "line {i}\n").expect("a String takes all");
        }
        text
    })
}
#[unsafe(no_mangle)]
#[inline(never)]
fn rust_hash_map() -> HashMap<u64, String> {
    at(5, || (0..2_000_u64).map(|i| (i, black_box(i).to_string())).collect())
}
#[unsafe(no_mangle)]
#[inline(never)]
fn rust_tree() -> BTreeMap<u64, VecDeque<u16>> {
    at(6, || {
        let mut tree: BTreeMap<u64, VecDeque<u16>> = BTreeMap::new();
        for i in 0..3_000_u64 {
            tree.entry(black_box(i * 7919 % 500)).or_default().push_back(i as u16);
        }
        tree.retain(|key, _| key % 3 != 0);
        tree
    })
}
#[unsafe(no_mangle)]
#[inline(never)]
fn rust_zeroed() -> Vec<u64> {
    at(7, || black_box(vec![0_u64; 12_345])) // calloc
}
#[repr(align(256))]
#[allow(dead_code)]
struct Aligned([u8; 256]);
#[unsafe(no_mangle)]
#[inline(never)]
fn rust_aligned() -> Vec<Aligned> {
    at(8, || {
        let mut blocks = Vec::new(); // posix_memalign, and growth by hand
        for i in 0..100_u8 {
            blocks.push(black_box(Aligned([i; 256])));
        }
        blocks
    })
}
#[unsafe(no_mangle)]
#[inline(never)]
fn rust_arc_of_slice() -> Vec<Arc<[u8]>> {
    at(9, || (0..64_usize).map(|i| Arc::from(vec![1_u8; black_box(i)])).collect())
}
#[unsafe(no_mangle)]
#[inline(never)]
fn rust_threads() -> Vec<Box<[u8; 77]>> {
    at(10, || (0..500).map(|_| black_box(Box::new([1_u8; 77]))).collect())
}

fn work(kept: &mut Kept) {
    kept.push(Box::new(rust_box()));
    kept.push(Box::new(rust_vec()));
    kept.push(Box::new(rust_vec_shrinks()));
    kept.push(Box::new(rust_string()));
    kept.push(Box::new(rust_hash_map()));
    kept.push(Box::new(rust_tree()));
    kept.push(Box::new(rust_zeroed()));
    kept.push(Box::new(rust_aligned()));
    kept.push(Box::new(rust_arc_of_slice()));
    let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(rust_threads)).collect();
    for (number, thread) in threads.into_iter().enumerate() {
        let blocks = thread.join().expect("the thread ends well");
        if number % 2 == 0 {
            kept.push(Box::new(blocks)); // the others are freed here, in another thread
        }
    }
}

fn truth() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let functions: Vec<String> = (1..SITES.len())
        .map(|site| {
            let counts = &COUNTS[site];
            format!(
                r#"{{"function":"{}","alloc_bytes":{},"alloc_objects":{},"inuse_bytes":{},"inuse_objects":{}}}"#,
                SITES[site],
                counts.alloc_bytes.load(SeqCst),
                counts.alloc_objects.load(SeqCst),
                counts.inuse_bytes.load(SeqCst),
                counts.inuse_objects.load(SeqCst),
            )
        })
        .collect();
    format!(
        r#"{{"event":"truth","pid":{},"time_ns":{},"functions":[{}]}}"#,
        std::process::id(),
        now.as_nanos(),
        functions.join(",")
    )
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("the test reads");
}

fn main() {
    let pid = std::process::id();
    let mut kept: Kept = Vec::new();
    say(&format!(r#"{{"event":"ready","pid":{pid}}}"#));
    let mut round = 0;
    for line in std::io::stdin().lock().lines() {
        if line.expect("a line") != "go" {
            break;
        }
        if round % 2 == 0 {
            work(&mut kept);
        } else {
            kept.clear();
        }
        round += 1;
        say(&truth());
        say(&format!(r#"{{"event":"done","pid":{pid}}}"#));
    }
}
