//! Two futures wait for the drain, and one of them is dropped.

use crate::common::{Polled, Registry, check, counts, spawn_on_shard};

/// Invariant L2: The remaining future is woken, even if the dropped future had been notified first.
#[test]
fn dropped_waiter_leaves_other_woken() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let [mut dropped, mut stays] = [(); 2].map(|()| Polled::new(registry.shutdown()));
        assert!(dropped.poll().is_pending());
        assert!(stays.poll().is_pending());
        let leaver = spawn_on_shard(0, move || drop(guard));
        drop(dropped);
        leaver.join().unwrap();
        assert_eq!(counts(stays.finish(core::task::Poll::Pending)), [1, 0, 0, 0]);
    });
}

/// Invariant L2: One future starts to wait while another future is dropped. The new future is woken, whichever of the two listened
/// first.
#[test]
fn new_waiter_is_woken_as_another_is_dropped() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let [mut dropped, mut new] = [(); 2].map(|()| Polled::new(registry.shutdown()));
        assert!(dropped.poll().is_pending());
        let dropper = spawn_on_shard(0, move || drop(dropped));
        let leaver = spawn_on_shard(0, move || drop(guard));
        let polled = new.poll();
        dropper.join().unwrap();
        leaver.join().unwrap();
        assert_eq!(counts(new.finish(polled)), [1, 0, 0, 0]);
    });
}
