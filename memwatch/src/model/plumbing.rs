//! Which frames only pass an allocation on. A block belongs to the innermost frame that does not: `std::vector`
//! does not want memory, the function that pushes into it does.
//!
//! The lists are of functions whose very job is to allocate for their caller. They are kept small: a frame that
//! is taken for plumbing wrongly hides the line that a user looks for, one too many shown is merely one step
//! further in.

use std::sync::Arc;

use super::report::{Frame, FrameKind};

/// The C family, under the plain name.
const C_NAMES: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "free",
    "cfree",
    "memalign",
    "aligned_alloc",
    "posix_memalign",
    "valloc",
    "pvalloc",
    "mallocx",
    "rallocx",
    "sdallocx",
    "dallocx",
    "xallocx",
];

/// What allocators and wrappers of them put in front of a name of [`C_NAMES`].
const C_PREFIXES: &[&str] = &[
    "__libc_",
    "__GI___libc_",
    "__GI_",
    "__",
    "_int_",
    "je_",
    "_rjem_",
    "_rjem_je_",
    "tc_",
    "mi_",
    "x",
    "g_",
    "z",
    "safe_",
    "checked_",
    "sqlite3_",
    "sqlite3",
    "CRYPTO_",
    "OPENSSL_",
    "av_",
    "PyMem_",
    "PyMem_Raw",
    "_PyMem_",
    "_PyMem_Raw",
    "PyObject_",
    "_PyObject_",
    "_PyMem_Debug",
    "_PyMem_DebugRaw",
];

/// Functions of the C library and its kin that return a block to whoever called them.
const LIBRARY_NAMES: &[&str] = &[
    "strdup",
    "__strdup",
    "strndup",
    "__strndup",
    "wcsdup",
    "xstrdup",
    "xstrndup",
    "asprintf",
    "__asprintf",
    "vasprintf",
    "__vasprintf",
    "__vasprintf_chk",
    "__asprintf_chk",
    "mmap",
    "mmap64",
    "__mmap",
    "__mmap64",
    "munmap",
    "__munmap",
    "mremap",
    "__mremap",
    "brk",
    "__brk",
    "sbrk",
    "__sbrk",
    "__morecore",
    "__default_morecore",
    "__glibc_morecore",
    "sysmalloc",
    "sysmalloc_mmap",
    "mremap_chunk",
    "malloc_hook_ini",
    "tcache_init",
    "arena_get2",
    "new_heap",
    "alloc_new_heap",
    "_mid_memalign",
    "g_malloc0",
    "g_malloc_n",
    "g_malloc0_n",
    "g_realloc_n",
    "g_try_malloc",
    "g_try_malloc0",
    "g_try_realloc",
    "g_strdup",
    "g_strndup",
    "g_slice_alloc",
    "g_slice_alloc0",
    "xzalloc",
    "xnmalloc",
    "xcharalloc",
    "xmemdup",
    "kzalloc",
    "_PyObject_Malloc",
    "_PyObject_Calloc",
    "_PyObject_Realloc",
    "_PyObject_New",
    "_PyObject_NewVar",
    "_PyObject_GC_New",
    "_PyObject_GC_NewVar",
    "_PyObject_GC_Malloc",
    "_PyObject_GC_Alloc",
    "_PyObject_GC_Resize",
    "_PyObject_GC_Link",
    "gc_alloc",
    "PyObject_GC_New",
    "PyObject_Init",
    "PyType_GenericAlloc",
    "_PyType_AllocNoTrack",
    "_PyBytes_FromSize",
    "pymalloc_alloc",
    "new_arena",
    "allocate_from_new_pool",
    "_PyObject_Arena_alloc",
    "_PyObject_ArenaMmap",
    "_PyMem_ArenaAlloc",
];

/// Beginnings of names: the C++ operators, and the standard libraries of C++ and Rust as a whole. A container
/// allocates on behalf of whoever uses it, and that is the first frame outside the library. Rust's `alloc` and
/// `core` are listed by module: programs in C++ have namespaces of these names too.
const NAME_BEGINNINGS: &[&str] = &[
    "operator new",
    "operator delete",
    "std::",
    "__gnu_cxx::",
    "tcmalloc::",
    "__rust_",
    "__rustc::__r",
    "__rdl_",
    "__rg_",
    "alloc::alloc::",
    "alloc::borrow::",
    "alloc::boxed::",
    "alloc::collections::",
    "alloc::ffi::",
    "alloc::fmt::",
    "alloc::raw_vec::",
    "alloc::rc::",
    "alloc::slice::",
    "alloc::str::",
    "alloc::string::",
    "alloc::sync::",
    "alloc::vec::",
    "core::alloc::",
    "core::array::",
    "core::cell::",
    "core::clone::",
    "core::convert::",
    "core::fmt::",
    "core::iter::",
    "core::ops::function::",
    "core::option::",
    "core::result::",
    "core::slice::",
    "core::str::",
    "hashbrown::",
];

/// Rust's implementations of a trait (`<alloc::vec::Vec<T> as core::clone::Clone>::clone`): the library's own
/// types begin like [`NAME_BEGINNINGS`], these are its implementations for any type, and allocators' for Rust.
const NAME_PARTS: &[&str] = &[
    "as alloc::vec::spec_from_",
    "<T as alloc::",
    "<T as core::",
    "<I as core::",
    "<str as alloc::",
    "<[T] as alloc::",
    "as core::alloc::global::GlobalAlloc>::",
    "as core::alloc::GlobalAlloc>::",
];

/// Whether the frame only passes an allocation on.
pub fn is_plumbing(frame: &Frame) -> bool {
    if frame.kind != FrameKind::Native {
        return false;
    }
    frame.function.as_deref().is_some_and(is_plumbing_name)
}

fn is_plumbing_name(function: &str) -> bool {
    let plain = plain_name(function);
    is_c_allocation(plain)
        || LIBRARY_NAMES.contains(&plain)
        || begins_like_a_library(function)
        || NAME_PARTS.iter().any(|part| function.contains(part))
}

fn begins_like_a_library(function: &str) -> bool {
    let unwrapped = function.trim_start_matches(['<', '&', '(', '[']);
    NAME_BEGINNINGS
        .iter()
        .any(|beginning| unwrapped.starts_with(beginning))
}

/// `malloc@@GLIBC_2.2.5` and `_int_malloc.constprop.0` without what linkers and compilers add.
fn plain_name(function: &str) -> &str {
    let unversioned = function.split('@').next().unwrap_or(function);
    unversioned
        .split('.')
        .next()
        .filter(|name| !name.is_empty())
        .unwrap_or(unversioned)
}

fn is_c_allocation(name: &str) -> bool {
    let is_c_name = |name: &str| {
        // CPython writes its own names with a capital: PyMem_Malloc.
        C_NAMES.iter().any(|c| name.eq_ignore_ascii_case(c))
    };
    is_c_name(name)
        || C_PREFIXES
            .iter()
            .any(|prefix| name.strip_prefix(prefix).is_some_and(is_c_name))
}

/// The index of the frame that a block belongs to. In a stack that is all plumbing, the outermost: it is nearest
/// to whoever asked. None for a stack without frames.
pub fn owner(frames: &[Arc<Frame>]) -> Option<usize> {
    frames
        .iter()
        .position(|frame| !is_plumbing(frame))
        .or_else(|| frames.len().checked_sub(1))
}

/// Like [`owner`], for blocks that an interpreter asked for: the innermost line of the interpreted program,
/// whatever parts of the interpreter lie further in.
pub fn interpreted_owner(frames: &[Arc<Frame>]) -> Option<usize> {
    frames
        .iter()
        .position(|frame| frame.kind == FrameKind::Python)
        .or_else(|| owner(frames))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(functions: &[&str]) -> Vec<Arc<Frame>> {
        let named = |function: &&str| Frame {
            function: Some((*function).to_owned()),
            ..Frame::default()
        };
        Frame::shared(functions.iter().map(named))
    }

    fn owner_of(functions: &[&str]) -> &'static str {
        let frames = stack(functions);
        let name = frames[owner(&frames).unwrap()].function.clone().unwrap();
        Box::leak(name.into_boxed_str())
    }

    #[test]
    fn c_programs() {
        assert_eq!(owner_of(&["malloc", "grow", "main"]), "grow");
        assert_eq!(
            owner_of(&["_int_malloc.isra.0", "__libc_calloc", "grow", "main"]),
            "grow"
        );
        assert_eq!(
            owner_of(&["malloc@@GLIBC_2.2.5", "strdup", "read_name", "main"]),
            "read_name"
        );
        assert_eq!(
            owner_of(&["malloc", "xmalloc", "g_malloc", "g_strdup", "label_new"]),
            "label_new"
        );
        assert_eq!(owner_of(&["je_malloc", "load", "main"]), "load");
        assert_eq!(owner_of(&["mmap64", "map_file", "main"]), "map_file");
    }

    #[test]
    fn cpp_programs() {
        assert_eq!(
            owner_of(&[
                "malloc",
                "operator new",
                "std::__new_allocator<int>::allocate",
                "std::allocator_traits<std::allocator<int> >::allocate",
                "std::_Vector_base<int, std::allocator<int> >::_M_allocate",
                "std::vector<int, std::allocator<int> >::_M_realloc_insert<int>",
                "Cache::grow",
                "main"
            ]),
            "Cache::grow"
        );
        assert_eq!(
            owner_of(&["operator new[](unsigned long)", "Buffer::Buffer"]),
            "Buffer::Buffer"
        );
        assert_eq!(
            owner_of(&[
                "operator new",
                "__gnu_cxx::new_allocator<char>::allocate",
                "std::string::_M_create",
                "parse"
            ]),
            "parse"
        );
    }

    #[test]
    fn rust_programs() {
        assert_eq!(
            owner_of(&[
                "malloc",
                "__rdl_alloc",
                "__rust_alloc",
                "alloc::alloc::Global::alloc_impl",
                "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
                "alloc::raw_vec::finish_grow",
                "alloc::raw_vec::RawVec<T,A>::grow_one",
                "alloc::vec::Vec<T,A>::push",
                "<alloc::vec::Vec<T> as core::clone::Clone>::clone",
                "<T as alloc::string::ToString>::to_string",
                "server::cache::insert",
                "server::main"
            ]),
            "server::cache::insert"
        );
        assert_eq!(
            owner_of(&["malloc", "__rustc::__rdl_alloc", "app::run"]),
            "app::run"
        );
    }

    #[test]
    fn python_itself_is_plumbing_only_where_it_allocates() {
        assert_eq!(
            owner_of(&["_PyObject_Malloc", "PyObject_Malloc", "PyList_New", "build"]),
            "PyList_New"
        );
        assert_eq!(
            owner_of(&["PyMem_RawMalloc", "PyMem_RawCalloc", "PyThread_allocate_lock"]),
            "PyThread_allocate_lock"
        );
    }

    #[test]
    fn ordinary_functions_are_not_plumbing() {
        for name in [
            "main",
            "mallocate",
            "my_malloc_user",
            "free_list_push",
            "core::Engine::start",
            "alloc::Pool::take",
            "<app::Cache as core::ops::drop::Drop>::drop",
            "operator_new_thing",
            "zebra",
            "allocate",
            "stdx::vector::push_back",
        ] {
            assert!(!is_plumbing_name(name), "{name}");
        }
    }

    #[test]
    fn a_stack_of_plumbing_only_belongs_to_its_outermost_frame() {
        assert_eq!(owner_of(&["_int_malloc", "malloc", "strdup"]), "strdup");
        assert_eq!(owner(&[]), None);
    }

    #[test]
    fn frames_without_names_are_not_plumbing() {
        let mut frames = stack(&["malloc"]);
        frames.extend(Frame::shared([Frame {
            address: Some(5),
            ..Frame::default()
        }]));
        assert_eq!(owner(&frames), Some(1));
    }

    #[test]
    fn a_block_of_the_interpreter_belongs_to_the_interpreted_line() {
        let mut frames = stack(&["PyObject_Malloc", "list_append", "_PyEval_EvalFrameDefault"]);
        assert_eq!(interpreted_owner(&frames), Some(1));
        frames.extend(Frame::shared([Frame {
            kind: FrameKind::Python,
            function: Some("malloc".into()),
            ..Frame::default()
        }]));
        assert_eq!(interpreted_owner(&frames), Some(3));
        assert!(!is_plumbing(&frames[3]));
    }
}
