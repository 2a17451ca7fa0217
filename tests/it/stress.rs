//! Tests registries that many threads use without a fixed order. At the end, the counts must be exact. `ThreadSanitizer` and Miri also
//! run these tests.
use crate::common::{HANG, poll_once};
use background_tasks::{Registry, Spawner, ThreadsSpawner};
use futures_lite::future::{block_on, yield_now};
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

const ROUNDS: u64 = if cfg!(miri) { 2 } else { 200 };
const PER_ROUND: u64 = if cfg!(miri) { 50 } else { 500 };

/// Checks invariant S2 of `docs/invariants.md`.
#[test]
fn drain_makes_the_effects_of_tasks_visible() {
    for _ in 0..ROUNDS {
        let registry = Registry::new(());
        let mut value = Box::new(0_u64);
        thread::scope(|scope| {
            let guard = registry.guard().unwrap();
            let value = Mutex::new(Some(&mut value));
            scope.spawn(move || {
                **value.lock().unwrap().take().unwrap() = 7;
                drop(guard);
            });
            registry.shutdown().wait_timeout(HANG).unwrap();
        });
        assert_eq!(*value, 7);
    }
}

/// Checks invariant S4 of `docs/invariants.md`.
#[test]
fn accepted_and_rejected_guards_add_up_when_they_race_the_shutdown() {
    for _ in 0..ROUNDS {
        let registry = Registry::new(());
        let (accepted, rejected) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut last = None;
                    for n in 0..PER_ROUND {
                        match registry.guard() {
                            Ok(guard) => {
                                accepted.fetch_add(1, Ordering::Relaxed);
                                last = (n % 3 == 0).then_some(guard);
                            }
                            Err(_) => {
                                rejected.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                    drop(last);
                });
            }
            scope.spawn(|| registry.shutdown().wait_timeout(HANG).unwrap());
        });
        let summary = registry.summary();
        assert!(registry.is_drained());
        assert_eq!(summary.completed, accepted.into_inner());
        assert_eq!(summary.rejected, rejected.into_inner());
    }
}

#[test]
fn guards_dropped_on_another_thread_add_up() {
    let registry = Registry::new(());
    let (send, receive) = std::sync::mpsc::sync_channel(64);
    let dropper = thread::spawn(move || receive.into_iter().for_each(drop));
    for _ in 0..ROUNDS * PER_ROUND {
        send.send(registry.guard().unwrap()).unwrap();
    }
    drop(send);
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, ROUNDS * PER_ROUND);
    dropper.join().unwrap();
}

/// Checks invariant L1 of `docs/invariants.md`.
#[test]
fn signals_resolve_when_their_polls_and_drops_race_the_shutdown() {
    for _ in 0..ROUNDS {
        let registry = Registry::new(());
        let signal = registry.signal();
        thread::scope(|scope| {
            for _ in 0..3 {
                let signal = signal.clone();
                scope.spawn(move || {
                    for _ in 0..10 {
                        let mut short_lived = signal.clone();
                        let _ = poll_once(&mut short_lived);
                    }
                    block_on(signal);
                });
            }
            scope.spawn(|| drop(registry.shutdown()));
        });
    }
}

/// Checks invariant L2 of `docs/invariants.md`.
#[test]
fn wait_idle_resolves_while_other_threads_start_and_end_work() {
    let registry = Registry::new(());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..ROUNDS * PER_ROUND {
                    drop(registry.guard());
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| (0..PER_ROUND).for_each(|_| block_on(registry.wait_idle())));
        }
    });
    block_on(registry.wait_idle());
    assert_eq!(registry.summary().completed, 2 * ROUNDS * PER_ROUND);
}

#[test]
fn registries_on_many_threads_reuse_states_without_mixing_counts() {
    thread::scope(|scope| {
        for thread in 0..3 {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let registry = Registry::new(());
                    let mut signal = registry.signal();
                    assert!(poll_once(&mut signal).is_pending());
                    let count = (thread + round) % 4;
                    let guards: Vec<_> = (0..count).map(|_| registry.guard().unwrap()).collect();
                    let shutdown = if round % 2 == 0 { Some(registry.shutdown()) } else { None };
                    drop(registry);
                    assert!(signal.is_triggered());
                    drop(guards);
                    if let Some(shutdown) = shutdown {
                        assert_eq!(shutdown.wait_timeout(HANG).unwrap().completed, count);
                    }
                }
            });
        }
    });
}

/// Checks invariant S5 of `docs/invariants.md`.
#[test]
fn outcomes_on_two_threads_add_up() {
    let total = ROUNDS * PER_ROUND / 10;
    let registry = Registry::new(ThreadsSpawner::new(2).unwrap());
    for n in 0..total {
        let handle = registry.clone();
        registry.run(async move {
            yield_now().await;
            match n % 5 {
                0 => handle.run(async { Err::<(), _>("intentional failure") }),
                1 => drop(handle.track(pending::<()>())),
                2 => drop(handle.guard()),
                _ => handle.signal().run_until_shutdown(yield_now()).await.map_or((), drop),
            }
        });
    }
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    let fifth = total / 5;
    assert_eq!((summary.completed, summary.failed, summary.abandoned), (total + fifth, fifth, fifth));
}

/// A spawner that runs each task to its end before `spawn` returns.
#[derive(Clone)]
struct InlineSpawner;

impl Spawner for InlineSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        block_on(task);
    }
}

#[test]
fn task_on_an_inline_spawner_may_start_another_task() {
    let registry = Registry::new(InlineSpawner);
    let runs = Arc::new(AtomicU64::new(0));
    let (handle, inner_runs) = (registry.clone(), runs.clone());
    registry.run(async move {
        handle.run(async move {
            inner_runs.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!((runs.load(Ordering::Relaxed), registry.shutdown().wait().completed), (1, 2));
}

/// Checks invariant S12 of `docs/invariants.md`.
#[test]
fn children_come_and_go_while_their_root_shuts_down() {
    for round in 0..ROUNDS {
        let registry = if round % 2 == 0 { Registry::new(()) } else { Registry::builder(()).max_in_flight(2).build() };
        let (accepted, rejected) = (AtomicU64::new(0), AtomicU64::new(0));
        let count = |guard: &Result<_, _>| {
            let counter = if guard.is_ok() { &accepted } else { &rejected };
            counter.fetch_add(1, Ordering::Relaxed);
        };
        thread::scope(|scope| {
            for thread in 0..3 {
                let (registry, count) = (registry.clone(), &count);
                scope.spawn(move || {
                    for n in 0..PER_ROUND / 10 {
                        let child = registry.child();
                        (0..n % 4).for_each(|_| count(&child.guard()));
                        let grandchild = child.child();
                        let guard = grandchild.guard();
                        count(&guard);
                        if thread == 0 { drop((child, grandchild, guard)) } else { drop((guard, grandchild, child)) }
                    }
                });
            }
            let registry = registry.clone();
            scope.spawn(move || {
                (0..round * 20).for_each(|_| std::hint::spin_loop());
                registry.start_shutdown();
            });
        });
        let summary = registry.shutdown().wait_timeout(HANG).unwrap();
        assert_eq!(summary.completed, accepted.into_inner(), "{summary}");
        assert!(registry.summary().rejected >= rejected.into_inner(), "drained children are rejected too: {summary}");
    }
}
