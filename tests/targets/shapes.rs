//! What Rust programs allocate under: collections, closures, formatting, trait objects, panics that are caught.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::panic::{self, AssertUnwindSafe};
use std::thread;
use std::time::Duration;

struct Guard(usize);

impl Drop for Guard {
    fn drop(&mut self) {
        black_box(vec![0_u8; self.0 + 1]);
    }
}

#[inline(never)]
fn fails(depth: usize) {
    let _guard = Guard(depth);
    if depth == 0 {
        panic!("a message with a number: {}", black_box(7));
    }
    fails(depth - 1);
}

trait Work {
    fn work(&self, n: usize) -> usize;
}

struct Text;
struct Tree;
struct Table;

impl Work for Text {
    fn work(&self, n: usize) -> usize {
        let words: Vec<String> = (0..20).map(|i| format!("{:>width$}", i * n, width = i + 1)).collect();
        words.join(", ").to_uppercase().split(", ").map(str::to_owned).filter(|word| word.len() > 3).count()
    }
}

impl Work for Tree {
    fn work(&self, n: usize) -> usize {
        let mut map: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for i in 0..40 {
            map.entry(format!("{}", (i * n) % 17)).or_default().push(i);
        }
        let mut all: Vec<_> = map.into_iter().collect();
        all.sort_by_key(|(name, values)| (values.len(), name.clone()));
        all.len()
    }
}

impl Work for Table {
    fn work(&self, n: usize) -> usize {
        let table: HashMap<usize, Box<dyn Fn(usize) -> Vec<usize>>> =
            (0..10).map(|i| (i, Box::new(move |m| vec![i; m + n]) as Box<dyn Fn(usize) -> Vec<usize>>)).collect();
        table.values().map(|make| make(3).len()).sum()
    }
}

fn all() {
    let works: Vec<Box<dyn Work>> = vec![Box::new(Text), Box::new(Tree), Box::new(Table)];
    for n in (0..30).cycle() {
        for work in &works {
            black_box(work.work(n));
        }
        let caught = panic::catch_unwind(AssertUnwindSafe(|| fails(n % 6)));
        black_box(caught.is_err());
        if n % 10 == 0 {
            thread::sleep(Duration::from_micros(500));
        }
    }
}

fn main() {
    panic::set_hook(Box::new(|info| {
        black_box(info.to_string());
    }));
    thread::spawn(all);
    println!("{{\"event\":\"ready\"}}");
    all();
}
