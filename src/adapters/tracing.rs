use crate::Observer;
use crate::{RejectReason, Summary, TaskInfo};
use core::fmt::Display;
use core::time::Duration;
use tracing::field::{DisplayValue, display};
use tracing::{error, info, warn};

/// Tells [`tracing`](https://docs.rs/tracing) of each loss: an error when a task failed or panicked, a warning when one was abandoned,
/// aborted or rejected; and, as information, of the shutdown's beginning and end.
///
/// The target is `background_tasks`. A loss has the fields `task.name`, `task.location`, and where the registry is inspected `task.id`, `task.kind`
/// and `task.age_seconds`; beside them `error`, `panic` or `reason`.
///
/// # The caller's span
///
/// A task does not run in the span of who started it. Where it should, give it that span: then the events of the task itself are in it.
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

/// The same fields for each; `tracing` leaves out those that are `None`.
macro_rules! loss {
    ($level:ident, $task:expr, $message:literal $(, $field:ident = $value:expr)?) => {{
        let TaskInfo { id, name, location, kind, age, .. } = $task;
        $level!(
            target: "background_tasks",
            {
                task.name = name,
                task.location = %location,
                task.id = shown(id.as_ref()),
                task.kind = shown(kind.as_ref()),
                task.age_seconds = age.map(|age| age.as_secs_f64()),
                $($field = %$value,)?
            },
            $message
        );
    }};
}

fn shown<T: Display>(value: Option<&T>) -> Option<DisplayValue<&T>> {
    value.map(display)
}

impl Observer for TracingObserver {
    fn failed(&self, task: &TaskInfo, error: &str) {
        loss!(error, task, "background task failed", error = error);
    }

    fn panicked(&self, task: &TaskInfo, message: &str) {
        loss!(error, task, "background task panicked", panic = message);
    }

    fn abandoned(&self, task: &TaskInfo) {
        loss!(warn, task, "background task abandoned: it was dropped before it had finished");
    }

    fn aborted(&self, task: &TaskInfo) {
        loss!(warn, task, "background task aborted");
    }

    fn rejected(&self, task: &TaskInfo, reason: RejectReason) {
        loss!(warn, task, "background task rejected", reason = reason);
    }

    fn shutdown_started(&self, in_flight: usize) {
        info!(target: "background_tasks", in_flight, "shutdown of the background tasks begins");
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
