use crate::options::MAX_DURATION;
use std::time::Duration;

/// The limits of a queue. All workers of the queue share the limits, in any number of processes. See
/// [`Queue::set_limits`](crate::Queue::set_limits).
///
/// The limits are exact, because a job counts as running from the moment when a worker fetches it. A fetch from a queue with limits takes
/// longer than other fetches, because only one worker of the queue can fetch at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[must_use = "pass the limits to `set_limits`"]
pub struct QueueLimits {
    pub(crate) running: Option<u32>,
    pub(crate) running_per_key: Option<u32>,
    pub(crate) rate: Option<(u32, Duration)>,
}

impl QueueLimits {
    /// Sets how many jobs of the queue can run at the same time. Default: no limit. Minimum: 1.
    pub fn running(mut self, jobs: u32) -> Self {
        self.running = Some(jobs.max(1));
        self
    }

    /// Sets how many jobs with the same [limit key](crate::Enqueue::limit_key) can run at the same time. Default: no limit. Minimum: 1.
    pub fn running_per_key(mut self, jobs: u32) -> Self {
        self.running_per_key = Some(jobs.max(1));
        self
    }

    /// Sets how many jobs can start per period on average. Default: no limit. Minimum: 1 job and a period of 1 millisecond. Maximum: a period
    /// of a century.
    ///
    /// The limit is a token bucket. Each job takes one token when it starts, and waits if there is none. The bucket receives `jobs` tokens
    /// per `period`, at a constant rate, and holds at most `jobs` tokens. If no job has started for a while, up to `jobs` jobs can
    /// therefore start at the same time.
    pub fn rate(mut self, jobs: u32, period: Duration) -> Self {
        self.rate = Some((jobs.max(1), period.clamp(Duration::from_millis(1), MAX_DURATION)));
        self
    }

    /// Returns the limit that [`running`](QueueLimits::running) sets.
    pub fn get_running(&self) -> Option<u32> {
        self.running
    }

    /// Returns the limit that [`running_per_key`](QueueLimits::running_per_key) sets.
    pub fn get_running_per_key(&self) -> Option<u32> {
        self.running_per_key
    }

    /// Returns the number of jobs and the period that [`rate`](QueueLimits::rate) sets.
    pub fn get_rate(&self) -> Option<(u32, Duration)> {
        self.rate
    }
}
