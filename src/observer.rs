use crate::report::{RejectReason, Summary, TaskInfo};
use core::time::Duration;

/// Receives every loss, and the start and the end of a shutdown; see [`RegistryBuilder::observer`](crate::RegistryBuilder::observer).
///
/// The default implementation of each method does nothing. Successful tasks are not reported, so that they cost nothing;
/// [`Registry::summary`](crate::Registry::summary) counts them.
///
/// # Order
///
/// - A loss is reported after it has been counted and before its task's in-flight count is released. So when a drain has resolved, every loss
///   of an accepted task has been reported.
/// - [`shutdown_started`](Self::shutdown_started) and [`drained`](Self::drained) are each called once, in this order. All waiters of the drain
///   are woken after `drained` has returned.
/// - The observers of a registry are called one after the other, in the order in which they were added.
///
/// # Threads and locks
///
/// A method is called on the thread where the event happens: where the task is polled or dropped, where a rejected task was to be started,
/// where the shutdown starts, or where the drain ends. Several threads may call methods simultaneously. No lock of the registry is held.
///
/// Methods should return quickly, because the task and the drain wait for them. A method may use the registry in any other way, but must
/// not wait for the drain, which would deadlock. An observer that owns a handle of the registry keeps the registry open, as a task does.
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
/// use background_tasks::{Observer, Registry, SmolSpawner, TaskInfo};
///
/// struct ToStderr;
///
/// impl Observer for ToStderr {
///     fn failed(&self, task: &TaskInfo, error: &str) {
///         eprintln!("{task} failed: {error}");
///     }
/// }
///
/// let registry = Registry::builder(SmolSpawner).observer(ToStderr).build();
/// registry.named("welcome-mail").run(async { Err("no such mailbox") });
/// assert_eq!(registry.shutdown().await.failed, 1);
/// # });
/// ```
#[expect(unused_variables, reason = "the names document the parameters")]
pub trait Observer: Send + Sync + 'static {
    /// Called when a task returned an `Err`. `error` is the `Display` text of the error.
    fn failed(&self, task: &TaskInfo, error: &str) {}

    /// Called when a task or its destructor panicked, or a [`Guard`](crate::Guard) was dropped by a panic. `message` is the panic's message.
    fn panicked(&self, task: &TaskInfo, message: &str) {}

    /// Called when a task was dropped before it finished.
    fn abandoned(&self, task: &TaskInfo) {}

    /// Called when a task was [aborted](crate::Registry::abort).
    fn aborted(&self, task: &TaskInfo) {}

    /// Called when the registry did not accept a task. Such a task has no ID and no age.
    ///
    /// Rejections that an observer causes on the same thread during this call are counted but not reported.
    fn rejected(&self, task: &TaskInfo, reason: RejectReason) {}

    /// Called once when the shutdown has started. `in_flight` is the number of tasks in flight at that moment.
    ///
    /// All shutdown signals have been triggered before this call.
    fn shutdown_started(&self, in_flight: usize) {}

    /// Called once when the drain has ended. `summary` is final, except for later rejections.
    ///
    /// `took` is the time since the shutdown started. It is zero where no clock exists: without `std`, and in the browser without the
    /// feature `wasm-bindgen-futures`.
    fn drained(&self, summary: &Summary, took: Duration) {}
}

/// Implements the trait for smart pointers to an observer.
macro_rules! forward {
    ($($holder:ty),*) => {$(
        impl<O: Observer + ?Sized> Observer for $holder {
            fn failed(&self, task: &TaskInfo, error: &str) {
                (**self).failed(task, error);
            }

            fn panicked(&self, task: &TaskInfo, message: &str) {
                (**self).panicked(task, message);
            }

            fn abandoned(&self, task: &TaskInfo) {
                (**self).abandoned(task);
            }

            fn aborted(&self, task: &TaskInfo) {
                (**self).aborted(task);
            }

            fn rejected(&self, task: &TaskInfo, reason: RejectReason) {
                (**self).rejected(task, reason);
            }

            fn shutdown_started(&self, in_flight: usize) {
                (**self).shutdown_started(in_flight);
            }

            fn drained(&self, summary: &Summary, took: Duration) {
                (**self).drained(summary, took);
            }
        }
    )*};
}
forward!(alloc::boxed::Box<O>);
#[cfg(target_has_atomic = "ptr")]
forward!(alloc::sync::Arc<O>);
