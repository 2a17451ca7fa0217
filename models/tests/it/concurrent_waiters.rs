//! Two futures wait for the drain, and one of them is dropped.

use crate::common::{Polled, Registry, check, counts, spawn_on_shard};

/// L2: The other future is woken, whether the dropped future had been notified or not.
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

/// L2: A future that starts to wait while another future is dropped is woken, whichever of them listened first.
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
