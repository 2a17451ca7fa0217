//! S3, S4, L2: a drain is true and final, whoever waits for it is told, and idle is what was observed.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

mod common;

use background_tasks::{Registry, RegistryState, SmolSpawner, Spawner};
use common::{HANG, Manual, Owns, PanicDrop, poll_once, waker_fn};
use futures_lite::future::{block_on, yield_now};
use std::future::{pending, ready};
use std::pin::Pin;
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

fn children_started_while_draining_are_waited_for<S: Spawner + Clone + Send + Sync + 'static>(registry: &Registry<S>) {
    fn family<S: Spawner + Clone + Send + Sync + 'static>(registry: Registry<S>, depth: u32) -> common::BoxFuture {
        Box::pin(async move {
            registry.signal().await;
            for _ in 0..2 * depth.min(1) {
                registry.run(family(registry.clone(), depth - 1));
            }
        })
    }
    registry.run(family(registry.clone(), 6));
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 127);
    assert_eq!(registry.summary().rejected, 0);
}

fn a_task_can_begin_the_shutdown<S: Spawner + Clone + Send + Sync + 'static>(registry: &Registry<S>) {
    let own = registry.clone();
    registry.run(async move {
        own.shutdown();
        own.run(async {});
    });
    block_on(registry.signal());
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 2);
}

fn ten_waiters_of_both_kinds_are_told<S: Spawner + Clone + Send + Sync + 'static>(registry: &Registry<S>) {
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let guard = registry.guard().unwrap();
    thread::spawn(move || {
        wait.lock().unwrap().recv_timeout(HANG).unwrap();
        drop(guard);
    });
    let waiters: Vec<_> = (0..10)
        .map(|n| {
            let mut shutdown = registry.shutdown();
            assert!(poll_once(&mut shutdown).is_pending());
            thread::spawn(move || if n % 2 == 0 { block_on(shutdown) } else { shutdown.wait() })
        })
        .collect();
    go.send(()).unwrap();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap().completed, 1);
    }
}

fn idle_is_seen_when_tasks_start_tasks<S: Spawner + Clone + Send + Sync + 'static>(registry: &Registry<S>) {
    for round in 1..=if cfg!(miri) { 5 } else { 50 } {
        let own = registry.clone();
        registry.run(async move {
            yield_now().await;
            let last = own.clone();
            own.run(async move {
                yield_now().await;
                last.run(yield_now());
            });
        });
        block_on(registry.wait_idle());
        assert_eq!(registry.summary().completed, 3 * round);
    }
    assert!(!registry.is_shutting_down());
}

fn drained_is_final<S: Spawner>(registry: &Registry<S>) {
    registry.run(async {});
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    assert!(registry.is_drained() && registry.is_shutting_down());
    registry.try_run(async {}).unwrap_err();
    assert_eq!(registry.shutdown().wait().completed, summary.completed);
    assert_eq!(registry.in_flight(), 0);
}

on_every_runtime!(
    children_started_while_draining_are_waited_for,
    a_task_can_begin_the_shutdown,
    ten_waiters_of_both_kinds_are_told,
    idle_is_seen_when_tasks_start_tasks,
    drained_is_final,
);

#[test]
fn an_idle_registry_drains_at_once() {
    let registry = Registry::new(());
    assert!(!registry.is_shutting_down());
    assert!(poll_once(&mut registry.shutdown()).is_ready());
    assert!(registry.is_drained());
}

#[test]
fn shutdown_begins_when_called_not_when_polled() {
    let registry = Registry::new(());
    let _in_flight = registry.guard();
    let _never_polled = registry.shutdown();
    assert!(registry.is_shutting_down() && registry.signal().is_triggered());
    assert!(!registry.is_drained());
}

#[test]
fn a_shutdown_dropped_half_way_can_be_asked_for_again() {
    let registry = Registry::new(());
    let guard = registry.guard().unwrap();
    let mut first = registry.shutdown();
    let mut second = registry.shutdown();
    assert!(poll_once(&mut first).is_pending() && poll_once(&mut second).is_pending());
    drop(first);
    drop(guard);
    assert_eq!(block_on(second).completed, 1);
    assert_eq!(block_on(registry.shutdown()).completed, 1);
}

#[test]
fn a_shutdown_polled_by_another_task_wakes_that_one() {
    let registry = Registry::new(());
    let guard = registry.guard().unwrap();
    let mut shutdown = registry.shutdown();
    assert!(poll_once(&mut shutdown).is_pending());
    let (woken, is_woken) = channel();
    let second = waker_fn(move || woken.send(()).unwrap());
    assert!(Pin::new(&mut shutdown).poll(&mut Context::from_waker(&second)).is_pending());
    drop(guard);
    is_woken.recv_timeout(HANG).unwrap();
    assert!(poll_once(&mut shutdown).is_ready());
}

#[test]
fn a_waker_of_a_drain_may_call_back_and_another_may_panic() {
    let registry = Registry::new(());
    let guard = registry.guard().unwrap();
    let polled = |waker| {
        let mut shutdown = Box::new(registry.shutdown());
        assert!(Pin::new(&mut *shutdown).poll(&mut Context::from_waker(&waker)).is_pending());
        shutdown
    };
    let (woken, is_woken) = channel();
    let panics = polled(waker_fn(|| panic!("a waker's panic, as planned")));
    let own = registry.clone();
    let dropped = Mutex::new(Some(polled(waker_fn(|| {}))));
    let calls = polled(waker_fn(move || {
        // Under the event's lock each of these would hang.
        assert!(poll_once(&mut own.shutdown()).is_ready());
        drop(dropped.lock().unwrap().take());
        assert!(poll_once(&mut own.wait_idle()).is_ready());
        woken.send(own.is_drained()).unwrap();
    }));
    let (last, is_last) = channel();
    let after = polled(waker_fn(move || last.send(()).unwrap()));
    drop(guard);
    assert!(is_woken.recv_timeout(HANG).unwrap());
    is_last.recv_timeout(HANG).unwrap();
    drop((panics, calls, after));
}

#[test]
fn a_deadline_that_passes_tells_how_many_are_left_and_what_has_ended() {
    let registry = Registry::new(());
    let guard = registry.guard().unwrap();
    drop(registry.guard());
    let stragglers = block_on(registry.shutdown().until(ready(()))).unwrap_err();
    assert_eq!((stragglers.len(), stragglers.summary().completed), (1, 1));
    assert_eq!(
        stragglers.to_string(),
        "1 background task still in flight \
         (1 completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected)"
    );
    drop(guard);
    assert_eq!(block_on(registry.shutdown().until(pending::<()>())).unwrap().completed, 2);
}

#[test]
fn a_deadline_that_has_passed_looks_once_more() {
    let registry = Registry::new(());
    let guard = Mutex::new(registry.guard().ok());
    // The last one leaves while the deadline passes: the deadline's own poll drops the guard.
    let deadline = std::future::poll_fn(|_| {
        drop(guard.lock().unwrap().take());
        Poll::Ready(())
    });
    assert_eq!(block_on(registry.shutdown().until(deadline)).unwrap().completed, 1);
}

#[test]
fn a_time_of_zero_looks_and_one_without_end_waits() {
    let registry = Registry::new(());
    let guard = registry.guard().unwrap();
    assert_eq!(registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err().len(), 1);
    let owner = thread::spawn(move || drop(guard));
    assert_eq!(registry.shutdown().wait_timeout(Duration::MAX).unwrap().completed, 1);
    owner.join().unwrap();
    assert_eq!(registry.shutdown().wait_timeout(Duration::ZERO).unwrap().completed, 1);
}

#[test]
fn the_last_one_out_against_a_newcomer() {
    for _ in 0..if cfg!(miri) { 10 } else { 5_000 } {
        let registry = Registry::new(());
        let last = registry.guard().unwrap();
        registry.shutdown();
        let together = Arc::new(Barrier::new(2));
        let newcomer = thread::spawn({
            let (registry, together) = (registry.clone(), together.clone());
            move || {
                together.wait();
                let entered = registry.guard();
                (entered.is_ok(), registry.is_drained())
            }
        });
        together.wait();
        drop(last);
        let (entered, drained_while_held) = newcomer.join().unwrap();
        if entered {
            assert!(!drained_while_held, "drained with a guard held");
        }
        assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 1 + u64::from(entered));
        assert_eq!(registry.summary().rejected, u64::from(!entered));
    }
}

#[test]
fn a_newcomer_whose_own_shard_has_drained_is_let_in_elsewhere() {
    let registry = Registry::new(());
    // Held on this thread's shard alone: with more than one, the shards of most of the others have drained.
    let guard = registry.guard().unwrap();
    registry.shutdown();
    for _ in 0..8 {
        let registry = registry.clone();
        thread::spawn(move || drop(registry.guard().unwrap())).join().unwrap();
    }
    drop(guard);
    assert_eq!(registry.shutdown().wait().completed, 9);
    registry.guard().unwrap_err();
}

#[test]
fn wait_idle_is_pending_while_something_is_in_flight_and_wakes_then() {
    let registry = Registry::new(());
    assert!(poll_once(&mut registry.wait_idle()).is_ready());
    let guard = registry.guard().unwrap();
    let (woken, is_woken) = channel();
    let waker = waker_fn(move || woken.send(()).unwrap());
    let mut idle = registry.wait_idle();
    assert!(Pin::new(&mut idle).poll(&mut Context::from_waker(&waker)).is_pending());
    drop(guard);
    is_woken.recv_timeout(HANG).unwrap();
    assert!(poll_once(&mut idle).is_ready());
    drop(registry.guard());
    assert!(is_woken.try_recv().is_err(), "woken once");
}

#[test]
fn wait_idle_after_the_drain_is_ready() {
    let registry = Registry::new(());
    registry.shutdown();
    assert!(poll_once(&mut registry.wait_idle()).is_ready());
}

#[test]
fn wait_idle_is_not_fooled_by_a_baton_handed_from_thread_to_thread() {
    let registry = Registry::new(());
    let (give, take) = channel();
    give.send(registry.guard().unwrap()).unwrap();
    let runner = thread::spawn({
        let registry = registry.clone();
        move || {
            // The baton is never down: each is taken before the one before it is given back.
            let mut held = take.recv().unwrap();
            for _ in 0..if cfg!(miri) { 100 } else { 100_000 } {
                held = registry.guard().unwrap();
            }
            held
        }
    });
    let mut idle = registry.wait_idle();
    while !runner.is_finished() {
        assert!(poll_once(&mut idle).is_pending());
    }
    drop(runner.join().unwrap());
    assert!(poll_once(&mut idle).is_ready());
}

#[test]
fn a_shutdown_outlives_the_registry_and_its_spawner() {
    let registry = Registry::new(Manual::default());
    let guard = registry.guard().unwrap();
    let mut shutdown = registry.shutdown();
    drop(registry);
    assert!(poll_once(&mut shutdown).is_pending());
    drop(guard);
    // The core must not serve another registry while it can be read.
    let others: Vec<_> = (0..32).map(|_| Registry::new(())).collect();
    assert_eq!(block_on(shutdown).completed, 1);
    drop(others);
}

#[test]
fn the_next_registry_of_a_core_starts_at_zero() {
    for _ in 0..if cfg!(miri) { 3 } else { 100 } {
        let manual = Manual::default();
        let registry = Registry::new(manual.clone());
        assert_eq!(registry.summary(), background_tasks::Summary::default());
        assert!(!registry.is_shutting_down() && !registry.is_drained() && !registry.signal().is_triggered());
        registry.run(async { Err("a failure") });
        registry.run(async { panic!("a panic, as planned") });
        registry.run(Owns(PanicDrop, pending::<()>()));
        registry.run(pending::<()>());
        manual.poll_all();
        manual.0.lock().unwrap().clear();
        registry.shutdown();
        registry.run(async {});
    }
}

#[test]
fn a_guard_that_begins_the_shutdown_when_main_returns_early() {
    fn early(registry: &Registry<()>) -> Result<(), &'static str> {
        let _shutdown = registry.shutdown_on_drop();
        Err("an early return")
    }
    let registry = Registry::new(());
    registry.shutdown_on_drop().disarm();
    assert!(!registry.is_shutting_down());
    early(&registry).unwrap_err();
    assert!(registry.is_drained());
}

#[test]
fn a_registry_in_a_static() {
    static STATE: RegistryState = RegistryState::new();
    static TASKS: Registry<SmolSpawner> = Registry::in_static(&STATE, SmolSpawner);
    TASKS.run(async {});
    drop(Registry::in_static(&STATE, SmolSpawner));
    assert!(!TASKS.is_shutting_down(), "a handle on a static core is not the last");
    assert_eq!(TASKS.shutdown().wait_timeout(HANG).unwrap().completed, 1);
    TASKS.try_run(async {}).unwrap_err();
}

#[test]
fn a_debug_print_tells_the_state_and_ends() {
    static STATE: RegistryState = RegistryState::new();
    let registry = Registry::new(());
    let guard = registry.guard();
    assert_eq!(format!("{registry:?}"), "Registry { in_flight: 1, is_shutting_down: false, is_drained: false, .. }");
    assert_eq!(format!("{:?}", registry.signal()), "ShutdownSignal { is_triggered: false, .. }");
    assert_eq!(format!("{STATE:?}"), "RegistryState { .. }");
    let rest = format!("{:?} {:?} {:?} {guard:?}", registry.wait_idle(), registry.shutdown(), registry.shutdown_on_drop());
    assert!(rest.len() < 1000, "{rest}");
}
