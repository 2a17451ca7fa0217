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
//! **Every job runs at least once.** A process can die after it has done the work of a job, but before it has stored the outcome. Such a
//! job runs again, so handlers must be idempotent. [`Job::id`] is the same at every attempt. Use this ID as the key of an upsert, or as the
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
//!     let job = reports.enqueue(Report { day: 2 }).unique_key("day 2").await?; // a second call enqueues nothing
//!     println!("{} is {}", job.id, if job.is_new { "new" } else { "waiting or running" });
//!     reports.enqueue_all((3..100).map(|day| Report { day })).await?; // all or none
//!
//!     let pool = durable.sqlite_pool().expect("the store is SQLite"); // or postgres_pool()
//!     let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?; // on Postgres: begin()
//!     sqlx::query("UPDATE days SET ordered = TRUE WHERE day = 100").execute(&mut *tx).await?;
//!     reports.enqueue(Report { day: 100 }).in_transaction(&mut *tx).await?;
//!     tx.commit().await?; // both or neither
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
//!     reports.cancel(id).await?; // waiting or running, in any process
//!     reports.set_limits(QueueLimits::default().running(8).rate(100, Duration::from_secs(60))).await?; // of all processes together
//!     reports.pause().await?; // until resume
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
//! | clock | the machine's, in milliseconds | the server's |
//! | start of a job from another process | within about 30 ms, by polling the file | within milliseconds, by LISTEN and NOTIFY |
//! | tables | `background_tasks_…` | in the schema `background_tasks`, or in another schema |
//! | your own transactions | on the same file | on the same database |
//!
//! # Limits
//!
//! | | |
//! | --- | --- |
//! | payloads of one call | 1 GB in total, the largest value of either database |
//! | result, error text | 32 MiB. A larger result is not stored: the job is done, and [`JobInfo::error`] returns the reason. A longer error is truncated |
//! | jobs of one fetch | 1,000 ([`batch_size`](WorkerOptions::batch_size)) |
//! | outcomes of one commit | 1,000; fewer if their results exceed 32 MiB |
//! | jobs of one page of a list | 100 |
//! | [`counts`](Queue::counts) | exact up to 10,000 for each state, so that the call takes milliseconds at any depth |
//! | [priority](Enqueue::priority) | 0 to 65,535 |
//! | [lease](WorkerOptions::lease) | at least 3 seconds, default 30 seconds |
//! | attempts, deaths of the worker | default 20 and 10 ([`max_attempts`](WorkerOptions::max_attempts), [`crashes`](WorkerOptions::crashes)) |
//! | [retention](WorkerOptions::retention) | default 7 days for jobs that are done or cancelled. Dead jobs are kept ([`dead_retention`](WorkerOptions::dead_retention)) |
//! | missed ticks of a schedule | enqueued for at most the last day |
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
/// Re-exports `chrono`, because [`CronSchedule::zone`] takes a time zone of `chrono`.
#[cfg(feature = "cron")]
pub use chrono;
/// Re-exports the database driver `sqlx`, for [transactions of the program](Durable::sqlite_pool). If a program also depends on `sqlx`
/// directly, the program must use the same version of `sqlx` as this crate.
pub use sqlx;

#[cfg(all(doctest, feature = "sqlite"))]
#[doc = include_str!("../README.md")]
struct Readme;
