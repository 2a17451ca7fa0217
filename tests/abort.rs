//! What can be ended from outside is, at its await point, and what cannot is said to be.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

mod common;

use background_tasks::{AbortError, Registry, Spawner, TokioSpawner};
use common::{HANG, Manual, Owns, PanicDrop, SlowDrop, inspected, panic_waker, poll_once, waker};
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

/// A future that says when it is first polled, and then waits for ever.
fn parked() -> (impl Future<Output = ()> + Send, std::sync::mpsc::Receiver<()>) {
    let (polled, is_polled) = channel();
    let future = async move {
        polled.send(()).unwrap();
        pending::<()>().await;
    };
    (future, is_polled)
}

fn those_that_wait_are_woken_dropped_and_counted<S: Spawner>(registry: &Registry<S>) {
    for _ in 0..10 {
        let (future, is_polled) = parked();
        registry.run(future);
        is_polled.recv_timeout(HANG).unwrap();
    }
    let shutdown = registry.shutdown();
    let aborted = registry.abort();
    assert_eq!((aborted.aborted, aborted.not_abortable), (10, 0));
    let summary = shutdown.wait_timeout(HANG).unwrap();
    assert_eq!((summary.aborted, summary.completed), (10, 0));
    assert!(!summary.is_clean());
}

fn the_drain_waits_for_the_destructors_of_the_aborted<S: Spawner>(registry: &Registry<S>) {
    let (slow, dropping) = SlowDrop::new();
    let (future, is_polled) = parked();
    registry.run(Owns(slow, Box::pin(future)));
    is_polled.recv_timeout(HANG).unwrap();
    let shutdown = registry.shutdown();
    registry.abort();
    dropping.begun.recv_timeout(HANG).unwrap();
    assert_eq!((registry.in_flight(), registry.is_drained(), dropping.is_gone()), (1, false, false));
    dropping.go_on.send(()).unwrap();
    assert_eq!(shutdown.wait_timeout(HANG).unwrap().aborted, 1);
    assert!(dropping.is_gone());
}

fn one_is_aborted_by_its_id_and_the_others_live_on<S: Spawner>(registry: &Registry<S>) {
    let (one, is_polled) = parked();
    registry.named("one").run(one);
    is_polled.recv_timeout(HANG).unwrap();
    let (two, is_polled) = parked();
    registry.named("two").run(two);
    is_polled.recv_timeout(HANG).unwrap();
    let id = registry.tasks().iter().find(|task| task.name() == Some("one")).unwrap().id().unwrap();
    assert_eq!(registry.abort_task(id), Ok(()));
    let shutdown = registry.shutdown();
    let stragglers = loop {
        let stragglers = registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err();
        if stragglers.len() == 1 {
            break stragglers;
        }
        thread::yield_now();
    };
    assert_eq!(stragglers.tasks()[0].name(), Some("two"));
    assert_eq!(registry.abort_task(id), Err(AbortError::NotInFlight));
    registry.abort();
    assert_eq!(shutdown.wait_timeout(HANG).unwrap().aborted, 2);
}

fn the_grace_over_it_aborts_and_the_drain_ends<S: Spawner>(registry: &Registry<S>) {
    let (future, is_polled) = parked();
    registry.run(future);
    is_polled.recv_timeout(HANG).unwrap();
    let summary = futures_lite::future::block_on(registry.shutdown().or_abort(async {}, pending::<()>)).unwrap();
    assert_eq!(summary.aborted, 1);
}

on_every_runtime!(
    with |spawner| Registry::builder(spawner).inspect().build();
    those_that_wait_are_woken_dropped_and_counted,
    the_drain_waits_for_the_destructors_of_the_aborted,
    one_is_aborted_by_its_id_and_the_others_live_on,
    the_grace_over_it_aborts_and_the_drain_ends,
);

#[test]
fn one_that_was_never_polled_ends_at_its_first_poll() {
    let (spawner, registry) = inspected();
    registry.run(async { unreachable!("it was aborted") });
    registry.abort();
    assert!(poll_once(&mut spawner.take()).is_ready());
    assert_eq!(registry.summary().aborted, 1);
}

#[test]
fn an_abort_in_the_middle_of_a_poll_takes_effect_when_that_returns() {
    let (spawner, registry) = inspected();
    let own = registry.clone();
    registry.run(poll_fn(move |_| {
        own.abort();
        Poll::<()>::Pending
    }));
    assert!(poll_once(&mut spawner.take()).is_ready());
    assert_eq!(registry.summary().aborted, 1);
    let own = registry.clone();
    registry.run(async move {
        own.abort();
    });
    assert!(poll_once(&mut spawner.take()).is_ready());
    assert_eq!(registry.summary().completed, 1, "it finished in that poll");
}

#[test]
fn a_destructor_that_panics_counts_as_panicked() {
    let (spawner, registry) = inspected();
    registry.run(Owns(PanicDrop, pending::<()>()));
    registry.abort();
    spawner.poll_all();
    assert_eq!((registry.summary().panicked, registry.summary().aborted), (1, 0));
}

#[test]
fn one_that_is_dropped_before_it_comes_to_its_end_is_abandoned() {
    let (spawner, registry) = inspected();
    registry.run(pending::<()>());
    registry.abort();
    drop(spawner.take());
    assert_eq!((registry.summary().abandoned, registry.summary().aborted), (1, 0));
}

#[test]
fn what_cannot_be_aborted_stays_and_is_said_to_be() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let registry = Registry::builder(runtime.handle().clone()).inspect().build();
    let ((begun, has_begun), (go_on, may_go_on)) = (channel(), channel::<()>());
    let (own, other_may_go_on) = channel::<()>();
    registry.named("never-yields").run(async move {
        begun.send(()).unwrap();
        may_go_on.recv_timeout(HANG).unwrap();
    });
    has_begun.recv_timeout(HANG).unwrap();
    registry.named("blocks").run_blocking(move || other_may_go_on.recv_timeout(HANG).unwrap());
    let guard = registry.named("held").guard().unwrap();
    let mut tracked = Box::pin(registry.named("tracked").track(async { 7 }).unwrap());

    let stragglers = registry.shutdown().wait_or_abort(Duration::ZERO, Duration::ZERO).unwrap_err();
    assert_eq!(stragglers.len(), 4);
    assert!(stragglers.tasks().iter().all(background_tasks::TaskInfo::abort_requested));
    let text = format!("{stragglers:#}");
    for (name, why) in [
        ("never-yields", "(abort requested, but no await point reached yet)"),
        ("blocks", "(a blocking closure cannot be aborted)"),
        ("held", "(a guard cannot be aborted)"),
        ("tracked", "(a tracked future cannot be aborted)"),
    ] {
        assert!(text.lines().any(|line| line.contains(name) && line.ends_with(why)), "{text}");
    }
    let aborted = registry.abort();
    assert_eq!((aborted.aborted, aborted.not_abortable), (1, 3));
    let held = registry.tasks().into_iter().find(|task| task.name() == Some("held")).unwrap();
    assert_eq!(registry.abort_task(held.id().unwrap()), Err(AbortError::NotAbortable));

    assert_eq!(poll_once(&mut tracked), Poll::Ready(7));
    drop(guard);
    go_on.send(()).unwrap();
    own.send(()).unwrap();
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    assert_eq!((summary.completed, summary.aborted), (4, 0), "all four came to their end");
}

#[test]
fn those_that_end_while_it_sweeps_are_not_taken_for_others() {
    let (spawner, registry) = inspected();
    let _guards: Vec<_> = (0..3).map(|_| registry.guard().unwrap()).collect();
    for _ in 0..5 {
        registry.run(pending::<()>());
        let task = Arc::new(Mutex::new(Some(spawner.take())));
        let own = task.clone();
        // The executor polls it in the very call of its waker.
        let waker = waker(move || {
            let ended = own.lock().unwrap().take().map(|mut task| poll_once(&mut task));
            assert_eq!(ended, Some(Poll::Ready(())));
        });
        let mut task = task.lock().unwrap();
        assert!(Pin::new(task.as_mut().unwrap()).poll(&mut Context::from_waker(&waker)).is_pending());
    }
    let aborted = registry.abort();
    assert_eq!((aborted.aborted, aborted.not_abortable, registry.summary().aborted), (5, 3, 5));
}

/// S6
#[test]
fn a_waker_whose_destructor_panics_hurts_nobody() {
    let (spawner, registry) = inspected();
    registry.run(pending::<()>());
    let mut task = spawner.take();
    let waker = panic_waker();
    assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
    drop(waker); // the registry has the last one
    assert!(poll_once(&mut task).is_pending());
    registry.abort();
    assert!(poll_once(&mut task).is_ready());
    assert_eq!((registry.in_flight(), registry.summary().aborted), (0, 1));
}

#[test]
fn without_inspection_nothing_can_be_aborted() {
    let spawner = Manual::default();
    let registry = Registry::new(spawner.clone());
    registry.run(pending::<()>());
    registry.critical().run(pending::<()>());
    let aborted = registry.abort();
    assert_eq!((aborted.aborted, aborted.not_abortable), (0, 2));
    spawner.poll_all();
    assert_eq!(registry.in_flight(), 2);
}

#[test]
fn a_local_task_is_aborted_on_its_own_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let registry = Registry::builder(TokioSpawner).inspect().build();
    let own = registry.clone();
    let summary = tokio::task::LocalSet::new().block_on(&runtime, async move {
        let local = std::rc::Rc::new(());
        own.run_local(async move {
            pending::<()>().await;
            drop(local);
        });
        tokio::task::yield_now().await;
        let outside = own.clone();
        thread::spawn(move || outside.abort()).join().unwrap();
        own.shutdown().await
    });
    assert_eq!(summary.aborted, 1);
}

/// The time that `then` gives begins when the grace is over, not when the call is made.
#[test]
fn the_second_time_is_made_when_the_first_is_over() {
    let (spawner, registry) = inspected();
    registry.run(pending::<()>());
    let (made, grace) = (AtomicUsize::new(0), std::cell::Cell::new(false));
    let then = || {
        made.fetch_add(1, SeqCst);
        async {}
    };
    let mut wait =
        Box::pin(registry.shutdown().or_abort(poll_fn(|_| if grace.get() { Poll::Ready(()) } else { Poll::Pending }), then));
    assert!(poll_once(&mut wait).is_pending());
    assert_eq!((made.load(SeqCst), registry.tasks()[0].abort_requested()), (0, false));
    grace.set(true);
    let Poll::Ready(Err(stragglers)) = poll_once(&mut wait) else { panic!("the second time was over at once") };
    assert_eq!((made.load(SeqCst), stragglers.len()), (1, 1));
    drop(spawner.take());
}

#[test]
fn a_drain_within_the_grace_aborts_nothing() {
    let (spawner, registry) = inspected();
    registry.run(async {});
    let shutdown = registry.shutdown();
    spawner.poll_all();
    let summary = shutdown.wait_or_abort(Duration::ZERO, Duration::ZERO).unwrap();
    assert_eq!((summary.completed, summary.aborted), (1, 0));
}

/// S7: and a waker is kept no longer than its task.
#[test]
fn a_waker_may_call_back_and_goes_with_its_task() {
    let (spawner, registry) = inspected();
    let woken = Arc::new(AtomicUsize::new(0));
    let (own, told) = (registry.clone(), woken.clone());
    let waker = waker(move || {
        told.fetch_add(1, SeqCst);
        own.tasks();
        own.abort();
    });
    registry.run(pending::<()>());
    let mut task = spawner.take();
    let mut poll = || Pin::new(&mut task).poll(&mut Context::from_waker(&waker));
    assert!(poll().is_pending());
    registry.abort();
    assert_eq!(woken.load(SeqCst), 1);
    assert!(poll().is_ready());
    registry.run(pending::<()>());
    let mut task = spawner.take();
    assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
    drop((task, waker));
    assert_eq!(Arc::strong_count(&woken), 1, "nobody keeps the waker");
}
