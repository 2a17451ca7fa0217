//! Describes how to use this crate without the standard library.
//!
//! The crate needs `alloc` and atomics with a compare-and-swap of one word. It also needs *critical sections*, which the crate uses
//! as locks. A critical section is usually a piece of code that runs with interrupts disabled. Turn off the default features:
//!
//! ```toml
//! background-tasks = { version = "0.1", default-features = false }
//! ```
//!
//! The program must contain an implementation of the crate [critical-section](https://docs.rs/critical-section). Most hardware
//! crates have a feature that provides an implementation, such as `critical-section-single-core` of `cortex-m`. On a target without
//! an operating system the crate always locks with critical sections. On a target with an operating system, for example when you
//! test the program on the host, the feature `critical-section` of this crate enables these locks.
//!
//! The repository contains an example in `examples/bare-metal`. The example runs on an emulated Cortex-M3 and an emulated
//! Cortex-M0.
//!
//! # A registry in a static
//!
//! ```
//! use background_tasks::{Registry, RegistryState, Spawner};
//!
//! /// Your executor.
//! struct Executor;
//!
//! impl Spawner for Executor {
//!     fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
//!         // Add the task to the queue of ready tasks.
//!         # drop(task);
//!     }
//! }
//!
//! static STATE: RegistryState = RegistryState::new();
//! static TASKS: Registry<Executor> = Registry::in_static(&STATE, Executor);
//!
//! TASKS.run(async { /* read a sensor */ });
//! # assert_eq!(TASKS.summary().abandoned, 1);
//! ```
//!
//! A registry in a static has no observers, no inspection and no limit. To have observers, inspection or a limit, create the
//! registry at run time with [`Registry::builder`](crate::Registry::builder).
//!
//! # Differences
//!
//! - A registry has one shard, which is allocated when the registry is first used.
//! - The crate has no clock. Therefore a task has no [age](crate::TaskInfo::age), and the duration that an observer's
//!   [`drained`](crate::Observer::drained) receives is zero.
//! - Panics are not caught. If a panic unwinds through a task, the task stays in flight forever.
//! - The methods of [`Shutdown`](crate::Shutdown) that block the thread do not exist.
//!
//! # Interrupts
//!
//! An interrupt handler may start a task, start the shutdown, drop a guard, and call all other methods. If an interrupt handler
//! does any of this, the spawner and the allocator must be usable in an interrupt handler. This crate never calls a waker inside a
//! critical section.
//!
//! # Targets without compare-and-swap
//!
//! Some targets have no compare-and-swap, for example `thumbv6m-none-eabi` and `riscv32imc-unknown-none-elf`. On these targets,
//! enable the feature `portable-atomic`. Without this feature, the dependency event-listener does not compile.
//!
//! The feature `critical-section` makes portable-atomic use critical sections. The documentation of portable-atomic [lists
//! alternatives](https://docs.rs/portable-atomic/latest/portable_atomic/#optional-features). `DynSpawner` and `DynBlockingSpawner`
//! are not available on these targets, because `alloc` has no `Arc` on these targets.
