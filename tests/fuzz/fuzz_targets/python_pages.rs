#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| memwatch::fuzz::python_pages(bytes));
