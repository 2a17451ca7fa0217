//! A registry with a limit: never one more, in turn, and nothing lost.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

mod common;

use background_tasks::{Registry, RejectReason, RunWhenReady, Spawner};
use common::{HANG, Manual, panic_waker, poll_once, waker_fn};
use std::future::pending;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::thread;

fn limited(limit: usize) -> (Manual, Registry<Manual>) {
    let spawner = Manual::default();
    (spawner.clone(), Registry::builder(spawner).max_in_flight(limit).build())
}

/// Polls with a waker that counts how often it was woken.
fn poll_counted<F: Future + Unpin>(future: &mut F, woken: &Arc<AtomicUsize>) -> Poll<F::Output> {
    let woken = woken.clone();
    let waker = waker_fn(move || {
        woken.fetch_add(1, SeqCst);
    });
    Pin::new(future).poll(&mut Context::from_waker(&waker))
}

type Waiting<'a> = RunWhenReady<'a, Manual, std::future::Pending<()>>;

fn queued(registry: &Registry<Manual>) -> (Waiting<'_>, Arc<AtomicUsize>) {
    let mut waiting = registry.run_when_ready(pending());
    let woken = Arc::default();
    assert!(poll_counted(&mut waiting, &woken).is_pending());
    (waiting, woken)
}

fn count(woken: &AtomicUsize) -> usize {
    woken.load(SeqCst)
}

#[test]
fn a_full_registry_refuses_by_every_door_and_gives_the_work_back() {
    let (spawner, registry) = limited(2);
    registry.run(pending::<()>());
    let guard = registry.guard().unwrap();
    assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full);
    assert_eq!(registry.guard().unwrap_err().reason(), RejectReason::Full);
    let tracked = registry.track(async { 7 }).unwrap_err();
    assert_eq!(futures_lite::future::block_on(tracked.into_inner()), 7);
    registry.run(async { unreachable!("it is full") });
    assert_eq!((registry.summary().rejected, registry.in_flight()), (4, 2));
    drop(guard);
    registry.run(async {});
    drop(spawner.take());
    assert!(registry.try_run(async {}).is_ok());
}

#[test]
fn a_limit_of_zero_says_what_to_do() {
    let panic = catch_unwind(|| Registry::builder(()).max_in_flight(0)).unwrap_err();
    assert!(panic.downcast::<String>().unwrap().contains("the least is 1"));
}

#[test]
fn without_a_limit_nobody_waits() {
    let spawner = Manual::default();
    let registry = Registry::new(spawner.clone());
    assert!(poll_once(&mut registry.run_when_ready(async {})).is_ready());
    assert_eq!(registry.in_flight(), 1);
}

#[test]
fn those_who_wait_are_served_in_turn_and_nobody_overtakes() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let (mut first, first_woken) = queued(&registry);
    let (mut second, second_woken) = queued(&registry);
    drop(spawner.take());
    assert_eq!((count(&first_woken), count(&second_woken)), (1, 0));
    assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full, "the place is the first one's");
    assert!(poll_once(&mut second).is_pending());
    assert!(matches!(poll_once(&mut first), Poll::Ready(Ok(()))));
    assert!(poll_once(&mut second).is_pending());
    drop(spawner.take());
    assert!(matches!(poll_once(&mut second), Poll::Ready(Ok(()))));
    drop(spawner.take());
    assert!(registry.try_run(async {}).is_ok(), "nobody waits any more");
}

#[test]
fn a_newcomer_may_have_what_nobody_who_waits_needs() {
    let (spawner, registry) = limited(3);
    (0..3).for_each(|_| registry.run(pending::<()>()));
    let (mut waiting, _) = queued(&registry);
    drop((spawner.take(), spawner.take()));
    assert!(registry.try_run(pending::<()>()).is_ok(), "two places, one waiter");
    assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full);
    assert!(poll_once(&mut waiting).is_ready());
    assert_eq!(registry.in_flight(), 3);
}

#[test]
fn one_who_was_woken_and_leaves_wakes_the_next() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let (first, first_woken) = queued(&registry);
    let (mut second, second_woken) = queued(&registry);
    drop(spawner.take());
    assert_eq!((count(&first_woken), count(&second_woken)), (1, 0));
    drop(first);
    assert_eq!(count(&second_woken), 1);
    assert!(poll_once(&mut second).is_ready());
}

#[test]
fn one_who_leaves_unwoken_disturbs_nobody_and_counts_as_nothing() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let (first, _) = queued(&registry);
    let (mut second, second_woken) = queued(&registry);
    drop(first);
    assert_eq!(count(&second_woken), 0);
    drop(spawner.take());
    assert_eq!(count(&second_woken), 1);
    assert!(poll_once(&mut second).is_ready());
    assert_eq!((registry.summary().rejected, registry.summary().abandoned), (0, 1));
}

#[test]
fn the_last_one_who_leaves_opens_the_door_for_newcomers() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    drop(queued(&registry));
    drop(spawner.take());
    assert!(registry.try_run(async {}).is_ok());
}

#[test]
fn the_waker_of_the_last_poll_is_woken() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let (mut waiting, old) = queued(&registry);
    let new = Arc::default();
    assert!(poll_counted(&mut waiting, &new).is_pending());
    drop(spawner.take());
    assert_eq!((count(&old), count(&new)), (0, 1));
}

#[test]
fn the_shutdown_gives_the_future_back_to_all_who_wait() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let waiting: Vec<_> = (0..3).map(|_| queued(&registry)).collect();
    registry.shutdown();
    for (mut waiting, woken) in waiting {
        assert_eq!(count(&woken), 1);
        let Poll::Ready(Err(rejected)) = poll_once(&mut waiting) else { panic!("it waits for nothing") };
        assert_eq!(rejected.reason(), RejectReason::ShuttingDown);
    }
    assert_eq!(registry.summary().rejected, 3);
    let Poll::Ready(Err(rejected)) = poll_once(&mut registry.run_when_ready(async {})) else { panic!("nobody waits now") };
    assert_eq!(rejected.reason(), RejectReason::ShuttingDown);
    drop(spawner.take());
    let Poll::Ready(Err(rejected)) = poll_once(&mut registry.run_when_ready(async {})) else { panic!("it has drained") };
    assert_eq!(rejected.reason(), RejectReason::Drained);
}

#[test]
fn while_it_drains_work_that_needs_not_wait_is_accepted() {
    let (spawner, registry) = limited(2);
    registry.run(pending::<()>());
    let shutdown = registry.shutdown();
    assert!(matches!(poll_once(&mut registry.run_when_ready(async {})), Poll::Ready(Ok(()))));
    drop((spawner.take(), spawner.take()));
    assert_eq!(shutdown.wait().abandoned, 2);
}

#[test]
fn a_waker_may_call_back_into_the_registry() {
    let (spawner, registry) = limited(1);
    let registry = Arc::new(registry);
    registry.run(pending::<()>());
    let mut waiting = registry.run_when_ready(pending::<()>());
    let (own, refused) = (registry.clone(), Arc::new(AtomicUsize::new(0)));
    let told = refused.clone();
    let waker = waker_fn(move || {
        told.fetch_add(usize::from(own.try_run(async {}).is_err()), SeqCst);
        own.signal();
    });
    assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker)).is_pending());
    drop(spawner.take());
    assert_eq!(count(&refused), 1);
    drop((waiting, waker));
}

/// S6
#[test]
fn a_waker_whose_destructor_panics_takes_no_place_with_it() {
    let (spawner, registry) = limited(1);
    registry.run(pending::<()>());
    let mut waiting = registry.run_when_ready(async {});
    let waker = panic_waker();
    assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker)).is_pending());
    drop(waker); // the registry has the last one
    assert!(poll_once(&mut waiting).is_pending());
    drop(spawner.take());
    assert!(poll_once(&mut waiting).is_ready());
    drop(spawner.take());
    assert_eq!(registry.in_flight(), 0);
}

#[test]
fn places_that_come_free_at_once_are_all_taken() {
    let (spawner, registry) = limited(3);
    (0..3).for_each(|_| registry.run(pending::<()>()));
    let mut waiting: Vec<_> = (0..3).map(|_| queued(&registry)).collect();
    drop((spawner.take(), spawner.take(), spawner.take()));
    for (future, woken) in &mut waiting {
        assert_eq!(count(woken), 1, "by the one before");
        assert!(poll_once(future).is_ready());
    }
    assert_eq!(registry.in_flight(), 3);
}

#[test]
fn under_contention_there_is_never_one_more() {
    const LIMIT: usize = 3;
    let registry = Registry::builder(()).max_in_flight(LIMIT).build();
    let (inside, most, entered) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..if cfg!(miri) { 10 } else { 20_000 } {
                    if let Ok(guard) = registry.guard() {
                        most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                        assert!(registry.in_flight() <= LIMIT);
                        entered.fetch_add(1, SeqCst);
                        inside.fetch_sub(1, SeqCst);
                        drop(guard);
                    }
                }
            });
        }
    });
    assert!((1..=LIMIT).contains(&count(&most)));
    assert_eq!(registry.shutdown().wait().completed, count(&entered) as u64);
}

fn a_hundred_tasks_go_through_four_places<S: Spawner>(registry: &Registry<S>) {
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    futures_lite::future::block_on(async {
        for _ in 0..100 {
            let (inside, most) = (inside.clone(), most.clone());
            let task = async move {
                most.fetch_max(inside.fetch_add(1, SeqCst) + 1, SeqCst);
                futures_lite::future::yield_now().await;
                inside.fetch_sub(1, SeqCst);
            };
            registry.run_when_ready(task).await.unwrap();
        }
    });
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    assert_eq!((summary.completed, summary.rejected), (100, 0));
    assert!((1..=4).contains(&count(&most)));
}

fn many_who_wait_all_get_their_turn<S: Spawner + Sync>(registry: &Registry<S>) {
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
    a_hundred_tasks_go_through_four_places,
    many_who_wait_all_get_their_turn,
);
