//! Checks the invariants S3, S4 and L2. A drain waits for all tasks and is final, and wakes all futures that wait for it. `wait_idle`
//! resolves only if there was a moment without a task in flight.
use crate::common::{HANG, Manual, Owns, PanicDrop, poll, poll_once, waker_fn};
use background_tasks::{Registry, RegistryState, Spawner};
use futures_lite::future::{block_on, yield_now};
use std::future::{pending, ready};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, Mutex};
use std::task::Poll;
use std::thread;
use std::time::Duration;

fn drain_waits_for_tasks_started_while_draining<S: Spawner + Clone + Send + Sync + 'static>(registry: &Registry<S>) {
    /// Returns a task that waits for the shutdown signal, and then starts two tasks. Each of these tasks does the same, up to `depth`
    /// levels.
    fn task_tree<S: Spawner + Clone + Send + Sync + 'static>(registry: Registry<S>, depth: u32) -> crate::common::BoxFuture {
        Box::pin(async move {
            registry.signal().await;
            for _ in 0..2 * depth.min(1) {
                registry.run(task_tree(registry.clone(), depth - 1));
            }
        })
    }
    registry.run(task_tree(registry.clone(), 6));
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 127);
    assert_eq!(registry.summary().rejected, 0);
}

fn task_can_start_the_shutdown<S: Spawner + Clone + Send + Sync + 'static>(registry: &Registry<S>) {
    let handle = registry.clone();
    registry.run(async move {
        handle.start_shutdown();
        handle.run(async {});
    });
    block_on(registry.signal());
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 2);
}

fn drain_wakes_async_and_blocking_waiters<S: Spawner + Clone + Send + Sync + 'static>(registry: &Registry<S>) {
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let guard = registry.guard().unwrap();
    thread::spawn(move || {
        released.lock().unwrap().recv_timeout(HANG).unwrap();
        drop(guard);
    });
    let waiters: Vec<_> = (0..10)
        .map(|n| {
            let mut shutdown = registry.shutdown();
            assert!(poll_once(&mut shutdown).is_pending());
            thread::spawn(move || if n % 2 == 0 { block_on(shutdown) } else { shutdown.wait() })
        })
        .collect();
    release.send(()).unwrap();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap().completed, 1);
    }
}

fn wait_idle_waits_for_tasks_started_by_tasks<S: Spawner + Clone + Send + Sync + 'static>(registry: &Registry<S>) {
    for round in 1..=if cfg!(miri) { 5 } else { 50 } {
        let parent = registry.clone();
        registry.run(async move {
            yield_now().await;
            let child = parent.clone();
            parent.run(async move {
                yield_now().await;
                child.run(yield_now());
            });
        });
        block_on(registry.wait_idle());
        assert_eq!(registry.summary().completed, 3 * round);
    }
    assert!(!registry.is_shutting_down());
}

fn drained_registry_stays_drained<S: Spawner>(registry: &Registry<S>) {
    registry.run(async {});
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    assert!(registry.is_drained() && registry.is_shutting_down());
    registry.try_run(async {}).unwrap_err();
    assert_eq!(registry.shutdown().wait().completed, summary.completed);
    assert_eq!(registry.in_flight(), 0);
}

on_every_runtime!(
    drain_waits_for_tasks_started_while_draining,
    task_can_start_the_shutdown,
    drain_wakes_async_and_blocking_waiters,
    wait_idle_waits_for_tasks_started_by_tasks,
    drained_registry_stays_drained,
);

#[test]
fn idle_registry_drains_immediately() {
    let registry = Registry::new(());
    assert!(!registry.is_shutting_down());
    assert!(poll_once(&mut registry.shutdown()).is_ready());
    assert!(registry.is_drained());
}

#[test]
fn shutdown_starts_when_called_not_when_polled() {
    let registry = Registry::new(());
    let _in_flight = registry.guard();
    let _never_polled = registry.shutdown();
    assert!(registry.is_shutting_down() && registry.signal().is_triggered());
    assert!(!registry.is_drained());
}

#[test]
fn dropped_shutdown_future_can_be_replaced_by_another() {
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
fn drain_wakes_the_task_that_polled_last() {
    let registry = Registry::new(());
    let guard = registry.guard().unwrap();
    let mut shutdown = registry.shutdown();
    assert!(poll_once(&mut shutdown).is_pending());
    let (woken, is_woken) = channel();
    let second = waker_fn(move || woken.send(()).unwrap());
    assert!(poll(&mut shutdown, &second).is_pending());
    drop(guard);
    is_woken.recv_timeout(HANG).unwrap();
    assert!(poll_once(&mut shutdown).is_ready());
}

#[test]
fn drain_wakers_may_call_the_registry_or_panic() {
    let registry = Registry::new(());
    let guard = registry.guard().unwrap();
    let poll_shutdown_with = |waker| {
        let mut shutdown = Box::new(registry.shutdown());
        assert!(poll(&mut *shutdown, &waker).is_pending());
        shutdown
    };
    let (woken, is_woken) = channel();
    let panicking = poll_shutdown_with(waker_fn(|| panic!("intentional panic in a waker")));
    let handle = registry.clone();
    let dropped_by_waker = Mutex::new(Some(poll_shutdown_with(waker_fn(|| {}))));
    let calling = poll_shutdown_with(waker_fn(move || {
        // Each of these calls would hang if the registry held the lock of the event during the wake-up.
        assert!(poll_once(&mut handle.shutdown()).is_ready());
        drop(dropped_by_waker.lock().unwrap().take());
        assert!(poll_once(&mut handle.wait_idle()).is_ready());
        woken.send(handle.is_drained()).unwrap();
    }));
    let (last_woken, is_last_woken) = channel();
    let last = poll_shutdown_with(waker_fn(move || last_woken.send(()).unwrap()));
    drop(guard);
    assert!(is_woken.recv_timeout(HANG).unwrap());
    is_last_woken.recv_timeout(HANG).unwrap();
    drop((panicking, calling, last));
}

#[test]
fn expired_deadline_returns_stragglers_and_a_summary() {
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
fn expired_deadline_rechecks_once() {
    let registry = Registry::new(());
    let guard = Mutex::new(registry.guard().ok());
    // The poll of the deadline drops the last guard, so the drain ends in the same poll in which the deadline expires.
    let deadline = std::future::poll_fn(|_| {
        drop(guard.lock().unwrap().take());
        Poll::Ready(())
    });
    assert_eq!(block_on(registry.shutdown().until(deadline)).unwrap().completed, 1);
}

#[test]
fn zero_timeout_only_checks_and_maximum_timeout_waits() {
    let registry = Registry::new(());
    let guard = registry.guard().unwrap();
    assert_eq!(registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err().len(), 1);
    let owner = thread::spawn(move || drop(guard));
    assert_eq!(registry.shutdown().wait_timeout(Duration::MAX).unwrap().completed, 1);
    owner.join().unwrap();
    assert_eq!(registry.shutdown().wait_timeout(Duration::ZERO).unwrap().completed, 1);
}

#[test]
fn last_leave_races_enter() {
    for _ in 0..if cfg!(miri) { 10 } else { 5_000 } {
        let registry = Registry::new(());
        let last = registry.guard().unwrap();
        registry.start_shutdown();
        let barrier = Arc::new(Barrier::new(2));
        let entering = thread::spawn({
            let (registry, barrier) = (registry.clone(), barrier.clone());
            move || {
                barrier.wait();
                let guard = registry.guard();
                (guard.is_ok(), registry.is_drained())
            }
        });
        barrier.wait();
        drop(last);
        let (entered, drained_while_held) = entering.join().unwrap();
        if entered {
            assert!(!drained_while_held, "the registry drained although a guard was held");
        }
        assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 1 + u64::from(entered));
        assert_eq!(registry.summary().rejected, u64::from(!entered));
    }
}

#[test]
fn task_enters_another_shard_when_its_own_has_drained() {
    let registry = Registry::new(());
    // The guard keeps only the shard of this thread open. A shard is one part of the registry's state. If there are several shards, the
    // shards of most other threads have drained.
    let guard = registry.guard().unwrap();
    registry.start_shutdown();
    for _ in 0..8 {
        let registry = registry.clone();
        thread::spawn(move || drop(registry.guard().unwrap())).join().unwrap();
    }
    drop(guard);
    assert_eq!(registry.shutdown().wait().completed, 9);
    registry.guard().unwrap_err();
}

#[test]
fn wait_idle_is_pending_until_nothing_is_in_flight_and_wakes_once() {
    let registry = Registry::new(());
    assert!(poll_once(&mut registry.wait_idle()).is_ready());
    let guard = registry.guard().unwrap();
    let (woken, is_woken) = channel();
    let waker = waker_fn(move || woken.send(()).unwrap());
    let mut idle = registry.wait_idle();
    assert!(poll(&mut idle, &waker).is_pending());
    drop(guard);
    is_woken.recv_timeout(HANG).unwrap();
    assert!(poll_once(&mut idle).is_ready());
    drop(registry.guard());
    assert!(is_woken.try_recv().is_err(), "the waker must be called only once");
}

#[test]
fn wait_idle_is_ready_after_the_drain() {
    let registry = Registry::new(());
    registry.start_shutdown();
    assert!(poll_once(&mut registry.wait_idle()).is_ready());
}

#[test]
fn wait_idle_stays_pending_while_guards_overlap() {
    let registry = Registry::new(());
    let (send_guard, guards) = channel();
    send_guard.send(registry.guard().unwrap()).unwrap();
    let worker = thread::spawn({
        let registry = registry.clone();
        move || {
            // Creates each guard before it drops the previous guard, so there is always a guard in flight.
            let mut held = guards.recv().unwrap();
            for _ in 0..if cfg!(miri) { 100 } else { 100_000 } {
                held = registry.guard().unwrap();
            }
            held
        }
    });
    let mut idle = registry.wait_idle();
    while !worker.is_finished() {
        assert!(poll_once(&mut idle).is_pending());
    }
    drop(worker.join().unwrap());
    assert!(poll_once(&mut idle).is_ready());
}

#[test]
fn shutdown_future_outlives_the_registry_and_its_spawner() {
    let registry = Registry::new(Manual::default());
    let guard = registry.guard().unwrap();
    let mut shutdown = registry.shutdown();
    drop(registry);
    assert!(poll_once(&mut shutdown).is_pending());
    drop(guard);
    // The pool must not reuse the state of this registry while the shutdown future can still read the state.
    let others: Vec<_> = (0..32).map(|_| Registry::new(())).collect();
    assert_eq!(block_on(shutdown).completed, 1);
    drop(others);
}

#[test]
fn registry_with_reused_state_starts_at_zero() {
    for _ in 0..if cfg!(miri) { 3 } else { 100 } {
        let manual = Manual::default();
        let registry = Registry::new(manual.clone());
        assert_eq!(registry.summary(), background_tasks::Summary::default());
        assert!(!registry.is_shutting_down() && !registry.is_drained() && !registry.signal().is_triggered());
        registry.run(async { Err::<(), _>("intentional failure") });
        registry.run(async { panic!("intentional panic") });
        registry.run(Owns(PanicDrop, pending::<()>()));
        registry.run(pending::<()>());
        manual.poll_all();
        manual.0.lock().unwrap().clear();
        registry.start_shutdown();
        registry.run(async {});
    }
}

#[test]
fn shutdown_guard_starts_the_shutdown_when_main_returns_early() {
    fn return_early(registry: &Registry<()>) -> Result<(), &'static str> {
        let _shutdown = registry.shutdown_on_drop();
        Err("an early return")
    }
    let registry = Registry::new(());
    registry.shutdown_on_drop().disarm();
    assert!(!registry.is_shutting_down());
    return_early(&registry).unwrap_err();
    assert!(registry.is_drained());
}

#[test]
#[cfg(feature = "smol")]
fn static_registry_stays_open_when_a_handle_is_dropped() {
    static STATE: RegistryState = RegistryState::new();
    static TASKS: Registry<background_tasks::SmolSpawner> = Registry::in_static(&STATE, background_tasks::SmolSpawner);
    TASKS.run(async {});
    drop(Registry::in_static(&STATE, background_tasks::SmolSpawner));
    assert!(!TASKS.is_shutting_down(), "a dropped handle must not shut a static registry down");
    assert_eq!(TASKS.shutdown().wait_timeout(HANG).unwrap().completed, 1);
    TASKS.try_run(async {}).unwrap_err();
}

#[test]
fn debug_output_shows_the_state_and_is_short() {
    static STATE: RegistryState = RegistryState::new();
    let registry = Registry::new(());
    let guard = registry.guard();
    assert_eq!(format!("{registry:?}"), "Registry { in_flight: 1, is_shutting_down: false, is_drained: false, .. }");
    assert_eq!(format!("{:?}", registry.signal()), "ShutdownSignal { is_triggered: false, .. }");
    assert_eq!(format!("{STATE:?}"), "RegistryState { .. }");
    let rest = format!("{:?} {:?} {:?} {guard:?}", registry.wait_idle(), registry.shutdown(), registry.shutdown_on_drop());
    assert!(rest.len() < 1000, "{rest}");
}
