//! Defines helpers that the models share.
#[cfg(not(loom))]
compile_error!("the models need RUSTFLAGS=\"--cfg loom\"");

use background_tasks::{BlockingSpawner, RegistryBuilder, Spawner, Summary, Timer, model};
use core::future::{Future, Ready, ready};
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use loom::cell::UnsafeCell;
use loom::thread::JoinHandle;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};

pub type Registry = background_tasks::Registry<()>;

/// Explores a model of registries with `shards` shards.
///
/// Covers every interleaving with at most three preemptions, and every value that each load may return. At the end of each
/// execution, every registry state must be back in the pool.
pub fn check(shards: usize, model: impl Fn() + Send + Sync + 'static) {
    check_with_bound(3, shards, model);
}

/// Explores a model with the given bound on preemptions. Some models would take minutes with a bound of three.
pub fn check_with_bound(preemptions: usize, shards: usize, model: impl Fn() + Send + Sync + 'static) {
    model::set_shards(shards);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    let executions = Arc::new(AtomicUsize::new(0));
    builder.check({
        let executions = executions.clone();
        move || {
            executions.fetch_add(1, Ordering::Relaxed);
            model();
        }
    });
    println!("{} executions", executions.load(Ordering::Relaxed));
}

/// Starts a thread that uses the given shard of each registry. The model's main thread uses shard 0.
pub fn spawn_on_shard<T: 'static>(shard: usize, work: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
    loom::thread::spawn(move || {
        model::set_number(shard);
        work()
    })
}

/// Runs two closures on two threads of shard 0 and returns both results.
///
/// Loom first runs the threads in the order in which they were started. From this order, loom explores too few orders of operations
/// that read and then write. Therefore a model calls this function with both values of `swapped`.
pub fn race<A: 'static, B: 'static>(
    swapped: bool,
    first: impl FnOnce() -> A + 'static,
    second: impl FnOnce() -> B + 'static,
) -> (A, B) {
    let (first, second) = if swapped {
        let second = spawn_on_shard(0, second);
        (spawn_on_shard(0, first), second)
    } else {
        (spawn_on_shard(0, first), spawn_on_shard(0, second))
    };
    (first.join().unwrap(), second.join().unwrap())
}

/// A future that the model polls. The future's waker counts its calls in an atomic of `std`, so the count does not affect the
/// orders that loom explores.
pub struct Polled<F> {
    future: Pin<Box<F>>,
    wakes: Arc<Wakes>,
}

struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl<F: Future> Polled<F> {
    pub fn new(future: F) -> Self {
        Self { future: Box::pin(future), wakes: Arc::new(Wakes(AtomicUsize::new(0))) }
    }

    pub fn poll(&mut self) -> Poll<F::Output> {
        self.wakes.0.store(0, Ordering::Relaxed);
        let waker = Waker::from(self.wakes.clone());
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    /// Polls the future with a new waker. Calls to the earlier wakers no longer count.
    pub fn poll_with_new_waker(&mut self) -> Poll<F::Output> {
        self.wakes = Arc::new(Wakes(AtomicUsize::new(0)));
        self.poll()
    }

    /// Returns whether the waker of the last poll was called.
    pub fn is_woken(&self) -> bool {
        self.wakes.0.load(Ordering::Relaxed) != 0
    }

    /// Returns the output of the future. `polled` is the result of the last poll.
    ///
    /// Call this function after the awaited event has happened. If the last poll was pending, the waker must have been called, and
    /// the next poll must be ready.
    pub fn finish(mut self, polled: Poll<F::Output>) -> F::Output {
        if let Poll::Ready(output) = polled {
            return output;
        }
        assert!(self.is_woken(), "lost wake-up: the event has happened and the waker was not called");
        match self.poll() {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("the future is pending although the event has happened and the waker was called"),
        }
    }
}

/// A spawner that stores tasks and closures until the model takes them.
#[derive(Clone, Default)]
pub struct ManualSpawner(Arc<Mutex<Vec<Task>>>, Arc<Mutex<Vec<Closure>>>);

pub type Task = Polled<Pin<Box<dyn Future<Output = ()> + Send>>>;
pub type Closure = Box<dyn FnOnce() + Send>;

impl Spawner for ManualSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.lock().unwrap().push(Polled::new(Box::pin(task)));
    }
}

/// Each sleep is ready immediately, so a service never waits.
impl Timer for ManualSpawner {
    type Sleep = Ready<()>;

    fn sleep(&self, _: Duration) -> Ready<()> {
        ready(())
    }
}

impl BlockingSpawner for ManualSpawner {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        self.1.lock().unwrap().push(Box::new(work));
    }
}

impl ManualSpawner {
    /// Removes the task that was spawned last.
    pub fn take(&self) -> Task {
        self.0.lock().unwrap().pop().expect("a task was spawned")
    }

    /// Removes the closure that was spawned last.
    pub fn take_closure(&self) -> Closure {
        self.1.lock().unwrap().pop().expect("a closure was spawned")
    }
}

/// Builds a registry whose tasks the model polls.
pub fn manual_builder() -> RegistryBuilder<ManualSpawner> {
    background_tasks::Registry::builder(ManualSpawner::default())
}

/// A side effect of a task. It uses no atomic operation.
///
/// If a thread observes the effect and the effect does not happen before the observation, loom fails the execution.
#[derive(Clone)]
pub struct Effect(Arc<Mutex<UnsafeCell<()>>>);

impl Effect {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(UnsafeCell::new(()))))
    }

    pub fn perform(&self) {
        self.0.lock().unwrap().with_mut(|_| ());
    }

    pub fn observe(&self) {
        self.0.lock().unwrap().with(|_| ());
    }
}

/// Returns the counts of completed, panicked, abandoned and rejected tasks.
pub fn counts(summary: Summary) -> [u64; 4] {
    [summary.completed, summary.panicked, summary.abandoned, summary.rejected]
}
