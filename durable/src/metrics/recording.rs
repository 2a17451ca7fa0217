use crate::durable::Durable;
use crate::job::QueueCounts;
use crate::operator::QueueInfo;
use crate::options::MAX_DURATION;
use crate::outage::{RESPONSE_TIMEOUT, with_timeout};
use futures_timer::Delay;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use std::collections::HashSet;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

const JOBS: &str = "background_tasks_jobs";
const OLDEST_DUE: &str = "background_tasks_jobs_oldest_due_seconds";
const ATTEMPTS_TOTAL: &str = "background_tasks_job_attempts_total";
const ATTEMPT_DURATION: &str = "background_tasks_job_attempt_duration_seconds";
const FETCH_DURATION: &str = "background_tasks_job_fetch_duration_seconds";
const LEASES_LOST_TOTAL: &str = "background_tasks_job_leases_lost_total";
const RECOVERED_TOTAL: &str = "background_tasks_jobs_recovered_total";

/// Whether the program has called `record_metrics`.
#[derive(Default)]
pub(crate) struct Metrics(AtomicBool);

impl Metrics {
    /// Returns the current time, or `None` if the program records no metrics.
    pub(crate) fn now(&self) -> Option<Instant> {
        self.0.load(Relaxed).then(Instant::now)
    }

    /// Records the duration of a fetch that started at this time.
    pub(crate) fn fetched(start: Option<Instant>) {
        if let Some(start) = start {
            histogram!(FETCH_DURATION).record(start.elapsed());
        }
    }

    /// Records the end of an attempt.
    pub(crate) fn attempt_ended(queue: &'static str, outcome: &'static str, duration: Duration) {
        counter!(ATTEMPTS_TOTAL, "queue" => queue, "outcome" => outcome).increment(1);
        histogram!(ATTEMPT_DURATION, "queue" => queue, "outcome" => outcome).record(duration);
    }

    pub(crate) fn lease_lost(&self, queue: &'static str) {
        if self.0.load(Relaxed) {
            counter!(LEASES_LOST_TOTAL, "queue" => queue).increment(1);
        }
    }

    pub(crate) fn recovered(&self, jobs: u64) {
        if self.0.load(Relaxed) {
            counter!(RECOVERED_TOTAL).increment(jobs);
        }
    }
}

impl Durable {
    /// Starts to record metrics of this store and of this process's workers through the [`metrics`](https://docs.rs/metrics) facade.
    /// Install an exporter of your choice before this call. Further calls have no effect.
    ///
    /// | metric | type | labels |
    /// | --- | --- | --- |
    /// | `background_tasks_jobs` | gauge | `queue`; `state`: `waiting`, `running`, `retrying`, `done`, `dead`, `cancelled` |
    /// | `background_tasks_jobs_oldest_due_seconds` | gauge | `queue` |
    /// | `background_tasks_job_attempts_total` | counter | `queue`; `outcome`: `done`, `retried`, `dead`, `cancelled`, `returned`, `deferred`, `lost` |
    /// | `background_tasks_job_attempt_duration_seconds` | histogram | `queue`, `outcome` |
    /// | `background_tasks_job_fetch_duration_seconds` | histogram | |
    /// | `background_tasks_job_leases_lost_total` | counter | `queue` |
    /// | `background_tasks_jobs_recovered_total` | counter | |
    ///
    /// # Gauges
    ///
    /// Once per `interval`, a task of this process reads the values of the gauges for all queues of the store, with one statement. Minimum
    /// of `interval`: 1 second. The duration of the statement does not depend on the number of jobs, because each count stops above
    /// [`QueueCounts::LIMIT`](crate::QueueCounts::LIMIT). During an outage of the store, the gauges keep their last values.
    ///
    /// Each process that records metrics reports the gauges of the whole store. To combine the gauges of several processes, use `max`, not
    /// a sum.
    ///
    /// `background_tasks_jobs_oldest_due_seconds` is the time for which the oldest due job has waited for a worker, or 0 if no job is due.
    /// Base alerts on this gauge. It rises when workers are missing, stuck or too slow, or when the queue is paused. It does not rise only
    /// because a queue has many jobs.
    ///
    /// # Counters and histograms
    ///
    /// The counters and histograms cover the workers of this process. An attempt is counted when its outcome is committed. These values of
    /// the label `outcome` need an explanation:
    ///
    /// - `retried`: the attempt has failed, and the job waits for its backoff.
    /// - `returned`: a shutdown has interrupted the attempt, and the job is back in the queue.
    /// - `deferred`: the worker does not know the version of the payload, so the job waits for another worker.
    /// - `lost`: the worker has lost the job because its lease had expired, and the store has discarded the outcome.
    ///
    /// The duration of an attempt is the time that the handler runs. If the job is retried, the duration includes the time until the last
    /// clone of the [`Job`](crate::Job) is dropped. A blocking closure can own such a clone. The duration of a fetch is the duration of its
    /// statement. The counter `background_tasks_jobs_recovered_total` counts the jobs of dead workers that this process has put back into
    /// their queues.
    ///
    /// The exporter `metrics-exporter-prometheus` keeps every duration until it renders the metrics. If you install it with
    /// `install_recorder`, call `PrometheusHandle::run_upkeep` every few seconds, or its memory grows while nobody collects the metrics.
    ///
    /// The task that reads the gauges ends when all handles of the store are dropped and all workers of this process have ended.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use background_tasks_durable::{Durable, Error};
    /// # use std::time::Duration;
    /// # async fn start() -> Result<(), Error> {
    /// let durable = Durable::sqlite("jobs.db").await?;
    /// durable.record_metrics(Duration::from_secs(15));
    /// // background_tasks_jobs{queue="email",state="waiting"} 3
    /// // background_tasks_job_attempts_total{queue="email",outcome="done"} 10
    /// # Ok(())
    /// # }
    /// ```
    pub fn record_metrics(&self, interval: Duration) {
        if self.engine.metrics.0.swap(true, Relaxed) {
            return;
        }
        describe_gauge!(JOBS, Unit::Count, "Jobs in the store, by queue and state. Each count stops above 10,000.");
        describe_gauge!(OLDEST_DUE, Unit::Seconds, "Age of the oldest job that is due and waits for a worker.");
        describe_counter!(ATTEMPTS_TOTAL, Unit::Count, "Attempts that have ended, by outcome.");
        describe_histogram!(ATTEMPT_DURATION, Unit::Seconds, "Time from the start of an attempt until its end.");
        describe_histogram!(FETCH_DURATION, Unit::Seconds, "Duration of the statement that fetches jobs.");
        describe_counter!(LEASES_LOST_TOTAL, Unit::Count, "Leases that a worker could not renew in time.");
        describe_counter!(RECOVERED_TOTAL, Unit::Count, "Jobs of dead workers that have returned to their queues.");
        let interval = interval.clamp(Duration::from_secs(1), MAX_DURATION);
        let engine = Arc::downgrade(&self.engine);
        self.runtime.spawn(async move {
            let mut known = HashSet::new();
            while let Some(engine) = engine.upgrade() {
                if let Ok(queues) = with_timeout(RESPONSE_TIMEOUT, engine.store.queues()).await {
                    set_gauges(queues, &mut known);
                }
                drop(engine);
                Delay::new(interval).await;
            }
        });
    }
}

/// Sets the gauges of all queues. If a queue no longer exists, its gauges are set to zero.
fn set_gauges(queues: Vec<QueueInfo>, known: &mut HashSet<String>) {
    let mut gone = mem::take(known);
    for queue in queues {
        gone.remove(&queue.name);
        set_gauges_of(&queue.name, &queue.counts, queue.oldest.unwrap_or_default());
        known.insert(queue.name);
    }
    for name in gone {
        set_gauges_of(&name, &QueueCounts::default(), Duration::ZERO);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn set_gauges_of(queue: &str, counts: &QueueCounts, oldest: Duration) {
    let QueueCounts { waiting, running, retrying, done, dead, cancelled } = *counts;
    let states = [
        ("waiting", waiting),
        ("running", running),
        ("retrying", retrying),
        ("done", done),
        ("dead", dead),
        ("cancelled", cancelled),
    ];
    for (state, jobs) in states {
        gauge!(JOBS, "queue" => queue.to_owned(), "state" => state).set(jobs as f64);
    }
    gauge!(OLDEST_DUE, "queue" => queue.to_owned()).set(oldest.as_secs_f64());
}
