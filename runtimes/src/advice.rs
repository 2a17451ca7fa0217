//! Replaces the panic messages of runtimes with messages that explain how to correct the program.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `call`, which panics if the thread is not in the runtime. If `call` panics, this function panics with the message `advice`.
#[track_caller]
pub(crate) fn with_advice<T>(advice: &str, call: impl FnOnce() -> T) -> T {
    // `unwrap_or_else` would report the location of its closure in place of the caller's location.
    let Ok(value) = catch_unwind(AssertUnwindSafe(call)) else { panic!("{advice}") };
    value
}
