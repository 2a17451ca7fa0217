use crate::job::JobInfo;
use crate::outage::RESPONSE_TIMEOUT;
use crate::store::MAX_ROWS;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Configures how a worker serves a queue. With the defaults, a job can run for any length of time, because its worker keeps renewing the
/// lease.
///
/// The methods replace a value below its minimum by the minimum, and a value above its maximum by the maximum. The maximum of every
/// duration is a century.
#[derive(Clone)]
#[must_use = "pass the options to `serve`"]
pub struct WorkerOptions {
    pub(crate) concurrency: usize,
    pub(crate) batch_size: usize,
    pub(crate) poll_interval: Option<Duration>,
    pub(crate) lease: Duration,
    pub(crate) max_attempts: u32,
    pub(crate) crashes: u32,
    pub(crate) backoff: (Duration, Duration),
    pub(crate) timeout: Option<Duration>,
    pub(crate) response_timeout: Duration,
    pub(crate) retention: Duration,
    pub(crate) dead_retention: Duration,
    pub(crate) maintenance_interval: Duration,
    pub(crate) unknown_version_delay: Duration,
    pub(crate) on_dead: Option<Arc<DeadHook>>,
}

type DeadHook = dyn Fn(&JobInfo) + Send + Sync;

/// The maximum of every duration: a century. Longer durations would overflow clocks and dates.
pub(crate) const MAX_DURATION: Duration = Duration::from_hours(876_000);

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            concurrency: 4,
            batch_size: 1,
            poll_interval: None,
            lease: Duration::from_secs(30),
            max_attempts: 20,
            crashes: 10,
            backoff: (Duration::from_secs(1), Duration::from_mins(10)),
            timeout: None,
            response_timeout: RESPONSE_TIMEOUT,
            retention: Duration::from_hours(168),
            dead_retention: MAX_DURATION,
            maintenance_interval: Duration::from_mins(1),
            unknown_version_delay: Duration::from_mins(1),
            on_dead: None,
        }
    }
}

impl WorkerOptions {
    /// Sets how many jobs this worker runs at the same time. Default: 4. Minimum: 1.
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs.max(1);
        self
    }

    /// Sets how many jobs the worker tries to fetch in one call to the store. Default: 1. Minimum: 1. Maximum: 1,000.
    ///
    /// A worker fetches jobs when it holds fewer jobs than its [concurrency](Self::concurrency). It fetches as many jobs as it can start
    /// now. If the batch size is larger than this number, it fetches as many jobs as the batch size.
    ///
    /// A worker with large batches fetches less often, so it is faster if its jobs are short. The jobs that it cannot start yet wait in
    /// this worker, even if other workers are idle.
    pub fn batch_size(mut self, jobs: usize) -> Self {
        self.batch_size = jobs.clamp(1, MAX_ROWS);
        self
    }

    /// Sets how often the process checks the store for new jobs. Default: 1 second on Postgres, and 25 ms on SQLite. Minimum: 1 ms.
    ///
    /// Jobs that the same process enqueues start immediately, without a check.
    ///
    /// - On Postgres, jobs that other processes enqueue also start immediately, because those processes send notifications. The check finds
    ///   only the jobs whose notification was lost.
    /// - On SQLite, there are no notifications. The process checks at this interval, but at least once a second, whether the file has
    ///   changed. Each check takes microseconds.
    ///
    /// If the workers of a process have different intervals, all workers use the shortest interval.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = Some(interval.clamp(Duration::from_millis(1), MAX_DURATION));
        self
    }

    /// Sets how long a worker is treated as alive after its last heartbeat. Default: 30 seconds. Minimum: 3 seconds.
    ///
    /// When the lease expires, other workers take the jobs of this worker. One thread of the process sends the heartbeats of all its
    /// workers, five times during one lease. If the workers have different leases, the shortest lease counts.
    ///
    /// Choose a lease that is longer than any time for which the store is down, locked or stalled. The lease must also be longer than any
    /// forward jump of the store's clock. With a shorter lease, another process may treat this worker as dead, and run its jobs a second
    /// time. Use short leases in tests only.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.clamp(Duration::from_secs(3), MAX_DURATION);
        self
    }

    /// Sets the number of attempts after which a failed job is dead. Default: 20. Minimum: 1.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts.max(1);
        self
    }

    /// Sets how many times a job runs again after the death of its worker. Default: 10. After one more death, the job is dead.
    ///
    /// When a worker dies, the death counts for every job that the worker has fetched and not finished. Only one of these jobs may have
    /// caused the death. A death does not count toward [`max_attempts`](Self::max_attempts).
    ///
    /// A job with two deaths runs alone in its process. If the process dies once more, another job cannot be the cause.
    pub fn crashes(mut self, crashes: u32) -> Self {
        self.crashes = crashes;
        self
    }

    /// Sets the first and the longest delay before a failed job is retried. Default: 1 second and 10 minutes.
    ///
    /// The delay doubles with each attempt, up to the longest delay. The worker then subtracts a random part of up to half of the delay.
    /// Jobs that failed at the same time are therefore retried at different times.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.backoff = (first.min(MAX_DURATION), longest.min(MAX_DURATION));
        self
    }

    /// Sets a time limit for each attempt. Default: none. When the limit expires, the handler's future is dropped and the attempt has
    /// failed.
    ///
    /// If the handler has started a blocking closure, the closure continues after the limit. If the closure owns a clone of the handler's
    /// [`Job`](crate::Job), the backoff starts only when this clone is dropped. The retry then cannot overlap the closure.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit.min(MAX_DURATION));
        self
    }

    /// Sets the longest time for which the worker waits for a response of the store. Default: 15 seconds. Minimum: 1 second.
    ///
    /// When this time expires, the worker repeats the call. On Postgres, it uses another connection for the repeated call. If a commit of
    /// outcomes exceeds the limit, the store may be overloaded. The limit then doubles for the next try, up to 10 minutes.
    ///
    /// Heartbeats have a separate time limit: two fifths of the shortest lease, and at least 2 seconds.
    pub fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = limit.clamp(Duration::from_secs(1), MAX_DURATION);
        self
    }

    /// Sets how long the store keeps a job with its result after the job is done or cancelled. Default: 7 days.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention.min(MAX_DURATION);
        self
    }

    /// Sets how long the store keeps dead jobs. Default: a century.
    pub fn dead_retention(mut self, retention: Duration) -> Self {
        self.dead_retention = retention.min(MAX_DURATION);
        self
    }

    /// Sets a function that this worker calls when a failed attempt has made a job dead. Default: none.
    ///
    /// The worker calls the function after the outcome of the attempt is committed. The function is not async. To enqueue other jobs, start
    /// a task in the function. The worker does not call the function if the process dies before the call, or if the last attempt was
    /// aborted. If the function panics, the worker ignores the panic.
    pub fn on_dead(mut self, hook: impl Fn(&JobInfo) + Send + Sync + 'static) -> Self {
        self.on_dead = Some(Arc::new(hook));
        self
    }

    /// Sets how often the worker deletes jobs whose retention has expired. Default: 60 seconds. Minimum: 1 second.
    pub fn maintenance_interval(mut self, interval: Duration) -> Self {
        self.maintenance_interval = interval.clamp(Duration::from_secs(1), MAX_DURATION);
        self
    }

    /// Sets how long a job with an unknown payload version waits before a worker fetches it again. Default: 60 seconds.
    ///
    /// After a worker has fetched such a job, it fetches only about once a second. It does so for twice the delay, but for at most 5
    /// minutes. Workers of a newer release, which can read the payload, then usually fetch the job first.
    pub fn unknown_version_delay(mut self, delay: Duration) -> Self {
        self.unknown_version_delay = delay.min(MAX_DURATION);
        self
    }

    /// Returns the delay after a failed attempt. The delay doubles with each attempt, up to the longest delay. A random part of up to half
    /// is then subtracted ("equal jitter"): <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>.
    pub(crate) fn retry_delay(&self, attempt: u32) -> Duration {
        let (first, longest) = self.backoff;
        let doubled = first.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1))).min(longest);
        doubled.mul_f64(fastrand::f64().mul_add(0.5, 0.5))
    }
}

impl fmt::Debug for WorkerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerOptions")
            .field("concurrency", &self.concurrency)
            .field("lease", &self.lease)
            .field("max_attempts", &self.max_attempts)
            .field("crashes", &self.crashes)
            .finish_non_exhaustive()
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
