//! What the file that holds a CPython tells: symbols, code, first contents of its data. Pure: bytes in, facts out.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use super::decode_x86;
use object::elf::{PF_X, R_X86_64_RELATIVE};
use object::read::elf::ElfFile64;
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSegment as _, ObjectSymbol as _, RelocationFlags,
    RelocationTarget, SegmentFlags, SymbolKind,
};

/// A symbol that is defined in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    pub address: u64,
    /// 0 if the file does not say.
    pub size: u64,
}

impl Symbol {
    pub const fn range(self) -> Range<u64> {
        self.address..self.address.saturating_add(self.size)
    }
}

/// A part of the file that is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePart {
    pub offset: u64,
    pub bytes: u64,
    pub address: u64,
    pub executable: bool,
}

/// What is added to an address in the file to get that in the process. `start` is where the file's bytes from `offset`
/// on are mapped for execution.
pub fn bias(parts: &[FilePart], start: u64, offset: u64) -> Option<u64> {
    const PAGE: u64 = 4096;
    let part = parts.iter().find(|part| {
        part.executable
            && (part.offset / PAGE * PAGE..part.offset.saturating_add(part.bytes)).contains(&offset)
    })?;
    let linked = part.address.wrapping_sub(part.offset).wrapping_add(offset);
    Some(start.wrapping_sub(linked))
}

/// Code with unwind information of its own.
struct Piece {
    range: Range<u64>,
    /// It begins as a function does, with nothing but the return address on the stack.
    is_entry: bool,
}

/// An ELF file, with the lookups that the rest of this module needs. All addresses are as linked.
pub struct ElfBytes<'a> {
    file: ElfFile64<'a, Endianness>,
    symbols: BTreeMap<&'a str, Symbol>,
    /// Kinds of thread-local symbols differ: their value is an offset.
    thread_local: BTreeMap<&'a str, u64>,
    /// What the dynamic linker adds its base to, by place.
    relative: BTreeMap<u64, u64>,
    /// Functions of other files (or perhaps of other files), by the places that hold their addresses.
    imports: BTreeMap<u64, &'a str>,
    /// What each piece of unwind information covers.
    pieces: Vec<Piece>,
}

impl<'a> ElfBytes<'a> {
    /// `None` for what is no 64-bit little-endian ELF file, and for a file that no CPython is in.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let file = ElfFile64::<Endianness>::parse(bytes).ok()?;
        let mut symbols = BTreeMap::new();
        let mut thread_local = BTreeMap::new();
        for symbol in file.dynamic_symbols().chain(file.symbols()) {
            let Ok(name) = symbol.name() else { continue };
            if symbol.is_undefined() || !matters(name) {
                continue;
            }
            // Versions are part of no name here, clones of a function have names of their own.
            let found = Symbol {
                address: symbol.address(),
                size: symbol.size(),
            };
            if symbol.kind() == SymbolKind::Tls {
                thread_local.insert(name, found.address);
            } else {
                symbols.entry(name).or_insert(found);
            }
        }
        let holds = symbols.contains_key("_PyRuntime") || file.section_by_name(".PyRuntime").is_some();
        if !holds {
            return None;
        }
        let mut elf = Self {
            file,
            symbols,
            thread_local,
            relative: BTreeMap::new(),
            imports: BTreeMap::new(),
            pieces: Vec::new(),
        };
        elf.read_relocations();
        elf.read_pieces();
        Some(elf)
    }

    pub fn symbol(&self, name: &str) -> Option<Symbol> {
        self.symbols.get(name).copied()
    }

    pub fn thread_local(&self, name: &str) -> Option<u64> {
        self.thread_local.get(name).copied()
    }

    /// Symbols whose names begin so, in the order of their names.
    pub fn symbols_from<'s>(&'s self, begin: &'s str) -> impl Iterator<Item = (&'a str, Symbol)> + 's {
        self.symbols
            .range::<str, _>((Bound::Included(begin), Bound::Unbounded))
            .take_while(move |(name, _)| name.starts_with(begin))
            .map(|(name, symbol)| (*name, *symbol))
    }

    /// `_PyRuntime`. Its section is there even where there are no symbols.
    pub fn runtime(&self) -> Option<u64> {
        self.symbol("_PyRuntime")
            .map(|symbol| symbol.address)
            .or_else(|| Some(self.file.section_by_name(".PyRuntime")?.address()))
    }

    /// The bytes that the file has for an address, to the end of their segment.
    pub fn bytes_at(&self, address: u64) -> Option<&'a [u8]> {
        self.file.segments().find_map(|segment| {
            let inside = usize::try_from(address.checked_sub(segment.address())?).ok()?;
            let data = segment.data().ok()?;
            data.get(inside..).filter(|rest| !rest.is_empty())
        })
    }

    /// The bytes of a function (of the piece of code that begins there).
    pub fn code(&self, symbol: Symbol) -> Option<&'a [u8]> {
        let size = if symbol.size > 0 {
            symbol.size
        } else {
            let piece = self.piece_of(symbol.address)?;
            piece.end - symbol.address
        };
        let rest = self.bytes_at(symbol.address)?;
        Some(&rest[..usize::try_from(size).ok()?.min(rest.len())])
    }

    /// The pointer that is at an address when the program starts, as linked.
    pub fn pointer_at(&self, address: u64) -> Option<u64> {
        if let Some(&value) = self.relative.get(&address) {
            return Some(value);
        }
        let bytes = self.bytes_at(address)?.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*bytes)).filter(|&value| value != 0)
    }

    /// The function that code at an address goes on to by a pointer of the dynamic linker, if that is all it does.
    pub fn behind_stub(&self, address: u64) -> Option<&'a str> {
        let pointer = decode_x86::jumps_through(address, self.bytes_at(address)?)?;
        self.import(pointer)
    }

    /// The function whose address the dynamic linker puts at this place.
    pub fn import(&self, pointer: u64) -> Option<&'a str> {
        self.imports.get(&pointer).copied()
    }

    /// The piece of code with unwind information of its own that holds an address: a function, or its cold part.
    pub fn piece_of(&self, address: u64) -> Option<Range<u64>> {
        self.piece(address).map(|piece| piece.range.clone())
    }

    /// The same if it is no function, but a part of one that lies elsewhere.
    pub fn part_of_function(&self, address: u64) -> Option<Range<u64>> {
        self.piece(address)
            .filter(|piece| !piece.is_entry)
            .map(|piece| piece.range.clone())
    }

    fn piece(&self, address: u64) -> Option<&Piece> {
        let after = self.pieces.partition_point(|piece| piece.range.start <= address);
        let piece = self.pieces.get(after.checked_sub(1)?)?;
        piece.range.contains(&address).then_some(piece)
    }

    /// Pieces of code whose bytes name an address other than to go there: address and bytes. What only looks so can be
    /// among them.
    pub fn pieces_with_reference(&self, target: u64) -> Vec<(u64, &'a [u8])> {
        let places = self
            .code_sections()
            .flat_map(|(address, bytes, _)| decode_x86::references(address, bytes, target));
        let mut pieces: Vec<_> = places.filter_map(|place| self.piece_of(place)).collect();
        pieces.sort_by_key(|piece| piece.start);
        pieces.dedup();
        let code = pieces.into_iter().filter_map(|piece| {
            let size = usize::try_from(piece.end - piece.start).ok()?;
            Some((piece.start, self.bytes_at(piece.start)?.get(..size)?))
        });
        code.collect()
    }

    /// Sections of code: address and bytes.
    pub fn code_sections(&self) -> impl Iterator<Item = (u64, &'a [u8], &str)> {
        self.file.sections().filter_map(|section| {
            let code = section.kind() == object::SectionKind::Text;
            code.then(|| Some((section.address(), section.data().ok()?, section.name().ok()?)))?
        })
    }

    pub fn soname(&self) -> Option<String> {
        let table = self.file.elf_dynamic_table().ok()?;
        table.iter().find_map(|entry| {
            let name = (entry.tag == object::elf::DT_SONAME).then(|| table.string(entry).ok())??;
            Some(String::from_utf8_lossy(name).into_owned())
        })
    }

    /// The loaded parts, code first: other parts can lie in the same page of the file.
    pub fn segments(&self) -> Vec<FilePart> {
        let mut parts: Vec<_> = self
            .file
            .segments()
            .map(|segment| {
                let (offset, bytes) = segment.file_range();
                let flags = segment.flags();
                FilePart {
                    offset,
                    bytes,
                    address: segment.address(),
                    executable: matches!(flags, SegmentFlags::Elf { p_flags, .. } if p_flags.contains(PF_X)),
                }
            })
            .collect();
        parts.sort_by_key(|part| !part.executable);
        parts
    }

    fn read_relocations(&mut self) {
        const RELATIVE: RelocationFlags = RelocationFlags::Elf {
            r_type: R_X86_64_RELATIVE,
        };
        let Some(relocations) = self.file.dynamic_relocations() else {
            return;
        };
        let dynamic = self.file.elf_dynamic_symbol_table();
        for (place, relocation) in relocations {
            let addend = relocation.addend() as u64;
            match relocation.target() {
                _ if relocation.flags() == RELATIVE => {
                    self.relative.insert(place, addend);
                }
                // Pointers to exported functions and data.
                RelocationTarget::Symbol(index) => {
                    let name = dynamic
                        .symbol(index)
                        .and_then(|symbol| dynamic.symbol_name(self.file.endian(), symbol));
                    let Some(name) = name.ok().and_then(|name| std::str::from_utf8(name).ok()) else {
                        continue;
                    };
                    self.imports.insert(place, name);
                    if let Some(symbol) = self.symbols.get(name) {
                        self.relative.insert(place, symbol.address.wrapping_add(addend));
                    }
                }
                _ => {}
            }
        }
    }

    fn read_pieces(&mut self) {
        use gimli::UnwindSection as _;
        let Some(section) = self.file.section_by_name(".eh_frame") else {
            return;
        };
        let Ok(data) = section.data() else { return };
        let bases = gimli::BaseAddresses::default().set_eh_frame(section.address());
        let frames = gimli::EhFrame::new(data, gimli::LittleEndian);
        let mut entries = frames.entries(&bases);
        let mut context = gimli::UnwindContext::new();
        while let Ok(Some(entry)) = entries.next() {
            let gimli::CieOrFde::Fde(partial) = entry else {
                continue;
            };
            let Ok(fde) = partial.parse(gimli::EhFrame::cie_from_offset) else {
                continue;
            };
            let start = fde.initial_address();
            let is_entry = fde
                .rows(&frames, &bases, &mut context)
                .ok()
                .and_then(|mut rows| rows.next_row().ok().flatten().map(|row| row.cfa() == &AT_ENTRY))
                .unwrap_or(true);
            self.pieces.push(Piece {
                range: start..start.saturating_add(fde.len()),
                is_entry,
            });
        }
        self.pieces.sort_by_key(|piece| piece.range.start);
    }
}

/// `rsp + 8`
const AT_ENTRY: gimli::CfaRule<usize> = gimli::CfaRule::RegisterAndOffset {
    register: gimli::X86_64::RSP,
    offset: 8,
};

/// Names that are looked up: CPython's own, and those that compilers and linkers make of them.
fn matters(name: &str) -> bool {
    const OTHERS: [&str; 6] = [
        "arenas",
        "maxarenas",
        "allocate_from_new_pool",
        "new_arena",
        "_mi_segment_page_alloc",
        "mi_page_fresh_alloc",
    ];
    name.starts_with("Py")
        || name.starts_with("_Py")
        || name.starts_with("_TAIL_CALL_")
        || OTHERS.iter().any(|other| name.starts_with(other))
}
