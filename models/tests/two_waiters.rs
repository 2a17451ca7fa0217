//! Two wait for the drain, and one is dropped half-way.

mod common;

use common::{Polled, Registry, check, counts, on_shard};

/// L2: the other is woken, whether the bell had rung for the dropped one or not.
#[test]
fn one_is_dropped() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let [mut dropped, mut stays] = [(); 2].map(|()| Polled::new(registry.shutdown()));
        assert!(dropped.poll().is_pending());
        assert!(stays.poll().is_pending());
        let leaver = on_shard(0, move || drop(guard));
        drop(dropped);
        leaver.join().unwrap();
        assert_eq!(counts(stays.finish(core::task::Poll::Pending)), [1, 0, 0, 0]);
    });
}

/// L2: nor does it matter which of them listened first, and one that comes between is not lost either.
#[test]
fn one_comes_as_one_is_dropped() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let [mut dropped, mut comes] = [(); 2].map(|()| Polled::new(registry.shutdown()));
        assert!(dropped.poll().is_pending());
        let dropper = on_shard(0, move || drop(dropped));
        let leaver = on_shard(0, move || drop(guard));
        let polled = comes.poll();
        dropper.join().unwrap();
        leaver.join().unwrap();
        assert_eq!(counts(comes.finish(polled)), [1, 0, 0, 0]);
    });
}
