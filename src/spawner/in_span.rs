use super::{BlockingSpawner, LocalSpawner, Spawner};
use tracing::Instrument;

/// Spawns with another spawner, in the tracing span that the caller is in.
///
/// So what a task logs, and its loss as [`TracingObserver`](crate::TracingObserver) tells it, belongs to the request that started it.
///
/// A task's span is closed when the executor drops the task, which may be a moment after the drain has resolved. A program that then flushes
/// an exporter of spans, and cannot spare one, has it closed before, inside the task: `registry.run(work.in_current_span())`.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "smol")]
/// # smol::block_on(async {
/// use background_tasks::{InSpan, Registry, SmolSpawner, TracingObserver};
///
/// let registry = Registry::builder(InSpan(SmolSpawner)).observer(TracingObserver).build();
/// tracing::info_span!("request", id = 7).in_scope(|| registry.run(async { Err("no such mailbox") }));
/// assert_eq!(registry.shutdown().await.failed, 1);
/// # });
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InSpan<S>(pub S);

impl<S: Spawner> Spawner for InSpan<S> {
    #[track_caller]
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.spawn(task.in_current_span());
    }
}

impl<S: LocalSpawner> LocalSpawner for InSpan<S> {
    #[track_caller]
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        self.0.spawn_local(task.in_current_span());
    }
}

impl<S: BlockingSpawner> BlockingSpawner for InSpan<S> {
    #[track_caller]
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        // Which is dropped in its span, too.
        let mut work = Some(work).in_current_span();
        self.0.spawn_blocking(move || {
            let span = work.span().clone();
            if let Some(work) = work.inner_mut().take() {
                span.in_scope(work);
            }
        });
    }
}
