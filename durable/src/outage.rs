//! Handles outages of the store: limits the time of each call, reports each outage one time, and doubles the delay between retries.

use crate::error::Error;
use futures_timer::Delay;
use futures_util::future::{Either, select};
use std::pin::pin;
use std::time::{Duration, Instant};

/// The first and the longest delay before a failed call to the store is retried.
pub(crate) const RETRY_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The default of [`WorkerOptions::response_timeout`](crate::WorkerOptions::response_timeout). `Queue::cron` uses the same time limit for
/// its calls to the store.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_RESPONSE_TIMEOUT: Duration = Duration::from_mins(10);

/// Reports a failure that does not belong to a single job. The registry's observers receive the report.
pub(crate) type Report = Box<dyn Fn(Error) + Send + Sync>;

/// Calls the store with a time limit.
pub(crate) async fn with_timeout<T>(limit: Duration, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match select(pin!(call), Delay::new(limit)).await {
        Either::Left((response, _)) => response,
        Either::Right(_) => Err(Error::Unavailable(format!("the database did not respond within {limit:?}"))),
    }
}

/// A time limit that doubles each time it expires, because the store may be overloaded.
pub(crate) struct ResponseTimeout(pub(crate) Duration);

impl ResponseTimeout {
    /// Calls the store with the current time limit.
    pub(crate) async fn limit<T>(&mut self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let start = Instant::now();
        let response = with_timeout(self.0, call).await;
        if response.is_err() && start.elapsed() >= self.0 {
            self.0 = (self.0 * 2).min(MAX_RESPONSE_TIMEOUT.max(self.0));
        }
        response
    }
}

/// An outage of the store, which is a sequence of failed calls. Only the first failure is reported.
pub(crate) struct Outage<'a> {
    report: &'a Report,
    retry_delay: Duration,
}

impl<'a> Outage<'a> {
    pub(crate) fn new(report: &'a Report) -> Self {
        Self { report, retry_delay: RETRY_BACKOFF.0 }
    }

    /// Reports the failure if it is the first of this outage. Returns how long to wait before the next call.
    pub(crate) fn failed(&mut self, error: Error) -> Duration {
        let (first, longest) = RETRY_BACKOFF;
        let delay = self.retry_delay;
        if delay == first {
            (self.report)(error);
        }
        self.retry_delay = (delay * 2).min(longest);
        delay
    }

    /// Ends the outage, so that the next failure is reported as a new outage.
    pub(crate) fn ended(&mut self) {
        self.retry_delay = RETRY_BACKOFF.0;
    }
}
