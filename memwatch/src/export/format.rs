//! The forms that other tools read, by the names of `memwatch export --to`.

use std::io::Write;

use anyhow::Result;

use super::weight::Weight;
use super::{csv, flamegraph, folded, heaptrack, json, memleak, pprof, speedscope};
use crate::model::report::Report;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    Pprof,
    Collapsed,
    Flamegraph,
    Speedscope,
    Json,
    Csv,
    Memleak,
    Heaptrack,
}

impl ExportFormat {
    pub const NAMES: &[&str] = &[
        "pprof",
        "collapsed",
        "flamegraph",
        "speedscope",
        "json",
        "csv",
        "memleak",
        "heaptrack",
    ];

    pub fn parse(name: &str) -> Option<Self> {
        let all = [
            Self::Pprof,
            Self::Collapsed,
            Self::Flamegraph,
            Self::Speedscope,
            Self::Json,
            Self::Csv,
            Self::Memleak,
            Self::Heaptrack,
        ];
        let position = Self::NAMES.iter().position(|known| *known == name)?;
        all.get(position).copied()
    }

    /// Not for a terminal.
    pub const fn is_binary(self) -> bool {
        matches!(self, Self::Pprof)
    }

    /// Can say how much it was before and how much it is now.
    pub const fn has_differences(self) -> bool {
        matches!(self, Self::Collapsed | Self::Flamegraph | Self::Json | Self::Csv)
    }

    /// Writes the file; `weight` is what those with one number are made of.
    pub fn write(self, report: &Report, weight: Weight, out: &mut dyn Write) -> Result<()> {
        let bytes = match self {
            Self::Pprof => pprof::file(report)?,
            Self::Collapsed => folded::lines(report, weight).into_bytes(),
            Self::Flamegraph => flamegraph::svg(report, weight)?,
            Self::Speedscope => speedscope::file(report)?.into_bytes(),
            Self::Json => {
                json::write(report, &mut *out)?;
                Vec::new()
            }
            Self::Csv => csv::file(report).into_bytes(),
            Self::Memleak => memleak::text(report).into_bytes(),
            Self::Heaptrack => heaptrack::text(report).into_bytes(),
        };
        Ok(out.write_all(&bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixtures::{full, tick};

    #[test]
    fn every_name_is_a_format_that_can_be_written() {
        for name in ExportFormat::NAMES {
            let format = ExportFormat::parse(name).unwrap();
            for report in [tick(Vec::new()), full()] {
                let mut bytes = Vec::new();
                format.write(&report, Weight::InuseBytes, &mut bytes).unwrap();
                assert!(!bytes.is_empty() || format == ExportFormat::Collapsed);
            }
        }
        assert_eq!(ExportFormat::parse("svg"), None);
    }
}
