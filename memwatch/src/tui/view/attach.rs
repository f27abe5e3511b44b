//! What is shown until the first report: the steps of attaching.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Padding, Paragraph};

use crate::tui::state::State;
use crate::tui::text::{clean, cut_end};

pub fn draw(frame: &mut Frame, area: Rect, state: &State) {
    let theme = state.theme;
    let block = Block::new().padding(Padding::new(2, 1, u16::from(area.height > 4), 0));
    let inner = block.inner(area);
    let (columns, room) = (usize::from(inner.width), usize::from(inner.height));
    let mut lines = Vec::new();
    if state.steps.is_empty() {
        lines.push(Line::styled("attaching…", theme.accent()));
    }
    let done = state.steps.len().saturating_sub(1);
    let hidden = state.steps.len().saturating_sub(room);
    for (at, step) in state.steps.iter().enumerate().skip(hidden) {
        let text = cut_end(&clean(step), columns.saturating_sub(2)).into_owned();
        lines.push(if at < done {
            Line::from_iter([Span::styled("✓ ", theme.good()), Span::styled(text, theme.dim())])
        } else {
            Line::from_iter([
                Span::styled("▸ ", theme.accent()),
                Span::styled(text, theme.strong()),
            ])
        });
    }
    frame.render_widget(Paragraph::new(lines).block(block), area);
}
