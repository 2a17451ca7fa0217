//! Background tasks that survive a crash: jobs in a SQLite file or in Postgres, run as tasks of a [`background_tasks`] registry.
//!
//! ```no_run
//! use background_tasks::{Registry, TokioSpawner};
//! use background_tasks_durable::{Durable, Error, Job, Options};
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
//! let jobs = Durable::sqlite("jobs.db").await?;
//! let email = jobs.queue::<Email>("email");
//! email.serve(&registry, Options::default().concurrency(4), send).await?;
//! email.enqueue(Email { to: "a@example.com".into() }).await?;
//! # Ok(())
//! # }
//! ```
//!
//! **A job is done at least once.** A process can die between the work and its acknowledgement, and the job is then given to another. So a
//! handler must be idempotent: [`Job::id`] is the same at every attempt, and is what it writes with an upsert, or gives as a key to whom it asks.
//! [`migrating`] shows how, and for which work a registry alone is the better choice.
//!
//! # Life of a job
//!
//! ```text
//! enqueue ──▶ Waiting ──▶ Running ──▶ Done ──▶ dropped, after `Options::retain`
//!                ▲           │
//!                │           ├──▶ Retrying, for its backoff ──▶ Running
//!                │           ├──▶ Dead: failed too often, or for good ──▶ Waiting, by `Queue::retry`
//!                └───────────┘ a shutdown's end cut it, or its worker was not seen for its lease
//! ```
//!
//! # Features
//!
//! | feature | gives |
//! | --- | --- |
//! | `sqlite` (default) | `Durable::sqlite`: a file, for any number of processes of one machine |
//! | `postgres` | `Durable::postgres`: a server, for workers on any number of machines |
//! | `cron` | `Queue::cron`: a job at each tick of a schedule |
//!
//! A library that enqueues and leaves the store to its program takes neither.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(any(feature = "sqlite", feature = "postgres")),
    allow(dead_code, unused_imports, unused_variables, clippy::unused_async)
)]

#[cfg(feature = "cron")]
mod cron;
mod durable;
mod error;
mod intake;
mod job;
mod options;
mod queue;
mod runtime;
mod store;
mod worker;

#[doc = include_str!("migrating.md")]
pub mod migrating {}

pub use self::durable::Durable;
pub use self::error::Error;
pub use self::job::{Counts, Failure, Info, Job, JobId, ParseJobIdError, Status};
pub use self::options::Options;
pub use self::queue::{Connection, Enqueue, EnqueueAll, Queue};
/// The driver, for [transactions of the program's own](Durable::sqlite_pool): a program that depends on it needs this version.
pub use sqlx;

#[cfg(all(doctest, feature = "cron", feature = "sqlite"))]
#[doc = include_str!("../README.md")]
struct Readme;
