//! What an ELF file tells about the allocation functions in it. Pure: bytes in, facts out; no bytes make it panic.

use std::collections::{BTreeMap, HashMap, HashSet};

use object::elf;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, Sym, SymbolTable};
use object::{Endianness, Object, ObjectSection, RelocationTarget};

use super::functions::{self, Family, Known};

/// Symbols so few bytes behind a function's start are taken for other ways into it.
const NEAR: u64 = 256;

/// A file that cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum SymbolError {
    #[error("not an ELF file")]
    NotElf,
    #[error("a {0} program: memwatch watches 64-bit little-endian programs only")]
    Unsupported(&'static str),
    #[error("damaged ELF file: cannot read its {what}")]
    Malformed {
        what: &'static str,
        #[source]
        source: object::read::Error,
    },
}

/// The kind of processor that the code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Machine {
    X86_64,
    Other,
}

/// One piece of code that is known under one or more allocation function names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFunction {
    /// As linked.
    pub address: u64,
    /// Where its code begins in the file.
    pub file_offset: u64,
    pub size: Option<u64>,
    /// The next symbol inside it begins so many bytes after its start.
    pub limit: Option<u64>,
    /// The preferred name first.
    pub names: Vec<&'static Known>,
}

/// A name that was found and cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    pub symbol: &'static str,
    pub reason: &'static str,
}

/// What a slot that the dynamic linker fills will point to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Import {
    Allocator(&'static Known),
    NeverReturns,
}

/// A loaded part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub address: u64,
    pub file_offset: u64,
    /// Bytes that come from the file.
    pub size: u64,
    pub executable: bool,
    pub writable: bool,
}

impl Segment {
    /// Where the byte at `address` lies in the file.
    fn file_offset_of(&self, address: u64) -> Option<u64> {
        let inside = address
            .checked_sub(self.address)
            .filter(|&inside| inside < self.size)?;
        self.file_offset.checked_add(inside)
    }
}

/// Everything that planning needs to know of a file.
#[derive(Clone, Debug)]
pub struct ModuleSymbols {
    pub machine: Machine,
    pub soname: Option<String>,
    pub build_id: Option<Vec<u8>>,
    /// The dynamic linker it asks for: programs have one, libraries and static programs do not.
    pub interpreter: Option<String>,
    /// Libraries it asks for.
    pub needed: Vec<String>,
    /// The C library's own functions in it, if any, are glibc's.
    pub glibc: bool,
    /// It holds code that the Go compiler made.
    pub go: bool,
    /// By address.
    pub functions: Vec<FoundFunction>,
    pub unusable: Vec<Unusable>,
    pub segments: Vec<Segment>,
    /// Slots of the global offset table, by address, as far as they matter.
    pub imports: HashMap<u64, Import>,
    /// Addresses of functions that do not return.
    pub never_returning: HashSet<u64>,
}

impl ModuleSymbols {
    /// Reads the file whose content is `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, SymbolError> {
        check_kind(bytes)?;
        let file = ElfFile64::<Endianness>::parse(bytes).map_err(|source| SymbolError::Malformed {
            what: "headers",
            source,
        })?;
        let mut module = Self {
            machine: match file.elf_header().e_machine(file.endian()) {
                elf::EM_X86_64 => Machine::X86_64,
                _ => Machine::Other,
            },
            soname: None,
            build_id: file.build_id().ok().flatten().map(<[u8]>::to_vec),
            interpreter: interpreter(&file, bytes),
            needed: Vec::new(),
            glibc: false,
            go: file
                .sections()
                .any(|section| section.name_bytes().is_ok_and(is_go_section)),
            functions: Vec::new(),
            unusable: Vec::new(),
            segments: segments(&file),
            imports: HashMap::new(),
            never_returning: HashSet::new(),
        };
        module.read_dynamic(&file);
        let collected = Collected::from(&file);
        module.never_returning.clone_from(&collected.never_returning);
        module.use_symbols(&file, &collected, bytes);
        if !module.functions.is_empty() {
            module.read_imports(&file);
            module.glibc = is_glibc(&file, &module, bytes);
        }
        Ok(module)
    }

    /// No dynamic linker and no libraries.
    pub fn is_static(&self) -> bool {
        self.interpreter.is_none() && self.needed.is_empty() && self.soname.is_none()
    }

    /// Where the code at `address` lies in the file.
    pub fn code_offset(&self, address: u64) -> Option<u64> {
        self.segments
            .iter()
            .filter(|segment| segment.executable)
            .find_map(|s| s.file_offset_of(address))
    }

    /// The code from `address` to the end of its segment. `bytes` is the file.
    pub fn code<'a>(&self, bytes: &'a [u8], address: u64) -> Option<&'a [u8]> {
        let segment = self
            .segments
            .iter()
            .filter(|s| s.executable)
            .find(|s| s.file_offset_of(address).is_some())?;
        let start = usize::try_from(segment.file_offset_of(address)?).ok()?;
        let end = usize::try_from(segment.file_offset.checked_add(segment.size)?).ok()?;
        bytes.get(start..end.min(bytes.len()))
    }

    fn read_dynamic(&mut self, file: &ElfFile64<'_, Endianness>) {
        let Ok(table) = file.elf_dynamic_table() else {
            return;
        };
        for entry in &table {
            let text = || {
                table
                    .string(entry)
                    .ok()
                    .map(|name| String::from_utf8_lossy(name).into_owned())
            };
            match entry.tag {
                elf::DT_NEEDED => self.needed.extend(text()),
                elf::DT_SONAME => self.soname = text(),
                _ => {}
            }
        }
    }

    fn use_symbols(&mut self, file: &ElfFile64<'_, Endianness>, collected: &Collected, bytes: &[u8]) {
        // Private functions of a library are private to it, and common words: only a whole allocator counts.
        let whole = ["malloc", "free"]
            .iter()
            .all(|name| collected.found.iter().any(|found| found.known.name == *name));
        let mut by_address: BTreeMap<u64, FoundFunction> = BTreeMap::new();
        for found in &collected.found {
            let known = found.known;
            if found.local && !known.has_prefix() && !whole {
                self.unusable.push(Unusable {
                    symbol: known.name,
                    reason: "a private function of that name",
                });
                continue;
            }
            if found.indirect {
                self.unusable.push(Unusable {
                    symbol: known.name,
                    reason: "an indirect function: which code it stands for is decided when the program starts",
                });
                continue;
            }
            let Some(file_offset) = self
                .code_offset(found.address)
                .filter(|&offset| offset < bytes.len() as u64)
            else {
                self.unusable.push(Unusable {
                    symbol: known.name,
                    reason: "its code is not in the file",
                });
                continue;
            };
            let function = by_address.entry(found.address).or_insert_with(|| FoundFunction {
                address: found.address,
                file_offset,
                size: None,
                limit: None,
                names: Vec::new(),
            });
            function.size = function.size.max((found.size > 0).then_some(found.size));
            if !function.names.contains(&known) {
                function.names.push(known);
            }
        }
        for function in by_address.values_mut() {
            function.names.sort_by_key(|known| known.id);
        }
        limit(file, &mut by_address);
        self.functions = by_address.into_values().collect();
    }

    /// Which allocation functions of other modules this one calls, and through which slots.
    fn read_imports(&mut self, file: &ElfFile64<'_, Endianness>) {
        let Some(relocations) = file.dynamic_relocations() else {
            return;
        };
        let (symbols, endian) = (file.elf_dynamic_symbol_table(), file.endian());
        for (slot, relocation) in relocations {
            let RelocationTarget::Symbol(index) = relocation.target() else {
                continue;
            };
            let Ok(name) = symbols
                .symbol(index)
                .and_then(|symbol| symbols.symbol_name(endian, symbol))
            else {
                continue;
            };
            if let Some(known) = functions::lookup(name) {
                self.imports.insert(slot, Import::Allocator(known));
            } else if functions::never_returns(name) {
                self.imports.insert(slot, Import::NeverReturns);
            }
        }
    }
}

fn check_kind(bytes: &[u8]) -> Result<(), SymbolError> {
    if !bytes.starts_with(&elf::ELFMAG) {
        return Err(SymbolError::NotElf);
    }
    match bytes.get(4..6) {
        Some([2, 1]) => Ok(()),
        Some([1, _]) => Err(SymbolError::Unsupported("32-bit")),
        Some([2, 2]) => Err(SymbolError::Unsupported("big-endian")),
        _ => Err(SymbolError::NotElf),
    }
}

fn interpreter(file: &ElfFile64<'_, Endianness>, bytes: &[u8]) -> Option<String> {
    let endian = file.endian();
    file.elf_program_headers()
        .iter()
        .find_map(|header| header.interpreter(endian, bytes).ok().flatten())
        .map(|path| String::from_utf8_lossy(path).into_owned())
}

fn segments(file: &ElfFile64<'_, Endianness>) -> Vec<Segment> {
    let endian = file.endian();
    file.elf_program_headers()
        .iter()
        .filter(|header| header.p_type(endian) == elf::PT_LOAD)
        .map(|header| Segment {
            address: header.p_vaddr(endian),
            file_offset: header.p_offset(endian),
            size: header.p_filesz(endian),
            executable: header.p_flags(endian).contains(elf::PF_X),
            writable: header.p_flags(endian).contains(elf::PF_W),
        })
        .collect()
}

fn is_go_section(name: &[u8]) -> bool {
    const GO: [&[u8]; 4] = [
        b".note.go.buildid",
        b".gopclntab",
        b".data.rel.ro.gopclntab",
        b".go.buildinfo",
    ];
    GO.contains(&name)
}

/// Symbols whose names are known, as they stand in the tables.
#[derive(Default)]
struct Collected {
    found: Vec<FoundSymbol>,
    never_returning: HashSet<u64>,
}

struct FoundSymbol {
    known: &'static Known,
    address: u64,
    size: u64,
    local: bool,
    indirect: bool,
}

type Table<'data> = SymbolTable<'data, elf::FileHeader64<Endianness>>;

impl Collected {
    fn from(file: &ElfFile64<'_, Endianness>) -> Self {
        let mut collected = Self::default();
        collected.add(file.elf_dynamic_symbol_table(), file.endian());
        collected.add(file.elf_symbol_table(), file.endian());
        collected
    }

    fn add(&mut self, table: &Table<'_>, endian: Endianness) {
        for symbol in table.iter() {
            let indirect = symbol.st_type() == elf::STT_GNU_IFUNC;
            if !indirect && symbol.st_type() != elf::STT_FUNC
                || symbol.is_undefined(endian)
                || symbol.st_value(endian) == 0
            {
                continue;
            }
            let Ok(name) = table.symbol_name(endian, symbol) else {
                continue;
            };
            let address = symbol.st_value(endian);
            if let Some(known) = functions::lookup(name) {
                let (size, local) = (symbol.st_size(endian), symbol.st_bind() == elf::STB_LOCAL);
                self.found.push(FoundSymbol {
                    known,
                    address,
                    size,
                    local,
                    indirect,
                });
            } else if functions::never_returns(name) {
                self.never_returning.insert(address);
            }
        }
    }
}

/// Finds symbols that begin shortly after a function's start.
fn limit(file: &ElfFile64<'_, Endianness>, functions: &mut BTreeMap<u64, FoundFunction>) {
    if functions.is_empty() {
        return;
    }
    let endian = file.endian();
    for table in [file.elf_dynamic_symbol_table(), file.elf_symbol_table()] {
        for symbol in table.iter() {
            let code = matches!(
                symbol.st_type(),
                elf::STT_FUNC | elf::STT_NOTYPE | elf::STT_GNU_IFUNC
            );
            if !code || symbol.is_undefined(endian) {
                continue;
            }
            let address = symbol.st_value(endian);
            let Some((&start, function)) = functions.range_mut(..address).next_back() else {
                continue;
            };
            let distance = address - start;
            if distance <= NEAR {
                function.limit = Some(function.limit.map_or(distance, |limit| limit.min(distance)));
            }
        }
    }
}

/// Whether `malloc` here is glibc's, whose blocks have headers that tell their size.
fn is_glibc(file: &ElfFile64<'_, Endianness>, module: &ModuleSymbols, bytes: &[u8]) -> bool {
    // A message of glibc's malloc, in all its versions.
    const MESSAGE: &[u8] = b"munmap_chunk(): invalid pointer\0";
    if !module
        .functions
        .iter()
        .any(|function| function.names.iter().any(|k| k.family == Family::Libc))
    {
        return false;
    }
    match module.soname.as_deref() {
        Some(name) => name == "libc.so.6" && defines_glibc_versions(file),
        None if module.is_static() => module.segments.iter().any(|segment| {
            let part = usize::try_from(segment.file_offset)
                .ok()
                .zip(usize::try_from(segment.size).ok())
                .and_then(|(start, size)| bytes.get(start..start.checked_add(size)?.min(bytes.len())));
            !segment.writable
                && part.is_some_and(|part| part.windows(MESSAGE.len()).any(|window| window == MESSAGE))
        }),
        None => false,
    }
}

fn defines_glibc_versions(file: &ElfFile64<'_, Endianness>) -> bool {
    let (endian, data) = (file.endian(), file.data());
    let sections = file.elf_section_table();
    let Ok(Some((mut definitions, strings))) = sections.gnu_verdef(endian, data).map(|found| {
        found.and_then(|(iterator, link)| {
            sections
                .strings(endian, data, link)
                .ok()
                .map(|strings| (iterator, strings))
        })
    }) else {
        return false;
    };
    while let Ok(Some((_, mut names))) = definitions.next() {
        while let Ok(Some(name)) = names.next() {
            if name
                .name(endian, strings)
                .is_ok_and(|name| name.starts_with(b"GLIBC_2."))
            {
                return true;
            }
        }
    }
    false
}
