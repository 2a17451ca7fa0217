//! Contains a spawner for each supported runtime, spawners that wrap another spawner, and observers for tracing and metrics.
//!
//! These adapters use only the public API of this crate.

#[cfg(feature = "async-executor")]
pub(crate) mod async_executor;
#[cfg(feature = "async-std")]
pub(crate) mod async_std;
pub(crate) mod erased;
#[cfg(feature = "futures")]
pub(crate) mod futures;
#[cfg(feature = "tracing")]
pub(crate) mod in_span;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
#[cfg(feature = "serde")]
mod serde;
#[cfg(feature = "smol")]
pub(crate) mod smol;
#[cfg(feature = "tracing")]
pub(crate) mod span_observer;
#[cfg(feature = "tracing")]
pub(crate) mod task_span;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
#[cfg(feature = "tracing")]
pub(crate) mod tracing;
#[cfg(feature = "wasm-bindgen-futures")]
pub(crate) mod wasm_bindgen_futures;
pub(crate) mod with_timer;
