use crate::{LocalSpawner, Registry, Spawner};
use async_executor::{Executor, LocalExecutor, StaticExecutor, StaticLocalExecutor};
use futures_lite::future::block_on;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::mem;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

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
/// All clones of a spawner share the same threads. The threads run an [`async_executor::Executor`] until the last clone is dropped. If
/// tasks are still in flight at that time, the executor drops them, and the registry counts them as abandoned. If a task owns a clone of
/// the spawner, for example inside a registry handle, the threads keep running until this task ends.
///
/// The drop of the last clone blocks until all threads have exited, but at most for one second. The method
/// [`join_timeout`](Self::join_timeout) changes this time limit. A thread that always has ready tasks polls at most 200 more tasks before
/// it exits.
///
/// If a task blocks its thread for longer than the time limit, the drop detaches this thread and returns. The detached thread exits when
/// the poll of the blocking task returns. Only then does the executor drop the other tasks in flight.
///
/// If the last clone is dropped on one of the spawner's own threads, the drop waits for the other threads, and not for its own thread.
///
/// This spawner has no timer. The wrapper [`WithTimer`](crate::WithTimer) adds a timer.
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
    /// Starts `threads` threads with the names `background-0`, `background-1` and so on.
    ///
    /// # Errors
    ///
    /// - Returns [`InvalidInput`](io::ErrorKind::InvalidInput) if `threads` is 0, because no task would ever run.
    /// - Returns the operating system's error if it cannot start a thread. In this case, the threads that have already been started exit.
    pub fn new(threads: usize) -> io::Result<Self> {
        if threads == 0 {
            let message = "a ThreadsSpawner needs at least one thread to run tasks on";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let (exit, exits) = channel();
        let mut pool = Threads {
            stop: Registry::new(()),
            executor: Arc::default(),
            handles: HashMap::new(),
            exits: exits.into(),
            join_timeout: JOIN_TIMEOUT.into(),
        };
        for number in 0..threads {
            let run = pool.run(exit.clone());
            let handle = thread::Builder::new().name(format!("background-{number}")).spawn(run)?;
            pool.handles.insert(handle.thread().id(), handle);
        }
        Ok(Self(Arc::new(pool)))
    }

    /// Sets how long the drop of the last clone waits for the threads to exit. All clones share this setting. Default: one second.
    ///
    /// When the time limit expires, the drop detaches the threads that have not exited. If `timeout` is zero, the drop detaches all
    /// threads immediately. If `timeout` is [`Duration::MAX`], a task that hangs blocks the drop forever.
    ///
    /// # Examples
    ///
    /// ```
    /// use background_tasks::{Registry, ThreadsSpawner};
    /// use std::time::Duration;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let (hang_up, hung_up) = std::sync::mpsc::channel::<()>();
    /// let registry = Registry::new(ThreadsSpawner::new(1)?.join_timeout(Duration::ZERO));
    /// registry.run(async move { drop(hung_up.recv()) }); // blocks its thread
    /// let stragglers = registry.shutdown().wait_timeout(Duration::from_millis(10)).unwrap_err();
    /// assert_eq!(stragglers.len(), 1);
    /// drop(registry); // returns immediately
    /// # drop(hang_up);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "the method returns the spawner, which a registry needs"]
    pub fn join_timeout(self, timeout: Duration) -> Self {
        *self.0.join_timeout.lock().unwrap_or_else(PoisonError::into_inner) = timeout;
        self
    }
}

/// The default time limit for the threads to exit when the last clone is dropped.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

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
    /// The shutdown of this registry makes the threads exit.
    stop: Registry<()>,
    executor: Arc<Executor<'static>>,
    handles: HashMap<ThreadId, JoinHandle<()>>,
    /// Receives the ID of each thread that is about to exit.
    exits: Mutex<Receiver<ThreadId>>,
    join_timeout: Mutex<Duration>,
}

impl Threads {
    /// Returns a closure that runs the executor. Each thread runs one of these closures. async-executor catches the panics of tasks
    /// that were started without a registry, so such a panic does not end the thread.
    fn run(&self, exit: Sender<ThreadId>) -> impl FnOnce() + Send + use<> {
        let executor = self.executor.clone();
        let stopped = self.stop.signal();
        move || {
            block_on(executor.run(stopped));
            drop(executor);
            // The send fails if the spawner has been dropped and did not wait for this thread.
            _ = exit.send(thread::current().id());
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.start_shutdown();
        self.handles.remove(&thread::current().id());
        let timeout = *self.join_timeout.get_mut().unwrap_or_else(PoisonError::into_inner);
        let exits = self.exits.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut started = None;
        while !self.handles.is_empty() {
            let waited = started.get_or_insert_with(Instant::now).elapsed();
            // After a timeout, the destructor of the map detaches the threads that have not exited.
            let Ok(id) = exits.recv_timeout(timeout.saturating_sub(waited)) else { return };
            if let Some(handle) = self.handles.remove(&id) {
                // If the thread has panicked, this call leaks the panic payload, because the destructor of the payload can panic.
                handle.join().unwrap_or_else(mem::forget);
            }
        }
    }
}
