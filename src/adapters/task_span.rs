use crate::{BlockingSpawner, LocalSpawner, SpawnInfo, Spawner, Timer};
use core::panic::Location;
use core::time::Duration;
use tracing::field::{self, Empty};
use tracing::{Instrument, Span, info_span};

/// Wraps a spawner and runs each task in a new tracing span. The new span *follows from* the span of the caller.
///
/// Use `TaskSpan` if you export spans. If a request starts a task, the span of the request closes when the request ends, even if the task
/// still runs. An exporter therefore sends the span of the request without delay. The follows-from relation links the task's span to the
/// request's span.
///
/// With `tracing_subscriber::fmt`, the log lines of the task do not contain the fields of the request. The line that reports a lost task
/// therefore does not say which request started the task. If you need these fields, use [`InSpan`](crate::InSpan), which runs the task in
/// the span of the request.
///
/// The span has the name `task`, the level info, the `tracing` target `background_tasks` and no parent. The field `task.location` is the
/// call site that started the task. The field `task.name` has a value if the task has a [name](crate::Registry::named). If the registry has
/// a [`SpanObserver`](crate::SpanObserver), the fields `task.outcome` and `task.duration_seconds` are recorded at the end of the task. If a
/// task starts another task, the span of the other task follows from the span of the first task.
///
/// All events of a task belong to the span of the task. If the task is lost, [`TracingObserver`](crate::TracingObserver) emits an event
/// that also belongs to this span. The span of a [service](crate::Registry::service) contains all runs of the service. Guards, tracked
/// futures and child registries have no span.
///
/// The registry does not pass a rejected task to a spawner, so `TaskSpan` creates no span for a rejected task. The event for the rejection
/// belongs to the span of the caller. `SpanObserver`, however, creates a span for each rejected task.
///
/// The span closes when the executor drops the wrapped task. This happens only after the registry has stopped counting the task, so the
/// span can close shortly after the end of the drain. If the program flushes its span exporter right after the drain, the exporter can
/// therefore miss the spans of the last tasks. To make sure that a span closes before the drain ends, attach the span to the future
/// instead: `registry.run(work.instrument(span))`.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "smol")]
/// # smol::block_on(async {
/// use background_tasks::{Registry, SmolSpawner, TaskSpan, TracingObserver};
///
/// let registry = Registry::builder(TaskSpan(SmolSpawner)).observer(TracingObserver).build();
/// tracing::info_span!("request", id = 7).in_scope(|| {
///     registry.named("welcome-mail").run(async {
///         tracing::info!("sending"); // in the span task{task.name="welcome-mail" task.location=src/main.rs:5:36}
///     });
/// }); // The span of the request closes here.
/// assert_eq!(registry.shutdown().await.completed, 1);
/// # });
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskSpan<S>(pub S);

/// Returns the span of a new task. If `info` is `None`, no field has a value.
fn task_span(info: Option<&SpawnInfo>) -> Span {
    new_span(info.and_then(SpawnInfo::name), info.map(SpawnInfo::location))
}

/// Returns a span that follows from the current span. Two fields are empty until a [`SpanObserver`](crate::SpanObserver) records them.
pub(super) fn new_span(name: Option<&str>, location: Option<&Location<'_>>) -> Span {
    let span = info_span!(
        target: "background_tasks",
        parent: None,
        "task",
        task.name = name,
        task.location = location.map(field::display),
        task.outcome = Empty,
        task.duration_seconds = Empty,
    );
    span.follows_from(Span::current());
    span
}

impl<S: Spawner> Spawner for TaskSpan<S> {
    #[track_caller]
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.spawn(task.instrument(task_span(None)));
    }

    fn spawn_with_info<F: Future<Output = ()> + Send + 'static>(&self, task: F, info: &SpawnInfo) {
        self.0.spawn_with_info(task.instrument(task_span(Some(info))), info);
    }
}

impl<S: LocalSpawner> LocalSpawner for TaskSpan<S> {
    #[track_caller]
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        self.0.spawn_local(task.instrument(task_span(None)));
    }

    fn spawn_local_with_info<F: Future<Output = ()> + 'static>(&self, task: F, info: &SpawnInfo) {
        self.0.spawn_local_with_info(task.instrument(task_span(Some(info))), info);
    }
}

impl<S: BlockingSpawner> BlockingSpawner for TaskSpan<S> {
    #[track_caller]
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        self.0.spawn_blocking(in_span(work, task_span(None)));
    }

    fn spawn_blocking_with_info<F: FnOnce() + Send + 'static>(&self, work: F, info: &SpawnInfo) {
        self.0.spawn_blocking_with_info(in_span(work, task_span(Some(info))), info);
    }
}

/// Uses the timer of the wrapped spawner.
impl<S: Timer> Timer for TaskSpan<S> {
    type Sleep = S::Sleep;

    #[track_caller]
    fn sleep(&self, duration: Duration) -> S::Sleep {
        self.0.sleep(duration)
    }
}

/// Returns a closure that calls `work` in a span. If the executor drops the returned closure without a call, `work` is also dropped in the
/// span.
pub(super) fn in_span<F: FnOnce()>(work: F, span: Span) -> impl FnOnce() {
    let mut work = Some(work).instrument(span);
    move || {
        let span = work.span().clone();
        if let Some(work) = work.inner_mut().take() {
            span.in_scope(work);
        }
    }
}
