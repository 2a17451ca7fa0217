use super::task_span::new_span;
use crate::{Loss, Observer, TaskInfo, TaskKind};
use tracing::Span;

/// Records the outcome and the duration of each task in the span that [`TaskSpan`](crate::TaskSpan) gives to the task.
///
/// | field | value |
/// | --- | --- |
/// | `task.outcome` | `completed`, `failed`, `panicked`, `abandoned`, `aborted` or `rejected` |
/// | `task.duration_seconds` | the time since the registry accepted the task, as a float; empty for a rejected task |
///
/// The duration includes the time in which the task waits for its executor. A rejected task gets a span that closes immediately and
/// follows from the span of the caller.
///
/// A [service](crate::Registry::service) has one span for all its runs. The end of each run records its outcome, and the time since
/// the start of the service. The last record has the outcome of the service. Tracked futures, guards and child registries have no
/// span, so nothing is recorded for them. If the spawner of the registry is not a `TaskSpan`, `SpanObserver` records nothing except
/// the spans of rejected tasks.
///
/// `SpanObserver` [observes every task](Observer::observes_every_task), so it enables inspection of the registry, and each task
/// occupies a slot and takes timestamps. `TaskSpan` works without `SpanObserver`; the two fields are then empty. `SpanObserver` emits no
/// events. For events about losses, add a [`TracingObserver`](crate::TracingObserver) too.
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

/// Records the end of a task in its span.
///
/// The registry calls its observers while the executor polls or drops the task, so the current span is the span of the task. If the
/// spawner gives tasks no spans, `tracing` ignores the record, because the current span has no such fields.
fn record(task: &TaskInfo, outcome: &str, span: impl FnOnce() -> Span) {
    // The current span of a tracked future or of a guard may belong to the task that contains it.
    if matches!(task.kind(), None | Some(TaskKind::Tracked | TaskKind::Guard | TaskKind::Child)) {
        return;
    }
    let span = span();
    span.record("task.outcome", outcome);
    if let Some(age) = task.age() {
        span.record("task.duration_seconds", age.as_secs_f64());
    }
}
