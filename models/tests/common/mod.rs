//! What the models share.
#![allow(dead_code, reason = "no model uses all of it")]

#[cfg(not(loom))]
compile_error!("the models need RUSTFLAGS=\"--cfg loom\"");

use background_tasks::{RegistryBuilder, Spawner, Summary, model};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use loom::cell::UnsafeCell;
use loom::thread::JoinHandle;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};

pub type Registry = background_tasks::Registry<()>;

/// Runs a model of registries with so many shards through every interleaving of at most three preemptions, and every value that a
/// load may return in each. At the end of each run every core must be back in the pool.
pub fn check(shards: usize, model: impl Fn() + Send + Sync + 'static) {
    check_within(3, shards, model);
}

/// The same with another bound, for a model that would take minutes.
pub fn check_within(preemptions: usize, shards: usize, model: impl Fn() + Send + Sync + 'static) {
    model::set_shards(shards);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    let runs = Arc::new(AtomicUsize::new(0));
    builder.check({
        let runs = runs.clone();
        move || {
            runs.fetch_add(1, Ordering::Relaxed);
            model();
        }
    });
    println!("{} runs", runs.load(Ordering::Relaxed));
}

/// Starts a thread that uses the shard of that number. The thread of the model itself uses shard 0.
pub fn on_shard<T: 'static>(number: usize, work: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
    loom::thread::spawn(move || {
        model::set_number(number);
        work()
    })
}

/// Starts two threads that use shard 0 and waits for what both return.
///
/// Loom runs first who was started first, and of those who read and then write it tries too few orders. So try both, `swapped` or not.
pub fn race<A: 'static, B: 'static>(
    swapped: bool,
    one: impl FnOnce() -> A + 'static,
    other: impl FnOnce() -> B + 'static,
) -> (A, B) {
    let (one, other) = if swapped {
        let other = on_shard(0, other);
        (on_shard(0, one), other)
    } else {
        (on_shard(0, one), on_shard(0, other))
    };
    (one.join().unwrap(), other.join().unwrap())
}

/// A future that is polled by hand. Its waker counts in a std atomic, so it orders nothing that loom sees.
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

    /// Polls with another waker: from now on only that one counts.
    pub fn poll_anew(&mut self) -> Poll<F::Output> {
        self.wakes = Arc::new(Wakes(AtomicUsize::new(0)));
        self.poll()
    }

    /// Whether the waker of the last poll was called.
    pub fn is_woken(&self) -> bool {
        self.wakes.0.load(Ordering::Relaxed) != 0
    }

    /// What a poll returned, or will now that what was waited for has come: then it must have been woken.
    pub fn finish(mut self, polled: Poll<F::Output>) -> F::Output {
        if let Poll::Ready(output) = polled {
            return output;
        }
        assert!(self.is_woken(), "a lost wake-up");
        match self.poll() {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("woken for nothing, and there is nothing more to come"),
        }
    }
}

/// A spawner that keeps what it is given until somebody takes it and polls it.
#[derive(Clone, Default)]
pub struct ByHand(Arc<Mutex<Vec<Task>>>);

pub type Task = Polled<Pin<Box<dyn Future<Output = ()> + Send>>>;

impl Spawner for ByHand {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.lock().unwrap().push(Polled::new(Box::pin(task)));
    }
}

impl ByHand {
    pub fn take(&self) -> Task {
        self.0.lock().unwrap().pop().expect("a task was started")
    }
}

pub fn by_hand() -> RegistryBuilder<ByHand> {
    background_tasks::Registry::builder(ByHand::default())
}

/// Something that a task does without an atomic operation. A run fails if another thread sees it and it did not happen before.
#[derive(Clone)]
pub struct Effect(Arc<Mutex<UnsafeCell<()>>>);

impl Effect {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(UnsafeCell::new(()))))
    }

    pub fn happen(&self) {
        self.0.lock().unwrap().with_mut(|_| ());
    }

    pub fn see(&self) {
        self.0.lock().unwrap().with(|_| ());
    }
}

/// Completed, panicked, abandoned, rejected.
pub fn counts(summary: Summary) -> [u64; 4] {
    [summary.completed, summary.panicked, summary.abandoned, summary.rejected]
}
