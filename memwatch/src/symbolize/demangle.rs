//! Names as they stand in the source, without parameters and return types: short enough to read in a stack, and
//! a glob matches a function by its name.

use cpp_demangle::{DemangleOptions, ParseOptions, Symbol};

/// Nesting of templates that is followed; far more than any sane name has, far less than a thread's stack takes.
const MAX_DEPTH: u32 = 96;

pub fn demangle(name: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return format!("{rust:#}");
    }
    cpp(name).unwrap_or_else(|| name.to_owned())
}

fn cpp(name: &str) -> Option<String> {
    // Without the prefix the parser also takes `f` for the type float.
    if !name.starts_with("_Z") && !name.starts_with("__Z") {
        return None;
    }
    let parse = ParseOptions::default().recursion_limit(MAX_DEPTH);
    let symbol = Symbol::new_with_options(name, &parse).ok()?;
    let options = DemangleOptions::default()
        .no_params()
        .no_return_type()
        .recursion_limit(MAX_DEPTH);
    symbol.demangle_with_options(&options).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_language_in_its_own_way() {
        assert_eq!(demangle("_ZN5Cache4growEm"), "Cache::grow");
        assert_eq!(demangle("_Znwm"), "operator new");
        assert_eq!(
            demangle("_ZN4core9panicking9panic_fmt17h5f1a6fd39197ad62E"),
            "core::panicking::panic_fmt"
        );
        assert_eq!(
            demangle("_RNvCskwGfYPst2Cb_3foo16example_function"),
            "foo::example_function"
        );
        assert_eq!(
            demangle(
                "_ZNSt6vectorIiSaIiEE17_M_realloc_insertIJiEEEvN9__gnu_cxx17__normal_iteratorIPiS1_EEDpOT_"
            ),
            "std::vector<int, std::allocator<int> >::_M_realloc_insert<int>"
        );
    }

    #[test]
    fn what_is_not_mangled_stays() {
        for name in ["main", "f", "malloc", "_Zbroken", "_ZN", "", "Z", "_R", "i"] {
            assert_eq!(demangle(name), name);
        }
    }

    #[test]
    fn endless_nesting_is_refused() {
        let deep = format!("_Z1f{}i", "P".repeat(100_000));
        assert_eq!(demangle(&deep), deep);
    }
}
