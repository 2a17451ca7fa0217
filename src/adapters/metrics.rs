use crate::Observer;
use crate::{Registry, RejectReason, Summary, TaskInfo};
use core::time::Duration;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

const TASKS: &str = "background_tasks_total";
const IN_FLIGHT: &str = "background_tasks_in_flight";
const DRAIN: &str = "background_tasks_drain_duration_seconds";

/// Keeps metrics by the facade of [`metrics`](https://docs.rs/metrics), for whatever exporter the program has installed.
///
/// | metric | kind | labels |
/// | --- | --- | --- |
/// | `background_tasks_total` | counter | `registry`; `outcome`: `completed`, `failed`, `panicked`, `abandoned`, `aborted`, `rejected`; `task`: the name, of a loss |
/// | `background_tasks_in_flight` | gauge | `registry` |
/// | `background_tasks_drain_duration_seconds` | histogram | `registry` |
///
/// Losses are counted as they happen. What completes tells nobody, and what is in flight changes all the time: both are brought up to date by
/// [`record`](Self::record), to be called when the metrics are asked for, and when the drain ends. So that a counter
/// does not go backwards, each registry of a program needs a name of its own.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "smol")] {
/// use background_tasks::{MetricsObserver, Registry, SmolSpawner};
///
/// let metrics = MetricsObserver::new("mail");
/// let registry = Registry::builder(SmolSpawner).observer(metrics).build();
///
/// // In the handler of `GET /metrics`, before the exporter renders:
/// metrics.record(&registry);
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsObserver {
    registry: &'static str,
}

impl MetricsObserver {
    /// Returns an observer of a registry that its metrics call so.
    ///
    /// It describes the metrics to the exporter, so install that first.
    pub fn new(registry: &'static str) -> Self {
        describe_counter!(TASKS, Unit::Count, "Background tasks that have ended, and those that were rejected, by outcome.");
        describe_gauge!(IN_FLIGHT, Unit::Count, "Background tasks in flight.");
        describe_histogram!(DRAIN, Unit::Seconds, "From the beginning of a shutdown to the end of its drain.");
        Self { registry }
    }

    /// Brings up to date what no loss tells: how many have completed, and how many are in flight.
    pub fn record<S>(&self, registry: &Registry<S>) {
        self.set(registry.summary().completed, registry.in_flight());
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    fn set(&self, completed: u64, in_flight: usize) {
        counter!(TASKS, "registry" => self.registry, "outcome" => "completed", "task" => "").absolute(completed);
        gauge!(IN_FLIGHT, "registry" => self.registry).set(in_flight as f64);
    }

    fn count(&self, task: &TaskInfo, outcome: &'static str) {
        let name = task.name().unwrap_or_default();
        counter!(TASKS, "registry" => self.registry, "outcome" => outcome, "task" => name).increment(1);
    }
}

impl Observer for MetricsObserver {
    fn failed(&self, task: &TaskInfo, _: &str) {
        self.count(task, "failed");
    }

    fn panicked(&self, task: &TaskInfo, _: &str) {
        self.count(task, "panicked");
    }

    fn abandoned(&self, task: &TaskInfo) {
        self.count(task, "abandoned");
    }

    fn aborted(&self, task: &TaskInfo) {
        self.count(task, "aborted");
    }

    fn rejected(&self, task: &TaskInfo, _: RejectReason) {
        self.count(task, "rejected");
    }

    fn drained(&self, summary: &Summary, took: Duration) {
        self.set(summary.completed, 0);
        histogram!(DRAIN, "registry" => self.registry).record(took);
    }
}
