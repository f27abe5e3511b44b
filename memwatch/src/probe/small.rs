//! Probes for CPython's small blocks where its allocator was put into its callers: at each place that asks whether the
//! allocator is pymalloc, and on pymalloc's own functions, for those who still call them.

use memwatch_common::cookie::{self, FLAG_IF_EQUAL};
use memwatch_common::size_at::{Place, SizeAt, SizeWord};
use memwatch_common::{Domain, Function};

use super::placer::{self, Code, Cost, Placement};
use super::plan::{Abilities, Point};
use super::symbols::ModuleSymbols;
use crate::model::report::InlinedNote;
use crate::python::allocator::PythonDomain;
use crate::python::interpreter::PythonFile;

/// The name of all of these places.
pub const INLINED: &str = "pymalloc (inlined)";

/// `f(context, size)`
const SECOND_ARGUMENT: SizeAt = SizeAt::In(Place::Register(6));

/// `f(context, count, size)`
const PRODUCT: SizeAt = SizeAt::Product(Place::Register(6), Place::Register(2));

/// The points, and how many of the places they cover.
pub(super) fn points(
    symbols: &ModuleSymbols,
    bytes: &[u8],
    file: &PythonFile,
    abilities: Abilities,
) -> (Vec<Point>, InlinedNote) {
    let allocator = &file.allocator;
    let found = &allocator.sites;
    let mut points: Vec<Point> = found
        .sites
        .iter()
        .filter_map(|site| {
            let (domain, size) = site.counted()?;
            let size = size.word()?;
            let placement = Placement {
                offset_from_entry: 0,
                instruction: "jne".to_owned(),
                cost: Cost::Emulated,
                fallback: None,
            };
            let offset = symbols.code_offset(site.address)?;
            let domain = match domain {
                PythonDomain::Raw => Domain::PythonRaw,
                PythonDomain::Mem => Domain::PythonMem,
                PythonDomain::Object => Domain::PythonObject,
            };
            let point = point(INLINED, site.address, offset, size, placement);
            Some(Point {
                domain,
                flags: point.flags | FLAG_IF_EQUAL,
                ..point
            })
        })
        .collect();
    let note = InlinedNote {
        module: String::new(),
        found: (found.sites.len() + found.unresolved) as u64,
        probed: points.len() as u64,
    };
    let functions = [
        ("_PyObject_Malloc", allocator.pymalloc, SECOND_ARGUMENT),
        ("_PyObject_Calloc", allocator.pymalloc_calloc, PRODUCT),
    ];
    points.extend(functions.into_iter().filter_map(|(name, address, size)| {
        let address = address?;
        let code = Code {
            bytes: symbols.code(bytes, address)?,
            entry: address,
            size: None,
            limit: None,
        };
        let placement =
            placer::place(symbols.machine, &code, Function::PythonSmall, abilities.emulation).ok()?;
        let offset = symbols.code_offset(address)? + u64::from(placement.offset_from_entry);
        Some(point(name, address, offset, size.word()?, placement))
    }));
    (points, note)
}

/// Who called pymalloc's function is not known: most often it is for an object.
fn point(symbol: &'static str, address: u64, offset: u64, size: SizeWord, placement: Placement) -> Point {
    let (flags, id) = cookie::flags_and_id(size);
    Point {
        offset,
        address,
        symbol,
        aliases: Vec::new(),
        function: Function::PythonSmall,
        domain: Domain::PythonObject,
        flags,
        id,
        needs_return: false,
        required: false,
        placement,
    }
}
