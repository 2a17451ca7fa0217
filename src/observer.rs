use crate::report::{Loss, Summary, TaskInfo};
use core::time::Duration;

/// Receives a call for every task that did not complete (a loss), for the start of the shutdown, and for the end of the drain.
///
/// [`RegistryBuilder::observer`](crate::RegistryBuilder::observer) adds an observer to a registry. The default implementation of
/// each method does nothing. Completed tasks are not reported to observers, so that observers do not slow them down. To count
/// completed tasks, use [`Registry::summary`](crate::Registry::summary).
///
/// # Order
///
/// - The registry first counts a loss and then reports it. During the report, the lost task still counts as in flight. Therefore
///   every loss of an accepted task has been reported when the drain ends.
/// - The registry calls [`shutdown_started`](Self::shutdown_started) once. Later it calls [`drained`](Self::drained) once. The
///   registry wakes all futures that wait for the drain after `drained` has returned.
/// - The registry calls its observers one after the other, in the order in which they were added.
///
/// # Threads and locks
///
/// The registry calls an observer's method on the thread where the reported event happens. For a loss, this is the thread that
/// polls, drops or rejects the task. Several threads may call methods of the same observer simultaneously. The registry holds no
/// lock while it calls an observer.
///
/// An observer's methods should return quickly, because they delay the task and the drain. An observer may call methods of the
/// registry, but must not wait for the drain, because the drain waits for the observer. An observer that owns a handle of its
/// registry keeps the registry open.
///
/// # Panics
///
/// With `std`, a panic in an observer or in its destructor is caught and ignored, and the other observers are still called.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "smol")]
/// # smol::block_on(async {
/// use background_tasks::{Loss, Observer, Registry, SmolSpawner, TaskInfo};
///
/// struct ToStderr;
///
/// impl Observer for ToStderr {
///     fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
///         eprintln!("{task} {loss}"); // welcome-mail at src/main.rs:12:32 failed: no such mailbox
///     }
/// }
///
/// let registry = Registry::builder(SmolSpawner).observer(ToStderr).build();
/// registry.named("welcome-mail").run(async { Err::<(), _>("no such mailbox") });
/// assert_eq!(registry.shutdown().await.failed, 1);
/// # });
/// ```
#[expect(unused_variables, reason = "the names document the parameters")]
pub trait Observer: Send + Sync + 'static {
    /// Called when a task was lost: the task failed or panicked, or was abandoned, aborted or rejected.
    ///
    /// If the observer itself starts a task while it handles a rejection and the registry rejects that task, the second rejection
    /// is counted but not reported.
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {}

    /// Called once when the shutdown has started. `in_flight` is the number of tasks in flight at that moment.
    ///
    /// All shutdown signals have been triggered before this call.
    fn shutdown_started(&self, in_flight: usize) {}

    /// Called once when the drain has ended. The numbers in `summary` are final, except that later rejections are still counted.
    ///
    /// `took` is the time since the shutdown started. `took` is zero if the program has no clock. A program has no clock if the
    /// feature `std` is off. In the browser, a program also needs the feature `wasm-bindgen-futures` to have a clock.
    fn drained(&self, summary: &Summary, took: Duration) {}

    /// Returns whether this observer logs the start of the shutdown and the end of the drain. Default: false.
    ///
    /// A host of the crate `background-tasks-host` that reports the drain as tracing events does not report the start and the end
    /// a second time; see [`Registry::is_shutdown_logged`](crate::Registry::is_shutdown_logged).
    fn logs_shutdown(&self) -> bool {
        false
    }
}

/// Implements the trait for smart pointers to an observer.
macro_rules! forward {
    ($($holder:ty),*) => {$(
        impl<O: Observer + ?Sized> Observer for $holder {
            fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
                (**self).lost(task, loss);
            }

            fn shutdown_started(&self, in_flight: usize) {
                (**self).shutdown_started(in_flight);
            }

            fn drained(&self, summary: &Summary, took: Duration) {
                (**self).drained(summary, took);
            }

            fn logs_shutdown(&self) -> bool {
                (**self).logs_shutdown()
            }
        }
    )*};
}
forward!(alloc::boxed::Box<O>);
#[cfg(target_has_atomic = "ptr")]
forward!(alloc::sync::Arc<O>);
