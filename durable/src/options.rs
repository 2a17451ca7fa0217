use crate::outage::RESPONSE_TIMEOUT;
use std::time::Duration;

/// Configures how a worker serves a queue. The defaults are safe for jobs of any length.
///
/// Durations that are too short for the store are lengthened.
#[derive(Clone, Debug)]
#[must_use = "pass the options to `serve`"]
pub struct WorkerOptions {
    pub(crate) concurrency: usize,
    pub(crate) batch_size: usize,
    pub(crate) poll_interval: Duration,
    pub(crate) lease: Duration,
    pub(crate) max_attempts: u32,
    pub(crate) crashes: u32,
    pub(crate) backoff: (Duration, Duration),
    pub(crate) timeout: Option<Duration>,
    pub(crate) response_timeout: Duration,
    pub(crate) retention: Duration,
    pub(crate) maintenance_interval: Duration,
    pub(crate) unknown_version_delay: Duration,
}

/// A century. Longer durations overflow clocks and dates.
pub(crate) const MAX_DURATION: Duration = Duration::from_hours(876_000);

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            concurrency: 4,
            batch_size: 1,
            poll_interval: Duration::from_millis(100),
            lease: Duration::from_secs(30),
            max_attempts: 20,
            crashes: 20,
            backoff: (Duration::from_secs(1), Duration::from_mins(10)),
            timeout: None,
            response_timeout: RESPONSE_TIMEOUT,
            retention: Duration::from_hours(168),
            maintenance_interval: Duration::from_mins(1),
            unknown_version_delay: Duration::from_mins(1),
        }
    }
}

impl WorkerOptions {
    /// Sets how many jobs this worker runs at the same time. Default: 4. Minimum: 1.
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs.max(1);
        self
    }

    /// Sets how many jobs a fetch takes from the store. Default: 1. Minimum: 1. Maximum: 10,000.
    ///
    /// A larger batch is faster for short jobs. Fetched jobs wait in this worker until a permit is free, even if other workers are idle.
    pub fn batch_size(mut self, jobs: usize) -> Self {
        self.batch_size = jobs.clamp(1, 10_000);
        self
    }

    /// Sets how often the worker polls the store for jobs of other processes. Default: 100 ms. Minimum: 1 ms.
    ///
    /// Jobs that the same process enqueues start immediately. After a worker has met an unknown payload version, it polls about once a
    /// second for some minutes, so that other workers fetch the job first.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval.clamp(Duration::from_millis(1), MAX_DURATION);
        self
    }

    /// Sets how long a worker counts as alive after its last heartbeat. Default: 30 seconds. Minimum: 3 seconds, in whole seconds.
    ///
    /// When the lease expires, other workers take its jobs. A worker sends five heartbeats in each lease. Give all workers of a queue
    /// the same lease.
    ///
    /// The lease must be longer than any outage, lock or stall of the store, and than any forward jump of the clock. Otherwise the first
    /// worker that reaches the store again treats the others as dead, and their jobs run twice. Use short leases in tests only.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.clamp(Duration::from_secs(3), MAX_DURATION);
        self
    }

    /// Sets how many attempts a job has before it is dead. Default: 20. Minimum: 1.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts.max(1);
        self
    }

    /// Sets how many attempts beyond [`max_attempts`](WorkerOptions::max_attempts) a job has if its process dies each time. Default: 20.
    ///
    /// The default is generous because a crash is charged to every job that was in flight.
    pub fn crashes(mut self, crashes: u32) -> Self {
        self.crashes = crashes;
        self
    }

    /// Sets the first and the longest delay before a failed job is retried. Default: 1 second and 10 minutes.
    ///
    /// The delay doubles with each attempt. It is then shortened by up to half at random, so that jobs that failed together do not
    /// return together. SQLite rounds it up to whole seconds.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.backoff = (first.min(MAX_DURATION), longest.min(MAX_DURATION));
        self
    }

    /// Sets a time limit for each attempt. Default: none. When it expires, the handler's future is dropped and the attempt has failed.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit.min(MAX_DURATION));
        self
    }

    /// Sets how long the store may take to respond to the worker. Default: 15 seconds. Minimum: 1 second.
    ///
    /// When this time expires, the worker repeats the call on another connection. The time limit doubles with each repetition, because the
    /// store may be overloaded. A fetch without a response is repeated after 4/3 to 8/3 of this time.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit.clamp(Duration::from_secs(1), MAX_DURATION);
        self
    }

    /// Sets how long the store keeps a finished job with its result and its key. Default: 7 days. Dead jobs are kept.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention.min(MAX_DURATION);
        self
    }

    /// Sets how often the worker deletes finished jobs and updates the statistics of SQLite's query planner. Default: 60 seconds.
    /// Minimum: 1 second.
    pub fn maintenance_interval(mut self, interval: Duration) -> Self {
        self.maintenance_interval = interval.clamp(Duration::from_secs(1), MAX_DURATION);
        self
    }

    /// Sets how long a job with an unknown payload version waits before a worker, perhaps a newer one, fetches it again. Default: 60
    /// seconds.
    pub fn unknown_version_delay(mut self, delay: Duration) -> Self {
        self.unknown_version_delay = delay.min(MAX_DURATION);
        self
    }

    /// Returns the delay after a failed attempt: doubled, capped, and half of it at random ("equal jitter"):
    /// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>.
    pub(crate) fn retry_delay(&self, attempt: u32) -> Duration {
        let (first, longest) = self.backoff;
        let doubled = first.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1))).min(longest);
        doubled.mul_f64(fastrand::f64().mul_add(0.5, 0.5))
    }
}

#[cfg(test)]
mod tests {
    use super::WorkerOptions;
    use std::time::Duration;

    #[test]
    fn retry_delay_doubles_up_to_its_cap_and_loses_at_most_half() {
        let options = WorkerOptions::default().backoff(Duration::from_secs(1), Duration::from_mins(1));
        for (attempt, whole) in [(1, 1), (2, 2), (3, 4), (7, 60), (u32::MAX, 60)] {
            let whole = Duration::from_secs(whole);
            let delays: Vec<_> = (0..100).map(|_| options.retry_delay(attempt)).collect();
            assert!(delays.iter().all(|delay| (whole / 2..=whole).contains(delay)), "{attempt}: {delays:?}");
            assert!(delays.iter().any(|delay| delay != &delays[0]), "{attempt}: no jitter");
        }
    }
}
