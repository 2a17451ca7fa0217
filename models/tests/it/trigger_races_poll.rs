//! The shutdown starts while another thread polls a signal, polls it with another waker, or drops it.

use crate::common::{Effect, Polled, Registry, check, spawn_on_shard};

/// Invariant L1: The first poll of a signal is ready, or the shutdown calls its waker.
#[test]
fn first_poll_is_ready_or_woken() {
    check(2, || {
        let registry = Registry::new(());
        let mut signal = Polled::new(registry.signal());
        let waiter = spawn_on_shard(1, move || {
            let polled = signal.poll();
            (signal, polled)
        });
        registry.start_shutdown();
        let (signal, polled) = waiter.join().unwrap();
        signal.finish(polled);
    });
}

/// Invariant L1: A later poll with another waker is ready, or the shutdown calls the new waker.
#[test]
fn repoll_is_ready_or_wakes_latest_waker() {
    check(2, || {
        let registry = Registry::new(());
        let mut signal = Polled::new(registry.signal());
        assert!(signal.poll().is_pending());
        let waiter = spawn_on_shard(1, move || {
            let polled = signal.poll_with_new_waker();
            (signal, polled)
        });
        registry.start_shutdown();
        let (signal, polled) = waiter.join().unwrap();
        signal.finish(polled);
    });
}

/// Invariant L1: A signal is dropped, and a new signal reuses its entry in the list. All other wakers stay in the list.
#[test]
fn dropped_signal_leaves_other_wakers() {
    check(1, || {
        let registry = Registry::new(());
        let [mut dropped, mut stays, mut new] = [(); 3].map(|()| Polled::new(registry.signal()));
        assert!(dropped.poll().is_pending());
        assert!(stays.poll().is_pending());
        let waiter = spawn_on_shard(0, move || {
            drop(dropped);
            let polled = new.poll();
            (new, polled)
        });
        registry.start_shutdown();
        let (new, polled) = waiter.join().unwrap();
        new.finish(polled);
        assert!(stays.is_woken());
        assert!(stays.poll().is_ready());
    });
}

/// Invariant L1: A thread that sees that the signal is triggered observes everything that happened before the shutdown.
#[test]
fn triggered_shows_earlier_effects() {
    check(1, || {
        let (registry, effect) = (Registry::new(()), Effect::new());
        let signal = registry.signal();
        let reader = spawn_on_shard(0, {
            let effect = effect.clone();
            move || {
                if signal.is_triggered() {
                    effect.observe();
                }
            }
        });
        effect.perform();
        registry.start_shutdown();
        reader.join().unwrap();
    });
}
