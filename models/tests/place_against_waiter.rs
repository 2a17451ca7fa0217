//! A place below a limit is left while somebody comes for it, gives up, or tries to overtake.

mod common;

use background_tasks::{Guard, RejectReason};
use common::{ByHand, Polled, by_hand, check, on_shard, race};
use core::future::{Future, ready};
use core::task::Poll;
use loom::thread::JoinHandle;
use std::sync::Arc;

type Registry = background_tasks::Registry<ByHand>;

fn one_place() -> (Arc<Registry>, Guard) {
    let (registry, [guard]) = places();
    (registry, guard)
}

/// All taken.
fn places<const N: usize>() -> (Arc<Registry>, [Guard; N]) {
    let registry = by_hand().max_in_flight(N).build();
    let guards = [(); N].map(|()| registry.guard().unwrap());
    (Arc::new(registry), guards)
}

/// Says whether its task was started.
fn waiter(registry: &Arc<Registry>) -> Polled<impl Future<Output = bool> + use<>> {
    let registry = registry.clone();
    Polled::new(async move { registry.run_when_ready(ready(())).await.is_ok() })
}

fn poll<F: Future + 'static>(mut future: Polled<F>) -> JoinHandle<(Polled<F>, Poll<F::Output>)> {
    on_shard(0, move || {
        let polled = future.poll();
        (future, polled)
    })
}

/// L4: who comes gets the place, or is woken when it is left.
#[test]
fn one_comes() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, guard) = one_place();
            let mut waiter = waiter(&registry);
            let poll = move || {
                let polled = waiter.poll();
                (waiter, polled)
            };
            let ((waiter, polled), ()) = race(swapped, poll, move || drop(guard));
            assert!(waiter.finish(polled));
            assert_eq!(registry.in_flight(), 1);
        });
    }
}

/// L4: who waits already and is polled again, by another task, is woken by that one's waker.
#[test]
fn one_is_polled_again() {
    check(1, || {
        let (registry, guard) = one_place();
        let mut waiter = waiter(&registry);
        assert!(waiter.poll().is_pending());
        let leaver = on_shard(0, move || drop(guard));
        let polled = waiter.poll_anew();
        leaver.join().unwrap();
        assert!(waiter.finish(polled));
        assert_eq!(registry.in_flight(), 1);
    });
}

/// L4: who gives up passes the place on to the next.
#[test]
fn one_gives_up() {
    check(1, || {
        let (registry, guard) = one_place();
        let [mut gives_up, mut next] = [(); 2].map(|()| waiter(&registry));
        assert!(gives_up.poll().is_pending());
        assert!(next.poll().is_pending());
        let leaver = on_shard(0, move || drop(guard));
        drop(gives_up);
        leaver.join().unwrap();
        assert!(next.finish(Poll::Pending));
        assert_eq!(registry.in_flight(), 1);
    });
}

/// L4: also when the next comes as that one goes.
#[test]
fn one_comes_as_one_gives_up() {
    check(1, || {
        let (registry, guard) = one_place();
        let mut gives_up = waiter(&registry);
        assert!(gives_up.poll().is_pending());
        let leaver = on_shard(0, move || drop(guard));
        let quitter = on_shard(0, move || drop(gives_up));
        let mut next = waiter(&registry);
        let polled = next.poll();
        leaver.join().unwrap();
        quitter.join().unwrap();
        assert!(next.finish(polled));
        assert_eq!(registry.in_flight(), 1);
    });
}

/// L4: who comes waits for those who wait, and is not forgotten when the first of them enters.
#[test]
fn one_comes_as_one_enters() {
    check(1, || {
        let (registry, guard) = one_place();
        let mut first = waiter(&registry);
        assert!(first.poll().is_pending());
        let leaver = on_shard(0, move || drop(guard));
        let first = poll(first);
        let mut second = waiter(&registry);
        let polled = second.poll();
        assert!(polled.is_pending());
        leaver.join().unwrap();
        let (first, polled_first) = first.join().unwrap();
        assert!(first.finish(polled_first));
        assert_eq!(registry.in_flight(), 1);
        drop(registry.spawner().take());
        assert!(second.finish(polled));
        assert_eq!(registry.in_flight(), 1);
    });
}

/// L4: who leaves tells of the place though others stay.
#[test]
fn one_of_two_leaves() {
    check(1, || {
        let (registry, [leaves, _stays]) = places();
        let leaver = on_shard(0, move || drop(leaves));
        let mut waiter = waiter(&registry);
        let polled = waiter.poll();
        leaver.join().unwrap();
        assert!(waiter.finish(polled));
        assert_eq!(registry.in_flight(), 2);
    });
}

/// L4: of two who leave each wakes one.
#[test]
fn two_leave() {
    check(1, || {
        let (registry, guards) = places::<2>();
        let mut waiters = [(); 2].map(|()| waiter(&registry));
        assert!(waiters.iter_mut().all(|waiter| waiter.poll().is_pending()));
        let [one, other] = guards;
        let leaver = on_shard(0, move || drop(one));
        drop(other);
        leaver.join().unwrap();
        assert!(waiters.into_iter().all(|waiter| waiter.finish(Poll::Pending)));
        assert_eq!(registry.in_flight(), 2);
    });
}

/// S10: of two who try, one gets the place that is left, at most.
#[test]
fn two_try() {
    check(1, || {
        let (registry, guard) = one_place();
        let leaver = on_shard(0, move || drop(guard));
        let other = on_shard(0, {
            let registry = registry.clone();
            move || registry.guard()
        });
        let guards = [registry.guard(), other.join().unwrap()];
        assert!(guards.iter().filter(|guard| guard.is_ok()).count() <= 1);
        leaver.join().unwrap();
        assert!(registry.in_flight() <= 1);
    });
}

/// S10: who tries does not overtake who waits.
#[test]
fn one_tries_and_one_waits() {
    check(1, || {
        let (registry, guard) = one_place();
        let mut waiter = waiter(&registry);
        assert!(waiter.poll().is_pending());
        let leaver = on_shard(0, move || drop(guard));
        let refused = registry.guard().unwrap_err();
        assert_eq!(refused.reason(), RejectReason::Full);
        leaver.join().unwrap();
        assert!(waiter.finish(Poll::Pending));
        assert_eq!(registry.in_flight(), 1);
    });
}

/// L4, S10: who comes while another tries has the place after that one, at the latest.
#[test]
fn one_tries_and_one_comes() {
    check(1, || {
        let (registry, guard) = one_place();
        let leaver = on_shard(0, move || drop(guard));
        let trier = on_shard(0, {
            let registry = registry.clone();
            move || drop(registry.guard())
        });
        let mut waiter = waiter(&registry);
        let polled = waiter.poll();
        leaver.join().unwrap();
        trier.join().unwrap();
        assert!(waiter.finish(polled));
        assert_eq!(registry.in_flight(), 1);
    });
}

/// L4, S4: the shutdown sends away who waits, and who comes to wait; each is refused, once.
#[test]
fn the_shutdown_begins() {
    check(1, || {
        let (registry, guard) = one_place();
        let mut waits = waiter(&registry);
        assert!(waits.poll().is_pending());
        let comes = poll(waiter(&registry));
        let shutdown = registry.shutdown();
        let (comes, polled) = comes.join().unwrap();
        assert!(!comes.finish(polled));
        assert!(!waits.finish(Poll::Pending));
        drop(guard);
        assert_eq!(shutdown.wait().rejected, 2);
    });
}
