//! The shutdown begins while a signal is polled, polled with another waker, or dropped.

mod common;

use common::{Effect, Polled, Registry, check, on_shard};

/// L1: a first poll sees the trigger or is woken by it.
#[test]
fn first_poll() {
    check(2, || {
        let registry = Registry::new(());
        let mut signal = Polled::new(registry.signal());
        let waiter = on_shard(1, move || {
            let polled = signal.poll();
            (signal, polled)
        });
        registry.shutdown();
        let (signal, polled) = waiter.join().unwrap();
        signal.finish(polled);
    });
}

/// L1: so does a later one, with another waker.
#[test]
fn another_waker() {
    check(2, || {
        let registry = Registry::new(());
        let mut signal = Polled::new(registry.signal());
        assert!(signal.poll().is_pending());
        let waiter = on_shard(1, move || {
            let polled = signal.poll_anew();
            (signal, polled)
        });
        registry.shutdown();
        let (signal, polled) = waiter.join().unwrap();
        signal.finish(polled);
    });
}

/// L1: one that is dropped, and one that takes its place, leave the others' wakers where they are.
#[test]
fn dropped() {
    check(1, || {
        let registry = Registry::new(());
        let [mut dropped, mut stays, mut comes] = [(); 3].map(|()| Polled::new(registry.signal()));
        assert!(dropped.poll().is_pending());
        assert!(stays.poll().is_pending());
        let waiter = on_shard(0, move || {
            drop(dropped);
            let polled = comes.poll();
            (comes, polled)
        });
        registry.shutdown();
        let (comes, polled) = waiter.join().unwrap();
        comes.finish(polled);
        assert!(stays.is_woken());
        assert!(stays.poll().is_ready());
    });
}

/// L1: who sees the trigger sees what came before it.
#[test]
fn triggered_shows_what_came_before() {
    check(1, || {
        let (registry, effect) = (Registry::new(()), Effect::new());
        let signal = registry.signal();
        let observer = on_shard(0, {
            let effect = effect.clone();
            move || {
                if signal.is_triggered() {
                    effect.see();
                }
            }
        });
        effect.happen();
        registry.shutdown();
        observer.join().unwrap();
    });
}
