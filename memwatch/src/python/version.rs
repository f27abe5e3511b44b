//! Version numbers of CPython.

use std::fmt;

/// As `PY_VERSION_HEX` has it: `0x030b07f0` is 3.11.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub u32);

impl Version {
    /// The micro number of what does not tell it.
    pub const UNKNOWN_MICRO: u8 = 0xff;

    /// A final release of 3.
    pub const fn new(minor: u8, micro: u8) -> Self {
        Self(0x0300_00f0 | (minor as u32) << 16 | (micro as u32) << 8)
    }

    pub const fn major(self) -> u8 {
        (self.0 >> 24) as u8
    }

    pub const fn minor(self) -> u8 {
        (self.0 >> 16) as u8
    }

    pub const fn micro(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// From `3.9.18`, `3.10.0rc2`, `3.12.0b1+`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, rest) = number(text)?;
        let (minor, rest) = number(rest.strip_prefix('.')?)?;
        let (micro, rest) = number(rest.strip_prefix('.')?)?;
        let rest = rest.strip_suffix('+').unwrap_or(rest);
        let (level, serial) = match rest {
            "" => (0xf, ""),
            _ => [("rc", 0xc), ("a", 0xa), ("b", 0xb), ("c", 0xc)]
                .into_iter()
                .find_map(|(name, level)| Some((level, rest.strip_prefix(name)?)))?,
        };
        let serial = if serial.is_empty() {
            0
        } else {
            serial.parse::<u8>().ok()?
        };
        Some(Self(
            u32::from(major) << 24
                | u32::from(minor) << 16
                | u32::from(micro) << 8
                | level << 4
                | u32::from(serial & 0xf),
        ))
    }
}

fn number(text: &str) -> Option<(u8, &str)> {
    let end = text
        .find(|next: char| !next.is_ascii_digit())
        .unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.micro() == Self::UNKNOWN_MICRO {
            return write!(f, "{}.{}", self.major(), self.minor());
        }
        write!(f, "{}.{}.{}", self.major(), self.minor(), self.micro())?;
        let serial = self.0 & 0xf;
        match self.0 >> 4 & 0xf {
            0xa => write!(f, "a{serial}"),
            0xb => write!(f, "b{serial}"),
            0xc => write!(f, "rc{serial}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_written_as_python_does() {
        for text in ["3.8.18", "3.11.0", "3.13.0a1", "3.14.0b4", "3.15.0rc2"] {
            assert_eq!(Version::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Version::parse("3.11.7"), Some(Version(0x030b_07f0)));
        assert_eq!(Version::parse("3.11.7+"), Some(Version(0x030b_07f0)));
        assert_eq!(Version::new(12, 1).to_string(), "3.12.1");
        assert_eq!(Version::new(9, Version::UNKNOWN_MICRO).to_string(), "3.9");
        for text in [
            "",
            "3",
            "3.1",
            "3.x.1",
            "3.11.7d",
            "300.1.1",
            "3.11.7-x",
            "3.11.0rcx",
        ] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }
}
