//! The few styles of the screen. Only the terminal's own sixteen colours and attributes are used for text, so
//! that light and dark palettes both work, and every meaning is also there without colour, as a sign or a
//! word.

use ratatui::style::{Color, Modifier, Style};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    pub color: bool,
}

#[expect(
    clippy::unused_self,
    reason = "whoever draws asks the theme, with colours or without"
)]
impl Theme {
    fn colored(self, color: Color) -> Style {
        if self.color {
            Style::new().fg(color)
        } else {
            Style::new()
        }
    }

    /// Labels and whatever matters less.
    pub fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub fn accent(self) -> Style {
        self.colored(Color::Cyan)
    }

    pub fn good(self) -> Style {
        self.colored(Color::Green)
    }

    pub fn bad(self) -> Style {
        self.colored(Color::Red).add_modifier(Modifier::BOLD)
    }

    pub fn warn(self) -> Style {
        self.colored(Color::Yellow)
    }

    /// Growth is red, shrinking green, no change recedes.
    pub fn change(self, change: f64) -> Style {
        if change > 0.0 {
            self.colored(Color::Red)
        } else if change < 0.0 {
            self.colored(Color::Green)
        } else {
            self.dim()
        }
    }

    pub fn python(self) -> Style {
        self.colored(Color::Yellow)
    }

    pub fn path(self) -> Style {
        self.colored(Color::Cyan)
    }

    pub fn bar(self) -> Style {
        self.colored(Color::Blue)
    }

    /// The whole selected line, over whatever its cells had. White on deep blue can be read on light and dark
    /// terminals.
    pub fn selected(self) -> Style {
        if self.color {
            Style::new()
                .fg(Color::Indexed(231))
                .bg(Color::Indexed(24))
                .remove_modifier(Modifier::DIM)
        } else {
            Style::new()
                .add_modifier(Modifier::REVERSED)
                .remove_modifier(Modifier::DIM)
        }
    }

    /// For a title in a border, which would else be as dim as the border.
    pub fn on_border(self, style: Style) -> Style {
        style.remove_modifier(Modifier::DIM)
    }

    /// A word in a box: `PAUSED`.
    pub fn badge(self, color: Color) -> Style {
        self.colored(color)
            .add_modifier(Modifier::REVERSED | Modifier::BOLD)
    }
}
