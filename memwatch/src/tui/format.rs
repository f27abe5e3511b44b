//! Counts, rates and shares as the screen shows them: three significant digits, so that columns stay narrow and
//! nobody counts zeros. Sizes and times are written as everywhere else, by `crate::format`.

fn three_digits(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// A number of things: exact up to seven digits, then `12.3M`.
pub fn count(count: u64) -> String {
    if count < 10_000_000 {
        return count.to_string();
    }
    let mut value = count as f64 / 1e6;
    let mut names = ["M", "G", "T", "P", "E"].iter();
    let mut name = names.next();
    while value >= 999.5 {
        value /= 1000.0;
        name = names.next();
    }
    format!("{}{}", three_digits(value), name.unwrap_or(&""))
}

pub fn signed_count(value: i64) -> String {
    let sign = match value {
        0 => return "0".to_owned(),
        1.. => '+',
        _ => '-',
    };
    format!("{sign}{}", count(value.unsigned_abs()))
}

/// A rate of things: `0.5`, `182`, `1.2k`, `3.4M`.
pub fn rate(per_second: f64) -> String {
    match per_second {
        0.0 => "0".to_owned(),
        r if r < 9.95 => format!("{r:.1}"),
        r if r < 999.5 => format!("{r:.0}"),
        r if r < 999_500.0 => format!("{}k", three_digits(r / 1e3)),
        r => format!("{}M", three_digits(r / 1e6)),
    }
}

/// A percentage: `0.4 %`, `51 %`, `130 %`.
pub fn percent(percent: f64) -> String {
    if percent < 9.95 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.0} %")
    }
}

/// Date and time of an RFC 3339 time, to the second, in its own zone.
pub fn clock(rfc3339: &str, with_date: bool) -> String {
    let zone = if rfc3339.ends_with(['Z', 'z']) { " UTC" } else { "" };
    match (rfc3339.get(..10), rfc3339.get(11..19)) {
        (Some(date), Some(time)) if with_date => format!("{date} {time}{zone}"),
        (Some(_), Some(time)) => format!("{time}{zone}"),
        _ => rfc3339.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_counts_are_short() {
        assert_eq!(
            [0.0, 0.52, 182.3, 1234.0, 3.4e6].map(rate),
            ["0", "0.5", "182", "1.23k", "3.40M"]
        );
        assert_eq!(
            [9_999_999, 12_345_678, u64::MAX].map(count),
            ["9999999", "12.3M", "18.4E"]
        );
        assert_eq!(signed_count(-31_000), "-31000");
        assert_eq!([0.44, 51.2, 130.0].map(percent), ["0.4 %", "51 %", "130 %"]);
    }

    #[test]
    fn a_time_of_day_is_taken_out_of_a_time_stamp_and_odd_ones_stay() {
        assert_eq!(clock("2025-03-01T14:02:11.123Z", false), "14:02:11 UTC");
        assert_eq!(clock("2025-03-01T14:02:11+01:00", true), "2025-03-01 14:02:11");
        assert_eq!(clock("now", true), "now");
    }
}
