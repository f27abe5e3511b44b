//! From an instruction to its line: the three formats of line tables that CPython has had. Pure; no bytes make it
//! panic.

/// How a code object's line table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `co_lnotab`, up to 3.9: steps in bytes of code and in lines.
    Steps,
    /// `co_linetable` of 3.10: ranges.
    Ranges,
    /// `co_linetable` from 3.11 on: locations of varying length.
    Locations,
}

impl Format {
    pub const fn of_minor(minor: u8) -> Self {
        match minor {
            ..=9 => Self::Steps,
            10 => Self::Ranges,
            11.. => Self::Locations,
        }
    }
}

/// Instructions of one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineRange {
    /// In bytes from the first instruction.
    pub start: i64,
    /// The first byte after it.
    pub end: i64,
    /// `None` for instructions that stand in no line.
    pub line: Option<u32>,
}

/// The line of the instruction `offset` bytes after the first. A frame that has not begun yet has a negative one;
/// it is in the line in which its code begins.
pub fn line_at(format: Format, table: &[u8], first_line: i32, offset: i64) -> Option<u32> {
    if offset < 0 {
        return u32::try_from(first_line).ok();
    }
    ranges(format, table, first_line)
        .find(|range| (range.start..range.end).contains(&offset))
        .and_then(|range| range.line)
}

/// All ranges, in the order of the code. Those without bytes are left out.
pub fn ranges(format: Format, table: &[u8], first_line: i32) -> impl Iterator<Item = LineRange> {
    let mut reader = Reader {
        table,
        line: first_line.into(),
        address: 0,
        ended: false,
    };
    std::iter::from_fn(move || match format {
        Format::Steps => reader.step(),
        Format::Ranges => reader.range(),
        Format::Locations => reader.location(),
    })
    .filter(|range| range.start < range.end)
}

struct Reader<'a> {
    table: &'a [u8],
    line: i64,
    address: i64,
    ended: bool,
}

impl Reader<'_> {
    /// The last line reaches as far as the code does.
    fn step(&mut self) -> Option<LineRange> {
        if self.ended {
            return None;
        }
        let line = self.line;
        let Some([bytes, lines]) = self.take() else {
            self.ended = true;
            return Some(self.advance(i64::MAX - self.address, line));
        };
        self.change_line(i64::from(lines.cast_signed()));
        Some(self.advance(bytes.into(), line))
    }

    fn range(&mut self) -> Option<LineRange> {
        let [bytes, lines] = self.take()?;
        let lines = lines.cast_signed();
        if lines == i8::MIN {
            return Some(self.advance(bytes.into(), -1));
        }
        self.change_line(lines.into());
        Some(self.advance(bytes.into(), self.line))
    }

    /// Kind and length in the first byte, then what the kind says; see Objects/locations.md of CPython.
    fn location(&mut self) -> Option<LineRange> {
        let [first] = self.take()?;
        let bytes = (i64::from(first & 7) + 1) * 2;
        match first >> 3 & 0xf {
            15 => return Some(self.advance(bytes, -1)),
            14 => {
                let lines = self.signed()?;
                self.change_line(lines);
                for _ in 0..3 {
                    self.unsigned()?;
                }
            }
            13 => {
                let lines = self.signed()?;
                self.change_line(lines);
            }
            kind @ 10..=12 => {
                self.change_line(i64::from(kind) - 10);
                self.take::<2>()?;
            }
            _ => {
                self.take::<1>()?;
            }
        }
        Some(self.advance(bytes, self.line))
    }

    fn advance(&mut self, bytes: i64, line: i64) -> LineRange {
        let start = self.address;
        self.address = start.saturating_add(bytes);
        LineRange {
            start,
            end: self.address,
            line: u32::try_from(line).ok(),
        }
    }

    fn change_line(&mut self, lines: i64) {
        self.line = self.line.saturating_add(lines);
    }

    /// Six bits a byte, the lowest first; another bit says that more follow.
    fn unsigned(&mut self) -> Option<i64> {
        let mut value = 0_i64;
        for shift in (0..60).step_by(6) {
            let [byte] = self.take()?;
            value |= i64::from(byte & 0x3f) << shift;
            if byte & 0x40 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// The lowest bit is the sign.
    fn signed(&mut self) -> Option<i64> {
        let value = self.unsigned()?;
        let size = value >> 1;
        Some(if value & 1 == 0 { size } else { -size })
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.table.split_first_chunk::<N>()?;
        self.table = rest;
        Some(*taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(format: Format, table: &[u8], offsets: &[i64]) -> Vec<Option<u32>> {
        offsets
            .iter()
            .map(|&offset| line_at(format, table, 10, offset))
            .collect()
    }

    #[test]
    fn steps_move_the_line_back_and_forth() {
        // 4 bytes in line 10, 300 in 12, the rest in 9.
        let table = [4, 2, 255, 0, 45, 0xfd];
        assert_eq!(
            lines(Format::Steps, &table, &[-1, 0, 3, 4, 303, 304, 100_000]),
            [10, 10, 10, 12, 12, 9, 9].map(Some)
        );
        assert_eq!(lines(Format::Steps, &[], &[0, 2]), [Some(10), Some(10)]);
    }

    #[test]
    fn ranges_may_have_no_line() {
        let table = [4, 0, 2, 0x80, 6, 3, 0, 5, 2, 0xff];
        assert_eq!(
            lines(Format::Ranges, &table, &[-1, 0, 4, 6, 12, 14]),
            [Some(10), Some(10), None, Some(13), Some(17), None]
        );
    }

    #[test]
    fn locations_have_many_forms() {
        let table = [
            0x80 | 15 << 3, // 1 unit, no line
            0x80 | 11 << 3 | 1,
            0,
            0, // 2 units, line + 1
            0x80 | 3 << 3,
            0, // short
            0x80 | 13 << 3,
            0x41 | 0x02,
            0x01, // line - 33
            0x80 | 14 << 3,
            0x02,
            0x40,
            0x01,
            0,
            0, // line + 1
        ];
        let found = lines(Format::Locations, &table, &[0, 2, 4, 6, 8, 10, 12]);
        assert_eq!(found, [None, Some(11), Some(11), Some(11), None, None, None]);
        assert_eq!(line_at(Format::Locations, &table, 100, 8), Some(68));
        assert_eq!(line_at(Format::Locations, &table, 100, 10), Some(69));
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic_and_ranges_never_overlap(
            table in proptest::collection::vec(any::<u8>(), 0..300), first: i32, offset: i64, minor in 8_u8..16,
        ) {
            let format = Format::of_minor(minor);
            let _ = line_at(format, &table, first, offset);
            let mut end = 0;
            for range in ranges(format, &table, first) {
                prop_assert!(range.start >= end && range.end > range.start);
                end = range.end;
            }
        }
    }
}
