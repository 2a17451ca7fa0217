use crate::{LocalSpawner, Registry, Spawner};
use async_executor::{Executor, LocalExecutor, StaticExecutor, StaticLocalExecutor};
use futures_lite::future::block_on;
use std::fmt;
use std::io;
use std::mem;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

impl Spawner for Executor<'static> {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        Executor::spawn(self, task).detach();
    }
}

impl LocalSpawner for LocalExecutor<'static> {
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        LocalExecutor::spawn(self, task).detach();
    }
}

impl Spawner for &'static StaticExecutor {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        StaticExecutor::spawn(self, task).detach();
    }
}

impl LocalSpawner for &'static StaticLocalExecutor {
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        StaticLocalExecutor::spawn(self, task).detach();
    }
}

/// Starts threads and spawns tasks on them. Use this spawner in programs without a runtime.
///
/// All clones of a spawner share the same threads. The threads run an [`async_executor::Executor`] until the last clone is dropped.
/// If tasks are still in flight when the last clone is dropped, the executor drops these tasks, and they count as abandoned. A task
/// that owns a clone of the spawner, for example inside a registry handle, keeps the threads running.
///
/// Dropping the last clone blocks until all threads have exited. A thread that is busy with tasks exits after it has polled at most
/// 200 more times. If one of the spawner's own threads drops the last clone, the drop waits only for the other threads.
///
/// # Examples
///
/// ```
/// use background_tasks::{Registry, ThreadsSpawner};
///
/// # fn main() -> std::io::Result<()> {
/// let registry = Registry::new(ThreadsSpawner::new(2)?);
/// registry.run(async { println!("on a background thread") });
/// assert_eq!(registry.shutdown().wait().completed, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ThreadsSpawner(Arc<Threads>);

impl ThreadsSpawner {
    /// Starts `threads` threads. Their names are `background-0`, `background-1` and so on.
    ///
    /// # Errors
    ///
    /// - Returns [`InvalidInput`](io::ErrorKind::InvalidInput) if `threads` is 0, because no task would ever run.
    /// - Returns the operating system's error if the operating system cannot start a thread. In this case, the threads that `new`
    ///   has already started exit.
    pub fn new(threads: usize) -> io::Result<Self> {
        if threads == 0 {
            let message = "a ThreadsSpawner needs at least one thread to run tasks on";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut pool = Threads { stop: Registry::new(()), executor: Arc::default(), handles: Vec::new() };
        for number in 0..threads {
            let run = pool.run();
            pool.handles.push(thread::Builder::new().name(format!("background-{number}")).spawn(run)?);
        }
        Ok(Self(Arc::new(pool)))
    }
}

impl Spawner for ThreadsSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        Spawner::spawn(&*self.0.executor, task);
    }
}

impl fmt::Debug for ThreadsSpawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadsSpawner").field("threads", &self.0.handles.len()).finish()
    }
}

struct Threads {
    /// The threads exit when the shutdown signal of this registry is triggered.
    stop: Registry<()>,
    executor: Arc<Executor<'static>>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Returns the closure that one of the threads runs. A panic of a task does not end the thread, because async-executor catches
    /// the panic.
    fn run(&self) -> impl FnOnce() + Send + use<> {
        let executor = self.executor.clone();
        let stopped = self.stop.signal();
        move || block_on(executor.run(stopped))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.start_shutdown();
        for handle in self.handles.drain(..) {
            if handle.thread().id() != thread::current().id() {
                // Leaks the panic payload, because the destructor of the payload may panic.
                handle.join().unwrap_or_else(mem::forget);
            }
        }
    }
}
