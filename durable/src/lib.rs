//! Background jobs that survive a crash of the process. The jobs are stored in a SQLite file or in Postgres, and run as tasks of a
//! [`background_tasks`] registry.
//!
//! ```no_run
//! use background_tasks::{Registry, TokioSpawner};
//! use background_tasks_durable::{Durable, Error, Job, WorkerOptions};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Email {
//!     to: String,
//! }
//!
//! async fn send(email: Job<Email>) -> Result<(), std::io::Error> {
//!     println!("to {}, Message-ID {}", email.to, email.id());
//!     Ok(())
//! }
//!
//! # async fn start() -> Result<(), Error> {
//! let registry = Registry::new(TokioSpawner);
//! let durable = Durable::sqlite("jobs.db").await?;
//! let email = durable.queue::<Email>("email");
//! email.serve(&registry, WorkerOptions::default().concurrency(4), send).await?;
//! email.enqueue(Email { to: "a@example.com".into() }).await?;
//! # Ok(())
//! # }
//! ```
//!
//! **Every job runs at least once.** A process can die after it has done the work of a job and before it has stored the outcome. Such a job
//! runs again, so handlers must be idempotent. [`Job::id`] is the same at every attempt: use it as the key of an upsert, or as the
//! idempotency key of a request. The page [`migrating`] shows how to write idempotent handlers, and which work does not need a stored job.
//!
//! # Life of a job
//!
//! ```text
//! enqueue ──▶ Waiting ──▶ Running ──▶ Done ──▶ deleted after `WorkerOptions::retention`
//!                ▲           │
//!                │           ├──▶ Retrying: failed, or its worker died; until its backoff expires ──▶ Waiting
//!                │           ├──▶ Dead: failed too often or permanently ──▶ Waiting, by `Queue::retry`
//!                │           ├──▶ Cancelled, by `Queue::cancel`, which also cancels waiting and retrying jobs
//!                └───────────┘ a shutdown interrupted the job
//! ```
//!
//! # Tests
//!
//! With the module [`testing`], a test runs the jobs of a program without a worker and without delays. The store of the test can be in
//! memory.
//!
//! # Features
//!
//! | feature | enables |
//! | --- | --- |
//! | `sqlite` (default) | `Durable::sqlite`: a file, for any number of processes on one machine |
//! | `postgres` | `Durable::postgres`: a server, for workers on any number of machines |
//! | `cron` | `Queue::cron`: a job at each tick of a schedule |
//! | `metrics` | `Durable::record_metrics`: depth, age of the oldest due job, attempts and others through the `metrics` facade |
//!
//! A library that only enqueues jobs does not enable `sqlite` or `postgres`: the program that uses the library chooses the store.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(any(feature = "sqlite", feature = "postgres")),
    allow(dead_code, unused_imports, unused_variables, clippy::unused_async)
)]

#[cfg(feature = "cron")]
mod cron;
mod durable;
mod engine;
mod enqueue;
mod error;
mod job;
mod kit;
mod limits;
mod metrics;
mod operator;
mod options;
mod outage;
mod panics;
mod queue;
mod running;
mod runtime;
mod store;
mod sync;
mod tasks;
pub mod testing;
mod worker;

#[doc = include_str!("migrating.md")]
pub mod migrating {}

#[cfg(feature = "cron")]
pub use self::cron::{CronSchedule, MissedTicks};
pub use self::durable::Durable;
pub use self::enqueue::{Connection, Enqueue, EnqueueAll, Enqueued};
pub use self::error::Error;
pub use self::job::{Failure, Job, JobId, JobInfo, JobStatus, ParseJobIdError, QueueCounts};
pub use self::limits::QueueLimits;
pub use self::operator::{QueueInfo, UntypedQueue};
pub use self::options::WorkerOptions;
pub use self::queue::Queue;
/// Re-exports `chrono`, because [`CronSchedule::zone`] takes a time zone of this crate.
#[cfg(feature = "cron")]
pub use chrono;
/// Re-exports the database driver, for [transactions of the program](Durable::sqlite_pool). If a program also depends on `sqlx` itself, it
/// must use the same version.
pub use sqlx;

#[cfg(all(doctest, feature = "cron", feature = "sqlite"))]
#[doc = include_str!("../README.md")]
struct Readme;
