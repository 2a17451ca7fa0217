use std::time::Duration;

/// How a worker serves a queue. The defaults are safe for jobs of any length.
///
/// Durations that are too short for the store are lengthened: a worker has a lease of 3 seconds or more, in whole seconds.
#[derive(Clone, Debug)]
#[must_use = "it is what `serve` is given"]
pub struct Options {
    pub(crate) concurrency: usize,
    pub(crate) batch: usize,
    pub(crate) poll: Duration,
    pub(crate) lease: Duration,
    pub(crate) attempts: u32,
    pub(crate) crashes: u32,
    pub(crate) backoff: (Duration, Duration),
    pub(crate) timeout: Option<Duration>,
    pub(crate) retain: Duration,
    pub(crate) upkeep: Duration,
    pub(crate) defer: Duration,
}

/// Longer is for ever, and more than clocks and dates can add.
pub(crate) const EVER: Duration = Duration::from_hours(876_000);

impl Default for Options {
    fn default() -> Self {
        Self {
            concurrency: 4,
            batch: 1,
            poll: Duration::from_millis(100),
            lease: Duration::from_secs(30),
            attempts: 20,
            crashes: 20,
            backoff: (Duration::from_secs(1), Duration::from_mins(10)),
            timeout: None,
            retain: Duration::from_hours(168),
            upkeep: Duration::from_mins(1),
            defer: Duration::from_mins(1),
        }
    }
}

impl Options {
    /// How many jobs run at once in this worker; 4, and at least 1.
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.concurrency = jobs.max(1);
        self
    }

    /// How many jobs are fetched at once; 1, and 10,000 at most. More is faster for short jobs. Those that were fetched wait for their turn
    /// in this worker, however long those before them take and however idle others are.
    pub fn batch(mut self, jobs: usize) -> Self {
        self.batch = jobs.clamp(1, 10_000);
        self
    }

    /// How often the store is asked for jobs of other processes; 100 ms, and at least 1. What this process enqueues it sees at once. A worker
    /// that has met a version that it does not know asks about once a second for a while, so that others are ahead of it.
    pub fn poll(mut self, every: Duration) -> Self {
        self.poll = every.clamp(Duration::from_millis(1), EVER);
        self
    }

    /// A worker that has not been seen for so long is dead, and its jobs go to others; 30 seconds. It tells that it lives five times
    /// as often. All workers of a queue should have the same.
    ///
    /// Longer than the store is ever away, locked or stalled, and than the clock is ever set forward: the first worker that comes back takes those that
    /// could not tell for dead, and what they run runs twice. So short ones are for tests.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.clamp(Duration::from_secs(3), EVER);
        self
    }

    /// A failure of this attempt, or of a later one, is the last: the job is dead; 20, and at least 1.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// How many attempts beyond [`attempts`](Options::attempts) are started of a job whose process died each time; 20. A crash is charged
    /// to every job that was in flight, so this is generous.
    pub fn crashes(mut self, crashes: u32) -> Self {
        self.crashes = crashes;
        self
    }

    /// How long a failed job waits: the first time, and at most; 1 second and 10 minutes. It doubles in between, and what it comes to
    /// is then shortened by up to half, at random, so that jobs that failed together do not come again together. SQLite has whole
    /// seconds.
    pub fn backoff(mut self, first: Duration, most: Duration) -> Self {
        self.backoff = (first.min(EVER), most.min(EVER));
        self
    }

    /// How long an attempt may take; without end. Its future is then dropped, and the attempt has failed.
    pub fn timeout(mut self, most: Duration) -> Self {
        self.timeout = Some(most.min(EVER));
        self
    }

    /// How long a job that was done stays in the store, with its result and its key; 7 days. Dead ones stay.
    pub fn retain(mut self, done: Duration) -> Self {
        self.retain = done.min(EVER);
        self
    }

    /// How often the store is tidied: done jobs are dropped, and SQLite's planner is told how large its tables are; 60 seconds, and at
    /// least 1.
    pub fn upkeep(mut self, every: Duration) -> Self {
        self.upkeep = every.clamp(Duration::from_secs(1), EVER);
        self
    }

    /// When a job whose version is not known here is looked at again, by a worker that may be newer; 60 seconds.
    pub fn defer(mut self, unknown: Duration) -> Self {
        self.defer = unknown.min(EVER);
        self
    }

    /// Doubled, capped, and half of it at random:
    /// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/> ("equal jitter").
    pub(crate) fn pause(&self, attempt: u32) -> Duration {
        let (first, most) = self.backoff;
        let doubled = first.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1))).min(most);
        doubled.mul_f64(fastrand::f64().mul_add(0.5, 0.5))
    }
}

#[cfg(test)]
mod tests {
    use super::Options;
    use std::time::Duration;

    #[test]
    fn a_pause_doubles_up_to_its_cap_and_is_never_less_than_half() {
        let options = Options::default().backoff(Duration::from_secs(1), Duration::from_mins(1));
        for (attempt, whole) in [(1, 1), (2, 2), (3, 4), (7, 60), (u32::MAX, 60)] {
            let whole = Duration::from_secs(whole);
            let pauses: Vec<_> = (0..100).map(|_| options.pause(attempt)).collect();
            assert!(pauses.iter().all(|pause| (whole / 2..=whole).contains(pause)), "{attempt}: {pauses:?}");
            assert!(pauses.iter().any(|pause| pause != &pauses[0]), "{attempt}: no jitter");
        }
    }
}
