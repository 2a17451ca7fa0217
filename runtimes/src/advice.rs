//! Replaces the panics of runtimes by messages that say how to fix the problem.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls a function of a runtime that panics outside the runtime without an explanation. Panics with `advice` instead.
#[track_caller]
pub(crate) fn with_advice<T>(advice: &str, call: impl FnOnce() -> T) -> T {
    // Not `unwrap_or_else`: the panic's location would be its closure, not the caller.
    let Ok(value) = catch_unwind(AssertUnwindSafe(call)) else { panic!("{advice}") };
    value
}
