//! A heap profile for `go tool pprof` and all that reads its format: the usual four sample types, gzip around it.

mod proto;
mod tables;

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use prost::Message as _;

use self::proto::{Label, Profile, Sample, ValueType};
use self::tables::Tables;
use super::weight::Weight;
use crate::model::label;
use crate::model::query::View;
use crate::model::report::{Process, Report, Row};

/// The file's bytes. The report's rows are to be whole stacks.
pub fn file(report: &Report) -> std::io::Result<Vec<u8>> {
    let bytes = profile(report).encode_to_vec();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&bytes)?;
    gzip.finish()
}

fn profile(report: &Report) -> Profile {
    let mut tables = Tables::new();
    let sample_type = Weight::ALL.map(|weight| {
        let unit = if weight.is_bytes() { "bytes" } else { "count" };
        value_type(&mut tables, weight.name(), unit)
    });
    begin_with_program(&mut tables, report);
    let sample = report
        .rows
        .iter()
        .flat_map(|row| samples(&mut tables, report, row));
    let sample: Vec<Sample> = sample.collect();
    let leading = if report.options.view == View::Alloc.name() {
        Weight::AllocBytes
    } else {
        Weight::InuseBytes
    };
    let default_sample_type = tables.text(leading.name());
    let comment: Vec<i64> = comments(report).iter().map(|line| tables.text(line)).collect();
    let period_type = value_type(&mut tables, "space", "bytes");
    Profile {
        sample_type: sample_type.to_vec(),
        sample,
        time_nanos: unix_nanos(&report.time),
        duration_nanos: (report.watched_seconds * 1e9) as i64,
        period_type: Some(period_type),
        period: report.options.sample_bytes.max(1) as i64,
        comment,
        default_sample_type,
        mapping: tables.mappings,
        location: tables.locations,
        function: tables.functions,
        string_table: tables.texts,
    }
}

/// Tools call a profile by its first file.
fn begin_with_program(tables: &mut Tables, report: &Report) {
    let Some(exe) = report.processes.iter().find_map(|process| process.exe.as_deref()) else {
        return;
    };
    let mut frames = report.rows.iter().flat_map(|row| &row.frames);
    if let Some(frame) = frames.find(|frame| frame.module.as_deref() == Some(exe)) {
        tables.mapping(frame);
    }
}

fn value_type(tables: &mut Tables, name: &str, unit: &str) -> ValueType {
    ValueType {
        r#type: tables.text(name),
        unit: tables.text(unit),
    }
}

fn unix_nanos(rfc3339: &str) -> i64 {
    let time = rfc3339.parse::<jiff::Timestamp>();
    time.map_or(0, |time| i64::try_from(time.as_nanosecond()).unwrap_or(0))
}

/// One for each thread whose blocks are alive, and one for all else. Together they are the row.
fn samples(tables: &mut Tables, report: &Report, row: &Row) -> Vec<Sample> {
    let mut rest = Weight::ALL.map(|weight| i64::try_from(weight.of(row)).unwrap_or(i64::MAX));
    let mut parts = Vec::with_capacity(row.threads.len() + 1);
    for share in &row.threads {
        let value: [i64; Weight::ALL.len()] = std::array::from_fn(|index| {
            let of_thread = if Weight::ALL[index].is_bytes() {
                share.bytes
            } else {
                share.objects
            };
            i64::try_from(of_thread).unwrap_or(i64::MAX).min(rest[index])
        });
        for (rest, value) in rest.iter_mut().zip(value) {
            *rest -= value;
        }
        parts.push((Some(share.thread), value));
    }
    parts.push((None, rest));
    parts.retain(|(_, value)| value.iter().any(|value| *value != 0));
    if parts.is_empty() {
        return Vec::new();
    }
    let location_id = locations(tables, row);
    let of_row = labels(tables, report, row);
    parts
        .into_iter()
        .map(|(thread, value)| Sample {
            location_id: location_id.clone(),
            value: value.to_vec(),
            label: of_row
                .iter()
                .copied()
                .chain(thread.map(|thread| number(tables, "thread", thread)))
                .collect(),
        })
        .collect()
}

fn locations(tables: &mut Tables, row: &Row) -> Vec<u64> {
    let mut location_id = tables.stack(&row.frames);
    if row.frames.is_empty() {
        location_id.push(tables.marker(label::no_frames(row)));
    } else if row.truncated {
        location_id.push(tables.marker(super::folded::TRUNCATED));
    }
    location_id
}

fn number(tables: &mut Tables, key: &str, value: u32) -> Label {
    Label {
        key: tables.text(key),
        num: i64::from(value),
        ..Label::default()
    }
}

fn labels(tables: &mut Tables, report: &Report, row: &Row) -> Vec<Label> {
    let mut labels = Vec::new();
    if let Some(pid) = row.pid {
        labels.push(number(tables, "pid", pid));
    }
    let process = |process: &&Process| Some(process.pid) == row.pid && !process.replaced;
    let process = report.processes.iter().find(process);
    let container = process.and_then(|process| process.container.as_ref());
    let texts = [
        ("process", process.map(|process| process.comm.as_str())),
        ("domain", row.domain.as_deref()),
        ("mapping", row.mapping.as_deref()),
        (
            "container",
            container.map(|container| container.name.as_deref().unwrap_or(&container.id)),
        ),
    ];
    for (key, value) in texts {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            labels.push(Label {
                key: tables.text(key),
                str: tables.text(value),
                ..Label::default()
            });
        }
    }
    labels
}

/// What `go tool pprof -comments` prints: where the numbers come from and what they lack.
fn comments(report: &Report) -> Vec<String> {
    let host = &report.host;
    let mut lines = vec![format!(
        "memwatch {} on {} (Linux {}, {}), since {}",
        report.version, host.name, host.kernel, host.arch, report.since
    )];
    for process in &report.processes {
        let command = if process.cmdline.is_empty() {
            process.comm.clone()
        } else {
            process.cmdline.join(" ")
        };
        lines.push(format!("process {}: {command}", process.pid));
    }
    if report.health.complete && report.health.reasons.is_empty() {
        lines.push("nothing was lost".to_owned());
    } else {
        lines.extend(
            report
                .health
                .reasons
                .iter()
                .map(|reason| format!("lost: {reason}")),
        );
    }
    lines
}

#[cfg(test)]
mod tests;
