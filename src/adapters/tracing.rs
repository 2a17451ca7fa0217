use crate::{Observer, RejectReason, Summary, TaskInfo};
use core::fmt::Display;
use core::time::Duration;
use tracing::field::{DisplayValue, display};
use tracing::{error, info, warn};

/// Emits [`tracing`](https://docs.rs/tracing) events for every loss, and for the start and the end of a shutdown.
///
/// | event | level | fields |
/// | --- | --- | --- |
/// | a task failed | error | `error`, and those of the task |
/// | a task panicked | error | `panic`, and those of the task |
/// | a task was abandoned | warn | those of the task |
/// | a task was aborted | warn | those of the task |
/// | a task was rejected | warn | `reason`, and those of the task |
/// | shutdown started | info | `in_flight` |
/// | drained | info | `took_seconds`, and the number of tasks for each outcome |
///
/// The target is `background_tasks`. The fields of a task are `task.name` and `task.location`; for an
/// [inspected](crate::RegistryBuilder::inspect) registry also `task.kind`, and `task.id` and `task.age_seconds` unless the task was rejected.
///
/// # The caller's span
///
/// A task does not run in the span of its caller. To run all tasks there, wrap the spawner in [`InSpan`](crate::InSpan). To run one task there,
/// attach the current span to its future. A span attached to the future contains the task's own events, but not the event of its loss.
///
/// ```
/// # #[cfg(feature = "smol")]
/// # smol::block_on(async {
/// use background_tasks::{Registry, SmolSpawner, TracingObserver};
/// use tracing::Instrument;
///
/// let registry = Registry::builder(SmolSpawner).observer(TracingObserver).build();
/// registry.run(
///     async {
///         tracing::info!("in the span of the request");
///     }
///     .in_current_span(),
/// );
/// # registry.shutdown().await;
/// # });
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TracingObserver;

/// Emits the event of a loss. It is a macro because `tracing` needs the level at compile time. Fields that are `None` are omitted.
macro_rules! emit_loss {
    ($level:ident, $task:expr, $message:literal $(, $field:ident = $value:expr)?) => {{
        let TaskInfo { id, name, location, kind, age, .. } = $task;
        $level!(
            target: "background_tasks",
            {
                task.name = name,
                task.location = %location,
                task.id = display_option(id.as_ref()),
                task.kind = display_option(kind.as_ref()),
                task.age_seconds = age.map(|age| age.as_secs_f64()),
                $($field = %$value,)?
            },
            $message
        );
    }};
}

fn display_option<T: Display>(value: Option<&T>) -> Option<DisplayValue<&T>> {
    value.map(display)
}

impl Observer for TracingObserver {
    fn failed(&self, task: &TaskInfo, error: &str) {
        emit_loss!(error, task, "background task failed", error = error);
    }

    fn panicked(&self, task: &TaskInfo, message: &str) {
        emit_loss!(error, task, "background task panicked", panic = message);
    }

    fn abandoned(&self, task: &TaskInfo) {
        emit_loss!(warn, task, "background task abandoned: it was dropped before it finished");
    }

    fn aborted(&self, task: &TaskInfo) {
        emit_loss!(warn, task, "background task aborted");
    }

    fn rejected(&self, task: &TaskInfo, reason: RejectReason) {
        emit_loss!(warn, task, "background task rejected", reason = reason);
    }

    fn shutdown_started(&self, in_flight: usize) {
        info!(target: "background_tasks", in_flight, "background task shutdown started");
    }

    fn drained(&self, summary: &Summary, took: Duration) {
        let Summary { completed, failed, panicked, abandoned, aborted, rejected } = *summary;
        let took_seconds = took.as_secs_f64();
        info!(
            target: "background_tasks",
            took_seconds,
            completed,
            failed,
            panicked,
            abandoned,
            aborted,
            rejected,
            "background tasks drained"
        );
    }
}
