//! Text that comes from watched programs, made fit for a cell grid: harmless, measured and cut.

use std::borrow::Cow;

use ratatui::buffer::CellWidth;
use ratatui::style::Style;
use ratatui::text::Span;

/// Stands for a character that would act on the terminal instead of being shown.
const HARMLESS: char = '\u{fffd}';
const CUT: &str = "…";

/// True for characters that steer the terminal, reorder the line or break it.
fn is_harmful(c: char) -> bool {
    let is_format = matches!(
        c,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    c.is_control() || is_format
}

/// The text with harmful characters replaced; white space of any kind becomes a plain space. A watched
/// program chooses its own name, command line and symbol names, so none of them may reach the terminal as
/// they are.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text
        .chars()
        .any(|c| is_harmful(c) || (c.is_whitespace() && c != ' '))
    {
        return Cow::Borrowed(text);
    }
    let harmless = text.chars().map(|c| match c {
        _ if c.is_whitespace() => ' ',
        _ if is_harmful(c) => HARMLESS,
        _ => c,
    });
    Cow::Owned(harmless.collect())
}

/// Cells that the text takes on the screen.
pub fn width(text: &str) -> usize {
    if text.is_ascii() {
        text.len()
    } else {
        symbols(text).map(|(_, cells)| cells).sum()
    }
}

/// The text in at most `cells`, with the middle replaced by `…` when it is longer: both ends of a name tell
/// more than its middle.
pub fn cut_middle(text: &str, cells: usize) -> Cow<'_, str> {
    if width(text) <= cells {
        return Cow::Borrowed(text);
    }
    let Some(room) = cells.checked_sub(width(CUT)) else {
        return Cow::Borrowed("");
    };
    let head = take(symbols(text), room.div_ceil(2));
    let mut tail: Vec<&str> = Vec::new();
    let mut left = room / 2;
    let all: Vec<_> = symbols(text).collect();
    for (symbol, cells) in all.into_iter().rev() {
        if cells > left {
            break;
        }
        left -= cells;
        tail.push(symbol);
    }
    Cow::Owned(
        head.into_iter()
            .chain([CUT])
            .chain(tail.into_iter().rev())
            .collect(),
    )
}

/// The text in at most `cells`, with its end replaced by `…` when it is longer.
pub fn cut_end(text: &str, cells: usize) -> Cow<'_, str> {
    if width(text) <= cells {
        return Cow::Borrowed(text);
    }
    let Some(room) = cells.checked_sub(width(CUT)) else {
        return Cow::Borrowed("");
    };
    Cow::Owned(take(symbols(text), room).into_iter().chain([CUT]).collect())
}

/// The text in exactly `cells`, at the left.
pub fn left(text: &str, cells: usize) -> String {
    let text = cut_middle(text, cells);
    let pad = cells - width(&text);
    format!("{text}{:pad$}", "")
}

/// The text in exactly `cells`, at the right.
pub fn right(text: &str, cells: usize) -> String {
    let text = cut_middle(text, cells);
    let pad = cells - width(&text);
    format!("{:pad$}{text}", "")
}

fn take<'a>(symbols: impl Iterator<Item = (&'a str, usize)>, mut room: usize) -> Vec<&'a str> {
    symbols
        .map_while(|(symbol, cells)| {
            room = room.checked_sub(cells)?;
            Some(symbol)
        })
        .collect()
}

/// What a reader takes for one character each, with its cells, counted as the screen buffer counts them.
fn symbols(text: &str) -> impl Iterator<Item = (&str, usize)> {
    Graphemes::new(text).map(|symbol| (symbol, usize::from(symbol.cell_width())))
}

/// ratatui splits text into grapheme clusters only by way of a span, whose clusters borrow from the span.
/// This finds them again in the text itself.
struct Graphemes<'a> {
    rest: &'a str,
    lengths: std::vec::IntoIter<usize>,
}

impl<'a> Graphemes<'a> {
    fn new(text: &'a str) -> Self {
        let lengths: Vec<usize> = Span::raw(text)
            .styled_graphemes(Style::new())
            .map(|grapheme| grapheme.symbol.len())
            .collect();
        // Spans leave control characters out, which would move every later cut.
        let whole = lengths.iter().sum::<usize>() == text.len();
        let lengths = if whole {
            lengths
        } else {
            text.chars().map(char::len_utf8).collect()
        };
        Self {
            rest: text,
            lengths: lengths.into_iter(),
        }
    }
}

impl<'a> Iterator for Graphemes<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (symbol, rest) = self.rest.split_at_checked(self.lengths.next()?)?;
        self.rest = rest;
        Some(symbol)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn harmful_characters_of_a_watched_program_do_not_reach_the_terminal() {
        assert_eq!(clean("plain näme"), "plain näme");
        assert_eq!(clean("a\x1b[2Jb\u{9b}1mc\u{202e}d\u{200d}"), "a�[2Jb�1mc�d�");
        assert_eq!(clean("one\ttwo\nthree\r"), "one two three ");
    }

    #[test]
    fn long_names_are_cut_in_the_middle() {
        assert_eq!(cut_middle("std::vector::push_back", 22), "std::vector::push_back");
        assert_eq!(cut_middle("std::vector::push_back", 11), "std::…_back");
        assert_eq!(cut_middle("abc", 1), "…");
        assert_eq!(cut_middle("abc", 0), "");
        assert_eq!(cut_end("abcdef", 4), "abc…");
    }

    #[test]
    fn wide_characters_count_two_cells() {
        assert_eq!(width("日本"), 4);
        assert_eq!(width("e\u{301}"), 1);
        assert_eq!(cut_middle("日本語日本語", 6), "日…語");
        assert_eq!(left("日本", 5), "日本 ");
        assert_eq!(right("é", 3), "  é");
    }

    proptest! {
        #[test]
        fn a_cut_text_never_takes_more_cells_than_it_was_given(text in any::<String>(), cells in 0_usize..40) {
            let text = clean(&text);
            prop_assert!(width(&cut_middle(&text, cells)) <= cells);
            prop_assert!(width(&cut_end(&text, cells)) <= cells);
            prop_assert_eq!(width(&left(&text, cells)), cells);
            prop_assert_eq!(width(&right(&text, cells)), cells);
        }
    }
}
