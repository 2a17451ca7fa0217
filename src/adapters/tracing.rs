use crate::{Loss, Observer, Summary, TaskInfo};
use core::fmt::Display;
use core::time::Duration;
use tracing::field::{DisplayValue, display};
use tracing::{error, info, warn};

/// Emits a [`tracing`](https://docs.rs/tracing) event for every loss, for the start of the shutdown, and for the end of the drain.
///
/// | event | level | fields |
/// | --- | --- | --- |
/// | a task failed | error | `error` and the task fields |
/// | a task panicked | error | `panic` and the task fields |
/// | a task was abandoned | warn | the task fields |
/// | a task was aborted | warn | the task fields |
/// | a task was rejected | warn | `reason` and the task fields |
/// | shutdown started | info | `in_flight` |
/// | drained | info | `took_seconds` and the number of tasks for each outcome |
///
/// The event for a rejected task has the `tracing` target `background_tasks::rejected`, and all other events have the target
/// `background_tasks`. The filter `background_tasks=warn,background_tasks::rejected=off` therefore shows losses without rejections, for
/// example in a service that answers 503 when its registry is full. The task fields are `task.name` and `task.location`. If the registry is
/// [inspected](crate::RegistryBuilder::inspect), `task.kind`, `task.id` and `task.age_seconds` are also task fields. If the task has no
/// name, the event has no field `task.name`. The event for a rejected task has no fields `task.id` and `task.age_seconds`.
///
/// The events for the start of the shutdown and for the end of the drain have no span, because they do not belong to one request. The
/// event for a loss belongs to the span that is current when the loss happens.
///
/// # Spans
///
/// By default, a task does not run in a span, so its events do not belong to the span of the code that started the task. There are three
/// ways to change this:
///
/// - To give each task its own span, wrap the spawner in [`TaskSpan`](crate::TaskSpan). This span follows from the caller's span. To record
///   the outcome and the duration in this span, also add a [`SpanObserver`](crate::SpanObserver).
/// - To run all tasks in the caller's span, wrap the spawner in [`InSpan`](crate::InSpan). The event for a loss then also belongs to the
///   caller's span.
/// - To run only one task in the caller's span, attach the current span to the task's future, as in the example below. The events of the
///   future then belong to the caller's span. If this task is lost, the event for the loss does not, because `TracingObserver` emits that
///   event outside the future.
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

const TARGET: &str = "background_tasks";
/// The target of rejections. A filter can hide them, and still show all losses of accepted tasks.
const REJECTED: &str = "background_tasks::rejected";

/// Emits the event for a loss. This is a macro and not a function, because `tracing` needs the level at compile time. `tracing` omits
/// fields that are `None`.
macro_rules! emit_loss {
    ($level:ident, $target:ident, $task:expr, $message:literal $(, $field:ident = $value:expr)?) => {{
        let TaskInfo { id, name, location, kind, age, .. } = $task;
        $level!(
            target: $target,
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
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        match loss {
            Loss::Failed(error) => emit_loss!(error, TARGET, task, "background task failed", error = error),
            Loss::Panicked(message) => emit_loss!(error, TARGET, task, "background task panicked", panic = message),
            Loss::Abandoned => {
                emit_loss!(warn, TARGET, task, "background task abandoned: it was dropped before it finished");
            }
            Loss::Aborted => emit_loss!(warn, TARGET, task, "background task aborted"),
            Loss::Rejected(reason) => {
                emit_loss!(warn, REJECTED, task, "background task rejected", reason = reason);
            }
        }
    }

    fn shutdown_started(&self, in_flight: usize) {
        info!(target: TARGET, parent: None, in_flight, "background task shutdown started");
    }

    fn drained(&self, summary: &Summary, took: Duration) {
        let Summary { completed, failed, panicked, abandoned, aborted, rejected } = *summary;
        let took_seconds = took.as_secs_f64();
        info!(
            target: TARGET,
            parent: None,
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

    fn logs_shutdown(&self) -> bool {
        true
    }
}
