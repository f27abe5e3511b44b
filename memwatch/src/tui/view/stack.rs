//! The frames of one stack, a line each.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use crate::model::report::{Frame, FrameKind, Row};
use crate::tui::text::{clean, cut_end, cut_middle, right, width};
use crate::tui::theme::Theme;
use crate::{
    model::label::base_name,
    tui::frames::{interesting, long, place},
};

/// Between the number, the name and the place.
const GAP: usize = 2;
/// Fewer cells than this of a path and a module together are better spent on the path alone.
const LEAST_BOTH: usize = 24;

/// One frame as text.
struct Entry {
    name: String,
    mark: &'static str,
    /// `file:line`.
    place: Option<String>,
    /// `[libc.so.6]`
    module: Option<String>,
    style: Style,
    telling: bool,
}

/// The whole stack.
pub fn lines(row: &Row, columns: usize, theme: Theme) -> Vec<Line<'static>> {
    numbered(row, columns, theme)
        .into_iter()
        .map(|(_, line)| line)
        .collect()
}

/// What fits in so many lines. Frames that tell little go first; the numbers show where some are missing.
pub fn some_lines(row: &Row, columns: usize, room: usize, theme: Theme) -> Vec<Line<'static>> {
    let all = numbered(row, columns, theme);
    if all.len() <= room {
        return all.into_iter().map(|(_, line)| line).collect();
    }
    let Some(most) = room.checked_sub(1) else {
        return Vec::new();
    };
    let total = all.len();
    let telling = all.iter().filter(|(telling, _)| *telling).count();
    let mut spare = most.saturating_sub(telling);
    let mut lines: Vec<Line<'static>> = Vec::new();
    for (telling, line) in all {
        if lines.len() == most {
            break;
        }
        if telling || spare > 0 {
            spare = spare.saturating_sub(usize::from(!telling));
            lines.push(line);
        }
    }
    let note = format!("    … {} more (Enter shows all)", total - lines.len());
    lines.push(Line::styled(cut_end(&note, columns).into_owned(), theme.dim()));
    lines
}

/// Each line with whether it tells something.
fn numbered(row: &Row, columns: usize, theme: Theme) -> Vec<(bool, Line<'static>)> {
    if row.frames.is_empty() {
        return vec![(true, Line::styled("no stack is known for this row", theme.dim()))];
    }
    let telling = interesting(&row.frames);
    let is_telling = |frame: &Frame| telling.iter().any(|told| std::ptr::eq(*told, frame));
    let entries: Vec<Entry> = row
        .frames
        .iter()
        .map(|frame| entry(frame, is_telling(frame), theme))
        .collect();
    let number = entries.len().to_string().len().max(2);
    let room = columns.saturating_sub(number + GAP);
    let longest = |cells: &dyn Fn(&Entry) -> usize| entries.iter().map(cells).max().unwrap_or(0);
    let wanted = longest(&|entry| width(&entry.name) + width(entry.mark));
    let beside = longest(&Entry::place_width);
    let name = wanted.min(room.saturating_sub(beside + GAP).max(room * 11 / 20));
    let place = room.saturating_sub(name + GAP);

    let line = |(at, entry): (usize, Entry)| {
        let mut spans = vec![Span::styled(
            format!("{}{:GAP$}", right(&at.to_string(), number), ""),
            theme.dim(),
        )];
        let telling = entry.telling;
        spans.extend(entry.spans(name, place, theme));
        (telling, Line::from(spans))
    };
    let mut lines: Vec<(bool, Line<'static>)> = entries.into_iter().enumerate().map(line).collect();
    if row.truncated {
        let note = cut_end("    the stack was cut here: deeper frames are not known", columns);
        lines.push((true, Line::styled(note.into_owned(), theme.warn())));
    }
    lines
}

fn entry(frame: &Frame, telling: bool, theme: Theme) -> Entry {
    let mark = match frame {
        Frame {
            kind: FrameKind::Kernel,
            ..
        } => " (kernel)",
        Frame { inlined: true, .. } => " (inlined)",
        _ => "",
    };
    let style = match frame.kind {
        _ if !telling => theme.dim(),
        FrameKind::Python => theme.python(),
        _ => Style::new(),
    };
    let module = frame
        .module
        .as_deref()
        .filter(|_| frame.kind != FrameKind::Python);
    let module = module.map(|module| format!("[{}]", clean(base_name(module))));
    Entry {
        name: long(frame),
        mark,
        place: place(frame, false),
        module,
        style,
        telling,
    }
}

impl Entry {
    fn place_width(&self) -> usize {
        let [place, module] = [&self.place, &self.module].map(|text| text.as_deref().map(width));
        place.unwrap_or(0) + module.unwrap_or(0) + usize::from(place.is_some() && module.is_some())
    }

    fn spans(self, name_cells: usize, place_cells: usize, theme: Theme) -> Vec<Span<'static>> {
        let shown = cut_middle(&self.name, name_cells.saturating_sub(width(self.mark))).into_owned();
        let pad = name_cells.saturating_sub(width(&shown) + width(self.mark)) + GAP;
        let mut spans = vec![
            Span::styled(shown, self.style),
            Span::styled(self.mark, theme.dim()),
            Span::raw(" ".repeat(pad)),
        ];
        let mut left = place_cells;
        if let Some(place) = &self.place {
            let path = if self.telling { theme.path() } else { theme.dim() };
            let module = self.module.as_deref().map_or(0, |module| width(module) + 1);
            let most = if left >= LEAST_BOTH {
                left.saturating_sub(module).max(left * 2 / 3)
            } else {
                left
            };
            let place = cut_middle(place, most).into_owned();
            left = left.saturating_sub(width(&place) + 1);
            spans.push(Span::styled(place, path));
            spans.push(Span::raw(" "));
        }
        if let Some(module) = self.module
            && (left >= 8 || self.place.is_none())
        {
            spans.push(Span::styled(cut_middle(&module, left).into_owned(), theme.dim()));
        }
        spans
    }
}
