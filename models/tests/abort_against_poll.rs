//! A task is aborted while it is polled.

mod common;

use common::{by_hand, check, on_shard, race};
use core::future::pending;
use std::sync::Arc;

/// S3, S5: one that finishes in that poll has completed or was aborted, once, and the drain comes.
#[test]
fn it_finishes() {
    for swapped in [false, true] {
        check(1, move || {
            let registry = Arc::new(by_hand().inspect().build());
            registry.run(async {});
            let mut task = registry.spawner().take();
            let aborter = registry.clone();
            let (told, polled) = race(swapped, move || aborter.abort().aborted, move || task.poll());
            assert!(polled.is_ready());
            assert!(registry.tasks().is_empty());
            assert_eq!(registry.abort().aborted, 0);
            let summary = registry.shutdown().wait();
            assert!(summary.aborted <= told as u64);
            assert_eq!((summary.completed + summary.aborted, summary.abandoned), (1, 0));
        });
    }
}

/// L3: one that waits from then on is never left asleep.
#[test]
fn it_parks() {
    parks(false);
}

/// L3: nor is one that waited already, and is polled by another task.
#[test]
fn it_parks_again() {
    parks(true);
}

fn parks(again: bool) {
    for swapped in [false, true] {
        check(1, move || {
            let registry = Arc::new(by_hand().inspect().build());
            registry.run(pending::<()>());
            let mut task = registry.spawner().take();
            if again {
                assert!(task.poll().is_pending());
            }
            let aborter = registry.clone();
            let abort = move || assert_eq!(aborter.abort().aborted, 1);
            let poll = move || {
                let polled = task.poll_anew();
                (task, polled)
            };
            let ((), (task, polled)) = race(swapped, abort, poll);
            task.finish(polled);
            assert_eq!(registry.shutdown().wait().aborted, 1);
        });
    }
}

/// L3: nor is one that two abort.
#[test]
fn two_abort() {
    check(1, || {
        let registry = Arc::new(by_hand().inspect().build());
        registry.run(pending::<()>());
        let mut task = registry.spawner().take();
        let worker = on_shard(0, move || {
            let polled = task.poll();
            (task, polled)
        });
        let other = on_shard(0, {
            let registry = registry.clone();
            move || registry.abort()
        });
        registry.abort();
        other.join().unwrap();
        let (task, polled) = worker.join().unwrap();
        task.finish(polled);
        assert_eq!(registry.shutdown().wait().aborted, 1);
    });
}
