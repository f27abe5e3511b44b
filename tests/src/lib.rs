//! Helpers of the end-to-end tests: real programs that know the truth about their own memory, watched from outside
//! by the real binary.
//!
//! The tests need root, a kernel that memwatch supports, and the compilers of the targets. What is missing is said and
//! the test is skipped; with `MEMWATCH_REQUIRE_BPF=1` a skipped test fails. `MEMWATCH_BIN` names the binary,
//! `MEMWATCH_TEST_PATIENCE` the seconds after which a test gives up waiting.

pub mod bcc;
pub mod binary;
pub mod cgroup;
pub mod compile;
pub mod gdb;
pub mod hunt;
pub mod kernel;
pub mod lines;
pub mod mapped;
pub mod pythons;
pub mod recorded;
pub mod server;
pub mod stacks;
pub mod target;
pub mod tools;
pub mod truth;
pub mod watch;

pub use compile::{Flavour, Recipe};
pub use target::Target;
pub use truth::{Checks, Truth};
pub use watch::Memwatch;

/// Ends the test when something that it needs is missing: quietly, or as a failure where nothing may be missing.
#[macro_export]
macro_rules! need {
    ($what:expr) => {
        match $what {
            Ok(value) => value,
            Err(why) => {
                $crate::binary::skip(&why);
                return;
            }
        }
    };
}
