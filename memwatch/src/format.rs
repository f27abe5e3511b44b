//! Sizes and times as people read them: the one place that makes text of numbers of bytes and of seconds.

use std::time::Duration;

use crate::named::named;

named! {
    #[derive(Default)]
    Unit {
        #[default]
        Auto = "auto",
        B = "b",
        Kib = "kib",
        Mib = "mib",
        Gib = "gib",
    }
}

/// How bytes are written for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteFormat {
    pub unit: Unit,
    /// Powers of 1000 instead of 1024.
    pub si: bool,
}

const IEC: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const SI: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];

impl ByteFormat {
    /// `412 MiB`
    pub fn size(self, bytes: u64) -> String {
        match self.unit {
            Unit::Auto => self.auto(bytes),
            Unit::B => format!("{bytes} B"),
            Unit::Kib => fixed(bytes, 10, "KiB"),
            Unit::Mib => fixed(bytes, 20, "MiB"),
            Unit::Gib => fixed(bytes, 30, "GiB"),
        }
    }

    /// `+4.1 MiB`, `-12 B`, `+0 B`
    pub fn delta(self, bytes: i64) -> String {
        let sign = if bytes < 0 { '-' } else { '+' };
        format!("{sign}{}", self.size(bytes.unsigned_abs()))
    }

    /// As [`Self::delta`], but nothing is `0`: for columns in which most rows stand still.
    pub fn change(self, bytes: i64) -> String {
        if bytes == 0 {
            return "0".to_owned();
        }
        self.delta(bytes)
    }

    /// `+4.1 MiB/s`
    pub fn rate(self, bytes_per_second: f64) -> String {
        // A saturating cast; not-a-number becomes 0.
        format!("{}/s", self.delta(bytes_per_second.round() as i64))
    }

    /// The largest unit of which there is at least one; one decimal below 100, so that three digits tell.
    fn auto(self, bytes: u64) -> String {
        let (base, names) = if self.si { (1000.0, SI) } else { (1024.0, IEC) };
        if (bytes as f64) < base {
            return format!("{bytes} B");
        }
        let mut value = bytes as f64;
        let mut unit = 0;
        // Compare what would be printed: 1023.96 KiB is 1.0 MiB, not 1024 KiB.
        while value.round() >= base && unit + 1 < names.len() {
            value /= base;
            unit += 1;
        }
        let decimals = usize::from(format!("{value:.1}").len() <= "99.9".len());
        format!("{value:.decimals$} {}", names[unit])
    }
}

/// Three digits or more, whatever the value: the user chose the unit.
fn fixed(bytes: u64, shift: u32, name: &str) -> String {
    let value = bytes as f64 / (1_u64 << shift) as f64;
    let decimals = match value {
        0.0 => 0,
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$} {name}")
}

/// The two leading units: `500ms`, `1.5s`, `10s`, `1m30s`, `2h`, `3d4h`.
pub fn duration(time: Duration) -> String {
    let nanoseconds = time.as_nanos();
    // Tens of a unit, rounded, so that 59.97 s becomes a minute and not `60.0s`.
    let tenths = |each: u128| (nanoseconds * 10 + each / 2) / each;
    if nanoseconds == 0 {
        return "0s".to_owned();
    }
    if tenths(1_000) < 10_000 {
        return with_tenth(tenths(1_000), "us");
    }
    if tenths(1_000_000) < 10_000 {
        return with_tenth(tenths(1_000_000), "ms");
    }
    if tenths(1_000_000_000) < 100 {
        return with_tenth(tenths(1_000_000_000), "s");
    }
    let seconds = (nanoseconds + 500_000_000) / 1_000_000_000;
    let minutes = (seconds + 30) / 60;
    let hours = (minutes + 30) / 60;
    if seconds < 3600 {
        pair(seconds / 60, "m", seconds % 60, "s")
    } else if minutes < 48 * 60 {
        pair(minutes / 60, "h", minutes % 60, "m")
    } else {
        pair(hours / 24, "d", hours % 24, "h")
    }
}

/// As [`duration`], of a number that may come from a file; not a time at all reads `?`.
pub fn seconds(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or_else(|_| "?".to_owned(), duration)
}

fn with_tenth(tenths: u128, unit: &str) -> String {
    if tenths >= 1000 || tenths.is_multiple_of(10) {
        format!("{}{unit}", (tenths + 5) / 10)
    } else {
        format!("{}.{}{unit}", tenths / 10, tenths % 10)
    }
}

fn pair(large: u128, large_unit: &str, small: u128, small_unit: &str) -> String {
    match (large, small) {
        (0, small) => format!("{small}{small_unit}"),
        (large, 0) => format!("{large}{large_unit}"),
        (large, small) => format!("{large}{large_unit}{small}{small_unit}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cli::units::{parse_duration, parse_size};

    const AUTO: ByteFormat = ByteFormat {
        unit: Unit::Auto,
        si: false,
    };
    const SI_AUTO: ByteFormat = ByteFormat {
        unit: Unit::Auto,
        si: true,
    };

    #[test]
    fn sizes_are_written_with_the_digits_that_tell() {
        for (bytes, text) in [
            (0, "0 B"),
            (139, "139 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (4_299_162, "4.1 MiB"),
            (412 << 20, "412 MiB"),
            (102_348, "99.9 KiB"),
            (102_399, "100 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            ((1 << 20) - 600, "1023 KiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(AUTO.size(bytes), text);
        }
        assert_eq!(SI_AUTO.size(999), "999 B");
        assert_eq!(SI_AUTO.size(432_013_312), "432 MB");
        assert_eq!(SI_AUTO.size(999_999), "1.0 MB");
    }

    #[test]
    fn a_fixed_unit_is_kept() {
        let size = |unit, bytes| ByteFormat { unit, si: false }.size(bytes);
        assert_eq!(size(Unit::B, 432_013_312), "432013312 B");
        assert_eq!(size(Unit::Kib, 432_013_312), "421888 KiB");
        assert_eq!(size(Unit::Mib, 4_299_162), "4.10 MiB");
        assert_eq!(size(Unit::Gib, 1 << 20), "0.001 GiB");
        assert_eq!(size(Unit::Gib, 0), "0 GiB");
    }

    #[test]
    fn deltas_always_carry_a_sign() {
        assert_eq!(AUTO.delta(4_299_162), "+4.1 MiB");
        assert_eq!(AUTO.delta(-12), "-12 B");
        assert_eq!(AUTO.delta(0), "+0 B");
        assert_eq!(AUTO.delta(i64::MIN), "-8.0 EiB");
        assert_eq!(
            (AUTO.change(0), AUTO.change(-12)),
            ("0".to_owned(), "-12 B".to_owned())
        );
        assert_eq!(AUTO.rate(-2048.4), "-2.0 KiB/s");
        assert_eq!(AUTO.rate(f64::NAN), "+0 B/s");
    }

    #[test]
    fn durations_are_written_with_two_units() {
        for (milliseconds, text) in [
            (0, "0s"),
            (500, "500ms"),
            (1500, "1.5s"),
            (9_990, "10s"),
            (10_400, "10s"),
            (59_970, "1m"),
            (90_000, "1m30s"),
            (3_599_900, "1h"),
            (7_380_000, "2h3m"),
            (100 * 3_600_000, "4d4h"),
        ] {
            assert_eq!(duration(Duration::from_millis(milliseconds)), text);
        }
        assert_eq!(duration(Duration::from_nanos(1500)), "1.5us");
        assert_eq!(seconds(-1.0), "?");
        assert_eq!(seconds(f64::INFINITY), "?");
    }

    proptest! {
        #[test]
        fn a_written_size_reads_back_within_its_rounding(shift in 0_u32..64, low in any::<u64>()) {
            let bytes = (1_u64 << shift) | (low & ((1_u64 << shift) - 1));
            let text = AUTO.size(bytes);
            // PiB and EiB are written but not read: nobody asks for blocks of that size.
            if let Ok(back) = parse_size(&text) {
                // Half of the last digit shown: 0.05 of at least 1.0.
                prop_assert!(back.abs_diff(bytes) as f64 <= bytes as f64 * 0.05 + 0.5, "{bytes} -> {text} -> {back}");
            } else {
                prop_assert!(bytes >= (1 << 50) - (1 << 40), "{text}");
            }
        }

        #[test]
        fn bytes_read_back_exactly(bytes in any::<u64>()) {
            prop_assert_eq!(parse_size(&ByteFormat { unit: Unit::B, si: false }.size(bytes)), Ok(bytes));
        }

        #[test]
        fn a_written_duration_reads_back_within_its_rounding(nanoseconds in 1_000_u64..10_u64.pow(17)) {
            let text = duration(Duration::from_nanos(nanoseconds));
            let back = parse_duration(&text).unwrap().as_nanos() as u64;
            prop_assert!(back.abs_diff(nanoseconds) as f64 <= nanoseconds as f64 * 0.05, "{nanoseconds} -> {text}");
        }
    }
}
