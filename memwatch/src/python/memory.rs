//! Reading the memory of a process.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use crate::target::ProcRoot;

/// Nothing readable lies there (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes of memory at {address:#x} cannot be read")]
pub struct Unreadable {
    pub address: u64,
    pub bytes: usize,
}

/// What a process has at an address. Whatever is read may be half changed: the process runs on.
pub trait Memory {
    fn read_into(&self, address: u64, out: &mut [u8]) -> Result<(), Unreadable>;

    fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>, Unreadable> {
        let mut out = vec![0; bytes];
        self.read_into(address, &mut out)?;
        Ok(out)
    }

    fn u32(&self, address: u64) -> Result<u32, Unreadable> {
        let mut out = [0; 4];
        self.read_into(address, &mut out)?;
        Ok(u32::from_le_bytes(out))
    }

    fn u64(&self, address: u64) -> Result<u64, Unreadable> {
        let mut out = [0; 8];
        self.read_into(address, &mut out)?;
        Ok(u64::from_le_bytes(out))
    }

    /// A pointer in a structure.
    fn pointer(&self, base: u64, offset: u32) -> Result<u64, Unreadable> {
        self.u64(base.wrapping_add(offset.into()))
    }
}

/// A running process, through `/proc/PID/mem`. It stays the process (and the program in it) that it was opened for:
/// after its end or an exec nothing can be read, whoever has the number then.
#[derive(Debug)]
pub struct ProcessMemory {
    file: File,
}

impl ProcessMemory {
    pub fn open(proc: &ProcRoot, pid: u32) -> io::Result<Self> {
        let file = File::open(proc.file(pid, "mem"))?;
        Ok(Self { file })
    }
}

impl Memory for ProcessMemory {
    fn read_into(&self, address: u64, out: &mut [u8]) -> Result<(), Unreadable> {
        let bytes = out.len();
        self.file
            .read_exact_at(out, address)
            .map_err(|_| Unreadable { address, bytes })
    }
}

/// None is the memory of a process that has ended.
impl<M: Memory> Memory for Option<M> {
    fn read_into(&self, address: u64, out: &mut [u8]) -> Result<(), Unreadable> {
        match self {
            Some(memory) => memory.read_into(address, out),
            None => Err(Unreadable {
                address,
                bytes: out.len(),
            }),
        }
    }
}

/// Whether the first word of an object (its reference count) is that of one in use. Allocators put the address of the
/// next free block there, or nothing, before anything else is overwritten. `word` is not so in free-threaded builds.
pub(super) fn is_in_use(word: u64) -> bool {
    const FLAGS: u64 = 0xffff << 48;
    /// Immortal objects have at least this count.
    const IMMORTAL: u32 = 0x4000_0000;
    /// The few strings that are part of the interpreter (names of one letter) begin with this count before 3.12.
    const STATIC: u32 = 999_999_999;
    /// How far such a count moves while a program runs.
    const MOVES: u32 = 1 << 20;
    /// No code object, name or table has so many references; addresses of programs at fixed ones begin near here.
    const MANY: u32 = 1 << 20;
    u32::try_from(word & !FLAGS).is_ok_and(|count| {
        let is_address = (MANY..IMMORTAL).contains(&count) && count.is_multiple_of(16);
        count != 0 && (!is_address || count.abs_diff(STATIC) < MOVES)
    })
}

/// The integer at an offset of bytes that were read before.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..offset.checked_add(8)?)?;
    Some(u64::from_le_bytes(field.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::is_in_use;

    #[test]
    fn reference_counts_are_told_from_addresses_of_free_blocks() {
        // Ordinary, much used, immortal in 3.12, in 3.14, and there in the file.
        for count in [
            1,
            7,
            1_000_001,
            999_999_999,
            1_000_000_000,
            0xffff_ffff,
            0xc000_0000,
            0x0004_0000_c000_0000,
        ] {
            assert!(is_in_use(count), "{count:#x}");
        }
        for address in [0, 0x7f12_3456_7890, 0x5555_5575_62a0, 0x01bd_2340] {
            assert!(!is_in_use(address), "{address:#x}");
        }
    }
}

/// Made-up memory for tests.
#[cfg(test)]
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    pub pieces: Vec<(u64, Vec<u8>)>,
}

#[cfg(test)]
impl Recorded {
    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        for (at, byte) in (address..).zip(bytes) {
            match self
                .pieces
                .iter_mut()
                .find(|(start, piece)| (*start..*start + piece.len() as u64).contains(&at))
            {
                Some((start, piece)) => piece[(at - *start) as usize] = *byte,
                None => match self
                    .pieces
                    .iter_mut()
                    .find(|(start, piece)| start + piece.len() as u64 == at)
                {
                    Some((_, piece)) => piece.push(*byte),
                    None => self.pieces.push((at, vec![*byte])),
                },
            }
        }
    }
}

#[cfg(test)]
impl Memory for Recorded {
    fn read_into(&self, address: u64, out: &mut [u8]) -> Result<(), Unreadable> {
        let bytes = out.len();
        let found = self.pieces.iter().find_map(|(start, piece)| {
            let from = usize::try_from(address.checked_sub(*start)?).ok()?;
            piece.get(from..from.checked_add(bytes)?)
        });
        out.copy_from_slice(found.ok_or(Unreadable { address, bytes })?);
        Ok(())
    }
}
