//! Colour for terminals, or nothing at all.

use std::fmt;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    coloured: bool,
}

/// What a piece of text is, not how it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The number or name that a row is about.
    Head,
    /// What can be passed over at a first look.
    Aside,
    Growth,
    Shrinkage,
    Warning,
}

impl Style {
    pub const PLAIN: Self = Self { coloured: false };
    pub const COLOURED: Self = Self { coloured: true };

    pub const fn new(coloured: bool) -> Self {
        Self { coloured }
    }

    pub const fn paint<T>(self, role: Role, content: T) -> Painted<T> {
        Painted {
            style: self,
            role,
            content,
        }
    }

    /// The role of a change.
    pub const fn of_delta(change: i64) -> Role {
        match change {
            i64::MIN..0 => Role::Shrinkage,
            0 => Role::Aside,
            1.. => Role::Growth,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Painted<T> {
    style: Style,
    role: Role,
    content: T,
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.style.coloured {
            return self.content.fmt(f);
        }
        let code = match self.role {
            Role::Head => "1",
            Role::Aside => "2",
            Role::Growth => "31",
            Role::Shrinkage => "32",
            Role::Warning => "33",
        };
        write!(f, "\x1b[{code}m{}\x1b[0m", self.content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_untouched_and_colour_is_closed_again() {
        assert_eq!(Style::default().paint(Role::Head, "x").to_string(), "x");
        assert_eq!(
            Style::COLOURED.paint(Role::Warning, 7).to_string(),
            "\x1b[33m7\x1b[0m"
        );
    }

    #[test]
    fn growth_is_the_bad_direction() {
        assert_eq!(
            [-1, 0, 1].map(Style::of_delta),
            [Role::Shrinkage, Role::Aside, Role::Growth]
        );
    }
}
