#!/bin/sh
# Stands before the compiler (RUSTC_WRAPPER). memwatch's own code gets what cargo-fuzz gives all code: coverage, and every
# check of arithmetic. The rest is built as always. No address sanitizer: what is fuzzed is safe Rust.
if [ "$3" = memwatch ]; then
    exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks
fi
exec "$@"
