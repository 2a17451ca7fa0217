//! L1: whoever waits for the shutdown's beginning is told, wherever and however it waits.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

mod common;

use background_tasks::{Registry, ShutdownSignal, Spawner};
use common::{HANG, Manual, poll_once, waker_fn};
use futures_lite::future::block_on;
use std::future::{pending, poll_fn, ready};
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Waker};
use std::thread;

fn every_waiting_task_is_told<S: Spawner>(registry: &Registry<S>) {
    let (waits, is_waiting) = channel();
    for n in 0..100 {
        let mut signal = registry.signal();
        let waits = waits.clone();
        registry.run(async move {
            assert!(poll_once(&mut signal).is_pending());
            waits.send(()).unwrap();
            if n % 2 == 0 {
                signal.await;
            } else {
                assert_eq!(signal.run_until_shutdown(pending::<()>()).await, None);
            }
        });
    }
    for _ in 0..100 {
        is_waiting.recv_timeout(HANG).unwrap();
    }
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 100);
}

fn a_signal_polled_here_and_moved_to_another_task<S: Spawner>(registry: &Registry<S>) {
    let mut signal = registry.signal();
    let (polled, is_polled) = channel();
    let (moved, receive) = channel::<ShutdownSignal>();
    registry.run(async move {
        assert!(poll_once(&mut signal).is_pending());
        moved.send(signal.clone()).unwrap();
        moved.send(signal).unwrap();
    });
    for _ in 0..2 {
        let mut signal = receive.recv_timeout(HANG).unwrap();
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

on_every_runtime!(every_waiting_task_is_told, a_signal_polled_here_and_moved_to_another_task);

fn woken() -> (Waker, impl Fn() -> usize) {
    let (woken, is_woken) = channel();
    (waker_fn(move || woken.send(()).unwrap()), move || is_woken.try_iter().count())
}

fn poll(signal: &mut ShutdownSignal, waker: &Waker) -> Poll<()> {
    Pin::new(signal).poll(&mut Context::from_waker(waker))
}

#[test]
fn it_resolves_once_the_shutdown_has_begun_and_for_ever_after() {
    let registry = Registry::new(());
    let mut signal = registry.signal();
    assert!(!signal.is_triggered());
    assert!(poll_once(&mut signal).is_pending());
    registry.shutdown();
    for _ in 0..3 {
        assert!(poll_once(&mut signal).is_ready());
    }
    assert!(signal.is_triggered() && signal.clone().is_triggered());
    assert!(poll_once(&mut registry.signal()).is_ready(), "one made afterwards");
}

#[test]
fn a_signal_is_woken_once_by_its_last_waker() {
    let registry = Registry::new(());
    let mut signal = registry.signal();
    let ((first, first_woken), (second, second_woken)) = (woken(), woken());
    assert!(poll(&mut signal, &first).is_pending());
    assert!(poll(&mut signal, &first).is_pending());
    assert!(poll(&mut signal, &second).is_pending());
    registry.shutdown();
    registry.shutdown();
    assert_eq!((first_woken(), second_woken()), (0, 1));
}

#[test]
fn each_clone_waits_for_itself() {
    let registry = Registry::new(());
    let mut signal = registry.signal();
    let ((first, first_woken), (second, second_woken)) = (woken(), woken());
    assert!(poll(&mut signal, &first).is_pending());
    let mut clone = signal.clone();
    assert!(poll(&mut clone, &second).is_pending());
    drop(signal);
    registry.shutdown();
    assert_eq!((first_woken(), second_woken()), (0, 1));
}

#[test]
fn dropping_one_leaves_the_others_registered() {
    let registry = Registry::new(());
    let wakers: Vec<_> = (0..10).map(|_| woken()).collect();
    let mut signals: Vec<_> = (0..10).map(|_| registry.signal()).collect();
    for (signal, (waker, _)) in signals.iter_mut().zip(&wakers) {
        assert!(poll(signal, waker).is_pending());
    }
    for n in [7, 3, 0] {
        drop(signals.remove(n));
    }
    let (waker, is_woken) = woken();
    let mut late = registry.signal();
    assert!(poll(&mut late, &waker).is_pending());
    registry.shutdown();
    let told: Vec<_> = wakers.iter().map(|(_, woken)| woken()).collect();
    assert_eq!((told, is_woken()), (vec![0, 1, 1, 0, 1, 1, 1, 0, 1, 1], 1));
}

#[test]
fn one_dropped_on_another_thread_leaves_no_waker_behind() {
    let registry = Registry::new(());
    let (waker, is_woken) = woken();
    let mut signal = registry.signal();
    assert!(poll(&mut signal, &waker).is_pending());
    thread::spawn(move || drop(signal)).join().unwrap();
    registry.shutdown();
    assert_eq!(is_woken(), 0);
}

#[test]
fn a_waker_may_call_back_and_another_may_panic() {
    let registry = Registry::new(());
    let (told, is_told) = channel();
    let own = registry.clone();
    let kept = Mutex::new(registry.signal());
    // Under the list's lock each of these would hang.
    let calls = waker_fn(move || {
        let mut kept = kept.lock().unwrap();
        assert!(poll_once(&mut *kept).is_ready());
        own.shutdown();
        drop(own.guard());
        drop(own.signal());
        told.send(()).unwrap();
    });
    let ((before, before_woken), (after, after_woken)) = (woken(), woken());
    let panics = waker_fn(|| panic!("a waker's panic, as planned"));
    let mut signals: Vec<_> = (0..5).map(|_| registry.signal()).collect();
    for (signal, waker) in signals.iter_mut().zip([&before, &panics, &calls, &panics, &after]) {
        assert!(poll(signal, waker).is_pending());
    }
    let _in_flight = registry.guard();
    registry.shutdown();
    assert_eq!((before_woken(), is_told.try_iter().count(), after_woken()), (1, 1, 1));
}

#[test]
fn the_last_handle_dropped_triggers_and_the_tasks_end() {
    let manual = Manual::default();
    let registry = Registry::new(manual.clone());
    let (waker, is_woken) = woken();
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
    assert_eq!(is_woken(), 1);
    manual.poll_all();
    assert_eq!(manual.0.lock().unwrap().len(), 0, "the task has ended");
}

#[test]
fn a_task_that_owns_a_handle_keeps_its_registry_open() {
    let manual = Manual::default();
    let registry = Registry::new(manual.clone());
    let own = registry.clone();
    registry.run(async move {
        own.signal().await;
    });
    let signal = registry.signal();
    drop(registry);
    manual.poll_all();
    assert!(!signal.is_triggered());
    drop(manual.take());
    assert!(signal.is_triggered());
}

#[test]
fn a_signal_of_a_core_s_last_life_is_triggered_in_the_next_and_harms_nobody() {
    let registry = Registry::new(());
    let mut old: Vec<_> = (0..4).map(|_| registry.signal()).collect();
    for signal in &mut old {
        assert!(poll_once(signal).is_pending());
    }
    drop(registry);
    // As many as make it sure that one has the old one's core.
    let registries: Vec<_> = (0..32).map(|_| Registry::new(())).collect();
    let wakers: Vec<_> = registries.iter().map(|_| woken()).collect();
    let mut signals: Vec<_> = registries.iter().map(Registry::signal).collect();
    for (signal, (waker, _)) in signals.iter_mut().zip(&wakers) {
        assert!(poll(signal, waker).is_pending());
    }
    assert!(poll_once(&mut old[0]).is_ready() && old[1].is_triggered());
    drop(old);
    assert!(signals.iter().all(|signal| !signal.is_triggered()));
    drop(registries);
    assert!(wakers.iter().all(|(_, woken)| woken() == 1));
}

#[test]
fn a_finished_future_wins_over_the_signal() {
    let registry = Registry::new(());
    registry.shutdown();
    let signal = registry.signal();
    assert_eq!(block_on(signal.run_until_shutdown(ready(7))), Some(7));
    assert_eq!(block_on(signal.run_until_shutdown(pending::<u8>())), None);
}

#[test]
fn run_until_shutdown_borrows_nothing_and_is_dropped_unfinished_at_the_signal() {
    let manual = Manual::default();
    let registry = Registry::new(manual.clone());
    let (sender, receiver) = channel::<()>();
    registry.run({
        let until = registry.signal().run_until_shutdown(async move {
            let _held = sender;
            pending::<()>().await;
        });
        async move { assert_eq!(until.await, None) }
    });
    manual.poll_all();
    assert!(matches!(receiver.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)));
    registry.shutdown();
    manual.poll_all();
    assert!(matches!(receiver.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)));
    assert_eq!(registry.summary().completed, 1);
}
