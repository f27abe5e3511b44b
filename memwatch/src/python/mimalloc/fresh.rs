//! Which function of mimalloc takes a page into use. It returns the page's head.

use crate::python::file::ElfBytes;

/// Either is called for each such page, and for nothing else.
const NAMES: [&str; 2] = ["_mi_segment_page_alloc", "mi_page_fresh_alloc"];

/// The function, as linked.
pub(in crate::python) fn fresh_page(elf: &ElfBytes<'_>) -> Option<u64> {
    NAMES.iter().find_map(|name| by_name(elf, name))
}

/// Compilers put parts of functions elsewhere, and make variants for some callers.
fn by_name(elf: &ElfBytes<'_>, wanted: &str) -> Option<u64> {
    let mut variants = elf.symbols_from(wanted).filter(|(name, _)| {
        let rest = &name[wanted.len()..];
        !rest.contains("cold") && !rest.contains("part") && (rest.is_empty() || rest.starts_with('.'))
    });
    let (_, function) = variants.next()?;
    // Of several none would be called for all pages.
    variants.next().is_none().then_some(function.address)
}
