use super::task_span::new_span;
use crate::{Loss, Observer, TaskInfo, TaskKind};
use tracing::Span;

/// Records the outcome and the duration of each task in the span that [`TaskSpan`](crate::TaskSpan) creates for the task.
///
/// | field | value |
/// | --- | --- |
/// | `task.outcome` | `completed`, `failed`, `panicked`, `abandoned`, `aborted` or `rejected` |
/// | `task.duration_seconds` | the time since the registry accepted the task, as a number of seconds; empty for a rejected task |
///
/// The duration includes the time in which the task waits for its executor. For a rejected task, `SpanObserver` creates a span, which
/// closes immediately. This span *follows from* the span of the caller.
///
/// A [service](crate::Registry::service) has one span for all its runs. When a run ends, `SpanObserver` records the outcome of the run and
/// the time since the start of the service. After the last run, `SpanObserver` records the outcome of the service.
///
/// Tracked futures, guards and child registries have no span, so `SpanObserver` records nothing for them. If the spawner of the registry is
/// not a `TaskSpan`, `SpanObserver` records only rejected tasks.
///
/// `SpanObserver` [observes every task](Observer::observes_every_task). The registry is then also inspected; the docs of
/// [`inspect`](crate::RegistryBuilder::inspect) describe the cost for each task.
///
/// `TaskSpan` works without `SpanObserver`, but the two fields of the table then stay empty. `SpanObserver` emits no events. To emit an
/// event for each loss, also add a [`TracingObserver`](crate::TracingObserver).
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "smol")]
/// # smol::block_on(async {
/// use background_tasks::{Registry, SmolSpawner, SpanObserver, TaskSpan};
///
/// let registry = Registry::builder(TaskSpan(SmolSpawner)).observer(SpanObserver).build();
/// registry.named("welcome-mail").run(async { Err::<(), _>("no such mailbox") });
/// assert_eq!(registry.shutdown().await.failed, 1);
/// // task{task.name="welcome-mail" task.location=src/main.rs:4:32 task.outcome="failed" task.duration_seconds=0.000031}
/// # });
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpanObserver;

impl Observer for SpanObserver {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        match loss {
            Loss::Rejected(_) => record(task, loss.outcome(), || new_span(task.name(), Some(task.location()))),
            _ => record(task, loss.outcome(), Span::current),
        }
    }

    fn completed(&self, task: &TaskInfo) {
        record(task, "completed", Span::current);
    }

    fn observes_every_task(&self) -> bool {
        true
    }
}

/// Records the end of a task in the span of the task.
///
/// The registry calls its observers while the executor polls or drops the task, so the current span is the span of the task. If the spawner
/// is not a `TaskSpan`, the current span is another span without these fields. `tracing` then ignores the recorded values.
fn record(task: &TaskInfo, outcome: &str, span: impl FnOnce() -> Span) {
    // A task can own a tracked future or a guard. When the future or guard ends, the current span is then the span of that task, which
    // must stay unchanged.
    if matches!(task.kind(), None | Some(TaskKind::Tracked | TaskKind::Guard | TaskKind::Child)) {
        return;
    }
    let span = span();
    span.record("task.outcome", outcome);
    if let Some(age) = task.age() {
        span.record("task.duration_seconds", age.as_secs_f64());
    }
}
