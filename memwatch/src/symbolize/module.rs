//! One mapped file: where its segments go, and the names in it.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use blazesym::helper::ElfResolver;
use blazesym::symbolize::{CodeInfo, FindSymOpts, ResolvedSym, Symbolize as _};
use object::read::ReadCache;

use super::demangle::demangle;
use super::elf::Layout;
use super::open;
use super::symbol_table::SymbolTable;
use crate::model::report::Frame;

/// Where blazesym looks for the target of a debug link, besides the folder of the file itself.
const DEBUG_FOLDERS: [&str; 2] = ["/usr/lib/debug", "/lib/debug"];

/// What can name addresses of a file, best first.
#[derive(Debug, Default)]
struct Sources {
    /// Debug information in a file of its own, found by build id.
    separate: Option<ElfResolver>,
    /// The file itself and what its debug link leads to.
    own: Option<ElfResolver>,
    /// Symbols only, where debug information cannot be used.
    symbols: Option<SymbolTable>,
}

#[derive(Debug)]
pub struct Module {
    path: Arc<str>,
    /// Open until the names are loaded. Then they hold the file's pages; either way its inode number cannot be
    /// given to another file.
    file: Option<File>,
    /// The process in whose file system debug information may lie.
    pid: Option<u32>,
    layout: Option<Layout>,
    sources: Option<Sources>,
}

impl Module {
    pub fn new(path: Arc<str>, file: Option<File>, pid: Option<u32>) -> Self {
        let layout = file.as_ref().and_then(|file| Layout::read(&ReadCache::new(file)));
        Self {
            path,
            file,
            pid,
            layout,
            sources: None,
        }
    }

    pub fn is_elf(&self) -> bool {
        self.layout.is_some()
    }

    pub fn has_open_file(&self) -> bool {
        self.file.is_some()
    }

    /// The virtual address in the file; for what is no ELF file its offset.
    pub fn address_of(&self, file_offset: u64) -> u64 {
        self.layout
            .as_ref()
            .and_then(|layout| layout.address_of(file_offset))
            .unwrap_or(file_offset)
    }

    /// The frame of a place that has no name, or none yet.
    pub fn unnamed(&self, address: u64) -> Frame {
        Frame {
            module: Some(self.path.to_string()),
            build_id: self.layout.as_ref().and_then(|layout| layout.build_id.clone()),
            address: Some(address),
            ..Frame::default()
        }
    }

    /// All functions at `address - back`, innermost first. `back` is 1 for a return address: the call stands
    /// before it, and what follows may be another line or function.
    pub fn frames(&mut self, address: u64, back: u64) -> Vec<Frame> {
        let unnamed = self.unnamed(address);
        let lookup = address.wrapping_sub(back);
        let sources = self.sources();
        let resolvers = [&sources.separate, &sources.own];
        for resolver in resolvers.into_iter().flatten() {
            if let Ok(Ok(symbol)) = resolver.find_sym(lookup, &FindSymOpts::CodeInfoAndInlined) {
                return expand(&symbol, &unnamed);
            }
        }
        let Some((function, start)) = sources.symbols.as_ref().and_then(|symbols| symbols.find(lookup))
        else {
            return vec![unnamed];
        };
        vec![Frame {
            function: Some(function),
            offset: Some(address - start),
            ..unnamed
        }]
    }

    fn sources(&mut self) -> &Sources {
        let Self {
            file,
            pid,
            layout,
            sources,
            ..
        } = self;
        sources.get_or_insert_with(|| {
            // Not held any longer: what it gives is in memory, or it gives nothing.
            let file = file.take().filter(|_| layout.is_some());
            let build_id = layout.as_ref().and_then(|layout| layout.build_id.as_deref());
            file.map(|file| load(&file, *pid, build_id)).unwrap_or_default()
        })
    }
}

fn load(file: &File, pid: Option<u32>, build_id: Option<&str>) -> Sources {
    let none: [&Path; 0] = [];
    let separate = build_id
        .and_then(|build_id| open::debug_file(pid, build_id))
        .and_then(|path| ElfResolver::open_with_debug_dirs(path, none).ok());
    let path = open::path_of(file);
    let own = match &separate {
        Some(_) => ElfResolver::open_with_debug_dirs(path, none).ok(),
        None => ElfResolver::open_with_debug_dirs(path, DEBUG_FOLDERS).ok(),
    };
    // A debug link that leads to another version's file is an error; the file's own symbols are still good.
    let symbols = if own.is_none() {
        SymbolTable::read(&ReadCache::new(file))
    } else {
        None
    };
    Sources {
        separate,
        own,
        symbols,
    }
}

fn expand(symbol: &ResolvedSym<'_>, place: &Frame) -> Vec<Frame> {
    let inlined = symbol.inlined.iter().rev().map(|function| Frame {
        inlined: true,
        ..named(&function.name, function.code_info.as_ref(), place)
    });
    let mut frames: Vec<Frame> = inlined.collect();
    // The cold part of a function can lie before its start.
    let offset = place.address.and_then(|address| address.checked_sub(symbol.addr));
    frames.push(Frame {
        offset,
        ..named(symbol.name, symbol.code_info.as_deref(), place)
    });
    frames
}

fn named(name: &str, code: Option<&CodeInfo<'_>>, place: &Frame) -> Frame {
    Frame {
        function: (!name.is_empty()).then(|| demangle(name)),
        file: code.map(|code| code.to_path().to_string_lossy().into_owned()),
        // Line 0 is the compiler's word for "no line".
        line: code.and_then(|code| code.line).filter(|line| *line > 0),
        ..place.clone()
    }
}

#[cfg(test)]
#[path = "module_tests.rs"]
mod tests;
