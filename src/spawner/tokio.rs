use super::{BlockingSpawner, LocalSpawner, Spawner};
use tokio::runtime::Handle;
use tokio::task::LocalSet;

/// Spawns on the tokio runtime that the caller is in; local tasks on the caller's `LocalSet` or local runtime.
///
/// To spawn from anywhere else, or always on one runtime, make the registry with that runtime's [`Handle`], which is a spawner too; so is
/// an `Rc` of a [`LocalSet`] for local tasks.
/// A runtime that is dropped drops its tasks: they count as abandoned. So does what is spawned on the handle of one that is gone.
///
/// # Panics
///
/// Each method panics outside a tokio runtime, with what to do about it; `run_local` outside a `LocalSet` or local runtime too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokioSpawner;

impl Spawner for TokioSpawner {
    #[track_caller]
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        demand_runtime();
        tokio::spawn(task);
    }
}

impl LocalSpawner for TokioSpawner {
    #[track_caller]
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        demand_runtime();
        tokio::task::spawn_local(task);
    }
}

impl BlockingSpawner for TokioSpawner {
    #[track_caller]
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        demand_runtime();
        tokio::task::spawn_blocking(work);
    }
}

/// Whoever is in a task is in a runtime, which can be told without touching the runtime's reference count.
#[track_caller]
#[inline]
fn demand_runtime() {
    if tokio::task::try_id().is_none() && Handle::try_current().is_err() {
        no_runtime();
    }
}

#[cold]
#[track_caller]
fn no_runtime() -> ! {
    panic!(
        "TokioSpawner spawns on the tokio runtime that its caller is in, and this thread is in none: call it from a task or inside \
         `block_on`, hold `handle.enter()`, or make the registry with the runtime's handle, as in `Registry::new(runtime.handle().clone())`"
    )
}

impl Spawner for Handle {
    #[track_caller]
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        Handle::spawn(self, task);
    }
}

impl BlockingSpawner for Handle {
    #[track_caller]
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        Handle::spawn_blocking(self, work);
    }
}

/// Local tasks, wherever on its thread the caller is: they run while the set is awaited, or something in its `run_until`.
impl LocalSpawner for LocalSet {
    #[track_caller]
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        LocalSet::spawn_local(self, task);
    }
}
