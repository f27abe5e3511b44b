//! Python strings: names and file names in code objects.

use super::memory::{Memory, Unreadable, u32_at, u64_at};
use super::offsets::Offsets;

/// Longer names are cut; no file system knows longer paths.
const MOST: u64 = 4096;

/// Bytes that hold the head of a string in every version.
const HEAD: usize = 80;

/// Why a string could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("no Python string is at {0:#x}")]
    NoText(u64),
}

/// Reads the `str` object at `address`.
pub fn read(offsets: &Offsets, address: u64, memory: &impl Memory) -> Result<String, TextError> {
    // Short strings can lie at the end of what is mapped.
    let head = memory
        .read(address, HEAD)
        .or_else(|_| memory.read(address, HEAD / 2))?;
    let shape = Shape::of(offsets, &head).ok_or(TextError::NoText(address))?;
    let bytes = memory.read(address.wrapping_add(shape.data), shape.characters * shape.width)?;
    Ok(decode(&bytes, shape.width))
}

struct Shape {
    data: u64,
    characters: usize,
    width: usize,
}

impl Shape {
    fn of(offsets: &Offsets, head: &[u8]) -> Option<Self> {
        let length = u64_at(head, offsets.text_length? as usize)?;
        let at = offsets.text_state? as usize;
        let bits = Bits::of(u32_at(head, at)?.checked_shr(offsets.text_kind_bit?)?)?;
        let data = if bits.ascii {
            offsets.text_ascii_data?
        } else {
            offsets.text_other_data?
        };
        // No name is so long: what was read is something else.
        if length > 1 << 40 {
            return None;
        }
        Some(Self {
            data: data.into(),
            characters: length.min(MOST) as usize,
            width: bits.width,
        })
    }
}

struct Bits {
    width: usize,
    ascii: bool,
}

impl Bits {
    /// `kind` is 1, 2 or 4, strings in code objects are compact, and what is ASCII has one byte a character.
    fn of(bits: u32) -> Option<Self> {
        let (kind, compact, ascii) = (bits & 7, bits >> 3 & 1 == 1, bits >> 4 & 1 == 1);
        let sound = matches!(kind, 1 | 2 | 4) && compact && (!ascii || kind == 1);
        sound.then_some(Self {
            width: kind as usize,
            ascii,
        })
    }
}

fn decode(bytes: &[u8], width: usize) -> String {
    const BAD: char = char::REPLACEMENT_CHARACTER;
    match width {
        1 => bytes.iter().map(|&byte| char::from(byte)).collect(),
        2 => bytes
            .chunks_exact(2)
            .map(|unit| char::from_u32(u16::from_le_bytes([unit[0], unit[1]]).into()).unwrap_or(BAD))
            .collect(),
        _ => bytes
            .chunks_exact(4)
            .map(|unit| {
                char::from_u32(u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])).unwrap_or(BAD)
            })
            .collect(),
    }
}
