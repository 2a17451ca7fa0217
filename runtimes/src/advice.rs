//! Replaces the panic messages of runtimes by messages that contain advice.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls a function of a runtime that panics without advice if the thread is not in the runtime. If `call` panics, panics with `advice`.
#[track_caller]
pub(crate) fn with_advice<T>(advice: &str, call: impl FnOnce() -> T) -> T {
    // Not `unwrap_or_else`: the panic's location would be its closure, not the caller.
    let Ok(value) = catch_unwind(AssertUnwindSafe(call)) else { panic!("{advice}") };
    value
}
