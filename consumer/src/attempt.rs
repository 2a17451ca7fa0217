//! Contains the future that runs as the task of one attempt.

use crate::failure::Failure;
use background_tasks::Timer;
use futures_channel::oneshot::{Receiver, Sender};
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::pin;
use std::time::Duration;

/// How an attempt ended.
pub(crate) enum Outcome {
    Completed,
    Failed(Failure),
    /// The registry rejected the task, or the task was aborted or dropped before its handler finished.
    Dropped,
}

/// Runs a handler and sends the outcome to the consumer. Then waits for the result of the task, which the consumer sends back. If the
/// message must be acknowledged or moved to the dead-letter queue, the consumer does this before it sends the result.
pub(crate) async fn attempt<F, E, T>(
    work: F,
    timer: T,
    timeout: Option<Duration>,
    outcome: Sender<Outcome>,
    settled: Receiver<Result<(), String>>,
) -> Result<(), String>
where
    F: Future<Output = Result<(), E>>,
    E: Display + 'static,
    T: Timer,
{
    let work = async {
        let Some(limit) = timeout else { return work.await.map_err(|error| Failure::of(&error)) };
        match select(pin!(work), pin!(timer.sleep(limit))).await {
            Either::Left((result, _)) => result.map_err(|error| Failure::of(&error)),
            Either::Right(_) => Err(Failure::retry(format_args!("timed out after {limit:?}"))),
        }
    };
    let (ended, panic) = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(Ok(())) => (Outcome::Completed, None),
        Ok(Err(failure)) => (Outcome::Failed(failure), None),
        Err(payload) => (Outcome::Failed(Failure::retry(format_args!("panicked: {}", message(&*payload)))), Some(payload)),
    };
    let _ = outcome.send(ended);
    let settled = settled.await.unwrap_or_else(|_| Err("the consumer ended before it settled the message".into()));
    match panic {
        Some(payload) => resume_unwind(payload),
        None => settled,
    }
}

/// Returns the message of a panic.
fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
