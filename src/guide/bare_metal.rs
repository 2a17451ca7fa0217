//! Programs without the standard library.
//!
//! The crate needs `alloc`, atomics with a compare-and-swap of one word, and a *critical section*: a way to disable interrupts, which is
//! the lock of everything that several contexts share. Turn off the default features:
//!
//! ```toml
//! background-tasks = { version = "0.1", default-features = false }
//! ```
//!
//! The program must contain an implementation of [critical-section](https://docs.rs/critical-section). Most hardware crates have a feature
//! for it, such as `critical-section-single-core` of `cortex-m`. On a target with an operating system, for instance to test such a program
//! on the host, enable the feature `critical-section` of this crate as well.
//!
//! `examples/bare-metal`, in the repository, runs on an emulated Cortex-M3 and an emulated Cortex-M0.
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
//! A registry with observers, a list of tasks or a limit is made at run time, by [`Registry::builder`](crate::Registry::builder).
//!
//! # What differs
//!
//! - A registry has one shard, which is allocated at its first use.
//! - There is no clock. A task has no [age](crate::TaskInfo::age), and the duration that an observer's
//!   [`drained`](crate::Observer::drained) receives is zero.
//! - A panic is not caught. If a panic unwinds through a task, the task's count is not released.
//! - The waits of [`Shutdown`](crate::Shutdown) that block a thread do not exist.
//!
//! # Interrupts
//!
//! An interrupt handler may call every method, if the spawner and the allocator can be used there: it may start a task, start the shutdown,
//! and drop a guard. Wakers that the user provides are never called inside a critical section.
//!
//! # Targets without compare-and-swap
//!
//! `thumbv6m-none-eabi` and `riscv32imc-unknown-none-elf`, for example, need the feature `portable-atomic`; without it event-listener does not
//! compile. The feature `critical-section` makes portable-atomic use critical sections; its
//! [documentation](https://docs.rs/portable-atomic/latest/portable_atomic/#optional-features) lists other ways. `DynSpawner` is not available
//! there, because `alloc` has no `Arc`.
