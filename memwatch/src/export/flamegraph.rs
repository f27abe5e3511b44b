//! A flame graph as one SVG file, drawn by inferno; of a difference in red (more) and blue (less).

use anyhow::{Context as _, Result};
use inferno::flamegraph::{self, Options};

use super::folded;
use super::weight::Weight;
use crate::model::report::{Kind, Report};

pub fn svg(report: &Report, weight: Weight) -> Result<Vec<u8>> {
    let lines = folded::lines(report, weight);
    let mut options = Options::default();
    options.title = title(report, weight);
    options.subtitle = Some(subtitle(report));
    let unit = if weight.is_bytes() { "bytes" } else { "blocks" };
    unit.clone_into(&mut options.count_name);
    let mut svg = Vec::new();
    let lines: Vec<&str> = lines.lines().collect();
    if lines.iter().all(|line| line.ends_with(" 0")) {
        return Ok(empty(&options.title));
    }
    flamegraph::from_lines(&mut options, lines, &mut svg).context("cannot draw the flame graph")?;
    Ok(svg)
}

fn title(report: &Report, weight: Weight) -> String {
    let names: Vec<String> = report
        .processes
        .iter()
        .take(3)
        .map(|process| format!("{} {}", process.pid, process.comm))
        .collect();
    let what = match report.kind {
        Kind::Diff => format!("change of {}", weight.title()),
        Kind::Top | Kind::Report => weight.title().to_owned(),
    };
    format!("{what}: {}", super::name::clean(&names.join(", ")))
}

fn subtitle(report: &Report) -> String {
    let losses = if report.health.complete {
        "nothing lost"
    } else {
        "incomplete, see the report"
    };
    format!(
        "{}, watched {:.0} s, {losses}",
        report.time, report.watched_seconds
    )
}

/// inferno refuses to draw nothing; a picture that says so is still the picture of this watch.
fn empty(title: &str) -> Vec<u8> {
    let title = title
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    format!(
        "<?xml version=\"1.0\" standalone=\"no\"?>\n<svg version=\"1.1\" width=\"1200\" height=\"60\" xmlns=\"http://www.w3.org/2000/svg\">\
<text x=\"600\" y=\"25\" text-anchor=\"middle\">{title}</text><text x=\"600\" y=\"45\" text-anchor=\"middle\">nothing</text></svg>\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::fixtures::{full, row, tick};

    fn drawn(report: &Report) -> String {
        String::from_utf8(svg(report, Weight::InuseObjects).unwrap()).unwrap()
    }

    #[test]
    fn frames_have_their_share() {
        let svg = drawn(&tick(vec![row()]));
        assert!(
            svg.contains("fill (app/cache.py:88) (3,100,000 blocks, 100.00%)"),
            "{svg}"
        );
        assert!(svg.contains("blocks in use: 1234 python3"));
    }

    #[test]
    fn a_difference_tells_by_how_much() {
        let svg = drawn(&full());
        assert!(svg.contains("+1.00%"), "{svg}");
        assert!(svg.contains("change of blocks in use"));
    }

    #[test]
    fn of_nothing_there_is_a_picture_too() {
        assert!(drawn(&tick(Vec::new())).contains("nothing"));
    }
}
