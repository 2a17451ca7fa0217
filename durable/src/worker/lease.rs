//! The lease of a job: it sends exactly one final update, whatever happens to the job's task.

use super::in_flight::{InFlightJobs, JobEvent};
use super::result::storable;
use crate::job::{Failure, Next};
use apalis_core::backend::TaskResult;
use apalis_core::task::status::Status;
use background_tasks::ShutdownSignal;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use ulid::Ulid;

/// A fetched job. If the lease is dropped before the job has ended, it sends the update itself.
pub(super) struct JobLease {
    pub(super) in_flight: Arc<InFlightJobs>,
    pub(super) id: Ulid,
    pub(super) run: u64,
    pub(super) attempt: u32,
    /// Whether a failure of this attempt makes the job dead.
    pub(super) is_last_attempt: bool,
    pub(super) state: LeaseState,
    pub(super) signal: ShutdownSignal,
    /// The backoff after a failure of this attempt.
    pub(super) retry_delay: Duration,
}

#[derive(PartialEq)]
pub(super) enum LeaseState {
    Fetched,
    Started,
    Over,
}

impl JobLease {
    pub(super) fn start(&mut self) {
        self.state = LeaseState::Started;
        drop(self.in_flight.send(self.id, self.run, JobEvent::Started));
    }

    /// Sends the final update. The future resolves to whether it is committed.
    pub(super) fn end(&mut self, event: JobEvent) -> impl Future<Output = bool> + use<> {
        self.state = LeaseState::Over;
        self.in_flight.mark_over(self.id, self.run);
        self.in_flight.send(self.id, self.run, event)
    }

    pub(super) fn completed(&self, result: Value) -> JobEvent {
        self.ended(Status::Done, Ok(result), None)
    }

    pub(super) fn failed(&self, failure: &Failure) -> JobEvent {
        let retry = match failure.next {
            Next::Dead => None,
            _ if self.is_last_attempt => None,
            Next::After(delay) => Some(delay),
            Next::Backoff => Some(self.retry_delay),
        };
        let status = if retry.is_some() { Status::Failed } else { Status::Killed };
        self.ended(status, Err(failure.to_string()), retry)
    }

    fn ended(&self, status: Status, result: Result<Value, String>, retry: Option<Duration>) -> JobEvent {
        let (result, size) = storable(result);
        let result = TaskResult { task_id: self.id.into(), attempt: self.attempt as usize, status, result };
        JobEvent::Ended { result, retry, size }
    }
}

impl Drop for JobLease {
    fn drop(&mut self) {
        let event = match self.state {
            LeaseState::Over => return,
            LeaseState::Started if !self.signal.is_triggered() => self.failed(&Failure::retry("the task was aborted")),
            _ => JobEvent::Returned,
        };
        drop(self.end(event));
    }
}
