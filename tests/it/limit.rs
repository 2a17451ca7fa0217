//! S10, L4: a limited registry never exceeds its limit, serves waiters in order, and wakes a waiter for each released permit.
use crate::common::{HANG, Manual, WakeCounter, counting_waker, panic_waker, poll, poll_once, waker_fn};
use background_tasks::{Registry, RejectReason, RunWhenReady, Spawner};
use std::future::pending;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::thread;

/// Returns a registry that accepts at most `limit` tasks, and the spawner that drives them.
fn limited(limit: usize) -> (Manual, Registry<Manual>) {
    let spawner = Manual::default();
    (spawner.clone(), Registry::builder(spawner).max_in_flight(limit).build())
}

type Waiting<'a> = RunWhenReady<'a, Manual, std::future::Pending<()>>;

/// Returns a future that waits for a permit, and the count of its wake-ups.
fn queued(registry: &Registry<Manual>) -> (Waiting<'_>, Arc<WakeCounter>) {
    let mut waiting = registry.run_when_ready(pending());
    let (wake_count, waker) = counting_waker();
    assert!(poll(&mut waiting, &waker).is_pending());
    (waiting, wake_count)
}

fn count(counter: &AtomicUsize) -> usize {
    counter.load(SeqCst)
}

#[test]
fn full_registry_rejects_work_and_returns_it() {
    let (spawner, registry) = limited(2);
    registry.run(pending::<()>());
    let guard = registry.guard().unwrap();
    assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full);
    assert_eq!(registry.guard().unwrap_err().reason(), RejectReason::Full);
    let tracked = registry.track(async { 7 }).unwrap_err();
    assert_eq!(futures_lite::future::block_on(tracked.into_inner()), 7);
    registry.run(async { unreachable!("the registry is full") });
    assert_eq!((registry.summary().rejected, registry.in_flight()), (4, 2));
    drop(guard);
    registry.run(async {});
    drop(spawner.take());
    assert!(registry.try_run(async {}).is_ok());
}

#[test]
fn zero_limit_panics_and_names_the_minimum() {
    let panic = catch_unwind(|| Registry::builder(()).max_in_flight(0)).unwrap_err();
    assert!(panic.downcast::<String>().unwrap().contains("the minimum is 1"));
}

#[test]
fn run_when_ready_without_a_limit_does_not_wait() {
    let spawner = Manual::default();
    let registry = Registry::new(spawner.clone());
    assert!(poll_once(&mut registry.run_when_ready(async {})).is_ready());
    assert_eq!(registry.in_flight(), 1);
}

#[test]
fn waiters_enter_in_order_and_are_not_overtaken() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let (mut first, first_woken) = queued(&registry);
    let (mut second, second_woken) = queued(&registry);
    drop(spawner.take());
    assert_eq!((first_woken.get(), second_woken.get()), (1, 0));
    assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full, "the permit is reserved for the first waiter");
    assert!(poll_once(&mut second).is_pending());
    assert!(matches!(poll_once(&mut first), Poll::Ready(Ok(()))));
    assert!(poll_once(&mut second).is_pending());
    drop(spawner.take());
    assert!(matches!(poll_once(&mut second), Poll::Ready(Ok(()))));
    drop(spawner.take());
    assert!(registry.try_run(async {}).is_ok(), "no waiter is left, so a new task may enter");
}

#[test]
fn new_task_takes_a_permit_that_no_waiter_needs() {
    let (spawner, registry) = limited(3);
    (0..3).for_each(|_| registry.run(pending::<()>()));
    let (mut waiting, _) = queued(&registry);
    drop((spawner.take(), spawner.take()));
    assert!(registry.try_run(pending::<()>()).is_ok(), "two permits are free and one waiter needs a permit");
    assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full);
    assert!(poll_once(&mut waiting).is_ready());
    assert_eq!(registry.in_flight(), 3);
}

#[test]
fn dropped_waiter_that_was_woken_wakes_the_next() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let (first, first_woken) = queued(&registry);
    let (mut second, second_woken) = queued(&registry);
    drop(spawner.take());
    assert_eq!((first_woken.get(), second_woken.get()), (1, 0));
    drop(first);
    assert_eq!(second_woken.get(), 1);
    assert!(poll_once(&mut second).is_ready());
}

#[test]
fn dropped_waiter_that_was_not_woken_wakes_no_waiter_and_is_not_counted() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let (first, _) = queued(&registry);
    let (mut second, second_woken) = queued(&registry);
    drop(first);
    assert_eq!(second_woken.get(), 0);
    drop(spawner.take());
    assert_eq!(second_woken.get(), 1);
    assert!(poll_once(&mut second).is_ready());
    assert_eq!((registry.summary().rejected, registry.summary().abandoned), (0, 1));
}

#[test]
fn dropping_the_last_waiter_lets_new_tasks_enter() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    drop(queued(&registry));
    drop(spawner.take());
    assert!(registry.try_run(async {}).is_ok());
}

#[test]
fn permit_wakes_the_waker_of_the_last_poll() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let (mut waiting, first_woken) = queued(&registry);
    let (last_woken, waker) = counting_waker();
    assert!(poll(&mut waiting, &waker).is_pending());
    drop(spawner.take());
    assert_eq!((first_woken.get(), last_woken.get()), (0, 1));
}

#[test]
fn shutdown_rejects_every_waiter() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let waiting: Vec<_> = (0..3).map(|_| queued(&registry)).collect();
    registry.start_shutdown();
    for (mut waiting, woken) in waiting {
        assert_eq!(woken.get(), 1);
        let Poll::Ready(Err(rejected)) = poll_once(&mut waiting) else { panic!("the shutdown must reject the waiter") };
        assert_eq!(rejected.reason(), RejectReason::ShuttingDown);
    }
    assert_eq!(registry.summary().rejected, 3);
    let Poll::Ready(Err(rejected)) = poll_once(&mut registry.run_when_ready(async {})) else {
        panic!("a full registry that drains must reject without waiting")
    };
    assert_eq!(rejected.reason(), RejectReason::ShuttingDown);
    drop(spawner.take());
    let Poll::Ready(Err(rejected)) = poll_once(&mut registry.run_when_ready(async {})) else {
        panic!("a drained registry must reject")
    };
    assert_eq!(rejected.reason(), RejectReason::Drained);
}

#[test]
fn draining_registry_accepts_work_that_need_not_wait() {
    let (spawner, registry) = limited(2);
    registry.run(pending::<()>());
    let shutdown = registry.shutdown();
    assert!(matches!(poll_once(&mut registry.run_when_ready(async {})), Poll::Ready(Ok(()))));
    drop((spawner.take(), spawner.take()));
    assert_eq!(shutdown.wait().abandoned, 2);
}

#[test]
fn waiter_waker_may_call_the_registry() {
    let (spawner, registry) = limited(1);
    let registry = Arc::new(registry);
    registry.run(pending::<()>());
    let mut waiting = registry.run_when_ready(pending::<()>());
    let (handle, rejections) = (registry.clone(), Arc::new(AtomicUsize::new(0)));
    let counter = rejections.clone();
    let waker = waker_fn(move || {
        counter.fetch_add(usize::from(handle.try_run(async {}).is_err()), SeqCst);
        handle.signal();
    });
    assert!(poll(&mut waiting, &waker).is_pending());
    drop(spawner.take());
    assert_eq!(count(&rejections), 1);
    drop((waiting, waker));
}

/// S6
#[test]
fn waker_destructor_panic_leaks_no_permit() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let mut waiting = registry.run_when_ready(async {});
    let waker = panic_waker();
    assert!(poll(&mut waiting, &waker).is_pending());
    drop(waker); // The registry now owns the last clone.
    assert!(poll_once(&mut waiting).is_pending());
    drop(spawner.take());
    assert!(poll_once(&mut waiting).is_ready());
    drop(spawner.take());
    assert_eq!(registry.in_flight(), 0);
}

#[test]
fn permits_released_together_are_all_used() {
    let (spawner, registry) = limited(3);
    (0..3).for_each(|_| registry.run(pending::<()>()));
    let mut waiting: Vec<_> = (0..3).map(|_| queued(&registry)).collect();
    drop((spawner.take(), spawner.take(), spawner.take()));
    for (future, woken) in &mut waiting {
        assert_eq!(woken.get(), 1, "the previous waiter must wake the next one exactly once");
        assert!(poll_once(future).is_ready());
    }
    assert_eq!(registry.in_flight(), 3);
}

#[test]
fn limit_holds_under_contention() {
    const LIMIT: usize = 3;
    let registry = Registry::builder(()).max_in_flight(LIMIT).build();
    let (running, peak, entered) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..if cfg!(miri) { 10 } else { 20_000 } {
                    if let Ok(guard) = registry.guard() {
                        peak.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                        assert!(registry.in_flight() <= LIMIT);
                        entered.fetch_add(1, SeqCst);
                        running.fetch_sub(1, SeqCst);
                        drop(guard);
                    }
                }
            });
        }
    });
    assert!((1..=LIMIT).contains(&count(&peak)));
    assert_eq!(registry.shutdown().wait().completed, count(&entered) as u64);
}

fn hundred_tasks_share_four_permits<S: Spawner>(registry: &Registry<S>) {
    let (running, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    futures_lite::future::block_on(async {
        for _ in 0..100 {
            let (running, peak) = (running.clone(), peak.clone());
            let task = async move {
                peak.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                futures_lite::future::yield_now().await;
                running.fetch_sub(1, SeqCst);
            };
            registry.run_when_ready(task).await.unwrap();
        }
    });
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    assert_eq!((summary.completed, summary.rejected), (100, 0));
    assert!((1..=4).contains(&count(&peak)));
}

fn every_waiter_gets_a_permit<S: Spawner + Sync>(registry: &Registry<S>) {
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let task = futures_lite::future::yield_now();
                    futures_lite::future::block_on(registry.run_when_ready(task)).unwrap();
                }
            });
        }
    });
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 400);
}

on_every_runtime!(
    with |spawner| Registry::builder(spawner).max_in_flight(4).build();
    hundred_tasks_share_four_permits,
    every_waiter_gets_a_permit,
);
