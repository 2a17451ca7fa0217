use crate::report::{RejectReason, Summary, TaskInfo};
use core::time::Duration;

/// Is told of each loss, and of the shutdown's beginning and end; see [`RegistryBuilder::observer`](crate::RegistryBuilder::observer).
///
/// Each method does nothing unless it is implemented. They are called where the loss happens, on whatever thread that is, under no
/// lock, and a loss is told before its task's count is given back: when a drain has ended, everything was told. So they should be quick, and
/// must not wait for the drain: it waits for them. They may use the registry in all other ways; one that owns a handle keeps it
/// open, as a task does. A panic of theirs is contained.
///
/// What went well is not told, as that would cost every task something: [`Registry::summary`](crate::Registry::summary) counts it.
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
#[expect(unused_variables, reason = "the names are for those who implement them")]
pub trait Observer: Send + Sync + 'static {
    /// A task returned an `Err`, which reads so.
    fn failed(&self, task: &TaskInfo, error: &str) {}

    /// A task panicked, or the destructor of one, with this message.
    fn panicked(&self, task: &TaskInfo, message: &str) {}

    /// A task was dropped before it had finished.
    fn abandoned(&self, task: &TaskInfo) {}

    /// A task was [aborted](crate::Registry::abort).
    fn aborted(&self, task: &TaskInfo) {}

    /// Some work was not accepted.
    ///
    /// What is refused meanwhile on this thread is counted and not told.
    fn rejected(&self, task: &TaskInfo, reason: RejectReason) {}

    /// The shutdown has begun, with so many in flight. The signals have been triggered when this is told.
    fn shutdown_started(&self, in_flight: usize) {}

    /// The drain has ended, so long after its beginning.
    ///
    /// Whoever waits for the drain is told afterwards. In the browser, where `std` has no clock, the time
    /// is zero without the feature `wasm-bindgen-futures`.
    fn drained(&self, summary: &Summary, took: Duration) {}
}

/// Any way of holding an observer is one.
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
