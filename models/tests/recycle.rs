//! A core serves its next registry while somebody of the last one is not done with it.

mod common;

use background_tasks::{Observer, TaskInfo};
use common::{Effect, Polled, Registry, by_hand, check, counts, on_shard};
use core::future::pending;
use core::task::Poll;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// L2: a leaver that has to tell *idle* may do so in the core's next life; whoever waits for idle there is not lost by that.
#[test]
fn a_stray_leaver() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let mut idle = Polled::new(registry.wait_idle());
        assert!(idle.poll().is_pending());
        drop(idle);
        let stray = on_shard(0, move || drop(guard));
        drop(registry);
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let mut idle = Polled::new(registry.wait_idle());
        assert!(idle.poll().is_pending());
        drop(guard);
        stray.join().unwrap();
        idle.finish(Poll::Pending);
    });
}

/// S3: a leaver that has found its gate closed and empty may drain it in the core's next life, in the place of who closes that.
#[test]
fn a_stray_leaver_that_drains() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        registry.shutdown();
        let stray = on_shard(0, move || drop(guard));
        drop(registry.guard());
        drop(registry);
        let registry = Registry::new(());
        drop(registry.guard().unwrap());
        let mut shutdown = Polled::new(registry.shutdown());
        let polled = shutdown.poll();
        stray.join().unwrap();
        assert_eq!(counts(shutdown.finish(polled)), [1, 0, 0, 0]);
    });
}

/// L1: a signal of the last life removes nobody's waker when it is dropped in the next.
#[test]
fn a_stale_signal() {
    check(1, || {
        let registry = Registry::new(());
        let mut stale = Polled::new(registry.signal());
        assert!(stale.poll().is_pending());
        let dropper = on_shard(0, move || drop(stale));
        drop(registry);
        let registry = Registry::new(());
        let mut signal = Polled::new(registry.signal());
        assert!(signal.poll().is_pending());
        registry.shutdown();
        dropper.join().unwrap();
        signal.finish(Poll::Pending);
    });
}

/// L1: a signal that is polled first in the core's next life is triggered, and shows what came before its own shutdown. The core comes
/// back by another thread than the one that opens it again.
#[test]
fn a_late_signal() {
    check(1, || {
        let (registry, effect) = (Registry::new(()), Effect::new());
        let mut late = Polled::new(registry.signal());
        let guard = registry.guard().unwrap();
        let poller = on_shard(0, {
            let effect = effect.clone();
            move || {
                let polled = late.poll();
                if polled.is_ready() {
                    effect.see();
                }
                (late, polled)
            }
        });
        let leaver = on_shard(0, move || drop(guard));
        effect.happen();
        drop(registry);
        let registry = Registry::new(());
        let (late, polled) = poller.join().unwrap();
        late.finish(polled);
        leaver.join().unwrap();
        drop(registry);
    });
}

/// S3, S5: the next life counts its own work, from zero.
#[test]
fn the_last_life_is_forgotten() {
    check(2, || {
        let registry = Registry::new(());
        let left = on_shard(1, {
            let registry = registry.clone();
            move || drop(registry.track(pending::<()>()).unwrap())
        });
        drop(registry);
        let registry = Registry::new(());
        drop(registry.guard().unwrap());
        assert_eq!(counts(registry.summary()), [1, 0, 0, 0]);
        left.join().unwrap();
        assert_eq!(counts(registry.shutdown().wait()), [1, 0, 0, 0]);
    });
}

/// S3, S5: all that those did who left, the last one or not, came before the next life, which makes their counts zero.
#[test]
fn every_user_is_done() {
    check(2, || {
        let registry = Registry::new(());
        let leavers = [0, 1].map(|shard| {
            let registry = registry.clone();
            let task = on_shard(shard, move || registry.track(pending::<()>()).unwrap());
            let task = task.join().unwrap();
            on_shard(shard, move || drop(task))
        });
        drop(registry);
        let registry = Registry::new(());
        assert_eq!(counts(registry.summary()), [0; 4]);
        for leaver in leavers {
            leaver.join().unwrap();
        }
        assert_eq!(counts(registry.shutdown().wait()), [0; 4]);
    });
}

/// S3: who only waited, and waits no more, came before the next life too.
#[test]
fn every_holder_is_done() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let shutdown = registry.shutdown();
        drop(registry);
        let leaver = on_shard(0, move || {
            drop(guard);
            drop(Registry::new(()));
        });
        drop(shutdown);
        leaver.join().unwrap();
    });
}

/// S4: the handle that goes last, after a shutdown, is done with the core before its next life.
#[test]
fn a_late_handle() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        registry.shutdown();
        let leaver = on_shard(0, move || {
            drop(guard);
            let next = Registry::new(());
            assert!(next.guard().is_ok());
            assert!(!next.is_shutting_down());
        });
        drop(registry);
        leaver.join().unwrap();
    });
}

/// S8, S10: the next life has no settings of the last, and nobody is told of it who was told of that.
#[test]
fn the_last_life_s_settings_are_forgotten() {
    struct Told(Arc<AtomicUsize>);

    impl Observer for Told {
        fn abandoned(&self, _: &TaskInfo) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    check(1, || {
        let told = Arc::new(AtomicUsize::new(0));
        let registry = Registry::builder(()).inspect().max_in_flight(1).observer(Told(told.clone())).build();
        let task = registry.track(pending::<()>()).unwrap();
        let loser = on_shard(0, move || drop(task));
        drop(registry);
        let registry = Registry::new(());
        let tasks = [(); 2].map(|()| registry.track(pending::<()>()).unwrap());
        assert!(registry.tasks().is_empty());
        drop(tasks);
        loser.join().unwrap();
        assert_eq!(told.load(Ordering::Relaxed), 1);
        assert_eq!(Arc::strong_count(&told), 1, "the observer is gone");
    });
}

/// L4: a leaver that has to tell of its place may do so in the core's next life; whoever waits there is not lost by that.
#[test]
fn a_stray_leaver_of_a_place() {
    check(1, || {
        let registry = by_hand().max_in_flight(2).build();
        let [stray, last] = [(); 2].map(|()| registry.guard().unwrap());
        let mut waiter = Polled::new({
            let registry = registry.clone();
            async move { registry.run_when_ready(async {}).await.is_ok() }
        });
        assert!(waiter.poll().is_pending());
        let stray = on_shard(0, move || drop(stray));
        drop((waiter, last, registry));
        let registry = Arc::new(by_hand().max_in_flight(1).build());
        let guard = registry.guard().unwrap();
        let mut waiter = Polled::new({
            let registry = registry.clone();
            async move { registry.run_when_ready(async {}).await.is_ok() }
        });
        assert!(waiter.poll().is_pending());
        drop(guard);
        stray.join().unwrap();
        assert!(waiter.finish(Poll::Pending));
    });
}
