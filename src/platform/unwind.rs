//! Catches and resumes panics with the functions of `std`.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{current, panicking};

pub(crate) use std::panic::resume_unwind as resume;
pub(crate) use std::thread::ThreadId;

pub(crate) type Payload = Box<dyn Any + Send>;

/// Returns the ID of the current thread if a panic is unwinding this thread.
#[inline]
pub(crate) fn panicking_thread() -> Option<ThreadId> {
    if panicking() { Some(current_id()) } else { None }
}

#[cold]
#[inline(never)]
fn current_id() -> ThreadId {
    current().id()
}

/// Returns the message of a panic if the payload is a string, and a placeholder otherwise. Since the edition 2021, the payload of
/// the macro `panic!` is always a string.
pub(crate) fn panic_message(payload: &Payload) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("(a payload that is not a string)")
}

/// Calls the closure `f`. If `f` panics, catches the panic and returns its payload.
#[inline]
pub(crate) fn catch<T>(f: impl FnOnce() -> T) -> Result<T, Payload> {
    catch_unwind(AssertUnwindSafe(f))
}
