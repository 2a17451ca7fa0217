//! Fire and forget that forgets nothing: start work in the background on any executor, answer at once, and at exit tell
//! every task to stop, wait for it, and account for each one.
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
//!     registry.run(mail::send()); // and answer the caller
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
//! - [`Registry::run`] counts a task and has a [`Spawner`] start it. Its panic is caught, its error and its disappearance are counted.
//! - [`Registry::signal`] is a future that each task can wait on; it resolves when the shutdown begins.
//! - [`Registry::shutdown`] begins the shutdown and resolves to a [`Summary`] when nothing is in flight and nothing ever will be.
//!   While something is, it may still start what it owes.
//!
//! That is all that most programs need. Work that others run is counted with [`Registry::track`] and [`Registry::guard`];
//! [`Registry::builder`] makes a registry that tells its losses, lists and aborts its tasks, or has a limit.
//!
//! # What is promised, and what is not
//!
//! A task is counted before it is started, and its future, destructors, error and panic payload are gone before its count is given back;
//! so a drain that has resolved is true, and final. A future that was dropped before it had finished counts as
//! [abandoned](Summary::abandoned), not as done. What a task does (a panic in it, in its destructor, in a waker) hurts neither the host nor
//! the other tasks, except that a destructor that panics while its task's own panic unwinds through it ends the process, as everywhere in Rust.
//!
//! Work in memory is lost when the process is killed, crashes, or loses its power. Who cannot afford that needs a durable queue and a worker
//! of its own; the README says more.
//!
//! # Features
//!
//! | feature | gives |
//! | --- | --- |
//! | `std` (default) | panics caught, blocking waits, four shards for each core, [`Registry::new`] |
//! | `tokio` | `TokioSpawner`, and the spawner traits for `tokio::runtime::Handle` and `tokio::task::LocalSet` |
//! | `smol` | `SmolSpawner` |
//! | `async-std` | `AsyncStdSpawner` |
//! | `async-executor` | `ThreadsSpawner`, and the spawner traits for async-executor's four executors |
//! | `futures` | `FuturesSpawner`, for whatever has the `futures` crate's traits `Spawn` or `LocalSpawn` |
//! | `wasm-bindgen-futures` | `WasmSpawner`, and ages, on `wasm32-unknown-unknown`; nothing elsewhere |
//! | `tracing` | `TracingObserver`, and `InSpan`, which starts tasks in their caller's span |
//! | `metrics` | `MetricsObserver` |
//! | `conformance` | the module `conformance`: a suite for the tests of who implements a spawner trait |
//! | `serde` | `Serialize` for [`TaskInfo`], [`Stragglers`], [`Summary`] and what is in them |
//! | `coarse-clock` | ages from the kernel's coarse clock (Linux, Android), some milliseconds old, for cheaper inspection |
//! | `portable-atomic` | atomics of portable-atomic, for targets without compare-and-swap |
//! | `critical-section` | critical sections instead of spinlocks where there is no operating system, for programs with interrupts |
//!
//! # Without `std`
//!
//! The core needs `alloc` and an atomic compare-and-swap of a word; 64 bits it needs nowhere. A registry is made with
//! [`Registry::in_static`]; it has one shard, and there is no builder. A panic is not caught (one that unwinds through a destructor keeps its
//! task's count for ever), and a waiting signal is one allocation. `examples/bare-metal`, in the repository, runs on two Cortex-M.
//!
//! A target without compare-and-swap (`thumbv6m-none-eabi`, `riscv32imc-unknown-none-elf`) needs the feature `portable-atomic`; without it
//! event-listener does not compile there. The feature `critical-section` says where portable-atomic is to take it from; other ways
//! are in [its documentation](https://docs.rs/portable-atomic/latest/portable_atomic/#optional-features). `DynSpawner` is not to be had
//! there, as `alloc` has no `Arc`.
//!
//! An interrupt handler may start work and take a [`Guard`], if the spawner and the allocator can be used there. That it also begins the
//! shutdown, drops a guard, or polls or drops what waits, takes the feature `critical-section`, with an implementation of
//! [critical-section](https://docs.rs/critical-section) in the program: event-listener otherwise locks with a spinlock, and a handler
//! that finds it locked spins for ever. Either way wakers are called, cloned and dropped under that lock. One that calls back into the registry
//! there panics (*already borrowed*) with the feature, and hangs without it.
//!
//! # In the browser
//!
//! On `wasm32-unknown-unknown` tasks are JavaScript's microtasks (feature `wasm-bindgen-futures`), in a page, a worker or Node, and nothing blocks: the
//! waits of [`Shutdown`] that block a thread are not there, nor is [`BlockingSpawner`] served. Ages are read from JavaScript's `performance`;
//! without the feature there are none, and where there is no `performance`, in a worklet, a registry that is inspected or observed panics.
//!
//! When the page goes away its tasks are lost without their destructors. Begin the shutdown in a listener of `pagehide`: what then needs microtasks
//! alone drains before the next listener is called; what needs a timer or an answer does not. `examples/browser`, in the repository, does so and tells the
//! rest at the next visit.
//!
//! A panic traps, unless the program and `std` are built with `-C panic=unwind`: no destructor runs, nothing is counted or told, and the task stays in
//! flight for ever. So give the drain a deadline. The other tasks go on, those in line behind it as soon as anything is woken; in Node an error that nobody
//! catches ends the process.
//!
//! Where wasm has threads (`+atomics`, nightly), tasks are woken in a later turn of the event loop instead: nothing drains between two listeners,
//! and after a panic the others may not go on.
//!
//! # Cost
//!
//! Counting a task is two atomic operations on a cache line that no other thread writes (there are four shards for each core, up to 128,
//! and threads take them in turn), its size grows by two words, and nothing is allocated for it. Waiting for the signal through
//! [`ShutdownSignal::run_until_shutdown`] allocates nothing either, once a shard's list has grown. The state of a registry is taken from a
//! pool and given back: memory is bounded by the most registries alive at once.
//!
//! What [`RegistryBuilder`] is asked for costs those who ask: an observer nothing while all goes well, an inspected task a slot that is used
//! again and a reading of the clock, a limit one count that all threads share. `cargo run --release -p peers`, in the repository, measures it.

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
