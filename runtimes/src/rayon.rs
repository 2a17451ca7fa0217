use background_tasks::BlockingSpawner;

/// Starts closures that compute on rayon's thread pool: the caller's own, or the global one.
///
/// It has a thread for each core, so closures that wait keep others from running; give those to another spawner. The global pool lives as long as
/// the process: what is in flight when `main` returns is lost. A pool of one's own finishes its work before its threads end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RayonSpawner;

impl BlockingSpawner for RayonSpawner {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        rayon_core::spawn(work);
    }
}
