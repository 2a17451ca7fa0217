//! Describes how to run tasks in a browser, a web worker, Node or a Cloudflare Worker.
//!
//! On `wasm32-unknown-unknown`, `WasmSpawner` (feature `wasm-bindgen-futures`) runs tasks as JavaScript microtasks:
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
//! # Differences
//!
//! - No method blocks the thread. [`Shutdown`](crate::Shutdown) has only async methods, and `WasmSpawner` does not implement
//!   [`BlockingSpawner`](crate::BlockingSpawner).
//! - [`Timer`](crate::Timer) uses `setTimeout`. Its futures are not `Send`, so services start with
//!   [`service_local`](crate::TaskBuilder::service_local) and [`every_local`](crate::TaskBuilder::every_local). A browser delays the timers of
//!   a page in the background.
//! - The ages of tasks come from JavaScript's `performance` object. Without the feature `wasm-bindgen-futures`, tasks have no age.
//! - A worklet has neither a `performance` object nor `setTimeout`. With the feature `wasm-bindgen-futures`, a registry with inspection
//!   or observers panics in a worklet, and so does the timer.
//!
//! # When the page closes
//!
//! When a page closes, its tasks are lost, and their destructors do not run. To reduce this loss, start the shutdown in an event
//! listener for `pagehide`. Tasks that need only microtasks finish before the browser calls the next event listener. Tasks that
//! wait for a timer or a response do not finish. The example `examples/browser`, in the repository, starts the shutdown in a
//! listener for `pagehide`, and reports the lost tasks at the next visit.
//!
//! # Cloudflare Workers
//!
//! A Worker's runtime cancels what a request has started when it has sent the response, unless the handler passes a promise to
//! `ctx.waitUntil`. Make a registry for each request, and pass its drain:
//!
//! ```ignore
//! let drained = registry.shutdown();
//! context.wait_until(&future_to_promise(async move {
//!     drained.await;
//!     Ok(JsValue::UNDEFINED)
//! }));
//! ```
//!
//! The runtime waits 30 seconds at most, so limit the drain with [`or_abort`](crate::Shutdown::or_abort). Do not share one registry between
//! requests: a task that the runtime has cancelled stays in flight forever. The example is `examples/worker`, in the repository.
//!
//! # Panics
//!
//! A panic traps, unless the program and `std` are built with `-C panic=unwind`. After a trap, the task's destructors do not run,
//! and the registry neither counts nor reports the panic. The task stays in flight forever, so wait for the drain with a deadline.
//!
//! After a trap, other tasks can still run. Tasks that were queued behind the panicked task continue when any task is woken. In
//! Node, an uncaught error ends the process.
//!
//! # Threads
//!
//! With wasm threads (`+atomics`, on a nightly toolchain), a woken task runs in a later turn of the event loop. Because of this, no
//! task finishes between two event listeners when the page closes. After a task has panicked, the other tasks may never run again.
