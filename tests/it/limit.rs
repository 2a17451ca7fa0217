//! Checks the invariants S10 and L4. A registry with a limit never exceeds this limit, gives permits to waiters in order, and wakes a
//! waiter for each released permit.
use crate::common::{HANG, Manual, WakeCounter, counting_waker, panic_quietly, panic_waker, poll, poll_once, waker_fn};
use background_tasks::{Registry, RejectReason, Spawner, StartWhenReady};
use std::future::pending;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::thread;

/// Returns a registry that accepts at most `limit` tasks, and the spawner that polls these tasks.
fn limited(limit: usize) -> (Manual, Registry<Manual>) {
    let spawner = Manual::default();
    (spawner.clone(), Registry::builder(spawner).max_in_flight(limit).build())
}

type Waiting<'a> = StartWhenReady<'a, Manual, std::future::Pending<()>>;

/// Returns a future that waits for a permit, and a counter of its wake-ups.
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

/// Returns a follow-up task that waits for a permit, and a counter of its wake-ups.
fn queued_follow_up(registry: &Registry<Manual>) -> (Waiting<'_>, Arc<WakeCounter>) {
    let mut waiting = registry.follow_up().run_when_ready(pending());
    let (wake_count, waker) = counting_waker();
    assert!(poll(&mut waiting, &waker).is_pending());
    (waiting, wake_count)
}

fn reason<T>(polled: Poll<Result<(), background_tasks::Rejected<T>>>) -> RejectReason {
    let Poll::Ready(Err(rejected)) = polled else { panic!("the waiter must be rejected") };
    rejected.reason()
}

#[test]
fn follow_up_waits_for_a_permit_while_the_registry_drains() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let (mut before, woken_before) = queued_follow_up(&registry);
    let shutdown = registry.shutdown();
    let (mut after, woken_after) = queued_follow_up(&registry);
    assert_eq!((woken_before.get(), woken_after.get()), (0, 0));
    let producer = registry.without_permit().guard().unwrap();
    drop(spawner.take());
    assert_eq!((woken_before.get(), woken_after.get()), (1, 0));
    assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full, "the permit is reserved for the follow-up");
    assert!(matches!(poll_once(&mut before), Poll::Ready(Ok(()))));
    drop(spawner.take());
    assert!(matches!(poll_once(&mut after), Poll::Ready(Ok(()))));
    drop((spawner.take(), producer));
    assert_eq!(shutdown.wait().rejected, 1);
}

#[test]
fn shutdown_passes_the_permit_of_a_rejected_waiter_to_the_next_follow_up() {
    let (spawner, registry) = limited(2);
    (0..2).for_each(|_| registry.run(pending::<()>()));
    let (mut rejected, woken) = queued(&registry);
    let (mut follow_up, woken_follow_up) = queued_follow_up(&registry);
    drop(spawner.take());
    assert_eq!((woken.get(), woken_follow_up.get()), (1, 0));
    registry.start_shutdown();
    assert_eq!(woken_follow_up.get(), 1);
    assert!(matches!(poll_once(&mut follow_up), Poll::Ready(Ok(()))));
    assert_eq!(reason(poll_once(&mut rejected)), RejectReason::ShuttingDown);
}

#[test]
fn drained_registry_wakes_and_rejects_every_follow_up() {
    for shutdown_first in [true, false] {
        let (_, registry) = limited(1);
        let guard = registry.guard().unwrap();
        let waiting: Vec<_> = (0..3).map(|_| queued_follow_up(&registry)).collect();
        if shutdown_first {
            registry.start_shutdown();
            drop(guard);
        } else {
            drop(guard); // This wakes the first follow-up, which is not polled.
            registry.start_shutdown();
        }
        assert!(registry.is_drained());
        for (mut follow_up, woken) in waiting.into_iter().rev() {
            assert_eq!(woken.get(), 1);
            assert_eq!(reason(poll_once(&mut follow_up)), RejectReason::Drained);
        }
        assert_eq!(registry.summary().rejected, 3);
        assert_eq!(reason(poll_once(&mut registry.follow_up().run_when_ready(async {}))), RejectReason::Drained);
    }
}

#[test]
fn follow_up_changes_nothing_but_the_wait_during_the_drain() {
    let (spawner, registry) = limited(1);
    let follow_up = registry.follow_up();
    follow_up.run(pending::<()>());
    assert_eq!(follow_up.try_run(async {}).unwrap_err().reason(), RejectReason::Full);
    let shutdown = registry.shutdown();
    assert_eq!(follow_up.guard().unwrap_err().reason(), RejectReason::Full);
    drop(spawner.take());
    assert_eq!(follow_up.guard().unwrap_err().reason(), RejectReason::Drained);
    assert_eq!((shutdown.wait().abandoned, registry.summary().rejected), (1, 3));

    let unlimited = Registry::new(spawner.clone());
    let guard = unlimited.guard().unwrap();
    unlimited.start_shutdown();
    assert!(poll_once(&mut unlimited.follow_up().run_when_ready(async {})).is_ready());
    drop((spawner.take(), guard));
    assert_eq!(reason(poll_once(&mut unlimited.follow_up().run_when_ready(async {}))), RejectReason::Drained);
}

#[test]
fn work_without_a_permit_enters_a_full_registry() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let (mut waiting, woken) = queued(&registry);
    let outside = registry.without_permit();
    let limited_task = spawner.take();
    let (guard, tracked) = (outside.guard().unwrap(), outside.track(async {}).unwrap());
    outside.run(pending::<()>());
    assert!(matches!(poll_once(&mut outside.run_when_ready(pending::<()>())), Poll::Ready(Ok(()))));
    assert_eq!(registry.in_flight(), 5);
    assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full);

    drop((guard, tracked, spawner.take(), spawner.take()));
    assert_eq!((registry.in_flight(), woken.get()), (1, 0), "no permit was released");
    drop(limited_task);
    assert_eq!(woken.get(), 1);
    assert!(poll_once(&mut waiting).is_ready());
    assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full);
    drop(spawner.take());
    let summary = registry.shutdown().wait();
    assert_eq!((summary.completed, summary.abandoned, summary.rejected), (1, 5, 2));
}

/// Checks the invariants S3 and S4 of `docs/invariants.md`.
#[test]
fn work_without_a_permit_keeps_a_limited_registry_from_draining() {
    let (spawner, registry) = limited(1);
    let request = registry.without_permit().guard().unwrap();
    let shutdown = registry.shutdown();
    for _ in 0..2 {
        registry.try_run(async {}).unwrap();
        assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full);
        assert!(poll_once(&mut spawner.take()).is_ready());
        assert!(!registry.is_drained());
    }
    let next = registry.without_permit().guard().unwrap();
    drop(request);
    registry.try_run(async {}).unwrap();
    drop(next);
    assert!(!registry.is_drained(), "a task with a permit is in flight");
    drop(spawner.take());
    assert_eq!(registry.without_permit().guard().unwrap_err().reason(), RejectReason::Drained);
    let summary = shutdown.wait();
    assert_eq!((summary.completed, summary.abandoned, summary.rejected), (4, 1, 3));
}

#[test]
fn work_without_a_permit_is_waited_for_and_its_losses_count() {
    for builder in [Registry::builder(Manual::default()).max_in_flight(1), Registry::builder(Manual::default())] {
        let registry = builder.shutdown_on_panic().build();
        let guard = registry.named("request").without_permit().guard().unwrap();
        let mut idle = registry.wait_idle();
        assert!(poll_once(&mut idle).is_pending());
        drop(guard);
        assert!(poll_once(&mut idle).is_ready());
        registry.without_permit().run(async { panic_quietly("intentional") });
        registry.spawner().poll_all();
        assert_eq!(registry.shutdown().wait().panicked, 1);
        assert!(registry.shutdown_cause().is_some());
    }
}

/// Checks invariant S9 of `docs/invariants.md`.
#[test]
fn work_without_a_permit_is_listed_and_aborted() {
    let spawner = Manual::default();
    let registry = Registry::builder(spawner.clone()).inspect().max_in_flight(1).build();
    registry.named("producer").without_permit().run(pending::<()>());
    let _request = registry.named("request").without_permit().guard().unwrap();
    let mut names: Vec<_> = registry.tasks().iter().map(|task| task.name().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["producer", "request"]);
    let report = registry.abort();
    assert_eq!((report.aborted, report.not_abortable), (1, 1));
    spawner.poll_all();
    assert_eq!((registry.summary().aborted, registry.in_flight()), (1, 1));
    // A task with a permit reuses the slot of the producer, and must release its permit at its end.
    for _ in 0..2 {
        registry.try_run(async {}).unwrap();
        assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full);
        drop(spawner.take());
    }
    assert_eq!(registry.in_flight(), 1);
}

#[test]
fn larger_limit_than_the_maximum_is_accepted() {
    let registry = Registry::builder(()).max_in_flight(usize::MAX).build();
    let guards = [registry.guard(), registry.without_permit().guard(), registry.guard()];
    assert_eq!((guards.iter().filter(|guard| guard.is_ok()).count(), registry.in_flight()), (3, 3));
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

/// Checks invariant S6 of `docs/invariants.md`.
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

/// Guards without a permit must not affect the limit or the drain.
#[test]
fn limit_holds_among_guards_without_a_permit() {
    const LIMIT: usize = 2;
    let registry = Registry::builder(()).max_in_flight(LIMIT).build();
    let (running, peak, entered) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let stop_after = if cfg!(miri) { 10 } else { 10_000 };
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                // Some of these threads still run when the shutdown starts. While the request of a thread is in flight, the shutdown must
                // not reject the tasks of this thread.
                while let Ok(_request) = registry.without_permit().guard() {
                    match registry.guard() {
                        Ok(_permit) => {
                            peak.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                            entered.fetch_add(1, SeqCst);
                            running.fetch_sub(1, SeqCst);
                        }
                        Err(rejected) => assert_eq!(rejected.reason(), RejectReason::Full),
                    }
                    entered.fetch_add(1, SeqCst);
                    if count(&entered) > stop_after {
                        registry.start_shutdown();
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

/// While the registry drains, a task in flight starts twenty more tasks. All of them must run.
fn follow_ups_of_a_draining_registry_are_all_started<S: Spawner + Clone + Send + Sync + 'static>(registry: &Registry<S>) {
    let (tasks, request) = (registry.clone(), registry.without_permit().guard().unwrap());
    registry.run(async move {
        tasks.signal().await;
        for _ in 0..20 {
            let item = futures_lite::future::yield_now();
            tasks.follow_up().run_when_ready(item).await.unwrap();
        }
        drop(request);
    });
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    assert_eq!((summary.completed, summary.rejected), (22, 0));
}

on_every_runtime!(
    with |spawner| Registry::builder(spawner).max_in_flight(4).build();
    hundred_tasks_share_four_permits,
    every_waiter_gets_a_permit,
    follow_ups_of_a_draining_registry_are_all_started,
);
