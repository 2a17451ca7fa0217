//! Background tasks on any async runtime: started with one call, drained at shutdown, and accounted for one by one.
//!
//! A server answers its caller and still has work to do: write the cache, send the mail, record the audit line. A detached task loses that
//! work silently when the process exits. A [`Registry`] starts such tasks, and before the process exits it asks every task to stop, waits
//! within a deadline, and reports how each task ended.
//!
//! ```no_run
//! # #[cfg(feature = "tokio")] mod program {
//! use background_tasks::{Registry, TokioSpawner};
//! use std::time::Duration;
//!
//! # mod mail { pub async fn send() -> Result<(), std::io::Error> { Ok(()) } }
//! #[tokio::main]
//! async fn main() {
//!     let registry = Registry::new(TokioSpawner);
//!
//!     registry.run(mail::send()); // returns immediately
//!
//!     tokio::signal::ctrl_c().await.expect("Ctrl-C can be awaited");
//!     let grace = tokio::time::sleep(Duration::from_secs(10));
//!     match registry.shutdown().until(grace).await {
//!         Ok(summary) => println!("drained: {summary}"),
//!         Err(stragglers) => eprintln!("{stragglers}"),
//!     }
//! }
//! # }
//! # fn main() {}
//! ```
//!
//! - [`Registry::run`] counts a task and passes it to a [`Spawner`]. It catches the task's panic, and counts its error and its loss.
//! - [`Registry::signal`] returns a future that resolves when the shutdown starts. Any number of tasks can wait for it.
//! - [`Registry::shutdown`] starts the shutdown. It returns a future that resolves to a [`Summary`] when nothing is in flight.
//!
//! Most programs need no more. [`Registry::track`] and [`Registry::guard`] count work that something else runs. [`Registry::builder`] makes a
//! registry with [observers](Observer), a list of its tasks, aborts, or a limit.
//!
//! # The life of a registry
//!
//! ```text
//!              shutdown(), or the last             nothing is
//!              handle is dropped                   in flight
//!     ┌──────┐                        ┌──────────┐            ┌─────────┐
//!     │ open │ ─────────────────────▶ │ draining │ ─────────▶ │ drained │
//!     └──────┘                        └──────────┘            └─────────┘
//!     accepts tasks                   accepts tasks           rejects tasks, forever
//!                                     signals are triggered   the summary is final
//! ```
//!
//! A draining registry still accepts tasks, so that a task can finish its work with the help of another one. To make a drain end, stop the
//! sources of new work first: close the listener, for example when its [signal](Registry::signal) resolves.
//!
//! # Outcomes
//!
//! Every accepted piece of work ends with one of the first five outcomes. All but *completed* are losses, which are reported to observers.
//!
//! | outcome | the work |
//! | --- | --- |
//! | [completed](Summary::completed) | finished with `()` or `Ok`; or it was a guard, and was dropped |
//! | [failed](Summary::failed) | finished with an `Err` |
//! | [panicked](Summary::panicked) | panicked, in its code or in a destructor |
//! | [abandoned](Summary::abandoned) | was dropped before it finished, for example with its runtime |
//! | [aborted](Summary::aborted) | was ended at an await point by [`abort`](Registry::abort) |
//! | [rejected](Summary::rejected) | was never started, because the registry had drained or was full |
//!
//! # Guarantees
//!
//! - A task is counted before it is started. Its count is released after its future, destructors, error and panic payload have been dropped. So
//!   a drain that has resolved is final.
//! - A panic in a task, in its destructor or in a waker affects neither the host nor other tasks. There is one exception, as everywhere in Rust: a
//!   destructor that panics during its task's own panic aborts the process.
//! - Work in memory is lost when the process is killed, crashes, or loses power. Work that must survive that belongs in a durable queue,
//!   for example in the crate `background-tasks-durable`.
//!
//! # Features
//!
//! | feature | provides |
//! | --- | --- |
//! | `std` (default) | caught panics, blocking waits, ages of tasks, and about four shards for each core |
//! | `tokio` | `TokioSpawner`, and the spawner traits for `tokio::runtime::Handle` and `tokio::task::LocalSet` |
//! | `smol` | `SmolSpawner` |
//! | `async-std` | `AsyncStdSpawner` |
//! | `async-executor` | `ThreadsSpawner`, and the spawner traits for async-executor's four executors |
//! | `futures` | `FuturesSpawner`, for executors that implement `Spawn` or `LocalSpawn` of the `futures` crate |
//! | `wasm-bindgen-futures` | `WasmSpawner`, and ages of tasks, on `wasm32-unknown-unknown`; nothing elsewhere |
//! | `tracing` | `TracingObserver`, and `InSpan`, which runs tasks in the span of their caller |
//! | `metrics` | `MetricsObserver` |
//! | `conformance` | the module `conformance`: a test suite for implementations of the spawner traits |
//! | `serde` | `Serialize` for [`TaskInfo`], [`Stragglers`], [`Summary`] and their parts |
//! | `coarse-clock` | times from the kernel's coarse clock (Linux, Android): some milliseconds old, and cheaper to read |
//! | `portable-atomic` | atomics of portable-atomic, for targets without compare-and-swap |
//! | `critical-section` | critical sections as the lock of programs without `std`, and for `portable-atomic` |
//!
//! Without `std` everything works but what that row names; see the page on [bare metal](guide::bare_metal). There is also a page on the
//! [browser](guide::browser).
//!
//! # Cost
//!
//! Counting a task takes two atomic operations on a cache line that no other thread writes, grows the task by two words, and allocates
//! nothing. (A registry has about four shards for each core, at most 128, and threads share them in turn.) Waiting for the signal with
//! [`ShutdownSignal::run_until_shutdown`] allocates nothing once the list of a shard has grown. The state of a registry comes from a pool,
//! so memory is bounded by the largest number of registries that existed at the same time.
//!
//! The options of [`RegistryBuilder`] cost only those who use them. An observer costs nothing until there is a loss. An inspected task
//! occupies a slot and takes a timestamp. A limit makes all threads share one counter. `cargo run --release -p peers`, in the
//! repository, measures all of this.

#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

extern crate alloc;

mod adapters;
#[cfg(all(feature = "std", not(target_family = "wasm")))]
mod blocking;
mod builder;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(any(doc, doctest))]
pub mod guide;
mod observer;
mod platform;
mod registry;
mod report;
mod shutdown;
mod signal;
mod spawner;
mod state;
mod sync;
mod task;
mod task_builder;

pub use builder::RegistryBuilder;
pub use observer::Observer;
pub use registry::Registry;
pub use report::{AbortError, AbortReport, ParseTaskIdError, RejectReason, Rejected, Stragglers, Summary};
pub use report::{TaskId, TaskInfo, TaskKind, TaskOutput};
pub use shutdown::{Shutdown, ShutdownGuard, WaitIdle};
pub use signal::{RunUntilShutdown, ShutdownSignal};
pub use spawner::{BlockingSpawner, LocalSpawner, Spawner};
pub use state::RegistryState;
pub use task::{Guard, Tracked};
pub use task_builder::{RunWhenReady, TaskBuilder};

#[cfg(feature = "async-executor")]
pub use adapters::async_executor::ThreadsSpawner;
#[cfg(feature = "async-std")]
pub use adapters::async_std::AsyncStdSpawner;
pub use adapters::erased::{BoxLocalTask, BoxTask, BoxWork, DynLocalSpawner};
#[cfg(target_has_atomic = "ptr")]
pub use adapters::erased::{DynBlockingSpawner, DynSpawner};
#[cfg(feature = "futures")]
pub use adapters::futures::FuturesSpawner;
#[cfg(feature = "tracing")]
pub use adapters::in_span::InSpan;
#[cfg(feature = "metrics")]
pub use adapters::metrics::MetricsObserver;
#[cfg(feature = "smol")]
pub use adapters::smol::SmolSpawner;
#[cfg(feature = "tokio")]
pub use adapters::tokio::TokioSpawner;
#[cfg(feature = "tracing")]
pub use adapters::tracing::TracingObserver;
#[cfg(feature = "wasm-bindgen-futures")]
pub use adapters::wasm_bindgen_futures::WasmSpawner;

#[cfg(loom)]
#[doc(hidden)]
pub use platform::model;

#[cfg(all(doctest, feature = "tokio"))]
#[doc = include_str!("../README.md")]
struct Readme;
