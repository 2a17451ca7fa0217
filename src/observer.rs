use crate::report::{Loss, Summary, TaskInfo};
use core::time::Duration;

/// Receives a call for every task that did not complete (a loss), for the start of the shutdown, and for the end of the drain.
///
/// [`RegistryBuilder::observer`](crate::RegistryBuilder::observer) adds an observer to a registry. The default implementation of
/// each method does nothing. By default, completed tasks are not reported to observers, so that observers do not slow them down. To
/// count completed tasks, use [`Registry::summary`](crate::Registry::summary). To receive the start and the completion of every
/// task, implement [`observes_every_task`](Self::observes_every_task).
///
/// # Order
///
/// - The registry first counts a loss and then reports it. During the report, a lost task that was accepted still counts as in
///   flight. Therefore every loss of an accepted task has been reported when the drain ends.
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
    /// If the observer itself starts a task while it handles a rejection, and any registry rejects that task, the second
    /// rejection is counted but not reported.
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {}

    /// Called when the registry has accepted a task, if an observer [observes every task](Self::observes_every_task). The call comes
    /// before the task is passed to its spawner. Each accepted task ends with exactly one call of [`completed`](Self::completed) or
    /// [`lost`](Self::lost).
    ///
    /// Tracked futures and guards are reported too. A child registry is not a task, so only its tasks are reported. Each run of a
    /// [service](crate::Registry::service) is reported as started and ended, with an age that starts with the first run. After a lost
    /// run, the next run is reported as started immediately. After a completed run, the end of the run is reported when the next run
    /// starts or the service ends.
    fn started(&self, task: &TaskInfo) {}

    /// Called when a task has completed, if an observer [observes every task](Self::observes_every_task).
    ///
    /// During the call, the task still counts as in flight. The call happens on the thread that polled the task or dropped the guard.
    fn completed(&self, task: &TaskInfo) {}

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

    /// Returns whether this observer receives the start and the completion of every task, in addition to each loss. Default: false.
    ///
    /// [`RegistryBuilder::observer`](crate::RegistryBuilder::observer) calls this method once. If any observer of a registry
    /// returns true, the registry is [inspected](crate::RegistryBuilder::inspect), so each `TaskInfo` has a kind, and an age
    /// unless the task was rejected, and the registry calls [`started`](Self::started) and [`completed`](Self::completed) of
    /// all its observers. Before each call, the registry reads its list of observers under a lock that all threads share. If
    /// all observers return false, tasks pay nothing.
    fn observes_every_task(&self) -> bool {
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

            fn started(&self, task: &TaskInfo) {
                (**self).started(task);
            }

            fn completed(&self, task: &TaskInfo) {
                (**self).completed(task);
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

            fn observes_every_task(&self) -> bool {
                (**self).observes_every_task()
            }
        }
    )*};
}
forward!(alloc::boxed::Box<O>);
#[cfg(target_has_atomic = "ptr")]
forward!(alloc::sync::Arc<O>);
