use crate::advice::with_advice;
use actix_rt::ArbiterHandle;
use actix_rt::time::Sleep;
use background_tasks::{Spawner, Timer};
use std::time::Duration;

/// Spawns tasks on one arbiter of an actix system. You can use this spawner on any thread.
///
/// When an arbiter stops, it drops its tasks, and the registry counts these tasks as abandoned. If a task was spawned without a registry
/// and panics, the runtime catches the panic.
///
/// The tasks of an arbiter are local tasks of tokio. Inside an actix system, you can therefore use `background_tasks::TokioSpawner`, which
/// spawns on the caller's arbiter. Unlike `ArbiterSpawner`, `TokioSpawner` can also start local tasks and blocking closures.
///
/// # Panics
///
/// The method `spawn` panics if the arbiter has stopped. The method `sleep` panics if the calling thread is outside an actix system and
/// outside a tokio runtime.
#[derive(Debug, Clone)]
pub struct ArbiterSpawner(pub ArbiterHandle);

impl Spawner for ArbiterSpawner {
    #[track_caller]
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        let accepted = self.0.spawn(task);
        assert!(
            accepted,
            "the arbiter of this ArbiterSpawner has stopped: shut the registry down before the arbiter stops, or spawn on another arbiter"
        );
    }
}

/// Uses the timer of the calling thread's arbiter or system, not the timer of the arbiter that runs the tasks.
impl Timer for ArbiterSpawner {
    type Sleep = Sleep;

    #[track_caller]
    fn sleep(&self, duration: Duration) -> Sleep {
        const ADVICE: &str = "the timer of ArbiterSpawner needs an actix system, and this thread is not in one: call it from a task or inside \
                              `SystemRunner::block_on`";
        with_advice(ADVICE, || actix_rt::time::sleep(duration))
    }
}
