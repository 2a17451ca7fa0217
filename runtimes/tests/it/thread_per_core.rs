//! Tests one registry on several threads with their own runtimes. Each task must receive the signal, and the drain must wait for all
//! tasks.

use crate::common::{self, Make, TIMEOUT};
use background_tasks::{LocalSpawner, Registry};
use background_tasks_runtimes::{CompioSpawner, GlommioSpawner, MonoioSpawner};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::thread;

const CORES: usize = 3;
const EACH: usize = 200;

/// Runs `EACH` tasks of one registry on each of `CORES` threads. A thread without a runtime shuts the registry down.
fn every_task_gets_the_signal_and_drains<S: LocalSpawner + Copy + Send + 'static>(spawner: S, make: Make) {
    if !common::is_available(make) {
        return;
    }
    let registry = Registry::new(spawner);
    let (started, all_started) = channel();
    let cores = (0..CORES).map(|_| {
        let (registry, started) = (registry.clone(), started.clone());
        thread::spawn(move || {
            let signalled = Rc::new(Cell::new(0));
            let counter = signalled.clone();
            make().unwrap()(Box::pin(async move {
                for _ in 0..EACH {
                    // These tasks are local, because only a local task can own an `Rc`.
                    let (signal, signalled) = (registry.signal(), counter.clone());
                    registry.run_local(async move {
                        signal.await;
                        signalled.set(signalled.get() + 1);
                    });
                }
                started.send(()).unwrap();
                registry.signal().await;
                // This future is not a task of the registry, so it can wait for the tasks of all threads.
                registry.shutdown().await;
            }));
            signalled.get()
        })
    });
    let cores: Vec<_> = cores.collect();
    for _ in 0..CORES {
        all_started.recv_timeout(TIMEOUT).unwrap();
    }
    assert_eq!(registry.in_flight(), CORES * EACH);
    let summary = registry.shutdown().wait_timeout(TIMEOUT).unwrap();
    assert_eq!(summary.completed, (CORES * EACH) as u64);
    assert!(summary.is_clean(), "{summary}");
    for core in cores {
        assert_eq!(core.join().unwrap(), EACH);
    }
}

#[test]
fn compio_polling() {
    every_task_gets_the_signal_and_drains(CompioSpawner, common::compio_polling);
}

#[test]
fn compio_io_uring() {
    every_task_gets_the_signal_and_drains(CompioSpawner, common::compio_io_uring);
}

#[test]
fn monoio_legacy() {
    every_task_gets_the_signal_and_drains(MonoioSpawner, common::monoio_legacy);
}

#[test]
fn monoio_io_uring() {
    every_task_gets_the_signal_and_drains(MonoioSpawner, common::monoio_io_uring);
}

#[test]
fn glommio() {
    every_task_gets_the_signal_and_drains(GlommioSpawner, common::glommio_io_uring);
}
