//! Sizes and times as people type them. `crate::format` writes them.

use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("a value is needed")]
    Empty,
    #[error("it must not be negative")]
    Negative,
    #[error("a number is needed first, as in {example}")]
    NoNumber { example: &'static str },
    #[error("`{unit}` is not a unit, use {known}")]
    UnknownUnit { unit: String, known: &'static str },
    #[error("there is no part of a byte")]
    PartOfByte,
    #[error("it is too large")]
    TooLarge,
}

const SIZE_UNITS: &str = "K, M, G or T (or KiB, MiB, …)";
const TIME_UNITS: &str = "us, ms, s, m, h or d";

/// `64`, `64k`, `64KiB`, `1M`, `1.5GiB`: multiples are binary whatever the spelling.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let text = unsigned(text)?;
    let (number, rest) = Decimal::take(text, "64KiB")?;
    let shift = match rest.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => {
            return Err(UnitError::UnknownUnit {
                unit: rest.trim().to_owned(),
                known: SIZE_UNITS,
            });
        }
    };
    if shift == 0 && number.fraction != 0 {
        return Err(UnitError::PartOfByte);
    }
    number.times(1_u64 << shift)
}

/// A place in a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Tick(u64),
    /// After the start.
    After(Duration),
    At(jiff::Timestamp),
}

/// `120`, `10m` or `2026-01-02T03:04:05Z`.
pub fn parse_when(text: &str) -> Result<When, String> {
    if let Ok(tick) = text.parse() {
        return Ok(When::Tick(tick));
    }
    if let Ok(after) = parse_duration(text) {
        return Ok(When::After(after));
    }
    text.parse().map(When::At).map_err(|_| {
        "a tick (120), a time after the start (10m) or a time (2026-01-02T03:04:05Z) is needed".to_owned()
    })
}

/// `500ms`, `10s`, `1m30s`; a number alone is seconds, as in bcc.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let mut rest = unsigned(text)?;
    let mut nanoseconds = 0_u64;
    let mut alone = true;
    while !rest.is_empty() {
        let (number, after) = Decimal::take(rest, "10s")?;
        let end = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let each: u64 = match unit {
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" | "sec" => 1_000_000_000,
            "m" | "min" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            "" if alone && next.is_empty() => 1_000_000_000,
            _ => {
                return Err(UnitError::UnknownUnit {
                    unit: unit.to_owned(),
                    known: TIME_UNITS,
                });
            }
        };
        nanoseconds = nanoseconds
            .checked_add(number.times(each)?)
            .ok_or(UnitError::TooLarge)?;
        alone = false;
        rest = next.trim_start();
    }
    Ok(Duration::from_nanos(nanoseconds))
}

fn unsigned(text: &str) -> Result<&str, UnitError> {
    let text = text.trim();
    match text.as_bytes().first() {
        None => Err(UnitError::Empty),
        Some(b'-') => Err(UnitError::Negative),
        Some(_) => Ok(text),
    }
}

/// A decimal number without floating point: `1.1G` must not come out a byte short.
#[derive(Clone, Copy, Debug)]
struct Decimal {
    whole: u64,
    /// In units of `10^-FRACTION_DIGITS`.
    fraction: u64,
}

/// More digits than a byte of a tebibyte needs; further ones are checked to be digits and dropped.
const FRACTION_DIGITS: u32 = 15;

impl Decimal {
    fn take<'a>(text: &'a str, example: &'static str) -> Result<(Self, &'a str), UnitError> {
        let (whole_digits, mut rest) = digits(text);
        let mut fraction = 0;
        let mut fraction_digits = "";
        if let Some(after_point) = rest.strip_prefix('.') {
            (fraction_digits, rest) = digits(after_point);
            let mut place = 10_u64.pow(FRACTION_DIGITS - 1);
            for digit in fraction_digits.bytes().take(FRACTION_DIGITS as usize) {
                fraction += u64::from(digit - b'0') * place;
                place /= 10;
            }
        }
        if whole_digits.is_empty() && fraction_digits.is_empty() {
            return Err(UnitError::NoNumber { example });
        }
        let mut whole = 0_u64;
        for digit in whole_digits.bytes() {
            whole = whole
                .checked_mul(10)
                .and_then(|tens| tens.checked_add(u64::from(digit - b'0')))
                .ok_or(UnitError::TooLarge)?;
        }
        Ok((Self { whole, fraction }, rest))
    }

    /// Rounded to the nearest.
    fn times(self, unit: u64) -> Result<u64, UnitError> {
        let scale = 10_u128.pow(FRACTION_DIGITS);
        let part = (u128::from(self.fraction) * u128::from(unit) + scale / 2) / scale;
        u64::try_from(u128::from(self.whole) * u128::from(unit) + part).map_err(|_| UnitError::TooLarge)
    }
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_as_the_manual_writes_them() {
        for (text, bytes) in [
            ("64", 64),
            ("64k", 64 << 10),
            ("64KiB", 64 << 10),
            ("64 KiB", 64 << 10),
            ("1M", 1 << 20),
            ("1.5GiB", 3 << 29),
            (".5k", 512),
            ("1.1g", 1_181_116_006),
            ("2TB", 2 << 40),
            (" 7b ", 7),
            ("0", 0),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_why() {
        for (text, why) in [
            ("", "a value is needed"),
            ("-1", "it must not be negative"),
            ("k", "a number is needed first, as in 64KiB"),
            (".", "a number is needed first, as in 64KiB"),
            ("1.5", "there is no part of a byte"),
            ("1x", "`x` is not a unit, use K, M, G or T (or KiB, MiB, …)"),
            ("1k1", "`k1` is not a unit, use K, M, G or T (or KiB, MiB, …)"),
            ("18446744073709551616", "it is too large"),
            ("99999999T", "it is too large"),
        ] {
            assert_eq!(parse_size(text).unwrap_err().to_string(), why, "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_the_manual_writes_them() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1m30s", 90_000),
            ("1m 30s", 90_000),
            ("1.5s", 1500),
            ("1d", 86_400_000),
            ("5", 5000),
            ("0.25", 250),
            ("0", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn places_in_a_recording() {
        assert_eq!(parse_when("120"), Ok(When::Tick(120)));
        assert_eq!(parse_when("10m"), Ok(When::After(Duration::from_mins(10))));
        let time = "2026-01-02T03:04:05Z";
        assert_eq!(
            parse_when(time),
            time.parse().map(When::At).map_err(|_| String::new())
        );
        for bad in ["", "-1", "soon", "2026-13-02T03:04:05Z", "10 parsecs"] {
            assert!(parse_when(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_duration_says_why() {
        for (text, why) in [
            ("-1s", "it must not be negative"),
            ("s", "a number is needed first, as in 10s"),
            ("10x", "`x` is not a unit, use us, ms, s, m, h or d"),
            ("1m30", "`` is not a unit, use us, ms, s, m, h or d"),
            ("10 10", "`` is not a unit, use us, ms, s, m, h or d"),
            ("99999999999d", "it is too large"),
        ] {
            assert_eq!(parse_duration(text).unwrap_err().to_string(), why, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
        }

        #[test]
        fn no_number_with_any_unit_makes_the_parsers_panic(text in "[0-9]{0,25}\\.?[0-9]{0,25}[kKmMgGtTsµbBiu]{0,3}") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
        }

    }
}
