use crate::{Loss, Observer, Registry, Summary, TaskInfo};
use core::time::Duration;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

const TASKS_TOTAL: &str = "background_tasks_total";
const IN_FLIGHT: &str = "background_tasks_in_flight";
const DRAIN_DURATION: &str = "background_tasks_drain_duration_seconds";

/// Records metrics through the [`metrics`](https://docs.rs/metrics) facade. The program chooses and installs the exporter.
///
/// | metric | type | labels |
/// | --- | --- | --- |
/// | `background_tasks_total` | counter | `registry`; `outcome`: `completed`, `failed`, `panicked`, `abandoned`, `aborted`, `rejected`; `task`: the name of the task; empty for completed tasks and for tasks without a name |
/// | `background_tasks_in_flight` | gauge | `registry` |
/// | `background_tasks_drain_duration_seconds` | histogram | `registry` |
///
/// The observer counts every loss when the loss happens. Completed tasks are not reported to observers. For this reason, the number
/// of completed tasks and the number of tasks in flight are updated only by [`record`](Self::record) and at the end of the drain.
/// Call `record` each time before the exporter collects the metrics.
///
/// Use a different value of the label `registry` for each registry. Registries with the same value of this label overwrite each
/// other's number of completed tasks.
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
    /// Returns an observer. The parameter `registry` is the value of the label `registry` in all metrics of this observer.
    ///
    /// Install the exporter before you call `new`, because `new` registers descriptions of the metrics with the installed exporter.
    pub fn new(registry: &'static str) -> Self {
        describe_counter!(TASKS_TOTAL, Unit::Count, "Background tasks that ended or were rejected, by outcome.");
        describe_gauge!(IN_FLIGHT, Unit::Count, "Background tasks in flight.");
        describe_histogram!(DRAIN_DURATION, Unit::Seconds, "Time from the start of a shutdown until the drain ended.");
        Self { registry }
    }

    /// Updates the metrics for the number of completed tasks and the number of tasks in flight.
    pub fn record<S>(&self, registry: &Registry<S>) {
        self.set(registry.summary().completed, registry.in_flight());
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    fn set(&self, completed: u64, in_flight: usize) {
        counter!(TASKS_TOTAL, "registry" => self.registry, "outcome" => "completed", "task" => "").absolute(completed);
        gauge!(IN_FLIGHT, "registry" => self.registry).set(in_flight as f64);
    }
}

impl Observer for MetricsObserver {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        let name = task.name().unwrap_or_default();
        counter!(TASKS_TOTAL, "registry" => self.registry, "outcome" => loss.outcome(), "task" => name).increment(1);
    }

    fn drained(&self, summary: &Summary, took: Duration) {
        self.set(summary.completed, 0);
        histogram!(DRAIN_DURATION, "registry" => self.registry).record(took);
    }
}
