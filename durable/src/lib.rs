//! Durable jobs
#![cfg_attr(docsrs, feature(doc_cfg))]

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

pub use self::durable::Durable;
pub use self::error::Error;
pub use self::job::{Counts, Failure, Info, Job, JobId, ParseJobIdError, Status};
pub use self::options::Options;
pub use self::queue::{Connection, Enqueue, EnqueueAll, Enqueuing, Queue};
pub use sqlx;
