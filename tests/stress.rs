//! Many threads, no plan: what adds up at the end must be exact. `ThreadSanitizer` and Miri run these too.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

mod common;

use background_tasks::{Registry, Spawner, ThreadsSpawner};
use common::{HANG, poll_once};
use futures_lite::future::{block_on, yield_now};
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

const ROUNDS: u64 = if cfg!(miri) { 2 } else { 200 };
const EACH: u64 = if cfg!(miri) { 50 } else { 500 };

#[test]
fn what_the_tasks_did_is_seen_by_whoever_sees_the_drain() {
    for _ in 0..ROUNDS {
        let registry = Registry::new(());
        let mut done = Box::new(0_u64);
        thread::scope(|scope| {
            let guard = registry.guard().unwrap();
            let done = Mutex::new(Some(&mut done));
            scope.spawn(move || {
                **done.lock().unwrap().take().unwrap() = 7;
                drop(guard);
            });
            registry.shutdown().wait_timeout(HANG).unwrap();
        });
        assert_eq!(*done, 7);
    }
}

#[test]
fn threads_that_enter_and_leave_against_a_shutdown_add_up() {
    for _ in 0..ROUNDS {
        let registry = Registry::new(());
        let (entered, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut held = None;
                    for n in 0..EACH {
                        match registry.guard() {
                            Ok(guard) => {
                                entered.fetch_add(1, Ordering::Relaxed);
                                held = (n % 3 == 0).then_some(guard);
                            }
                            Err(_) => {
                                refused.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                    drop(held);
                });
            }
            scope.spawn(|| registry.shutdown().wait_timeout(HANG).unwrap());
        });
        let summary = registry.summary();
        assert!(registry.is_drained());
        assert_eq!(summary.completed, entered.into_inner());
        assert_eq!(summary.rejected, refused.into_inner());
    }
}

#[test]
fn guards_made_here_and_dropped_there_add_up() {
    let registry = Registry::new(());
    let (send, receive) = std::sync::mpsc::sync_channel(64);
    let dropper = thread::spawn(move || receive.into_iter().for_each(drop));
    for _ in 0..ROUNDS * EACH {
        send.send(registry.guard().unwrap()).unwrap();
    }
    drop(send);
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, ROUNDS * EACH);
    dropper.join().unwrap();
}

#[test]
fn signals_polled_and_dropped_everywhere_against_the_trigger() {
    for _ in 0..ROUNDS {
        let registry = Registry::new(());
        let signal = registry.signal();
        thread::scope(|scope| {
            for _ in 0..3 {
                let signal = signal.clone();
                scope.spawn(move || {
                    for _ in 0..10 {
                        let mut passing = signal.clone();
                        let _ = poll_once(&mut passing);
                    }
                    block_on(signal);
                });
            }
            scope.spawn(|| drop(registry.shutdown()));
        });
    }
}

#[test]
fn wait_idle_against_tasks_that_come_and_go() {
    let registry = Registry::new(());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..ROUNDS * EACH {
                    drop(registry.guard());
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| (0..EACH).for_each(|_| block_on(registry.wait_idle())));
        }
    });
    block_on(registry.wait_idle());
    assert_eq!(registry.summary().completed, 2 * ROUNDS * EACH);
}

#[test]
fn registries_that_live_and_die_on_many_threads_share_cores_without_mixing() {
    thread::scope(|scope| {
        for thread in 0..3 {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let registry = Registry::new(());
                    let mut signal = registry.signal();
                    assert!(poll_once(&mut signal).is_pending());
                    let guards = (thread + round) % 4;
                    let held: Vec<_> = (0..guards).map(|_| registry.guard().unwrap()).collect();
                    let shutdown = if round % 2 == 0 { Some(registry.shutdown()) } else { None };
                    drop(registry);
                    assert!(signal.is_triggered());
                    drop(held);
                    if let Some(shutdown) = shutdown {
                        assert_eq!(shutdown.wait_timeout(HANG).unwrap().completed, guards);
                    }
                }
            });
        }
    });
}

#[test]
fn tasks_of_all_fates_on_two_threads_add_up() {
    let registry = Registry::new(ThreadsSpawner::new(2).unwrap());
    for n in 0..ROUNDS * EACH / 10 {
        let own = registry.clone();
        registry.run(async move {
            yield_now().await;
            match n % 5 {
                0 => own.run(async { Err("a failure") }),
                1 => drop(own.track(pending::<()>())),
                2 => drop(own.guard()),
                _ => own.signal().run_until_shutdown(yield_now()).await.map_or((), drop),
            }
        });
    }
    let all = ROUNDS * EACH / 10;
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    let fifth = all / 5;
    assert_eq!((summary.completed, summary.failed, summary.abandoned), (all + fifth, fifth, fifth));
}

/// A spawner that polls on the thread that spawns, as deep as it goes.
#[derive(Clone)]
struct Inline;

impl Spawner for Inline {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        block_on(task);
    }
}

#[test]
fn a_spawner_that_runs_at_once_may_spawn_again_from_inside() {
    let registry = Registry::new(Inline);
    let ran = Arc::new(AtomicU64::new(0));
    let (own, count) = (registry.clone(), ran.clone());
    registry.run(async move {
        own.run(async move {
            count.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!((ran.load(Ordering::Relaxed), registry.shutdown().wait().completed), (1, 2));
}
