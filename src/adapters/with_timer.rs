use crate::{BlockingSpawner, LocalSpawner, SpawnInfo, Spawner, Timer};
use core::fmt;
use core::time::Duration;

/// Adds a timer to a spawner, or replaces the spawner's own timer. The first field is the spawner, which runs the tasks. The second field
/// is a closure that creates the futures of the [`Timer`].
///
/// The closure receives a duration and returns a future that resolves after this duration. Most runtimes have a function that you can use
/// as this closure, such as `smol::Timer::after` and `tokio::time::sleep`. The closure must satisfy the contract of [`Timer`].
///
/// # Examples
///
/// ```
/// # #[cfg(all(feature = "async-executor", feature = "smol"))]
/// # fn main() -> std::io::Result<()> {
/// # smol::block_on(async {
/// use background_tasks::{Registry, ThreadsSpawner, WithTimer};
/// use std::time::Duration;
///
/// let registry = Registry::new(WithTimer(ThreadsSpawner::new(1)?, smol::Timer::after));
/// registry.run(async { println!("on a background thread") });
/// let summary = registry.shutdown_within(Duration::from_secs(10)).await.unwrap();
/// assert_eq!(summary.completed, 1);
/// # Ok(())
/// # })
/// # }
/// # #[cfg(not(all(feature = "async-executor", feature = "smol")))]
/// # fn main() {}
/// ```
#[derive(Clone, Copy)]
pub struct WithTimer<S, T>(pub S, pub T);

impl<S, T, F> Timer for WithTimer<S, T>
where
    T: Fn(Duration) -> F,
    F: Future + 'static,
{
    type Sleep = F;

    #[track_caller]
    fn sleep(&self, duration: Duration) -> F {
        (self.1)(duration)
    }
}

impl<S: Spawner, T> Spawner for WithTimer<S, T> {
    #[track_caller]
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.spawn(task);
    }

    fn spawn_with_info<F: Future<Output = ()> + Send + 'static>(&self, task: F, info: &SpawnInfo) {
        self.0.spawn_with_info(task, info);
    }
}

impl<S: LocalSpawner, T> LocalSpawner for WithTimer<S, T> {
    #[track_caller]
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        self.0.spawn_local(task);
    }

    fn spawn_local_with_info<F: Future<Output = ()> + 'static>(&self, task: F, info: &SpawnInfo) {
        self.0.spawn_local_with_info(task, info);
    }
}

impl<S: BlockingSpawner, T> BlockingSpawner for WithTimer<S, T> {
    #[track_caller]
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        self.0.spawn_blocking(work);
    }

    fn spawn_blocking_with_info<F: FnOnce() + Send + 'static>(&self, work: F, info: &SpawnInfo) {
        self.0.spawn_blocking_with_info(work, info);
    }
}

/// The debug output does not show the closure.
impl<S: fmt::Debug, T> fmt::Debug for WithTimer<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WithTimer").field(&self.0).finish_non_exhaustive()
    }
}
