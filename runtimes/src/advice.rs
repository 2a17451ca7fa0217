//! Replaces the panic messages of runtimes with messages that explain how to correct the program.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `call`, which panics if the thread is not in the runtime. If `call` panics, this function panics with the message `advice` instead.
#[track_caller]
pub(crate) fn with_advice<T>(advice: &str, call: impl FnOnce() -> T) -> T {
    // This line does not use `unwrap_or_else`: inside its closure, the panic would have the location of the closure, and not the location
    // of the caller.
    let Ok(value) = catch_unwind(AssertUnwindSafe(call)) else { panic!("{advice}") };
    value
}
