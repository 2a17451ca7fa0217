//! One registry, and a runtime of its own on each thread: every task of every thread is told, and drained.
#![cfg(all(target_os = "linux", feature = "compio", feature = "monoio", feature = "glommio"))]

mod common;

use background_tasks::{LocalSpawner, Registry};
use background_tasks_runtimes::{CompioSpawner, GlommioSpawner, MonoioSpawner};
use common::{HANG, Make};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::thread;

const CORES: usize = 3;
const EACH: usize = 200;

/// Runs `EACH` tasks on each of `CORES` threads, all of one registry, and shuts it down from a thread that has no runtime.
fn every_task_of_every_core_is_told_and_drained<S: LocalSpawner + Copy + Send + 'static>(spawner: S, make: Make) {
    if let Err(why) = make() {
        return println!("skipped: {why}");
    }
    let registry = Registry::new(spawner);
    let (started, all_started) = channel();
    let cores = (0..CORES).map(|_| {
        let (registry, started) = (registry.clone(), started.clone());
        thread::spawn(move || {
            let told = Rc::new(Cell::new(0));
            let counter = told.clone();
            make().unwrap()(Box::pin(async move {
                for _ in 0..EACH {
                    // An `Rc`: nothing but a local task could own it.
                    let (signal, told) = (registry.signal(), counter.clone());
                    registry.run_local(async move {
                        signal.await;
                        told.set(told.get() + 1);
                    });
                }
                started.send(()).unwrap();
                registry.signal().await;
                // Not tracked itself, so it can wait for all, on every core.
                registry.shutdown().await;
            }));
            told.get()
        })
    });
    let cores: Vec<_> = cores.collect();
    for _ in 0..CORES {
        all_started.recv_timeout(HANG).unwrap();
    }
    assert_eq!(registry.in_flight(), CORES * EACH);
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    assert_eq!(summary.completed, (CORES * EACH) as u64);
    assert!(summary.is_clean(), "{summary}");
    for core in cores {
        assert_eq!(core.join().unwrap(), EACH);
    }
}

#[test]
fn compio_polling() {
    every_task_of_every_core_is_told_and_drained(CompioSpawner, common::compio_polling);
}

#[test]
fn compio_io_uring() {
    every_task_of_every_core_is_told_and_drained(CompioSpawner, common::compio_io_uring);
}

#[test]
fn monoio_legacy() {
    every_task_of_every_core_is_told_and_drained(MonoioSpawner, common::monoio_legacy);
}

#[test]
fn monoio_io_uring() {
    every_task_of_every_core_is_told_and_drained(MonoioSpawner, common::monoio_io_uring);
}

#[test]
fn glommio() {
    every_task_of_every_core_is_told_and_drained(GlommioSpawner, common::glommio_io_uring);
}
