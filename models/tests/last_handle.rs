//! A registry's handles go while its work ends. `check` demands that its core comes back to the pool, once.

mod common;

use common::{Effect, Polled, Registry, check, counts, on_shard};

/// L1: the last handle's drop triggers, whether the work or the handle goes first.
#[test]
fn against_the_last_task() {
    check(2, || {
        let registry = Registry::new(());
        let mut signal = Polled::new(registry.signal());
        assert!(signal.poll().is_pending());
        let guard = registry.guard().unwrap();
        let leaver = on_shard(1, move || drop(guard));
        drop(registry);
        assert!(signal.is_woken());
        leaver.join().unwrap();
        assert!(signal.poll().is_ready());
        assert_eq!(counts(Registry::new(()).shutdown().wait()), [0; 4]);
        assert!(signal.poll().is_ready(), "also when the core lives again");
    });
}

/// L1: of two handles either may be the last, and the trigger shows what was done through both.
#[test]
fn two_at_once() {
    check(1, || {
        let registry = Registry::new(());
        let [one, other] = [Effect::new(), Effect::new()];
        let signal = registry.signal();
        let dropper = on_shard(0, {
            let (registry, one) = (registry.clone(), one.clone());
            move || {
                one.happen();
                drop(registry);
            }
        });
        let observer = on_shard(0, {
            let (one, other, signal) = (one.clone(), other.clone(), signal.clone());
            move || {
                if signal.is_triggered() {
                    one.see();
                    other.see();
                }
            }
        });
        other.happen();
        drop(registry);
        dropper.join().unwrap();
        observer.join().unwrap();
        assert!(signal.is_triggered());
    });
}

/// S3: a wait that outlives the handles reads its own registry's core, whatever comes after.
#[test]
fn a_wait_outlives_it() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let mut shutdown = Polled::new(registry.shutdown());
        drop(registry);
        let leaver = on_shard(0, move || {
            drop(guard);
            let next = Registry::new(());
            let guard = next.guard().unwrap();
            (next, guard)
        });
        let polled = shutdown.poll();
        let next = leaver.join().unwrap();
        assert_eq!(counts(shutdown.finish(polled)), [1, 0, 0, 0]);
        drop(next);
    });
}
