//! What a file's table is made of, in a few bytes: two files that have it in common have one table.

use std::fmt::{self, Write as _};

use sha2::{Digest as _, Sha256};

use super::elf::{Elf, Section};

/// Linkers make 16 or 20 bytes; what is longer is cut in names.
const BUILD_ID_SHOWN: usize = 20;
const DIGEST_SHOWN: usize = 16;

/// Of everything that the rows depend on: layout and unwind sections. A build id alone would not do: anybody can write
/// libc's build id into a file of his own, and libc would be unwound with that file's table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    pub build_id: Vec<u8>,
    pub digest: [u8; 32],
}

impl Fingerprint {
    pub(super) fn of(elf: &Elf<'_>) -> Self {
        let mut hash = Sha256::new();
        let number = |hash: &mut Sha256, value: u64| hash.update(value.to_le_bytes());
        number(&mut hash, elf.code.len() as u64);
        for (segment, _) in &elf.code {
            for value in [segment.file_offset, segment.address, segment.size] {
                number(&mut hash, value);
            }
        }
        for value in [
            elf.code_bytes,
            elf.entry,
            elf.text.unwrap_or(u64::MAX),
            elf.got.unwrap_or(u64::MAX),
        ] {
            number(&mut hash, value);
        }
        for section in [&elf.eh_frame, &elf.debug_frame] {
            let Some(Section { bytes, address }) = section else {
                number(&mut hash, u64::MAX);
                continue;
            };
            number(&mut hash, bytes.len() as u64);
            number(&mut hash, *address);
            hash.update(bytes);
        }
        Self {
            build_id: elf.build_id.clone(),
            digest: hash.finalize().into(),
        }
    }
}

/// As the name of a file.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.build_id.is_empty() {
            f.write_str("none")?;
        }
        let hex = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| {
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        hex(f, &self.build_id[..self.build_id.len().min(BUILD_ID_SHOWN)])?;
        f.write_char('-')?;
        hex(f, &self.digest[..DIGEST_SHOWN])
    }
}
