//! Describes how to build a program from subsystems: with handles, child registries, services and timers.
//!
//! The examples of this page use smol. They work the same on every runtime that has a timer. The example `examples/subsystems`, in
//! the repository, is a complete program on tokio.
//!
//! # Handles
//!
//! [`run`](crate::Registry::run) starts a task without a handle. The registry waits for the task at shutdown. [`spawn`](crate::Registry::spawn) returns a
//! [`JoinHandle`](crate::JoinHandle), which resolves to the output of the task, or to a [`JoinError`](crate::JoinError) if the task
//! was lost. [`spawn_blocking`](crate::Registry::spawn_blocking) does the same for a closure that blocks its thread:
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use background_tasks::{JoinError, Registry, SmolSpawner};
//!
//! let registry = Registry::new(SmolSpawner);
//! let invoice = registry.named("invoice").spawn_blocking(|| 3 * 25 /* render it */);
//! assert_eq!(invoice.await?, 75);
//!
//! // The task continues if the handle is dropped, unless the handle aborts on drop.
//! drop(registry.spawn(std::future::pending::<()>()).abort_on_drop());
//! assert_eq!(registry.shutdown().await.aborted, 1);
//! # Ok::<(), JoinError>(())
//! # }).unwrap();
//! ```
//!
//! A task that returns `Err` to its handle counts as completed, because its owner receives the error. If no code reads the error, use
//! `run`: the task then counts as failed, and the observers receive the error.
//!
//! # Children
//!
//! [`child`](crate::Registry::child) returns a registry inside a registry. Give each subsystem, connection or tenant that must end
//! alone its own child. The parent waits for its children at shutdown. The parent's lists and aborts include the tasks of its
//! children, and its observers receive their losses. The parent's summary includes a child once the child has drained.
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use background_tasks::{Registry, SmolSpawner};
//!
//! let root = Registry::new(SmolSpawner);
//! let requests = root.named("requests").child_with_limit(100);
//! let workers = root.named("workers").child();
//! workers.run(workers.signal()); // ends when the workers are shut down
//! requests.run(async { /* answer a request */ });
//!
//! // The workers accept work until the last request has ended.
//! requests.shutdown().await;
//! workers.shutdown().await;
//! assert_eq!(root.shutdown().await.completed, 2);
//! # });
//! ```
//!
//! The crate `background-tasks-host` does the same at SIGTERM, within a grace period: `Host::new(&requests).then(&workers)`. A shutdown
//! of the root alone shuts all children down at the same time.
//!
//! # Services
//!
//! [`service`](crate::Registry::service) starts work that must not end while the program runs, such as a consumer of a queue. If a run
//! fails or panics, the next run starts after a delay. [`every`](crate::Registry::every) starts work periodically. After the shutdown
//! has started, nothing runs again.
//!
//! ```
//! # #[cfg(feature = "smol")]
//! # smol::block_on(async {
//! use background_tasks::{Registry, Restart, SmolSpawner};
//! use std::time::Duration;
//!
//! # async fn consume() -> Result<(), std::io::Error> { Ok(()) }
//! let registry = Registry::new(SmolSpawner);
//! let restart = Restart::on_failure().backoff(Duration::from_millis(100), Duration::from_secs(30));
//! // If the consumer fails more often than `at_most` allows (default: 5 times in a minute), the shutdown starts.
//! registry.named("consumer").critical().service(restart, consume);
//! registry.named("sweep").every(Duration::from_secs(60), || async { /* remove expired sessions */ });
//!
//! for service in registry.services() {
//!     println!("{service}"); // sweep at src/main.rs:7:27 runs, restarts: 0
//! }
//! # registry.shutdown().await;
//! # });
//! ```
//!
//! The runs exist only in memory. If the process is not running when a run is due, that run is lost. For work that must not be lost,
//! use a durable job, for example of the crate `background-tasks-durable`.
//!
//! # Timers
//!
//! Services, and the methods that limit a wait, use the [`Timer`](crate::Timer) of the spawner. A spawner without a timer gets one from
//! [`WithTimer`](crate::WithTimer):
//!
//! ```
//! # #[cfg(all(feature = "smol", feature = "async-executor"))]
//! # smol::block_on(async {
//! use background_tasks::{Registry, ThreadsSpawner, WithTimer};
//! use std::time::Duration;
//!
//! let registry = Registry::new(WithTimer(ThreadsSpawner::new(1)?, smol::Timer::after));
//! registry.run(async { /* on the thread of the spawner */ });
//! match registry.shutdown_within(Duration::from_secs(10)).await {
//!     Ok(summary) => println!("{summary}"),
//!     Err(stragglers) => eprintln!("{stragglers}"),
//! }
//! # Ok::<(), std::io::Error>(())
//! # }).unwrap();
//! ```
