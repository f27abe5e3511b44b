//! Small histograms.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use crate::model::report::{Age, SizeBucket};
use crate::tui::text::{left, right, width};
use crate::tui::theme::Theme;
use crate::{
    format::{ByteFormat, seconds},
    tui::format::count,
};

const UP: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
const ALONG: &str = "━";
const HALF: &str = "╸";
/// Narrower than this, a histogram with labels cannot be read.
pub const LEAST_WIDTH: usize = 26;

/// Counts by bucket, without empty buckets at either end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    title: &'static str,
    /// Upper edge, none for the last, and count.
    buckets: Vec<(Option<String>, u64)>,
}

impl Histogram {
    /// None when nothing was counted.
    fn new(title: &'static str, buckets: impl Iterator<Item = (Option<String>, u64)>) -> Option<Self> {
        let mut buckets: Vec<_> = buckets.skip_while(|(_, count)| *count == 0).collect();
        let used = buckets.iter().rposition(|(_, count)| *count > 0)? + 1;
        buckets.truncate(used);
        Some(Self { title, buckets })
    }

    pub fn sizes(buckets: &[SizeBucket], units: ByteFormat) -> Option<Self> {
        let label = |edge: u64| units.size(edge).replace(".00 ", " ").replace(".0 ", " ");
        Self::new(
            "sizes",
            buckets
                .iter()
                .map(|bucket| (bucket.below_bytes.map(label), bucket.objects)),
        )
    }

    pub fn times(title: &'static str, buckets: &[Age]) -> Option<Self> {
        Self::new(
            title,
            buckets
                .iter()
                .map(|bucket| (bucket.below_seconds.map(seconds), bucket.objects)),
        )
    }

    fn most(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| *count).max().unwrap_or(0)
    }

    /// Neighbouring buckets put together until there are at most `most`.
    fn merged(&self, most: usize) -> Self {
        let together = self.buckets.len().div_ceil(most.max(1)).max(1);
        let merge = |buckets: &[(Option<String>, u64)]| {
            let edge = buckets.last().and_then(|(edge, _)| edge.clone());
            (
                edge,
                buckets
                    .iter()
                    .map(|(_, count)| *count)
                    .fold(0, u64::saturating_add),
            )
        };
        Self {
            title: self.title,
            buckets: self.buckets.chunks(together).map(merge).collect(),
        }
    }

    /// `sizes ▁▂█▃ mostly < 128 B`
    pub fn in_a_line(&self, theme: Theme) -> Vec<Span<'static>> {
        let merged = self.merged(16);
        let most = merged.most();
        let bars: String = merged
            .buckets
            .iter()
            .map(|(_, count)| upright(*count, most))
            .collect();
        let mode = merged.buckets.iter().find(|(_, count)| *count == most);
        let edge = match mode {
            Some((Some(edge), _)) => format!("< {edge}"),
            _ => "more".to_owned(),
        };
        vec![
            Span::styled(format!("{} ", self.title), theme.dim()),
            Span::styled(bars, theme.bar()),
            Span::styled(" mostly ", theme.dim()),
            Span::raw(edge),
        ]
    }

    /// A title and one labelled bar for each bucket, each line exactly `cells` wide.
    pub fn block(&self, cells: usize, lines: usize, theme: Theme) -> Vec<Line<'static>> {
        let merged = self.merged(lines.saturating_sub(1));
        let most = merged.most();
        let label = |edge: &Option<String>| {
            edge.as_ref()
                .map_or_else(|| "more".to_owned(), |edge| format!("< {edge}"))
        };
        let labels = merged
            .buckets
            .iter()
            .map(|(edge, _)| width(&label(edge)))
            .max()
            .unwrap_or(0);
        let counts = merged
            .buckets
            .iter()
            .map(|(_, n)| width(&count(*n)))
            .max()
            .unwrap_or(0);
        let room = cells.saturating_sub(labels + counts + 2);
        let mut block = vec![Line::from(Span::styled(left(self.title, cells), theme.dim()))];
        for (edge, n) in &merged.buckets {
            let bar = lying(*n, most, room);
            let text = [
                Span::styled(right(&label(edge), labels), theme.dim()),
                Span::raw(" "),
                Span::styled(left(&bar, room), theme.bar()),
                Span::raw(" "),
                Span::styled(right(&count(*n), counts), Style::new()),
            ];
            block.push(Line::from_iter(text));
        }
        block
    }
}

fn upright(value: u64, most: u64) -> &'static str {
    if value == 0 {
        return " ";
    }
    let eighth = (value as f64 / most.max(1) as f64 * 8.0).ceil() as usize;
    UP[eighth.clamp(1, 8) - 1]
}

/// A bar of at most `cells`, to half a cell; what is not zero is seen.
fn lying(value: u64, most: u64, cells: usize) -> String {
    if value == 0 {
        return String::new();
    }
    let share = (value as f64 / most.max(1) as f64).min(1.0);
    let halves = ((share * cells as f64 * 2.0).round() as usize).clamp(1, cells.max(1) * 2);
    format!(
        "{}{}",
        ALONG.repeat(halves / 2),
        if halves % 2 == 1 { HALF } else { "" }
    )
}

/// One upright bar for each value, scaled between the least and the greatest: growth matters here, not the
/// size.
pub fn course(values: &[u64]) -> String {
    let Some(scaled) = scaled(values, 8) else {
        return String::new();
    };
    scaled
        .into_iter()
        .map(|value| UP[(value as usize).clamp(1, 8) - 1])
        .collect()
}

/// The values on a scale of 1 to `top`. A course that moves by less than a hundredth is flat, so that noise
/// does not look like news.
pub fn scaled(values: &[u64], top: u64) -> Option<Vec<u64>> {
    let (least, greatest) = (*values.iter().min()?, *values.iter().max()?);
    let range = (greatest - least).max(greatest / 100).max(1) as f64;
    let steps = top.saturating_sub(1) as f64;
    Some(
        values
            .iter()
            .map(|value| 1 + ((value - least) as f64 / range * steps).round() as u64)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEME: Theme = Theme { color: false };

    fn sizes(counts: &[u64]) -> Option<Histogram> {
        let edge = |at: usize| (at + 1 < counts.len()).then(|| 16 << at);
        let buckets: Vec<SizeBucket> = counts
            .iter()
            .enumerate()
            .map(|(at, objects)| SizeBucket {
                below_bytes: edge(at),
                objects: *objects,
            })
            .collect();
        Histogram::sizes(&buckets, ByteFormat::default())
    }

    fn text(lines: &[Line]) -> Vec<String> {
        lines.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn empty_ends_are_left_out() {
        assert_eq!(sizes(&[0, 0, 0]), None);
        let histogram = sizes(&[0, 0, 8, 1, 4, 0, 0]).unwrap();
        let line = Line::from(histogram.in_a_line(THEME)).to_string();
        assert_eq!(line, "sizes █▁▄ mostly < 64 B");
    }

    #[test]
    fn bars_are_labelled_with_their_upper_edge_and_all_as_wide_as_asked() {
        let lines = text(&sizes(&[4, 0, 8]).unwrap().block(26, 9, THEME));
        assert_eq!(
            lines,
            [
                "sizes                     ",
                "< 16 B ━━━━━━━━╸         4",
                "< 32 B                   0",
                "  more ━━━━━━━━━━━━━━━━━ 8"
            ]
        );
    }

    #[test]
    fn buckets_are_put_together_when_there_are_more_than_lines() {
        let lines = text(&sizes(&[1, 1, 1, 1, 1, 1]).unwrap().block(26, 4, THEME));
        assert_eq!(lines.len(), 4);
        assert!(lines[1].ends_with(" 2") && lines[3].contains("more"), "{lines:?}");
    }

    #[test]
    fn small_bars_are_seen_and_none_is_longer_than_its_room() {
        assert_eq!(lying(1, u64::MAX, 10), "╸");
        assert_eq!(lying(5, 5, 3), "━━━");
        assert_eq!(lying(0, 5, 3), "");
        assert_eq!(lying(9, 5, 3), "━━━");
    }

    #[test]
    fn a_course_shows_its_change_but_not_its_noise() {
        assert_eq!(course(&[100, 150, 200]), "▁▅█");
        assert_eq!(course(&[100_000, 100_001, 100_000]), "▁▁▁");
        assert_eq!(course(&[0, 0]), "▁▁");
        assert_eq!(course(&[]), "");
    }
}
