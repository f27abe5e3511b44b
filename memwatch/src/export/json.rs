//! `memwatch.report/1`: one object on one line for each tick.

use std::io::{self, Write};

use serde::Serialize;

use crate::model::report::Report;

/// The line with its end. A number that is not finite becomes null, which means not known.
pub fn line(report: &Report) -> Result<String, serde_json::Error> {
    let mut line = serde_json::to_string(report)?;
    line.push('\n');
    Ok(line)
}

/// The same for large reports: never all of it is in memory.
pub fn write<T: Serialize + ?Sized>(report: &T, mut out: impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut out, report)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::export::fixtures::{empty, full, row, tick};
    use crate::model::report::{Row, SCHEMA};

    fn value(report: &Report) -> Value {
        serde_json::from_str(&line(report).unwrap()).unwrap()
    }

    fn kind(value: &Value) -> &'static str {
        match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(number) if number.is_f64() => "float",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        }
    }

    /// The contract, field by field: `pointer kind`.
    const CONTRACT: &str = "
        /schema string
        /kind string
        /time string
        /since string
        /interval_seconds float
        /host/name string
        /host/kernel string
        /host/arch string
        /version string
        /options/group_by string
        /options/sort string
        /options/view string
        /options/sample_bytes integer
        /options/min_size integer
        /health/complete bool
        /health/reasons array
        /health/counters object
        /health/counters/free_missed integer
        /health/probes/attached integer
        /health/probes/skipped/0/symbol string
        /health/probes/skipped/0/module string
        /health/probes/skipped/0/reason string
        /health/probes/failed array
        /health/overhead/hits integer
        /health/overhead/target_percent float
        /health/overhead/self_cpu_percent float
        /health/overhead/self_rss_bytes integer
        /health/overhead/kernel_map_bytes integer
        /processes/0/pid integer
        /processes/0/ppid integer
        /processes/0/start_time string
        /processes/0/comm string
        /processes/0/exe string
        /processes/0/cmdline array
        /processes/0/cgroup string
        /processes/0/container/id string
        /processes/0/container/name string
        /processes/0/container/image string
        /processes/0/pod/namespace string
        /processes/0/pod/name string
        /processes/0/pod/uid string
        /processes/0/runtimes/0/name string
        /processes/0/runtimes/0/version string
        /processes/0/rss_bytes integer
        /processes/0/peak_rss_bytes integer
        /processes/0/exited bool
        /processes/0/totals/native/allocations integer
        /processes/0/totals/native/frees integer
        /processes/0/totals/native/allocated_bytes integer
        /processes/0/totals/native/freed_bytes integer
        /processes/0/totals/native/inuse_bytes integer
        /processes/0/totals/native/inuse_objects integer
        /processes/0/totals/native/untracked_frees integer
        /rows/0/key string
        /rows/0/pid integer
        /rows/0/domain string
        /rows/0/inuse_bytes integer
        /rows/0/inuse_objects integer
        /rows/0/alloc_bytes integer
        /rows/0/alloc_objects integer
        /rows/0/freed_bytes integer
        /rows/0/freed_objects integer
        /rows/0/growth_bytes_per_second float
        /rows/0/delta/inuse_bytes integer
        /rows/0/delta/inuse_objects integer
        /rows/0/delta/alloc_bytes integer
        /rows/0/delta/alloc_objects integer
        /rows/0/ages/0/below_seconds float
        /rows/0/ages/0/objects integer
        /rows/0/ages/1/below_seconds null
        /rows/0/lifetimes/0/below_seconds float
        /rows/0/lifetimes/0/objects integer
        /rows/0/frames/0/kind string
        /rows/0/frames/0/function string
        /rows/0/frames/0/file string
        /rows/0/frames/0/line integer
        /rows/0/frames/0/module string
        /rows/0/frames/0/build_id string
        /rows/0/frames/0/address integer
        /rows/0/frames/0/inlined bool
        /rows/0/truncated bool
        /findings/0/kind string
        /findings/0/severity string
        /findings/0/title string
        /findings/0/evidence object
        /findings/0/row integer";

    #[test]
    fn every_field_of_the_contract_is_there_with_its_type() {
        let value = value(&full());
        for entry in CONTRACT.lines().map(str::trim).filter(|entry| !entry.is_empty()) {
            let (pointer, expected) = entry.split_once(' ').unwrap();
            let found = value
                .pointer(pointer)
                .unwrap_or_else(|| panic!("{pointer} is missing"));
            assert_eq!(kind(found), expected, "{pointer}");
        }
        assert_eq!(value["schema"], SCHEMA);
        assert_eq!(value["kind"], "diff");
        assert_eq!(value["rows"][0]["frames"][2]["kind"], "python");
    }

    #[test]
    fn what_is_not_known_is_null_and_not_absent() {
        let bare = value(&tick(vec![Row::default()]));
        for pointer in [
            "/rows/0/pid",
            "/rows/0/domain",
            "/rows/0/growth_bytes_per_second",
            "/rows/0/delta",
            "/rows/0/ages",
            "/rows/0/mapping",
            "/processes/0/ppid",
            "/processes/0/container",
            "/processes/0/pod",
            "/options/min_size",
        ] {
            assert_eq!(bare.pointer(pointer), Some(&Value::Null), "{pointer}");
        }
    }

    #[test]
    fn a_report_reads_back_as_it_was() {
        for report in [empty(), tick(vec![row(), Row::default()]), full()] {
            let back: Report = serde_json::from_str(&line(&report).unwrap()).unwrap();
            assert_eq!(back, report);
        }
    }

    #[test]
    fn large_numbers_are_exact() {
        let report = tick(vec![Row {
            inuse_bytes: u64::MAX,
            ..row()
        }]);
        let back: Report = serde_json::from_str(&line(&report).unwrap()).unwrap();
        assert_eq!(back.rows[0].inuse_bytes, u64::MAX);
    }

    #[test]
    fn a_report_is_one_line_whatever_the_names() {
        let mut report = full();
        report.processes[0].cmdline = vec!["a\nb\r\u{2028}\u{0}\"\\".to_owned()];
        let line = line(&report).unwrap();
        assert_eq!(line.find('\n'), Some(line.len() - 1));
        let back: Report = serde_json::from_str(&line).unwrap();
        assert_eq!(back.processes[0].cmdline, report.processes[0].cmdline);
    }

    #[test]
    fn numbers_that_are_not_finite_are_not_known() {
        let infinite = Row {
            growth_bytes_per_second: Some(f64::INFINITY),
            oldest_seconds: Some(f64::NAN),
            ..row()
        };
        let mut report = tick(vec![infinite]);
        report.health.overhead.target_percent = Some(f64::NEG_INFINITY);
        let back: Report = serde_json::from_str(&line(&report).unwrap()).unwrap();
        assert_eq!(back.rows[0].growth_bytes_per_second, None);
        assert_eq!(back.rows[0].oldest_seconds, None);
        assert_eq!(back.health.overhead.target_percent, None);
    }
}
