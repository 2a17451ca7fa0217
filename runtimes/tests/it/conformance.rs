//! Runs the conformance suite for each spawner, with each I/O driver of its runtime.

use crate::common::{self, Make};
use actix_rt::{Arbiter, System};
use async_channel::{Sender, unbounded};
use background_tasks::{BlockingSpawner, DynBlockingSpawner, DynSpawner, LocalSpawner, Spawner, Timer, TokioSpawner, conformance};
use background_tasks_runtimes::{ArbiterSpawner, BevySpawner, CompioSpawner, GlobalExecutorSpawner, GlommioSpawner, MonoioSpawner};
use bevy_tasks::TaskPoolBuilder;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// A runtime on a separate thread. Until this value is dropped, the runtime passes each received value to a function.
struct Core<T>(Sender<T>, Option<JoinHandle<()>>);

impl<T: Send + 'static> Core<T> {
    fn new(make: Make, call: impl Fn(T) + Send + 'static) -> Self {
        let (sender, calls) = unbounded();
        let serve = async move {
            while let Ok(value) = calls.recv().await {
                call(value);
            }
        };
        Self(sender, Some(thread::spawn(move || make().unwrap()(Box::pin(serve)))))
    }

    /// Returns a function that sends a value to the runtime from any thread. If the runtime has been dropped, the function drops the
    /// value.
    fn sender(&self) -> impl Fn(T) + Send + Sync + 'static {
        let sender = self.0.clone();
        move |value| drop(sender.try_send(value))
    }
}

impl<T> Drop for Core<T> {
    fn drop(&mut self) {
        self.0.close();
        self.1.take().unwrap().join().expect("the runtime's thread does not panic");
    }
}

/// Tests the four traits of a spawner that uses the runtime of the calling thread. The suite calls `Spawner` and `BlockingSpawner` on
/// other threads, so this function sends their tasks to the thread of the runtime.
fn thread_per_core<S>(spawner: S, make: Make)
where
    S: Spawner + LocalSpawner + BlockingSpawner + Timer + Copy + Send + Sync + 'static,
{
    if !common::is_available(make) {
        return;
    }
    conformance::local_spawner(move || (spawner, make().unwrap()));
    conformance::timer(move || (spawner, make().unwrap()));
    conformance::executor(move || {
        let core = Core::new(make, move |task| spawner.spawn(task));
        (DynSpawner::from_fn(core.sender()), core)
    });
    let core = Arc::new(Core::new(make, move |work: Box<dyn FnOnce() + Send>| spawner.spawn_blocking(work)));
    conformance::blocking_spawner(move || DynBlockingSpawner::from_fn(core.sender()));
}

#[test]
fn compio_polling() {
    thread_per_core(CompioSpawner, common::compio_polling);
}

#[test]
fn compio_io_uring() {
    thread_per_core(CompioSpawner, common::compio_io_uring);
}

#[test]
fn monoio_legacy() {
    thread_per_core(MonoioSpawner, common::monoio_legacy);
}

#[test]
fn monoio_io_uring() {
    thread_per_core(MonoioSpawner, common::monoio_io_uring);
}

#[test]
fn glommio() {
    thread_per_core(GlommioSpawner, common::glommio_io_uring);
}

#[test]
fn bevy() {
    conformance::executor(|| {
        let pool = Arc::new(TaskPoolBuilder::new().num_threads(2).build());
        (BevySpawner(pool.clone()), pool)
    });
}

#[test]
fn async_global_executor() {
    conformance::spawner(|| GlobalExecutorSpawner);
    conformance::blocking_spawner(|| GlobalExecutorSpawner);
}

/// An arbiter, and the actix system that the arbiter needs. When this value is dropped, the arbiter stops.
struct StopOnDrop(Option<Arbiter>, #[expect(dead_code, reason = "kept alive")] actix_rt::SystemRunner);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let arbiter = self.0.take().unwrap();
        arbiter.stop();
        arbiter.join().expect("the arbiter's thread does not panic");
    }
}

#[test]
fn actix_arbiter() {
    conformance::executor(|| {
        let system = System::new();
        let arbiter = Arbiter::new();
        (ArbiterSpawner(arbiter.handle()), StopOnDrop(Some(arbiter), system))
    });
}

#[test]
fn actix_timer() {
    conformance::timer(|| {
        let system = System::new();
        (ArbiterSpawner(Arbiter::current()), move |main| system.block_on(main))
    });
}

/// Inside an actix system, `TokioSpawner` works without an adapter.
#[test]
fn actix_system() {
    conformance::local_spawner(|| {
        let system = System::new();
        (TokioSpawner, move |main| system.block_on(main))
    });
    conformance::timer(|| {
        let system = System::new();
        (TokioSpawner, move |main| system.block_on(main))
    });
}
