//! Tasks in a browser, a web worker, or Node.
//!
//! On `wasm32-unknown-unknown`, `WasmSpawner` (feature `wasm-bindgen-futures`) runs tasks as microtasks of JavaScript:
//!
//! ```no_run
//! # #[cfg(feature = "wasm-bindgen-futures")]
//! # fn program() {
//! use background_tasks::{Registry, WasmSpawner};
//!
//! let registry = Registry::new(WasmSpawner);
//! # #[cfg(all(target_family = "wasm", target_os = "unknown"))]
//! registry.run(async { /* save the draft */ });
//! # }
//! ```
//!
//! # What differs
//!
//! - Nothing blocks. The waits of [`Shutdown`](crate::Shutdown) that block a thread do not exist, and `WasmSpawner` does not implement
//!   [`BlockingSpawner`](crate::BlockingSpawner).
//! - Ages come from JavaScript's `performance`. Without the feature there are none. In a worklet, which has no `performance`, a registry that is
//!   inspected or observed panics.
//!
//! # When the page closes
//!
//! The tasks of a closed page are lost, and their destructors do not run. So start the shutdown in a listener of `pagehide`. Tasks that need
//! only microtasks drain before the next listener is called. Tasks that wait for a timer or a response do not. `examples/browser`, in
//! the repository, does this, and reports the lost tasks at the next visit.
//!
//! # Panics
//!
//! A panic traps, unless the program and `std` are built with `-C panic=unwind`. After a trap no destructor runs, nothing is counted or reported,
//! and the task stays in flight forever. So give the drain a deadline. The other tasks continue; those that were queued behind the
//! panicked task continue when any task is woken. In Node, an uncaught error ends the process.
//!
//! # Threads
//!
//! With threads (`+atomics`, on a nightly toolchain) tasks are woken in a later turn of the event loop. Then nothing drains between two
//! listeners, and after a panic the other tasks may stop.
