//! Function symbols of an ELF file, for the vDSO and for files whose debug information cannot be used.

use object::read::{File, Object as _, ObjectSymbol as _, ReadRef, SymbolKind};

use super::demangle::demangle;

#[derive(Clone, Debug, Default)]
pub struct SymbolTable {
    /// First address, size and name, by address.
    symbols: Vec<(u64, u64, String)>,
}

impl SymbolTable {
    pub fn read<'data, R: ReadRef<'data>>(data: R) -> Option<Self> {
        let file = File::parse(data).ok()?;
        let functions = file
            .symbols()
            .chain(file.dynamic_symbols())
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition());
        let mut symbols: Vec<(u64, u64, String)> = functions
            .filter_map(|symbol| Some((symbol.address(), symbol.size(), symbol.name().ok()?.to_owned())))
            .filter(|(_, _, name)| !name.is_empty())
            .collect();
        symbols.sort_unstable();
        Some(Self { symbols })
    }

    /// The function at `address` and where it starts.
    pub fn find(&self, address: u64) -> Option<(String, u64)> {
        let until = self.symbols.partition_point(|(start, _, _)| *start <= address);
        let (start, size, name) = self.symbols[..until].last()?;
        // Hand-written assembly often has no size: it reaches to the next symbol.
        (*size == 0 || address - start < *size).then(|| (demangle(name), *start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_reach_as_far_as_their_size() {
        let symbol = |start, size, name: &str| (start, size, name.to_owned());
        let table = SymbolTable {
            symbols: vec![symbol(16, 8, "_ZN1a1bEv"), symbol(32, 0, "start")],
        };
        assert_eq!(table.find(15), None);
        assert_eq!(table.find(23), Some(("a::b".into(), 16)));
        assert_eq!(table.find(24), None);
        assert_eq!(table.find(99), Some(("start".into(), 32)));
    }

    #[test]
    fn this_very_program_has_symbols() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let table = SymbolTable::read(&bytes[..]).unwrap();
        let (start, _, _) = table
            .symbols
            .iter()
            .find(|(_, size, name)| *size > 8 && name == "main")
            .unwrap();
        assert_eq!(table.find(start + 4), Some(("main".into(), *start)));
    }
}
