use crate::Registry;
use crate::platform::drop_quietly as discard;
use crate::{LocalSpawner, Spawner};
use async_executor::{Executor, LocalExecutor, StaticExecutor, StaticLocalExecutor};
use futures_lite::future::block_on;
use std::fmt;
use std::io;
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

/// Spawns on threads of its own, for programs that have no runtime.
///
/// All clones are one set of threads, which run an [`async_executor::Executor`] until the last clone is dropped. That drop waits for the
/// threads, each of which ends when it comes to look (the executor does every 200 polls), unless it happens on one of them, which then
/// ends by itself. What was in flight is dropped and counts as abandoned. A task that owns a clone (in a registry, say) keeps the threads.
///
/// # Examples
///
/// ```
/// use background_tasks::{Registry, ThreadsSpawner};
///
/// # fn main() -> std::io::Result<()> {
/// let registry = Registry::new(ThreadsSpawner::new(2)?);
/// registry.run(async { println!("on a thread of its own") });
/// assert_eq!(registry.shutdown().wait().completed, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ThreadsSpawner(Arc<Threads>);

impl ThreadsSpawner {
    /// Starts `threads` threads, named `background-0` and so on.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for zero threads, which would run nothing, and what the system says when it cannot start one.
    pub fn new(threads: usize) -> io::Result<Self> {
        if threads == 0 {
            let message = "a ThreadsSpawner needs at least one thread to run tasks on";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut pool = Threads { alive: Registry::new(()), executor: Arc::default(), joins: Vec::new() };
        for number in 0..threads {
            let work = pool.work();
            pool.joins.push(thread::Builder::new().name(format!("background-{number}")).spawn(work)?);
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
        f.debug_struct("ThreadsSpawner").field("threads", &self.0.joins.len()).finish()
    }
}

struct Threads {
    /// Its signal is what the threads run until.
    alive: Registry<()>,
    executor: Arc<Executor<'static>>,
    joins: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Returns what each thread does. The executor keeps a foreign task's panic to itself, as a registry does one of its own.
    fn work(&self) -> impl FnOnce() + Send + use<> {
        let executor = self.executor.clone();
        let ended = self.alive.signal();
        move || block_on(executor.run(ended))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.alive.shutdown();
        for thread in self.joins.drain(..) {
            if thread.thread().id() != thread::current().id() {
                thread.join().unwrap_or_else(discard);
            }
        }
    }
}
