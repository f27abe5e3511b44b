//! The names under which allocators are known, and what each does with its arguments.

use std::collections::HashMap;
use std::sync::LazyLock;

use memwatch_common::Function::{
    Calloc, Free, Malloc, Memalign, PosixMemalign, Pvalloc, Realloc, Reallocarray,
};
use memwatch_common::{Domain, Function};

/// Whose naming a function follows. Every allocator can export the C library's names too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Libc,
    Jemalloc,
    Tcmalloc,
    Mimalloc,
    /// C++ `operator new` and `operator delete`.
    Operator,
    /// CPython's own, watched only where the user wants each of its blocks.
    Python,
}

/// What it means when a function that is there cannot be probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// The totals would be wrong for most programs.
    Required,
    /// Few programs call it; the view tells that it is missing.
    Optional,
}

use Need::{Optional, Required};

/// One name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub name: &'static str,
    pub function: Function,
    pub family: Family,
    pub need: Need,
    /// Tells this name from all others in a cookie; never 0.
    pub id: u8,
}

impl Known {
    pub const fn is_required(&self) -> bool {
        matches!(self.need, Required)
    }

    /// Whose blocks they are.
    pub fn domain(&self) -> Domain {
        if self.family != Family::Python {
            Domain::Native
        } else if self.name.starts_with("PyObject_") {
            Domain::PythonObject
        } else if self.name.starts_with("PyMem_Raw") {
            Domain::PythonRaw
        } else {
            Domain::PythonMem
        }
    }

    /// The C library's own names are common words: a program can have a private function `free` that is not an
    /// allocator's.
    pub const fn has_prefix(&self) -> bool {
        !matches!(self.family, Family::Libc)
    }
}

type Row = (&'static str, Function, Need);

/// The order matters: of several names of one address the first is shown.
const LIBC: &[Row] = &[
    ("malloc", Malloc, Required),
    ("calloc", Calloc, Required),
    ("realloc", Realloc, Required),
    ("free", Free, Required),
    ("aligned_alloc", Memalign, Required),
    ("memalign", Memalign, Required),
    ("posix_memalign", PosixMemalign, Required),
    ("reallocarray", Reallocarray, Required),
    ("valloc", Malloc, Optional),
    ("pvalloc", Pvalloc, Optional),
    ("cfree", Free, Optional),
    // C23.
    ("free_sized", Free, Optional),
    ("free_aligned_sized", Free, Optional),
    // Second names that glibc gives to the functions above and that allocators copy; in static musl programs they
    // are what other parts of the C library call.
    ("__libc_malloc", Malloc, Optional),
    ("__libc_calloc", Calloc, Optional),
    ("__libc_realloc", Realloc, Optional),
    ("__libc_reallocarray", Reallocarray, Optional),
    ("__libc_free", Free, Optional),
    ("__libc_cfree", Free, Optional),
    ("__libc_memalign", Memalign, Optional),
    ("__libc_valloc", Malloc, Optional),
    ("__libc_pvalloc", Pvalloc, Optional),
    ("__posix_memalign", PosixMemalign, Optional),
];

/// `$p` is the prefix that jemalloc was configured with. `mallocx(size, flags)`, `rallocx(block, size, flags)`,
/// `dallocx(block, flags)` and `sdallocx(block, size, flags)` carry more arguments than their plain relatives, after
/// them. `xallocx` resizes a block where it lies and returns no block: it cannot be told of as an allocation.
macro_rules! jemalloc_extended {
    ($p:literal) => {
        [
            (concat!($p, "mallocx"), Malloc, Required),
            (concat!($p, "rallocx"), Realloc, Required),
            (concat!($p, "dallocx"), Free, Required),
            (concat!($p, "sdallocx"), Free, Required),
        ]
    };
}

macro_rules! jemalloc_plain {
    ($p:literal) => {
        [
            (concat!($p, "malloc"), Malloc, Required),
            (concat!($p, "calloc"), Calloc, Required),
            (concat!($p, "realloc"), Realloc, Required),
            (concat!($p, "free"), Free, Required),
            (concat!($p, "aligned_alloc"), Memalign, Required),
            (concat!($p, "memalign"), Memalign, Required),
            (concat!($p, "posix_memalign"), PosixMemalign, Required),
            (concat!($p, "valloc"), Malloc, Optional),
            (concat!($p, "pvalloc"), Pvalloc, Optional),
            (concat!($p, "free_sized"), Free, Optional),
            (concat!($p, "free_aligned_sized"), Free, Optional),
        ]
    };
}

const JEMALLOC: [&[Row]; 5] = [
    &jemalloc_extended!(""),
    &jemalloc_plain!("je_"),
    &jemalloc_extended!("je_"),
    // Rust's jemalloc crates.
    &jemalloc_plain!("_rjem_"),
    &jemalloc_extended!("_rjem_"),
];

const TCMALLOC: &[Row] = &[
    ("tc_malloc", Malloc, Required),
    ("tc_calloc", Calloc, Required),
    ("tc_realloc", Realloc, Required),
    ("tc_free", Free, Required),
    ("tc_memalign", Memalign, Required),
    ("tc_posix_memalign", PosixMemalign, Required),
    ("tc_new", Malloc, Required),
    ("tc_newarray", Malloc, Required),
    ("tc_delete", Free, Required),
    ("tc_deletearray", Free, Required),
    ("tc_malloc_skip_new_handler", Malloc, Optional),
    ("tc_valloc", Malloc, Optional),
    ("tc_pvalloc", Pvalloc, Optional),
    ("tc_cfree", Free, Optional),
    ("tc_free_sized", Free, Optional),
    ("tc_free_aligned_sized", Free, Optional),
    ("tc_new_nothrow", Malloc, Optional),
    ("tc_new_aligned", Malloc, Optional),
    ("tc_new_aligned_nothrow", Malloc, Optional),
    ("tc_newarray_nothrow", Malloc, Optional),
    ("tc_newarray_aligned", Malloc, Optional),
    ("tc_newarray_aligned_nothrow", Malloc, Optional),
    ("tc_delete_sized", Free, Optional),
    ("tc_delete_nothrow", Free, Optional),
    ("tc_delete_aligned", Free, Optional),
    ("tc_delete_sized_aligned", Free, Optional),
    ("tc_delete_aligned_nothrow", Free, Optional),
    ("tc_deletearray_sized", Free, Optional),
    ("tc_deletearray_nothrow", Free, Optional),
    ("tc_deletearray_aligned", Free, Optional),
    ("tc_deletearray_sized_aligned", Free, Optional),
    ("tc_deletearray_aligned_nothrow", Free, Optional),
];

/// The `mi_heap_*` functions are not here: they take the heap first, and `mi_heap_destroy` frees all its blocks
/// without a call for each.
const MIMALLOC: &[Row] = &[
    ("mi_malloc", Malloc, Required),
    ("mi_calloc", Calloc, Required),
    ("mi_realloc", Realloc, Required),
    ("mi_free", Free, Required),
    ("mi_zalloc", Malloc, Required),
    ("mi_mallocn", Calloc, Required),
    ("mi_reallocn", Reallocarray, Required),
    ("mi_malloc_aligned", Malloc, Required),
    ("mi_zalloc_aligned", Malloc, Required),
    ("mi_realloc_aligned", Realloc, Required),
    ("mi_new", Malloc, Required),
    ("mi_memalign", Memalign, Required),
    ("mi_aligned_alloc", Memalign, Required),
    ("mi_posix_memalign", PosixMemalign, Required),
    ("mi_malloc_small", Malloc, Optional),
    ("mi_zalloc_small", Malloc, Optional),
    ("mi_valloc", Malloc, Optional),
    ("mi_pvalloc", Pvalloc, Optional),
    ("mi_reallocarray", Reallocarray, Optional),
    ("mi_reallocf", Realloc, Optional),
    ("mi_rezalloc", Realloc, Optional),
    ("mi_recalloc", Reallocarray, Optional),
    ("mi_malloc_aligned_at", Malloc, Optional),
    ("mi_zalloc_aligned_at", Malloc, Optional),
    ("mi_calloc_aligned", Calloc, Optional),
    ("mi_calloc_aligned_at", Calloc, Optional),
    ("mi_realloc_aligned_at", Realloc, Optional),
    ("mi_rezalloc_aligned", Realloc, Optional),
    ("mi_rezalloc_aligned_at", Realloc, Optional),
    ("mi_recalloc_aligned", Reallocarray, Optional),
    ("mi_recalloc_aligned_at", Reallocarray, Optional),
    ("mi_aligned_recalloc", Reallocarray, Optional),
    ("mi_new_n", Calloc, Optional),
    ("mi_new_nothrow", Malloc, Optional),
    ("mi_new_aligned", Malloc, Optional),
    ("mi_new_aligned_nothrow", Malloc, Optional),
    ("mi_new_realloc", Realloc, Optional),
    ("mi_new_reallocn", Reallocarray, Optional),
    ("mi_free_size", Free, Optional),
    ("mi_free_size_aligned", Free, Optional),
    ("mi_free_aligned", Free, Optional),
    ("mi_cfree", Free, Optional),
];

/// Mangled names on 64-bit machines, where `std::size_t` is `m`. The size comes first in all of them.
const OPERATOR: &[Row] = &[
    ("_Znwm", Malloc, Required),
    ("_Znam", Malloc, Required),
    ("_ZdlPv", Free, Required),
    ("_ZdaPv", Free, Required),
    ("_ZdlPvm", Free, Required),
    ("_ZdaPvm", Free, Required),
    ("_ZnwmRKSt9nothrow_t", Malloc, Optional),
    ("_ZnamRKSt9nothrow_t", Malloc, Optional),
    ("_ZnwmSt11align_val_t", Malloc, Optional),
    ("_ZnamSt11align_val_t", Malloc, Optional),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t", Malloc, Optional),
    ("_ZnamSt11align_val_tRKSt9nothrow_t", Malloc, Optional),
    // Newer tcmalloc takes a hint of how often the block will be used.
    ("_Znwm12__hot_cold_t", Malloc, Optional),
    ("_Znam12__hot_cold_t", Malloc, Optional),
    ("_ZnwmRKSt9nothrow_t12__hot_cold_t", Malloc, Optional),
    ("_ZnamRKSt9nothrow_t12__hot_cold_t", Malloc, Optional),
    ("_ZnwmSt11align_val_t12__hot_cold_t", Malloc, Optional),
    ("_ZnamSt11align_val_t12__hot_cold_t", Malloc, Optional),
    (
        "_ZnwmSt11align_val_tRKSt9nothrow_t12__hot_cold_t",
        Malloc,
        Optional,
    ),
    (
        "_ZnamSt11align_val_tRKSt9nothrow_t12__hot_cold_t",
        Malloc,
        Optional,
    ),
    ("_ZdlPvRKSt9nothrow_t", Free, Optional),
    ("_ZdaPvRKSt9nothrow_t", Free, Optional),
    ("_ZdlPvSt11align_val_t", Free, Optional),
    ("_ZdaPvSt11align_val_t", Free, Optional),
    ("_ZdlPvmSt11align_val_t", Free, Optional),
    ("_ZdaPvmSt11align_val_t", Free, Optional),
    ("_ZdlPvSt11align_val_tRKSt9nothrow_t", Free, Optional),
    ("_ZdaPvSt11align_val_tRKSt9nothrow_t", Free, Optional),
];

const PYTHON: &[Row] = &[
    ("PyObject_Malloc", Malloc, Required),
    ("PyObject_Calloc", Calloc, Required),
    ("PyObject_Realloc", Realloc, Required),
    ("PyObject_Free", Free, Required),
    ("PyMem_Malloc", Malloc, Required),
    ("PyMem_Calloc", Calloc, Required),
    ("PyMem_Realloc", Realloc, Required),
    ("PyMem_Free", Free, Required),
    ("PyMem_RawMalloc", Malloc, Required),
    ("PyMem_RawCalloc", Calloc, Required),
    ("PyMem_RawRealloc", Realloc, Required),
    ("PyMem_RawFree", Free, Required),
];

/// Every name, in the order in which they are preferred; the id is the place in this list, from 1.
static KNOWN: LazyLock<Vec<Known>> = LazyLock::new(|| {
    let rows = [(Family::Libc, LIBC)]
        .into_iter()
        .chain(JEMALLOC.into_iter().map(|rows| (Family::Jemalloc, rows)))
        .chain([
            (Family::Tcmalloc, TCMALLOC),
            (Family::Mimalloc, MIMALLOC),
            (Family::Operator, OPERATOR),
            (Family::Python, PYTHON),
        ])
        .flat_map(|(family, rows)| rows.iter().map(move |row| (family, row)));
    (1..=u8::MAX)
        .zip(rows)
        .map(|(id, (family, &(name, function, need)))| Known {
            name,
            function,
            family,
            need,
            id,
        })
        .collect()
});

static BY_NAME: LazyLock<HashMap<&'static [u8], &'static Known>> =
    LazyLock::new(|| KNOWN.iter().map(|known| (known.name.as_bytes(), known)).collect());

/// Every known name.
pub fn all() -> &'static [Known] {
    &KNOWN
}

/// What is known of the function `name`. A version after `@` is no part of the name.
pub fn lookup(name: &[u8]) -> Option<&'static Known> {
    let end = name.iter().position(|&byte| byte == b'@').unwrap_or(name.len());
    BY_NAME.get(&name[..end]).copied()
}

/// Functions that do not return to their caller: code behind a call of one is not reached.
pub fn never_returns(name: &[u8]) -> bool {
    const NAMES: &[&[u8]] = &[
        b"abort",
        b"exit",
        b"_exit",
        b"__assert_fail",
        b"__stack_chk_fail",
        b"__libc_fatal",
        b"_Unwind_Resume",
        b"__cxa_throw",
        b"__cxa_rethrow",
        b"__cxa_call_unexpected",
        b"__cxa_call_terminate",
        b"__cxa_throw_bad_array_new_length",
        b"__clang_call_terminate",
        b"_ZSt9terminatev",
        b"_ZSt17__throw_bad_allocv",
    ];
    let end = name.iter().position(|&byte| byte == b'@').unwrap_or(name.len());
    NAMES.contains(&&name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rows_got_an_id_and_no_name_is_there_twice() {
        let rows = LIBC.len()
            + JEMALLOC.iter().map(|rows| rows.len()).sum::<usize>()
            + TCMALLOC.len()
            + MIMALLOC.len()
            + OPERATOR.len()
            + PYTHON.len();
        assert_eq!(all().len(), rows, "more names than ids");
        assert_eq!(BY_NAME.len(), rows, "a name is there twice");
        let ids: std::collections::HashSet<u8> = all().iter().map(|known| known.id).collect();
        assert_eq!(ids.len(), rows);
        assert!(!ids.contains(&0));
    }

    #[test]
    fn names_are_found_with_and_without_a_version() {
        for (name, function, family) in [
            ("malloc", Malloc, Family::Libc),
            ("malloc@@GLIBC_2.2.5", Malloc, Family::Libc),
            ("cfree@GLIBC_2.2.5", Free, Family::Libc),
            ("_rjem_sdallocx", Free, Family::Jemalloc),
            ("mallocx", Malloc, Family::Jemalloc),
            ("je_rallocx", Realloc, Family::Jemalloc),
            ("tc_newarray_aligned", Malloc, Family::Tcmalloc),
            ("mi_reallocn", Reallocarray, Family::Mimalloc),
            ("_ZnwmSt11align_val_t", Malloc, Family::Operator),
        ] {
            let known = lookup(name.as_bytes()).unwrap();
            assert_eq!((known.function, known.family), (function, family), "{name}");
        }
        for name in [
            "",
            "@",
            "mallo",
            "malloc_usable_size",
            "je_xallocx",
            "mi_heap_malloc",
            "\u{fc}",
        ] {
            assert_eq!(lookup(name.as_bytes()), None, "{name}");
        }
    }

    #[test]
    fn operators_have_the_arguments_that_their_mangling_says() {
        for known in all().iter().filter(|known| known.family == Family::Operator) {
            let allocates = known.name.starts_with("_Znwm") || known.name.starts_with("_Znam");
            let frees = known.name.starts_with("_ZdlPv") || known.name.starts_with("_ZdaPv");
            assert!(allocates != frees, "{}", known.name);
            assert_eq!(known.function, if allocates { Malloc } else { Free });
        }
    }
}
