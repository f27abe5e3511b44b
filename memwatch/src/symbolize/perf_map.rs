//! Perf maps: the file in which a runtime that compiles at run time tells the names of its code.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a file that are read at most. A large JVM writes a few megabytes.
pub const MAX_BYTES: u64 = 64 << 20;

#[derive(Clone, Debug, Default)]
pub struct PerfMap {
    /// By first address: end and name; never overlapping.
    functions: BTreeMap<u64, (u64, Arc<str>)>,
}

impl PerfMap {
    /// Lines are `START SIZE name`, numbers in hex. A later line wins: code is moved and its place used again.
    /// Other lines are left out; the last may be half written.
    pub fn parse(text: &[u8]) -> Self {
        let mut map = Self::default();
        for line in text.split(|byte| *byte == b'\n') {
            if let Some((start, size, name)) = parse_line(&String::from_utf8_lossy(line)) {
                map.put(start, size, name);
            }
        }
        map
    }

    /// The function at `address` and where it starts.
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        let (start, (end, name)) = self.functions.range(..=address).next_back()?;
        (address < *end).then_some((name, *start))
    }

    fn put(&mut self, start: u64, size: u64, name: &str) {
        let end = start.saturating_add(size);
        let before = self
            .functions
            .range(..start)
            .next_back()
            .filter(|(_, (until, _))| *until > start);
        let under: Vec<u64> = before
            .into_iter()
            .chain(self.functions.range(start..end))
            .map(|(from, _)| *from)
            .collect();
        for from in under {
            self.functions.remove(&from);
        }
        self.functions.insert(start, (end, Arc::from(name)));
    }
}

fn parse_line(line: &str) -> Option<(u64, u64, &str)> {
    let mut fields = line.trim_end().splitn(3, char::is_whitespace);
    let mut number = || {
        let digits = fields.next()?;
        u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()
    };
    let (start, size) = (number()?, number()?);
    let name = fields.next()?.trim_start();
    (size > 0 && !name.is_empty()).then_some((start, size, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_by_any_address_in_them() {
        let map = PerfMap::parse(b"7f00 10 LazyCompile:~f /srv/app.js:3\n7f20 0x8 py::build:/srv/app.py\n");
        assert_eq!(map.find(0x7f00), Some(("LazyCompile:~f /srv/app.js:3", 0x7f00)));
        assert_eq!(map.find(0x7f0f), Some(("LazyCompile:~f /srv/app.js:3", 0x7f00)));
        assert_eq!(map.find(0x7f10), None);
        assert_eq!(map.find(0x7f24), Some(("py::build:/srv/app.py", 0x7f20)));
        assert_eq!(map.find(0x7eff), None);
    }

    #[test]
    fn the_last_line_about_an_address_counts() {
        let map = PerfMap::parse(b"100 20 old\n200 20 other\n110 20 new\n");
        assert_eq!(map.find(0x118), Some(("new", 0x110)));
        assert_eq!(map.find(0x105), None);
        assert_eq!(map.find(0x210), Some(("other", 0x200)));
    }

    #[test]
    fn lines_that_cannot_be_read_are_left_out() {
        let map = PerfMap::parse(
            b"\nzz 10 a\n100\n100 10\n100 10 \n100 0 a\nffffffffffffffff 10 top\n20 10 \xff\r\n30 4 ha",
        );
        assert_eq!(map.functions.len(), 3);
        assert_eq!(map.find(0x20), Some(("\u{fffd}", 0x20)));
        assert_eq!(map.find(0x31), Some(("ha", 0x30)));
    }
}
