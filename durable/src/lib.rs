//! Runs background jobs that survive a crash of the process. The crate stores the jobs in a SQLite file or in Postgres, and runs them as
//! tasks of a [`background_tasks`] registry.
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
//! **Every job runs at least once.** A process can die after it has done the work of a job, but before it has stored the outcome. The job
//! then runs again, so handlers must be idempotent: a repeated run must be harmless. [`Job::id`] is the same at every attempt. Use this ID
//! as the key of an upsert, or as the idempotency key of a request. The page [`migrating`] shows how to write idempotent handlers, and
//! which work does not need a stored job.
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
//! # More examples
//!
//! ```no_run
//! use background_tasks_durable::{Durable, Error, Failure, Job, JobId, Queue, QueueLimits, sqlx};
//! use serde::{Deserialize, Serialize};
//! use std::time::Duration;
//!
//! #[derive(Serialize, Deserialize)]
//! struct Report {
//!     day: u64,
//! }
//!
//! /// The returned value is stored as the result of the job. An error from `?` retries the job after a backoff. A `Failure` can make the
//! /// job dead, or set the delay before the retry.
//! async fn write(report: Job<Report>) -> Result<usize, Failure> {
//!     if report.day == 0 {
//!         return Err(Failure::dead("invalid day"));
//!     }
//!     Ok(std::fs::read(format!("{}.csv", report.day))?.len())
//! }
//!
//! async fn order(durable: &Durable, reports: &Queue<Report>) -> Result<(), Error> {
//!     reports.enqueue(Report { day: 1 }).delay(Duration::from_secs(60)).await?;
//!     let job = reports.enqueue(Report { day: 2 }).unique_key("day 2").await?; // at most one job with this key waits or runs
//!     println!("{} is {}", job.id, if job.is_new { "new" } else { "waiting or running" });
//!     reports.enqueue_all((3..100).map(|day| Report { day })).await?; // enqueues all jobs or none
//!
//!     let pool = durable.sqlite_pool().expect("the store is SQLite"); // or postgres_pool()
//!     let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?; // on Postgres: begin()
//!     sqlx::query("UPDATE days SET ordered = TRUE WHERE day = 100").execute(&mut *tx).await?;
//!     reports.enqueue(Report { day: 100 }).in_transaction(&mut *tx).await?;
//!     tx.commit().await?; // commits both the update and the job
//!     Ok(())
//! }
//!
//! async fn inspect(reports: &Queue<Report>, id: JobId) -> Result<(), Error> {
//!     if let Some(info) = reports.wait(id).await? {
//!         println!("{}: {:?} bytes", info.status(), info.result::<usize>()?);
//!     }
//!     for info in reports.dead().await? {
//!         println!("{}, day {}: {}", info.id(), info.payload::<Report>()?.day, info.error().unwrap_or_default());
//!         reports.retry(info.id()).await?; // or discard, retry_all, discard_all
//!     }
//!     reports.cancel(id).await?; // even if another process runs the job
//!     reports.set_limits(QueueLimits::default().running(8).rate(100, Duration::from_secs(60))).await?; // all processes share the limits
//!     reports.pause().await?; // until a call to `resume`
//!     Ok(())
//! }
//! ```
//!
//! The example of `Queue::cron` shows a schedule. The example of [`Job::complete_in`] shows a handler whose database writes happen exactly
//! once.
//!
//! # Stores
//!
//! | | SQLite | Postgres |
//! | --- | --- | --- |
//! | setup | none: a file | a server |
//! | processes | any number, on one machine | any number, on any machine |
//! | clock for due times and leases | the clock of the machine, in milliseconds | the clock of the server |
//! | start of a job that another process enqueues | within about 30 ms: workers poll the file | within milliseconds: LISTEN and NOTIFY |
//! | tables | their names start with `background_tasks_` | in the schema `background_tasks`, or in a schema that you set |
//! | your own transactions can enqueue jobs | if they use the same file | if they use the same database |
//!
//! # Limits
//!
//! | | |
//! | --- | --- |
//! | payloads of one call | 1 GB in total, because neither database accepts a larger value |
//! | result, error text | 32 MiB. A larger result is not stored, but the job is done, and [`JobInfo::error`] returns the reason. A longer error is truncated |
//! | jobs of one fetch | 1,000 ([`batch_size`](WorkerOptions::batch_size)) |
//! | outcomes of one commit | 1,000; fewer if their results exceed 32 MiB |
//! | jobs that one call lists | 100; another call returns the next page |
//! | [`counts`](Queue::counts) | exact up to 10,000 for each status. The call therefore takes only milliseconds, even with many jobs |
//! | [priority](Enqueue::priority) | 0 to 65,535 |
//! | [lease](WorkerOptions::lease) | at least 3 seconds, default 30 seconds |
//! | attempts, deaths of the worker | default 20 and 10 ([`max_attempts`](WorkerOptions::max_attempts), [`crashes`](WorkerOptions::crashes)) |
//! | [retention](WorkerOptions::retention) | default 7 days if done or cancelled, a century if [dead](WorkerOptions::dead_retention) |
//! | missed ticks of a schedule | jobs are enqueued late for ticks of the last day only |
//!
//! # Tests
//!
//! With the module [`testing`], a test runs the jobs of a program without a worker, and does not wait for delays and backoffs. The store of
//! the test can be in memory.
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
/// Re-exports `chrono`, because [`CronSchedule::zone`] takes a time zone of `chrono`.
#[cfg(feature = "cron")]
pub use chrono;
/// Re-exports the database driver `sqlx`. A program needs it to enqueue jobs in [its own transactions](Durable::sqlite_pool). If a program
/// also depends on `sqlx` directly, the program must use the same version of `sqlx` as this crate.
pub use sqlx;

#[cfg(all(doctest, feature = "sqlite"))]
#[doc = include_str!("../README.md")]
struct Readme;
