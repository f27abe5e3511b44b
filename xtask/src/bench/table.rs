//! The figures as Markdown, and their place in the document.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use super::{
    contestant::Contestant,
    own::{Case, Own},
    pairs::{Place, Reading},
    stats::Summary,
};

const BEGIN: &str = "<!-- bench:begin -->";
const END: &str = "<!-- bench:end -->";

/// All measurements with one number of threads.
pub struct Block {
    pub threads: u32,
    pub place: Place,
    pub rows: Vec<Row>,
}

pub struct Row {
    pub name: &'static str,
    pub required: bool,
    pub readings: Vec<Reading>,
    pub failure: Option<String>,
}

impl Row {
    pub fn new(contestant: &Contestant) -> Self {
        Self {
            name: contestant.name,
            required: contestant.required,
            readings: Vec::new(),
            failure: None,
        }
    }

    fn cost(&self) -> Option<Summary> {
        let costs = self.readings.iter().map(|reading| reading.cpu_ns_per_pair);
        if self.failure.is_some() {
            None
        } else {
            Summary::of(costs)
        }
    }
}

pub fn markdown(
    machine: &[String],
    contestants: &[Contestant],
    blocks: &[Block],
    own: Option<&Result<Own>>,
    rounds: usize,
    seconds: f64,
) -> String {
    let mut text = format!("Medians of {rounds} rounds of {seconds} s each, least and most in brackets.\n\n");
    for line in machine {
        // Writing to a string cannot fail.
        _ = writeln!(text, "- {line}");
    }
    for block in blocks {
        text += &block_table(block);
    }
    text.push('\n');
    for contestant in contestants {
        _ = writeln!(text, "- **{}**: {}", contestant.name, contestant.about);
    }
    match own {
        None => {}
        Some(Ok(Own(cases))) => text += &own_table(cases),
        Some(Err(error)) => _ = writeln!(text, "\nmemwatch itself could not be measured: {error:#}"),
    }
    text
}

fn block_table(block: &Block) -> String {
    let plain = block.rows.first().and_then(Row::cost);
    let place = match block.place {
        Place::Same => "",
        Place::Moving => ", the stack at another place at each call",
    };
    let mut text = format!("\n### {}{place}\n\n", counted(block.threads, "thread"));
    text += "| | CPU time of a malloc/free pair | added to plain | times plain | pairs a second |\n";
    text += "| --- | ---: | ---: | ---: | ---: |\n";
    for row in &block.rows {
        _ = writeln!(text, "{}", row_line(row, plain));
    }
    text
}

fn row_line(row: &Row, plain: Option<Summary>) -> String {
    let Some(cost) = row.cost() else {
        let why = row.failure.as_deref().unwrap_or("no reading").replace('|', "/");
        return format!("| {} | could not be measured: {why} | | | |", row.name);
    };
    let speed = Summary::of(row.readings.iter().map(|reading| reading.pairs_per_second));
    let against = plain.filter(|_| row.name != "plain");
    format!(
        "| {} | {} ns ({}–{}) | {} | {} | {} |",
        row.name,
        number(cost.median),
        number(cost.min),
        number(cost.max),
        against
            .map(|plain| format!("{} ns", number(cost.median - plain.median)))
            .unwrap_or_default(),
        against
            .map(|plain| number(cost.median / plain.median))
            .unwrap_or_default(),
        speed.map(|speed| number(speed.median)).unwrap_or_default(),
    )
}

fn own_table(cases: &[Case]) -> String {
    let mut text = String::from(
        "\n### memwatch itself\n\n\
         | watching | CPU, share of one core | resident memory | kernel maps | to attach | to leave |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for case in cases {
        let maps = case
            .kernel_map_bytes
            .map_or_else(|| "not known".into(), mebibytes);
        _ = writeln!(
            text,
            "| {} | {:.1} % | {} | {maps} | {} ms | {} ms |",
            case.name,
            case.cpu_percent,
            mebibytes(case.rss_bytes),
            case.attach.as_millis(),
            case.detach.as_millis(),
        );
    }
    text
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn counted(count: u32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// One decimal below a hundred; groups of three digits above.
pub fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if value < 0.0 {
        format!("-{grouped}")
    } else {
        grouped
    }
}

/// `document` with `text` between its two marks.
pub fn splice(document: &str, text: &str) -> Result<String> {
    let (before, rest) = document
        .split_once(BEGIN)
        .with_context(|| format!("the document has no {BEGIN}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("the document has no {END} after {BEGIN}"))?;
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", text.trim()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn row(name: &'static str, costs: &[f64]) -> Row {
        let readings = costs
            .iter()
            .map(|&cost| Reading {
                cpu_ns_per_pair: cost,
                pairs_per_second: 1e9 / cost,
            })
            .collect();
        Row {
            name,
            required: true,
            readings,
            failure: None,
        }
    }

    #[test]
    fn rows_are_set_against_the_first() {
        let rows = vec![
            row("plain", &[20.0, 21.0, 19.0]),
            row("watcher", &[1_980.0, 2_020.0, 2_000.0]),
        ];
        let text = block_table(&Block {
            threads: 1,
            place: Place::Same,
            rows,
        });
        assert!(text.contains("### 1 thread\n"), "{text}");
        assert!(
            text.contains("| plain | 20.0 ns (19.0–21.0) |  |  | 50,000,000 |"),
            "{text}"
        );
        assert!(
            text.contains("| watcher | 2,000 ns (1,980–2,020) | 1,980 ns | 100 | 500,000 |"),
            "{text}"
        );
    }

    #[test]
    fn what_could_not_be_measured_says_why_and_shows_no_figure() {
        let mut broken = row("broken", &[5.0]);
        broken.failure = Some("no such kernel | at all".into());
        let line = row_line(&broken, None);
        assert_eq!(
            line,
            "| broken | could not be measured: no such kernel / at all | | | |"
        );
        assert!(row_line(&row("empty", &[]), None).contains("no reading"));
    }

    #[test]
    fn own_figures_tell_unknown_from_nought() {
        let case = Case {
            name: "idle",
            cpu_percent: 0.04,
            rss_bytes: 3 << 20,
            attach: Duration::from_millis(250),
            detach: Duration::from_millis(30),
            kernel_map_bytes: None,
        };
        let text = own_table(&[case]);
        assert!(
            text.contains("| idle | 0.0 % | 3.0 MiB | not known | 250 ms | 30 ms |"),
            "{text}"
        );
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let document = format!("# Title\n\n{BEGIN}\nold\n{END}\n\ntail\n");
        let once = splice(&document, "new\n").unwrap();
        assert_eq!(once, format!("# Title\n\n{BEGIN}\n\nnew\n\n{END}\n\ntail\n"));
        assert_eq!(splice(&once, "new\n").unwrap(), once);
        assert!(splice("no marks", "new").is_err());
        assert!(splice(&format!("{END} {BEGIN}"), "new").is_err());
    }

    #[test]
    fn numbers_are_readable() {
        let shown = [0.04, 9.96, 100.0, 1_234.0, 1_234_567.8, -123_456.0].map(number);
        assert_eq!(shown, ["0.0", "10.0", "100", "1,234", "1,234,568", "-123,456"]);
    }
}
