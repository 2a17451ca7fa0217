//! Each adapter keeps the contract, on each of its drivers.
#![cfg(all(
    target_os = "linux",
    feature = "actix-rt",
    feature = "async-global-executor",
    feature = "bevy_tasks",
    feature = "compio",
    feature = "glommio",
    feature = "monoio"
))]

mod common;

use actix_rt::{Arbiter, System};
use async_channel::{Sender, unbounded};
use background_tasks::{BlockingSpawner, DynBlockingSpawner, DynSpawner, LocalSpawner, Spawner, TokioSpawner, conformance};
use background_tasks_runtimes::{ArbiterSpawner, BevySpawner, CompioSpawner, GlobalExecutorSpawner, GlommioSpawner, MonoioSpawner};
use bevy_tasks::TaskPoolBuilder;
use common::Make;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// A runtime on a thread of its own, which calls there what it is sent, until it is dropped.
struct Core<T>(Sender<T>, Option<JoinHandle<()>>);

impl<T: Send + 'static> Core<T> {
    fn new(make: Make, call: impl Fn(T) + Send + 'static) -> Self {
        let (sender, calls) = unbounded();
        let serve = async move {
            while let Ok(what) = calls.recv().await {
                call(what);
            }
        };
        Self(sender, Some(thread::spawn(move || make().unwrap()(Box::pin(serve)))))
    }

    /// Returns what sends to it from any thread. What comes too late is dropped.
    fn sends(&self) -> impl Fn(T) + Send + Sync + 'static {
        let sender = self.0.clone();
        move |what| drop(sender.try_send(what))
    }
}

impl<T> Drop for Core<T> {
    fn drop(&mut self) {
        self.0.close();
        self.1.take().unwrap().join().expect("the runtime's thread lives on");
    }
}

/// The three traits of a spawner that serves the runtime of its thread: two of them need others to bring the work to that thread.
fn thread_per_core<S>(spawner: S, make: Make)
where
    S: Spawner + LocalSpawner + BlockingSpawner + Copy + Send + Sync + 'static,
{
    if let Err(why) = make() {
        return println!("skipped: {why}");
    }
    conformance::local_spawner(move || (spawner, make().unwrap()));
    conformance::executor(move || {
        let core = Core::new(make, move |task| spawner.spawn(task));
        (DynSpawner::from_fn(core.sends()), core)
    });
    let core = Arc::new(Core::new(make, move |work: Box<dyn FnOnce() + Send>| spawner.spawn_blocking(work)));
    conformance::blocking_spawner(move || DynBlockingSpawner::from_fn(core.sends()));
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

/// An arbiter, and the system without which there is none.
struct Stops(Option<Arbiter>, #[expect(dead_code, reason = "it is there")] actix_rt::SystemRunner);

impl Drop for Stops {
    fn drop(&mut self) {
        let arbiter = self.0.take().unwrap();
        arbiter.stop();
        arbiter.join().expect("the arbiter's thread lives on");
    }
}

#[test]
fn actix_arbiter() {
    conformance::executor(|| {
        let system = System::new();
        let arbiter = Arbiter::new();
        (ArbiterSpawner(arbiter.handle()), Stops(Some(arbiter), system))
    });
}

/// What actix needs no adapter for.
#[test]
fn actix_system() {
    conformance::local_spawner(|| {
        let system = System::new();
        (TokioSpawner, move |main| system.block_on(main))
    });
}
