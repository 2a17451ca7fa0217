//! Checks invariant L1: the start of the shutdown wakes each waiting `ShutdownSignal`, on all threads and in all tasks.
use crate::common::{HANG, Manual, counting_waker, poll, poll_once, waker_fn};
use background_tasks::{Registry, ShutdownSignal, Spawner};
use futures_lite::future::block_on;
use futures_util::future::{FusedFuture, FutureExt};
use futures_util::{select, select_biased};
use std::future::{pending, poll_fn, ready};
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;

fn shutdown_wakes_every_waiting_task<S: Spawner>(registry: &Registry<S>) {
    let (polled, is_polled) = channel();
    for n in 0..100 {
        let mut signal = registry.signal();
        let polled = polled.clone();
        registry.run(async move {
            assert!(poll_once(&mut signal).is_pending());
            polled.send(()).unwrap();
            if n % 2 == 0 {
                signal.await;
            } else {
                assert_eq!(signal.run_until_shutdown(pending::<()>()).await, None);
            }
        });
    }
    for _ in 0..100 {
        is_polled.recv_timeout(HANG).unwrap();
    }
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 100);
}

fn signal_polled_in_one_task_wakes_the_task_it_moves_to<S: Spawner>(registry: &Registry<S>) {
    let mut signal = registry.signal();
    let (send_signal, signals) = channel::<ShutdownSignal>();
    registry.run(async move {
        assert!(poll_once(&mut signal).is_pending());
        send_signal.send(signal.clone()).unwrap();
        send_signal.send(signal).unwrap();
    });
    let (polled, is_polled) = channel();
    for _ in 0..2 {
        let mut signal = signals.recv_timeout(HANG).unwrap();
        let polled = polled.clone();
        registry.run(async move {
            poll_fn(|cx| {
                let poll = Pin::new(&mut signal).poll(cx);
                polled.send(()).unwrap();
                poll
            })
            .await;
        });
    }
    for _ in 0..2 {
        is_polled.recv_timeout(HANG).unwrap();
    }
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 3);
}

on_every_runtime!(shutdown_wakes_every_waiting_task, signal_polled_in_one_task_wakes_the_task_it_moves_to);

/// In this loop, `select!` skips futures that have resolved. When all futures have resolved, the branch `complete` ends the loop.
#[test]
fn futures_select_loops_over_a_signal_a_drain_and_idleness() {
    let registry = Registry::new(());
    let mut guard = registry.guard().ok();
    let (mut signal, mut idle) = (registry.signal(), registry.wait_idle());
    let mut task = pin!(registry.signal().fuse());
    let mut events = Vec::new();
    block_on(async {
        loop {
            select_biased! {
                () = idle => events.push("idle"),
                () = signal => events.push("signal"),
                () = task => events.push("task"),
                default => {
                    assert!(events.is_empty(), "{events:?}");
                    registry.start_shutdown();
                    guard = None;
                }
                complete => break,
            }
        }
    });
    assert_eq!(events, ["idle", "signal", "task"]);
    assert!(signal.is_triggered() && signal.is_terminated() && guard.is_none());
    assert!(poll_once(&mut signal).is_ready() && signal.is_terminated(), "a signal can be polled again");
    let mut clone = signal.clone();
    assert!(clone.is_triggered() && !clone.is_terminated(), "a clone has not resolved");
    assert!(poll_once(&mut clone).is_ready() && clone.is_terminated());

    let mut shutdown = registry.shutdown();
    assert!(!shutdown.is_terminated());
    block_on(async {
        loop {
            select! {
                summary = shutdown => assert_eq!(summary.completed, 1),
                complete => break,
            }
        }
    });
    assert!(shutdown.is_terminated());
}

#[test]
fn triggered_signal_that_was_not_polled_is_not_terminated() {
    let registry = Registry::new(());
    let mut signal = registry.signal();
    registry.start_shutdown();
    assert!(!signal.is_terminated(), "`select!` would skip it");
    assert!(poll_once(&mut signal).is_ready() && signal.is_terminated());
}

#[test]
fn signal_resolves_when_shutdown_starts_and_stays_resolved() {
    let registry = Registry::new(());
    let mut signal = registry.signal();
    assert!(!signal.is_triggered());
    assert!(poll_once(&mut signal).is_pending());
    registry.start_shutdown();
    for _ in 0..3 {
        assert!(poll_once(&mut signal).is_ready());
    }
    assert!(signal.is_triggered() && signal.clone().is_triggered());
    assert!(poll_once(&mut registry.signal()).is_ready(), "a signal made after the shutdown started resolves immediately");
}

#[test]
fn signal_wakes_only_its_last_waker_and_only_once() {
    let registry = Registry::new(());
    let mut signal = registry.signal();
    let ((first_wake_count, first), (second_wake_count, second)) = (counting_waker(), counting_waker());
    assert!(poll(&mut signal, &first).is_pending());
    assert!(poll(&mut signal, &first).is_pending());
    assert!(poll(&mut signal, &second).is_pending());
    registry.start_shutdown();
    registry.start_shutdown();
    assert_eq!((first_wake_count.get(), second_wake_count.get()), (0, 1));
}

#[test]
fn clone_waits_independently_of_its_original() {
    let registry = Registry::new(());
    let mut signal = registry.signal();
    let ((first_wake_count, first), (second_wake_count, second)) = (counting_waker(), counting_waker());
    assert!(poll(&mut signal, &first).is_pending());
    let mut clone = signal.clone();
    assert!(poll(&mut clone, &second).is_pending());
    drop(signal);
    registry.start_shutdown();
    assert_eq!((first_wake_count.get(), second_wake_count.get()), (0, 1));
}

#[test]
fn dropped_signals_leave_other_signals_registered() {
    let registry = Registry::new(());
    let wakers: Vec<_> = (0..10).map(|_| counting_waker()).collect();
    let mut signals: Vec<_> = (0..10).map(|_| registry.signal()).collect();
    for (signal, (_, waker)) in signals.iter_mut().zip(&wakers) {
        assert!(poll(signal, waker).is_pending());
    }
    for n in [7, 3, 0] {
        drop(signals.remove(n));
    }
    let (late_wake_count, late_waker) = counting_waker();
    let mut late = registry.signal();
    assert!(poll(&mut late, &late_waker).is_pending());
    registry.start_shutdown();
    let wake_count: Vec<_> = wakers.iter().map(|(wake_count, _)| wake_count.get()).collect();
    assert_eq!((wake_count, late_wake_count.get()), (vec![0, 1, 1, 0, 1, 1, 1, 0, 1, 1], 1));
}

#[test]
fn signal_dropped_on_another_thread_removes_its_waker() {
    let registry = Registry::new(());
    let (wake_count, waker) = counting_waker();
    let mut signal = registry.signal();
    assert!(poll(&mut signal, &waker).is_pending());
    thread::spawn(move || drop(signal)).join().unwrap();
    registry.start_shutdown();
    assert_eq!(wake_count.get(), 0);
}

/// Checks the invariants S6 and S7: each call in the wakers below would hang if the registry held the lock of its wait list during the
/// wake-up.
#[test]
fn wakers_may_call_the_registry_and_may_panic() {
    let registry = Registry::new(());
    let (called, calls) = channel();
    let handle = registry.clone();
    let signal = Mutex::new(registry.signal());
    let calling = waker_fn(move || {
        let mut signal = signal.lock().unwrap();
        assert!(poll_once(&mut *signal).is_ready());
        handle.start_shutdown();
        drop(handle.guard());
        drop(handle.signal());
        called.send(()).unwrap();
    });
    let ((before_wake_count, before), (after_wake_count, after)) = (counting_waker(), counting_waker());
    let panicking = waker_fn(|| panic!("intentional panic in a waker"));
    let mut signals: Vec<_> = (0..5).map(|_| registry.signal()).collect();
    for (signal, waker) in signals.iter_mut().zip([&before, &panicking, &calling, &panicking, &after]) {
        assert!(poll(signal, waker).is_pending());
    }
    let _in_flight = registry.guard();
    registry.start_shutdown();
    assert_eq!((before_wake_count.get(), calls.try_iter().count(), after_wake_count.get()), (1, 1, 1));
}

#[test]
fn dropping_the_last_handle_starts_the_shutdown() {
    let manual = Manual::default();
    let registry = Registry::new(manual.clone());
    let (wake_count, waker) = counting_waker();
    let mut signal = registry.signal();
    assert!(poll(&mut signal, &waker).is_pending());
    let task_signal = registry.signal();
    registry.run(task_signal);
    manual.poll_all();
    let second = registry.clone();
    drop(registry);
    assert!(!signal.is_triggered(), "one handle is left");
    drop(second);
    assert!(signal.is_triggered());
    assert_eq!(wake_count.get(), 1);
    manual.poll_all();
    assert_eq!(manual.0.lock().unwrap().len(), 0, "the task has finished");
}

#[test]
fn handle_owned_by_a_task_keeps_the_registry_open() {
    let manual = Manual::default();
    let registry = Registry::new(manual.clone());
    let handle = registry.clone();
    registry.run(async move {
        handle.signal().await;
    });
    let signal = registry.signal();
    drop(registry);
    manual.poll_all();
    assert!(!signal.is_triggered());
    drop(manual.take());
    assert!(signal.is_triggered());
}

#[test]
fn signal_of_an_earlier_registry_stays_triggered_when_its_state_is_reused() {
    let registry = Registry::new(());
    let mut old_signals: Vec<_> = (0..4).map(|_| registry.signal()).collect();
    for signal in &mut old_signals {
        assert!(poll_once(signal).is_pending());
    }
    drop(registry);
    // The pool may also contain states of other tests. Of 32 new registries, at least one reuses the state from above.
    let registries: Vec<_> = (0..32).map(|_| Registry::new(())).collect();
    let wakers: Vec<_> = registries.iter().map(|_| counting_waker()).collect();
    let mut signals: Vec<_> = registries.iter().map(Registry::signal).collect();
    for (signal, (_, waker)) in signals.iter_mut().zip(&wakers) {
        assert!(poll(signal, waker).is_pending());
    }
    assert!(poll_once(&mut old_signals[0]).is_ready() && old_signals[1].is_triggered());
    drop(old_signals);
    assert!(signals.iter().all(|signal| !signal.is_triggered()));
    drop(registries);
    assert!(wakers.iter().all(|(wake_count, _)| wake_count.get() == 1));
}

#[test]
fn finished_future_wins_over_the_shutdown() {
    let registry = Registry::new(());
    registry.start_shutdown();
    let signal = registry.signal();
    assert_eq!(block_on(signal.run_until_shutdown(ready(7))), Some(7));
    assert_eq!(block_on(signal.run_until_shutdown(pending::<u8>())), None);
}

#[test]
fn run_until_shutdown_borrows_nothing_and_drops_its_future_at_shutdown() {
    let manual = Manual::default();
    let registry = Registry::new(manual.clone());
    let (sender, receiver) = channel::<()>();
    registry.run({
        let until_shutdown = registry.signal().run_until_shutdown(async move {
            let _sender = sender;
            pending::<()>().await;
        });
        async move { assert_eq!(until_shutdown.await, None) }
    });
    manual.poll_all();
    assert!(matches!(receiver.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)));
    registry.start_shutdown();
    manual.poll_all();
    assert!(matches!(receiver.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)));
    assert_eq!(registry.summary().completed, 1);
}
