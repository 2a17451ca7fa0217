//! Tests shutdowns with a time limit, and services, on each runtime that has a timer.

use crate::common::{self, Make, TIMEOUT};
use actix_rt::{Arbiter, System};
use background_tasks::{LocalSpawner, Registry, Restart, Spawner, Timer};
use background_tasks_runtimes::{ArbiterSpawner, CompioSpawner, GlommioSpawner, MonoioSpawner};
use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

const SHORT: Duration = Duration::from_millis(10);

/// A function that starts a task on a registry.
type Run<S> = fn(&Registry<S>, bool);

fn run<S: Spawner>(registry: &Registry<S>, finishes: bool) {
    if finishes { registry.run(async {}) } else { registry.run(pending::<()>()) }
}

fn run_local<S: LocalSpawner>(registry: &Registry<S>, finishes: bool) {
    if finishes { registry.run_local(async {}) } else { registry.run_local(pending::<()>()) }
}

async fn limits_apply<S: Timer + Clone>(spawner: S, run: Run<S>) {
    let started = |finishes| {
        let registry = Registry::builder(spawner.clone()).inspect().build();
        run(&registry, finishes);
        registry
    };
    assert_eq!(started(true).shutdown_within(Duration::MAX).await.unwrap().completed, 1);
    assert_eq!(started(false).shutdown_within(SHORT).await.unwrap_err().len(), 1);
    assert_eq!(started(false).shutdown_within(Duration::ZERO).await.unwrap_err().len(), 1);
    assert_eq!(started(true).shutdown_or_abort(Duration::MAX, Duration::MAX).await.unwrap().completed, 1);
    assert_eq!(started(false).shutdown_or_abort(SHORT, Duration::MAX).await.unwrap().aborted, 1);
    assert_eq!(started(false).shutdown_or_abort(Duration::ZERO, Duration::MAX).await.unwrap().aborted, 1);

    let registry = started(true);
    let mut dropped = Box::pin(registry.shutdown_within(Duration::MAX));
    poll_fn(|cx| Poll::Ready(pin!(&mut dropped).poll(cx).is_ready())).await;
    drop(dropped);
    assert!(registry.is_shutting_down());
    assert_eq!(registry.shutdown_within(Duration::MAX).await.unwrap().completed, 1);
}

/// Runs a service that fails and restarts, and a periodic task. Both own values that are not `Send`. The time limit expires only if one
/// of them hangs.
async fn local_services_run<S: LocalSpawner + Timer + Clone + 'static>(spawner: S) {
    let registry = Registry::new(spawner);
    let (runs, ticks) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (counted_runs, counted_ticks) = (runs.clone(), ticks.clone());
    registry.task().service_local(Restart::on_failure().backoff(SHORT, SHORT).at_most(1, TIMEOUT), move || {
        counted_runs.set(counted_runs.get() + 1);
        async { Err::<(), _>("no connection") }
    });
    registry.task().every_local(SHORT, move || {
        counted_ticks.set(counted_ticks.get() + 1);
        async {}
    });
    while runs.get() < 2 || ticks.get() < 3 {
        registry.spawner().sleep(SHORT).await;
    }
    let summary = registry.shutdown_within(TIMEOUT).await.unwrap();
    assert_eq!((runs.get(), summary.failed), (2, 2));
    assert_eq!(summary.completed, ticks.get());
}

fn limits_and_services_work_on<S: LocalSpawner + Timer + Copy + 'static>(spawner: S, make: Make) {
    if common::is_available(make) {
        make().unwrap()(Box::pin(async move {
            limits_apply(spawner, run_local).await;
            local_services_run(spawner).await;
        }));
    }
}

#[test]
fn compio_polling() {
    limits_and_services_work_on(CompioSpawner, common::compio_polling);
}

#[test]
fn compio_io_uring() {
    limits_and_services_work_on(CompioSpawner, common::compio_io_uring);
}

#[test]
fn monoio_legacy() {
    limits_and_services_work_on(MonoioSpawner, common::monoio_legacy);
}

#[test]
fn monoio_io_uring() {
    limits_and_services_work_on(MonoioSpawner, common::monoio_io_uring);
}

#[test]
fn glommio() {
    limits_and_services_work_on(GlommioSpawner, common::glommio_io_uring);
}

#[test]
fn actix_arbiter() {
    let system = System::new();
    let arbiter = Arbiter::new();
    system.block_on(limits_apply(ArbiterSpawner(arbiter.handle()), run));
    arbiter.stop();
    arbiter.join().unwrap();
}
