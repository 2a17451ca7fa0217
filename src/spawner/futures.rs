use super::{LocalSpawner, Spawner};
use alloc::boxed::Box;
use futures_util::task::{LocalFutureObj, LocalSpawn, Spawn};

const GONE: &str = "the executor of this FuturesSpawner is gone: drain the registry before you drop it";

/// Spawns on whatever has the `futures` crate's traits: [`Spawn`] for tasks, [`LocalSpawn`] for local ones.
///
/// Those are its `ThreadPool`, the spawner of its `LocalPool`, and test executors of others. Their tasks are boxed.
///
/// A `LocalPool` that is dropped drops its tasks: they count as abandoned. A `ThreadPool` does not, and its threads go on as long as tasks wait:
/// one that is woken ends as ever, one that never is stays in flight for ever.
///
/// # Panics
///
/// When the executor says that it is gone, as a `LocalPool` that was dropped.
///
/// # Examples
///
/// ```
/// use background_tasks::{FuturesSpawner, Registry};
/// use futures_executor::LocalPool;
///
/// let mut pool = LocalPool::new();
/// let registry = Registry::new(FuturesSpawner(pool.spawner()));
/// registry.run_local(async { println!("on this thread") });
/// assert_eq!(pool.run_until(registry.shutdown()).completed, 1);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FuturesSpawner<T>(pub T);

impl<T: Spawn> Spawner for FuturesSpawner<T> {
    #[track_caller]
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        assert!(self.0.spawn_obj(Box::new(task).into()).is_ok(), "{GONE}");
    }
}

impl<T: LocalSpawn> LocalSpawner for FuturesSpawner<T> {
    #[track_caller]
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        assert!(self.0.spawn_local_obj(LocalFutureObj::new(Box::new(task))).is_ok(), "{GONE}");
    }
}
