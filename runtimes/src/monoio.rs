use crate::advice::with_advice;
use crate::owned_tasks::{drop_all, store};
use background_tasks::{BlockingSpawner, BoxLocalTask, LocalSpawner, Spawner, Timer};
use monoio::time::sleep_until;
use std::future::poll_fn;
use std::task::Waker;
use std::time::Duration;

/// Spawns on the caller's monoio runtime, and runs blocking work on the thread pool that is attached to it.
///
/// A task runs on the thread that started it, even if it is `Send`. In monoio, a waiting task belongs to its wakers. This spawner stores
/// the tasks itself, at the cost of one allocation each. Tasks in flight are dropped, and count as abandoned, when their thread ends or
/// calls [`abandon_all`](Self::abandon_all). A waiting task is also dropped if its last waker is dropped on the task's thread. A panic of a
/// task that was spawned without a registry unwinds through `block_on`.
///
/// Blocking work needs `RuntimeBuilder::attach_thread_pool`. Without a thread pool, `BlockingStrategy::ExecuteLocal` runs the work in the
/// call, on the caller's thread. The timer needs `RuntimeBuilder::enable_timer`.
///
/// # Panics
///
/// Each method panics if the calling thread is not in a monoio runtime. `spawn_blocking` also panics if the runtime has neither a thread
/// pool nor `BlockingStrategy::ExecuteLocal`, and `sleep` panics if the runtime has no timer. The message contains advice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MonoioSpawner;

/// monoio's runtimes have no IDs, so all runtimes of a thread count as one.
const RUNTIME: usize = 0;

const ADVICE: &str = "MonoioSpawner needs a monoio runtime, and this thread is not in one: call it from a task or inside `block_on`; for \
                      blocking work, call `attach_thread_pool` on the runtime's builder; for its timer, call `enable_timer` on the builder";

impl MonoioSpawner {
    /// Drops all tasks that this spawner has stored on the calling thread. They then count as abandoned. Call this function after a runtime
    /// has been dropped, on a thread that continues.
    pub fn abandon_all() {
        drop_all(RUNTIME);
    }
}

impl Spawner for MonoioSpawner {
    #[track_caller]
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.spawn_local(task);
    }
}

impl LocalSpawner for MonoioSpawner {
    #[track_caller]
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        with_advice(ADVICE, || monoio::spawn(store(RUNTIME, task)));
    }
}

impl BlockingSpawner for MonoioSpawner {
    #[track_caller]
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        with_advice(ADVICE, || monoio::spawn_blocking(work));
    }
}

impl Timer for MonoioSpawner {
    type Sleep = BoxLocalTask;

    /// A timer future of monoio 0.2.4 wakes the task that polled it first, even if another task has polled it later. When the waker
    /// changes, the returned future therefore replaces monoio's future.
    #[track_caller]
    fn sleep(&self, duration: Duration) -> BoxLocalTask {
        let mut sleep = with_advice(ADVICE, || Box::pin(monoio::time::sleep(duration)));
        let mut registered: Option<Waker> = None;
        Box::pin(poll_fn(move |cx| {
            if registered.as_ref().is_some_and(|waker| !waker.will_wake(cx.waker())) {
                sleep = Box::pin(sleep_until(sleep.deadline()));
            }
            registered.get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
            sleep.as_mut().poll(cx)
        }))
    }
}
