//! Starts background tasks on any async runtime, waits for them at shutdown, and reports how each task ended.
//!
//! A server often has work left after it has sent a response. For example, it must still send a mail, or write to a cache or an
//! audit log. Suppose that a detached task does this work. If the process exits before the task has finished, the work is
//! silently lost. A [`Registry`] starts background tasks and counts them. At shutdown, the registry signals all tasks to stop,
//! waits for them until a deadline, and reports how they ended.
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
//!     match registry.shutdown_within(Duration::from_secs(10)).await {
//!         Ok(summary) => println!("drained: {summary}"),
//!         Err(stragglers) => eprintln!("{stragglers}"),
//!     }
//! }
//! # }
//! # fn main() {}
//! ```
//!
//! - [`Registry::run`] counts a task and passes the task to a [`Spawner`]. When the task ends, the registry counts its outcome.
//!   With the feature `std`, the registry also catches a panic of the task.
//! - [`Registry::signal`] returns a future that resolves when the shutdown starts. Any number of tasks can await such a future.
//! - [`Registry::shutdown_within`] starts the shutdown, and waits at most for a given duration, the grace period. Its future
//!   resolves to a [`Summary`] as soon as all tasks have ended. If tasks are still in flight (accepted, but not ended) after
//!   this duration, the future resolves to [`Stragglers`]. [`Registry::shutdown`] waits without a deadline.
//!
//! Most programs need only these four methods. [`Registry::spawn`] starts a task and returns a [`JoinHandle`]. Await the handle
//! to get the task's output, or use the handle to abort the task. [`Registry::track`] counts a future that you poll yourself.
//! [`Registry::guard`] counts work that is not a future, such as a thread. [`Registry::service`] restarts work that has failed,
//! and [`Registry::every`] runs work periodically. With [`Registry::builder`], a program can add [observers](Observer), list
//! and abort tasks, or limit the number of tasks in flight. [`Registry::child`] returns a registry inside another registry. Use
//! a child for a connection, a tenant or a plug-in that must be shut down separately.
//!
//! The [`guide`] has one page for each subject. For example, one page contains [recipes](guide::recipes), one page helps with
//! [problems](guide::troubleshooting), and one page shows how to [migrate](guide::migrating) from tokio's types.
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
//! A draining registry still accepts tasks, so that a task can start other tasks to finish its work. Each new task prolongs the
//! drain. If the program keeps accepting new work, the drain may never end. Therefore stop accepting new work when the
//! [shutdown signal](Registry::signal) resolves. For example, a server must then close its listening socket.
//!
//! # Outcomes
//!
//! If the registry rejects a task, the outcome of the task is *rejected*. If the registry accepts the task, the task ends with
//! exactly one of the other outcomes in the table. Every outcome except *completed* is a loss. The registry reports each loss to
//! its observers.
//!
//! | outcome | accepted? | meaning |
//! | --- | --- | --- |
//! | [completed](Summary::completed) | yes | The task returned `()`, `Ok` or `None`. A tracked future, or a task with a handle, finished with any output. A guard was dropped, or `complete` was called on a [`CompletionGuard`]. |
//! | [failed](Summary::failed) | yes | The task returned `Err`, and has no handle. |
//! | [panicked](Summary::panicked) | yes | The task panicked while it ran or while it was dropped. Or a guard was dropped because its thread panicked. |
//! | [abandoned](Summary::abandoned) | yes | The task was dropped before it finished, for example because its runtime was dropped. Or a [`CompletionGuard`] was dropped without a call to `complete`. |
//! | [aborted](Summary::aborted) | yes | [`Registry::abort`] or [`JoinHandle::abort`] ended the task at an await point or before its first poll. Or an abort ended a blocking closure before the closure started. |
//! | [rejected](Summary::rejected) | no | The task was never started, because the registry had drained or was full, or because the shutdown started while the task waited for a permit. |
//!
//! # Guarantees
//!
//! - The registry counts each task before the task starts. A task stays in flight until its future has been dropped. By that
//!   time, its output or its panic payload has also been dropped, or has been passed to the task's handle. The drain ends when
//!   no task is in flight, so no code of any task runs after the drain.
//! - A task can itself start work that the registry does not count. Examples are a closure that the task passes to
//!   `tokio::task::spawn_blocking`, and an operation of `tokio::fs`. If the task is aborted or dropped, this work continues. To
//!   count such work, start it with [`Registry::run_blocking`], or move a [`Guard`] into it.
//! - With `std` and `panic = "unwind"`, a panic in a task, in a task's destructor or in a waker does not affect other tasks or
//!   the rest of the program. There are two exceptions. If a [tracked](Registry::track) future panics, the panic reaches the
//!   code that polls the future. If a destructor panics while the same task is already panicking, Rust aborts the process.
//! - Tasks exist only in memory, so they are lost when the process is killed or crashes, or when the machine loses power. If
//!   work must survive a crash, put the work in a durable queue. The crate `background-tasks-durable` stores its queues in your
//!   SQL database. The crate `background-tasks-consumer` works with a message broker that you already run.
//!
//! # Features
//!
//! | feature | provides |
//! | --- | --- |
//! | `std` (default) | panics of tasks are caught; methods of [`Shutdown`] that block the thread (not on WebAssembly); ages of tasks; several [shards](#cost) for each registry, instead of one |
//! | `tokio` | `TokioSpawner`, and the spawner traits for `tokio::runtime::Handle` and `tokio::task::LocalSet` |
//! | `tokio-console` | the names of tasks in tokio-console, in programs that are built with `--cfg tokio_unstable`; see `TokioSpawner` |
//! | `smol` | `SmolSpawner` |
//! | `async-std` | `AsyncStdSpawner` |
//! | `async-executor` | `ThreadsSpawner`, and the spawner traits for async-executor's four executors |
//! | `futures` | `FuturesSpawner`, for executors that implement `Spawn` or `LocalSpawn` of the `futures` crate |
//! | `wasm-bindgen-futures` | `WasmSpawner` and ages of tasks on `wasm32-unknown-unknown`; no effect on other targets |
//! | `tracing` | `TracingObserver`; `TaskSpan`, which gives each task a span; `SpanObserver`, which records outcomes in these spans; `InSpan`, which runs tasks in the span of their caller |
//! | `metrics` | `MetricsObserver`, which counts tasks, and can record their durations by name |
//! | `conformance` | the module `conformance`: a test suite for implementations of the spawner traits and of [`Timer`] |
//! | `serde` | `Serialize` for [`TaskInfo`], [`ServiceInfo`], [`Stragglers`], [`Summary`], [`AbortReport`], [`RejectReason`] and their parts |
//! | `coarse-clock` | timestamps from the kernel's coarse clock (Linux, Android), which lag by a few milliseconds and are cheaper to read |
//! | `portable-atomic` | atomics from the crate portable-atomic, for targets without compare-and-swap |
//! | `critical-section` | locks that use the critical sections of your program, for programs without `std` and for `portable-atomic` |
//!
//! On an operating system, keep the default features. They add no runtime. Without `std`, the crate builds on an operating
//! system only with the feature `critical-section`. In a [program without `std`](guide::bare_metal), the crate lacks only the
//! functions in the row `std` of this table. For browsers, see the page about [programs in a browser](guide::browser).
//!
//! # Cost
//!
//! To count a task, the registry performs two atomic operations: one when the task starts, and one when the task ends. Counting
//! allocates no memory. A counted task is two machine words larger than its future. [`Registry::spawn`] makes one memory
//! allocation for the handle of each task.
//!
//! The counters of a registry are split into shards, and each thread uses one shard. A registry has about four shards for each
//! core, at most 128. Two threads that start or end tasks therefore rarely write to the same cache line. Each shard also has a
//! list of the wakers that wait for the shutdown signal. [`ShutdownSignal::run_until_shutdown`] allocates memory only when this
//! list must grow.
//!
//! A registry takes its state from a process-wide pool. The state returns to the pool after the registry has drained and its
//! handles have been dropped. Another registry can then use the state. The memory for states is therefore bounded by the
//! largest number of registries that existed at the same time.
//!
//! An option of [`RegistryBuilder`] costs nothing if it is not set. In a registry with observers, each named task occupies a
//! slot: a table entry with information about the task. For a task without a name, observers add a cost only if the task is
//! lost, or if one of the observers [observes every task](Observer::observes_every_task). An
//! [inspected](RegistryBuilder::inspect) registry takes a timestamp for each task, and each task occupies a slot. In a registry
//! with a limit on the tasks in flight, all threads share one counter. In the repository, the benchmark `cargo run --release -p
//! peers` measures these costs.

#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

extern crate alloc;

mod adapters;
#[cfg(all(feature = "std", not(target_family = "wasm")))]
mod blocking;
mod builder;
mod child;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(doc)] // also set for doctests
pub mod guide;
mod join;
mod observer;
mod platform;
mod registry;
mod report;
mod service;
mod shutdown;
mod signal;
mod spawner;
mod state;
mod sync;
mod task;
mod task_builder;

pub use builder::RegistryBuilder;
pub use join::{AbortHandle, JoinHandle};
pub use observer::Observer;
pub use registry::Registry;
pub use report::{AbortError, AbortReport, JoinError, Loss, ParseTaskIdError, RejectReason, Rejected, Stragglers, Summary};
pub use report::{ServiceInfo, SpawnInfo, TaskId, TaskInfo, TaskKind, TaskOutput};
pub use service::Restart;
pub use shutdown::{Shutdown, ShutdownGuard, WaitIdle};
pub use signal::{RunUntilShutdown, ShutdownSignal};
pub use spawner::{BlockingSpawner, LocalSpawner, Spawner, Timer};
pub use state::RegistryState;
pub use task::{CompletionGuard, Guard, Tracked};
pub use task_builder::{StartWhenReady, TaskBuilder};

#[cfg(feature = "async-executor")]
pub use adapters::async_executor::ThreadsSpawner;
#[cfg(feature = "async-std")]
pub use adapters::async_std::AsyncStdSpawner;
pub use adapters::erased::{BoxLocalTask, BoxTask, BoxWork, DynLocalSpawner};
#[cfg(target_has_atomic = "ptr")]
pub use adapters::erased::{DynBlockingSpawner, DynSpawner, DynTimer};
#[cfg(feature = "futures")]
pub use adapters::futures::FuturesSpawner;
#[cfg(feature = "tracing")]
pub use adapters::in_span::InSpan;
#[cfg(feature = "metrics")]
pub use adapters::metrics::MetricsObserver;
#[cfg(feature = "smol")]
pub use adapters::smol::SmolSpawner;
#[cfg(feature = "tracing")]
pub use adapters::span_observer::SpanObserver;
#[cfg(feature = "tracing")]
pub use adapters::task_span::TaskSpan;
#[cfg(feature = "tokio")]
pub use adapters::tokio::TokioSpawner;
#[cfg(feature = "tracing")]
pub use adapters::tracing::TracingObserver;
#[cfg(feature = "wasm-bindgen-futures")]
pub use adapters::wasm_bindgen_futures::WasmSpawner;
pub use adapters::with_timer::WithTimer;

#[cfg(loom)]
#[doc(hidden)]
pub use platform::model;

#[cfg(all(doctest, feature = "tokio"))]
#[doc = include_str!("../README.md")]
struct Readme;
