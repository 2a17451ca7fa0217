use crate::{Loss, Observer, Registry, Summary, TaskInfo, TaskKind};
use core::time::Duration;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

const TASKS_TOTAL: &str = "background_tasks_total";
const IN_FLIGHT: &str = "background_tasks_in_flight";
const DRAIN_DURATION: &str = "background_tasks_drain_duration_seconds";
const STARTED_TOTAL: &str = "background_tasks_started_total";
const DURATION: &str = "background_tasks_duration_seconds";

/// Records metrics with the crate [`metrics`](https://docs.rs/metrics). Your program must install an exporter for `metrics`.
///
/// | metric | type | labels |
/// | --- | --- | --- |
/// | `background_tasks_total` | counter | `registry`; `outcome`: `completed`, `failed`, `panicked`, `abandoned`, `aborted`, `rejected`; `task`: the name of the task; empty for completed tasks and for tasks without a name |
/// | `background_tasks_in_flight` | gauge | `registry` |
/// | `background_tasks_drain_duration_seconds` | histogram | `registry` |
///
/// The observer counts every loss when the loss happens. By default, however, a registry does not notify observers of completed tasks. The
/// number of completed tasks and the number of tasks in flight are therefore updated only by [`record`](Self::record), and at the end of
/// the drain. Call `record` each time before the exporter collects the metrics.
///
/// `record` counts the completed tasks of a [child registry](Registry::child) only after this child has drained. Until then, the child
/// counts as one task in flight.
///
/// The setting [`by_name`](Self::by_name) adds metrics for each task name, and updates all metrics when a task starts or ends.
///
/// Use a different value of the label `registry` for each registry. If two registries have the same value, they overwrite each other's
/// number of completed tasks.
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
    by_name: bool,
}

impl MetricsObserver {
    /// Returns an observer. The parameter `registry` is the value of the label `registry` in all metrics of this observer.
    ///
    /// Install the exporter before you call `new`, because `new` passes descriptions of the metrics to the installed exporter.
    pub fn new(registry: &'static str) -> Self {
        describe_counter!(TASKS_TOTAL, Unit::Count, "Background tasks that ended or were rejected, by outcome.");
        describe_gauge!(IN_FLIGHT, Unit::Count, "Background tasks in flight.");
        describe_histogram!(DRAIN_DURATION, Unit::Seconds, "Time from the start of a shutdown until the drain ended.");
        Self { registry, by_name: false }
    }

    /// Records the start and the end of each task in metrics that have the name of the task as a label. Default: off.
    ///
    /// | metric | type | labels |
    /// | --- | --- | --- |
    /// | `background_tasks_started_total` | counter | `registry`, `task` |
    /// | `background_tasks_total` | counter | `registry`, `task`, `outcome` |
    /// | `background_tasks_in_flight` | gauge | `registry`, `task` |
    /// | `background_tasks_duration_seconds` | histogram | `registry`, `task`, `outcome` |
    /// | `background_tasks_drain_duration_seconds` | histogram | `registry` |
    ///
    /// The value of the label `task` is the [name](crate::Registry::named) of the task. For a task without a name, this value is empty. The
    /// number of time series grows with the number of different names, so do not put IDs into names. The metrics have no label for the call
    /// site.
    ///
    /// The duration starts when the registry accepts the task, and ends when the task ends. It includes the time in which the task waits
    /// for its executor. A rejected task counts only in `background_tasks_total`. Tracked futures and guards are recorded in the same way
    /// as tasks.
    ///
    /// A child registry does not count as a task, but the tasks of the child are recorded. If a registry rejects a child, the child counts
    /// as a rejected task. Each run of a [service](crate::Registry::service) counts as one task, but has no duration.
    ///
    /// With this setting, the observer [observes every task](Observer::observes_every_task). The registry is then also inspected; the docs
    /// of [`inspect`](crate::RegistryBuilder::inspect) describe the cost for each task. The metrics are therefore always up to date, and
    /// you do not need to call [`record`](Self::record): it does nothing.
    ///
    /// The exporter `metrics-exporter-prometheus` keeps every duration until it renders the metrics. If you install it with
    /// `install_recorder`, call `PrometheusHandle::run_upkeep` every few seconds, or its memory grows while nobody collects the metrics.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")] {
    /// use background_tasks::{MetricsObserver, Registry, SmolSpawner};
    ///
    /// let registry = Registry::builder(SmolSpawner).observer(MetricsObserver::new("mail").by_name()).build();
    /// registry.named("welcome-mail").run(async {});
    /// # registry.shutdown().wait();
    /// // background_tasks_total{registry="mail",task="welcome-mail",outcome="completed"} 1
    /// # }
    /// ```
    #[must_use]
    pub fn by_name(self) -> Self {
        describe_counter!(STARTED_TOTAL, Unit::Count, "Background tasks that were accepted.");
        describe_histogram!(DURATION, Unit::Seconds, "Time from the acceptance of a background task until its end.");
        Self { by_name: true, ..self }
    }

    /// Updates the metrics for the number of completed tasks and the number of tasks in flight. This method does nothing if the observer
    /// records tasks [by name](Self::by_name).
    pub fn record<S>(&self, registry: &Registry<S>) {
        self.set(registry.summary().completed, registry.in_flight());
    }

    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    fn set(&self, completed: u64, in_flight: usize) {
        if self.by_name {
            return;
        }
        counter!(TASKS_TOTAL, "registry" => self.registry, "outcome" => "completed", "task" => "").absolute(completed);
        gauge!(IN_FLIGHT, "registry" => self.registry).set(in_flight as f64);
    }

    fn count_end(&self, task: &TaskInfo, outcome: &'static str) {
        counter!(TASKS_TOTAL, "registry" => self.registry, "outcome" => outcome, "task" => name(task)).increment(1);
    }

    /// Records the end of a task that was in flight.
    fn record_end(&self, task: &TaskInfo, outcome: &'static str) {
        gauge!(IN_FLIGHT, "registry" => self.registry, "task" => name(task)).decrement(1);
        // The age of a service includes all its earlier runs, so the age is not the duration of this run.
        if let Some(age) = task.age().filter(|_| task.kind() != Some(TaskKind::Service)) {
            histogram!(DURATION, "registry" => self.registry, "task" => name(task), "outcome" => outcome).record(age);
        }
    }
}

/// Returns the value of the label `task`.
fn name(task: &TaskInfo) -> &'static str {
    task.name().unwrap_or_default()
}

impl Observer for MetricsObserver {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        self.count_end(task, loss.outcome());
        if self.by_name && !matches!(loss, Loss::Rejected(_)) {
            self.record_end(task, loss.outcome());
        }
    }

    fn started(&self, task: &TaskInfo) {
        if self.by_name {
            counter!(STARTED_TOTAL, "registry" => self.registry, "task" => name(task)).increment(1);
            gauge!(IN_FLIGHT, "registry" => self.registry, "task" => name(task)).increment(1);
        }
    }

    fn completed(&self, task: &TaskInfo) {
        if self.by_name {
            self.count_end(task, "completed");
            self.record_end(task, "completed");
        }
    }

    fn drained(&self, summary: &Summary, took: Duration) {
        self.set(summary.completed, 0);
        histogram!(DRAIN_DURATION, "registry" => self.registry).record(took);
    }

    fn observes_every_task(&self) -> bool {
        self.by_name
    }
}
