//! Contains functions for tests of programs that enqueue and run jobs.
//!
//! [`Durable::in_memory`](crate::Durable::in_memory) creates a store for one test. [`enqueued`] lists the jobs that wait in a queue.
//! [`drain`] runs the due jobs of a queue in the test's own task, without a registry and without a worker. [`advance`] moves the clock of
//! the store forward, so that scheduled jobs and retries become due without a wait.
//!
//! ```
//! use background_tasks_durable::testing::{advance, drain, enqueued};
//! use background_tasks_durable::{Durable, Error, Failure, Job, JobStatus, Queue, WorkerOptions};
//! use serde::{Deserialize, Serialize};
//! use std::time::Duration;
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! struct Email {
//!     to: String,
//! }
//!
//! const DAY: Duration = Duration::from_secs(24 * 60 * 60);
//!
//! // The program:
//!
//! async fn sign_up(emails: &Queue<Email>, address: &str) -> Result<(), Error> {
//!     emails.enqueue(Email { to: address.into() }).delay(DAY).unique_key(address).await?;
//!     Ok(())
//! }
//!
//! async fn send(email: Job<Email>) -> Result<(), Failure> {
//!     if email.attempt() == 1 { Err(Failure::retry("the mail server is down")) } else { Ok(()) }
//! }
//!
//! // The test:
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! let durable = Durable::in_memory().await?;
//! let emails = durable.queue::<Email>("email");
//! sign_up(&emails, "a@example.com").await?;
//!
//! let jobs = enqueued(&emails).await?;
//! assert_eq!(jobs[0].payload, Email { to: "a@example.com".into() });
//! assert_eq!(jobs[0].delay, DAY);
//! assert_eq!(jobs[0].unique_key.as_deref(), Some("a@example.com"));
//!
//! let attempts = drain(&emails, WorkerOptions::default(), send).await?;
//! assert!(attempts.is_empty(), "the job is not due");
//!
//! advance(&durable, DAY).await?;
//! let attempts = drain(&emails, WorkerOptions::default(), send).await?;
//! assert_eq!(attempts[0].status(), JobStatus::Retrying);
//! assert_eq!(attempts[0].error(), Some("the mail server is down"));
//!
//! advance(&durable, Duration::from_secs(1)).await?; // the backoff
//! let attempts = drain(&emails, WorkerOptions::default(), send).await?;
//! assert_eq!(attempts[0].status(), JobStatus::Done);
//! assert!(enqueued(&emails).await?.is_empty());
//! # Ok(())
//! # }
//! ```

pub use crate::kit::{EnqueuedJob, advance, drain, enqueued};
