//! Catches panics of user code.

use futures_util::future::FutureExt;
use std::any::Any;
use std::panic::AssertUnwindSafe;

/// Runs a future. If the future panics, returns the payload of the panic as an error.
pub(crate) async fn catch<F: Future>(future: F) -> Result<F::Output, Box<dyn Any + Send>> {
    AssertUnwindSafe(future).catch_unwind().await
}

/// Returns the message of a panic.
pub(crate) fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
