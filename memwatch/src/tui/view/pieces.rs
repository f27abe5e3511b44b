//! Lines made of short facts, of which as many are shown as fit.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use crate::tui::theme::Theme;

/// One fact; those with a low weight are left out first.
#[derive(Clone, Debug)]
pub struct Piece {
    pub weight: u8,
    pub spans: Vec<Span<'static>>,
}

impl Piece {
    pub fn new(weight: u8, text: impl Into<String>, style: Style) -> Self {
        Self {
            weight,
            spans: vec![Span::styled(text.into(), style)],
        }
    }

    /// A dim word and its value.
    pub fn labelled(weight: u8, label: &str, value: impl Into<String>, style: Style, theme: Theme) -> Self {
        Self {
            weight,
            spans: vec![
                Span::styled(format!("{label} "), theme.dim()),
                Span::styled(value.into(), style),
            ],
        }
    }

    /// The same in the usual style.
    pub fn plain(weight: u8, label: &str, value: impl Into<String>, theme: Theme) -> Self {
        Self::labelled(weight, label, value, Style::new(), theme)
    }

    #[must_use]
    pub fn then(mut self, text: impl Into<String>, style: Style) -> Self {
        self.spans.push(Span::styled(text.into(), style));
        self
    }

    pub fn width(&self) -> usize {
        self.spans.iter().map(Span::width).sum()
    }
}

/// What stands between two facts.
#[derive(Clone, Copy, Debug)]
pub struct Separator {
    pub text: &'static str,
    pub style: Style,
}

impl Separator {
    pub fn dot(theme: Theme) -> Self {
        Self {
            text: " · ",
            style: theme.dim(),
        }
    }

    fn width(self) -> usize {
        Span::raw(self.text).width()
    }
}

fn total(pieces: &[Piece], separator: Separator) -> usize {
    let gaps = pieces.len().saturating_sub(1) * separator.width();
    gaps + pieces.iter().map(Piece::width).sum::<usize>()
}

fn join(pieces: Vec<Piece>, separator: Separator) -> Line<'static> {
    let mut line = Line::default();
    for (at, piece) in pieces.into_iter().enumerate() {
        if at > 0 {
            line.push_span(Span::styled(separator.text, separator.style));
        }
        line.extend(piece.spans);
    }
    line
}

/// One line: while it is too long, the last of the least weighty pieces goes; the last piece left is not
/// dropped but cut by the screen.
pub fn fit(mut pieces: Vec<Piece>, width: usize, separator: Separator) -> Line<'static> {
    while pieces.len() > 1 && total(&pieces, separator) > width {
        let least = pieces.iter().map(|piece| piece.weight).min();
        if let Some(at) = pieces.iter().rposition(|piece| Some(piece.weight) == least) {
            pieces.remove(at);
        }
    }
    join(pieces, separator)
}

/// As many lines as it takes.
pub fn wrap(pieces: Vec<Piece>, width: usize, separator: Separator) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let mut row: Vec<Piece> = Vec::new();
    for piece in pieces {
        if !row.is_empty() && total(&row, separator) + separator.width() + piece.width() > width {
            lines.push(join(std::mem::take(&mut row), separator));
        }
        row.push(piece);
    }
    if !row.is_empty() {
        lines.push(join(row, separator));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEME: Theme = Theme { color: false };

    fn pieces() -> Vec<Piece> {
        vec![
            Piece::new(3, "first", Style::new()),
            Piece::new(1, "second", Style::new()),
            Piece::new(1, "third", Style::new()),
            Piece::new(2, "fourth", Style::new()),
        ]
    }

    #[test]
    fn the_least_weighty_pieces_go_first() {
        let line = |width| fit(pieces(), width, Separator::dot(THEME)).to_string();
        assert_eq!(line(31), "first · second · third · fourth");
        assert_eq!(line(30), "first · second · fourth");
        assert_eq!(line(22), "first · fourth");
        assert_eq!(line(3), "first");
    }

    #[test]
    fn pieces_that_do_not_fit_go_to_the_next_line() {
        let lines: Vec<String> = wrap(pieces(), 14, Separator::dot(THEME))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(lines, ["first · second", "third · fourth"]);
        assert_eq!(wrap(pieces(), 1, Separator::dot(THEME)).len(), 4);
    }
}
