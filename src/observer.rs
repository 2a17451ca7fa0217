use crate::report::{Loss, Summary, TaskInfo};
use core::time::Duration;

/// Receives calls from a registry: for every task that did not complete (a loss), at the start of the shutdown, and at the end of
/// the drain.
///
/// [`RegistryBuilder::observer`](crate::RegistryBuilder::observer) adds an observer to a registry. The default implementation
/// of each method does nothing. By default, completed tasks are not reported, so that observers do not slow these tasks down.
/// [`Registry::summary`](crate::Registry::summary) contains their number. An observer can also receive a call for every start
/// and every completion of a task. To enable these calls, override [`observes_every_task`](Self::observes_every_task), so that
/// it returns true.
///
/// # Order
///
/// - The registry first counts a loss, and then calls the observers. During these calls, the lost task still counts as in
///   flight, unless it was rejected. Therefore the observers have received the losses of all accepted tasks before the drain
///   ends.
/// - The registry calls [`shutdown_started`](Self::shutdown_started) one time, and later [`drained`](Self::drained) one time.
///   After `drained` has returned, the registry wakes all futures that wait for the drain.
/// - The registry calls its observers one after the other, in the order in which they were added.
///
/// # Threads and locks
///
/// The registry calls an observer on the thread where the event happens. For a loss, this is the thread that polls or drops the
/// task. For a rejection, this is the thread that tries to start the task. Several threads can call methods of the same
/// observer simultaneously. The registry holds no lock while it calls an observer.
///
/// An observer's methods should return quickly, because the task and the drain wait for them. An observer is allowed to call
/// methods of the registry, but must not wait for the drain, because the drain waits for the observer. If an observer owns a
/// handle of its registry, the shutdown does not start when all other handles are dropped.
///
/// # Panics
///
/// With the feature `std`, the registry catches and ignores a panic in a method or in the destructor of an observer. The
/// remaining observers are still called.
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
    /// While an observer handles a loss, it can itself start another task. If this task is rejected, or lost before the observer
    /// returns, for example because its runtime has shut down, this loss is reported too, up to a depth of eight such losses.
    /// Deeper losses are only counted.
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {}

    /// Called when the registry has accepted a task, before the spawner receives the task. The registry makes this call only if
    /// at least one of its observers [observes every task](Self::observes_every_task). When the task ends, the registry calls
    /// [`completed`](Self::completed) or [`lost`](Self::lost) exactly one time.
    ///
    /// Tracked futures and guards are also reported. The start of a child registry is not reported, but the tasks of the child are.
    ///
    /// The start and the end of each run of a [service](crate::Registry::service) are reported. The reported age of a run is the
    /// time since the start of the service. If a run is lost, the start of the next run is reported immediately after the loss. If
    /// a run completes, its end is reported when the next run starts or the service ends.
    fn started(&self, task: &TaskInfo) {}

    /// Called when a task has completed. The registry makes this call only if at least one of its observers [observes every
    /// task](Self::observes_every_task).
    ///
    /// During this call, the task still counts as in flight. The registry calls this method on the thread that polled the task or
    /// dropped the guard.
    fn completed(&self, task: &TaskInfo) {}

    /// Called one time, when the shutdown has started. `in_flight` is the number of tasks in flight at that moment.
    ///
    /// The registry has triggered all shutdown signals before this call.
    fn shutdown_started(&self, in_flight: usize) {}

    /// Called one time, when the drain has ended. The numbers in `summary` are final, except the number of rejected tasks. This
    /// number still grows if the program tries to start more tasks.
    ///
    /// `took` is the time since the shutdown started, or zero if the program has no clock. A program has a clock if the feature
    /// `std` is on. In the browser, a program also needs the feature `wasm-bindgen-futures`.
    fn drained(&self, summary: &Summary, took: Duration) {}

    /// Returns whether this observer logs the start of the shutdown and the end of the drain. Default: false.
    ///
    /// The crate `background-tasks-host` can also report these two events, as tracing events. If this method returns true, that
    /// crate does not report them again; see [`Registry::is_shutdown_logged`](crate::Registry::is_shutdown_logged).
    fn logs_shutdown(&self) -> bool {
        false
    }

    /// Returns whether the registry must also call this observer for every start and every completion of a task. Default: false.
    ///
    /// [`RegistryBuilder::observer`](crate::RegistryBuilder::observer) calls this method one time. If at least one observer of a
    /// registry returns true, the registry calls [`started`](Self::started) and [`completed`](Self::completed) of all its
    /// observers. The registry is then also [inspected](crate::RegistryBuilder::inspect). Each `TaskInfo` therefore has a kind, and
    /// an age unless the task was rejected.
    ///
    /// For each start and each completion, the registry briefly locks its list of observers. All threads share this lock. If all
    /// observers return false, tasks do not pay this cost.
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
