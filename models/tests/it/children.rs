//! One thread makes, uses and drops child registries. Another thread shuts down their parent, lists or aborts its tasks, or reads
//! its summary.

use crate::common::{
    Effect, ManualSpawner, Polled, Registry, check, check_with_bound, counts, manual_builder, race, spawn_on_shard,
};
use core::future::{Future, pending, ready};
use core::task::Poll;
use std::sync::Arc;

/// Invariants S3 and S5: One thread makes and drops a child while its parent shuts down. Both registries drain, and the parent
/// counts the child's work.
#[test]
fn creation_races_shutdown() {
    check(1, || {
        let registry = Registry::new(());
        let parent = registry.clone();
        let worker = spawn_on_shard(0, move || u64::from(parent.child().guard().is_ok()));
        let mut shutdown = Polled::new(registry.shutdown());
        let polled = shutdown.poll();
        let accepted = worker.join().unwrap();
        drop(registry);
        let [completed, _, _, rejected] = counts(shutdown.finish(polled));
        assert_eq!(completed, accepted);
        // If the guard was not accepted, it counts as rejected. If the parent had drained, the child counts as rejected too.
        assert!(rejected <= 2 * (1 - accepted));
    });
}

/// Invariant L1: If a child is made while its parent starts the shutdown, the shutdown includes the child, or the child sees that
/// the shutdown has started.
#[test]
fn kept_child_races_shutdown() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let parent = registry.clone();
        let worker = spawn_on_shard(0, move || parent.child());
        registry.start_shutdown();
        let child = worker.join().unwrap();
        assert!(child.is_shutting_down());
        drop((child, guard));
        assert!(registry.is_drained());
    });
}

/// Invariant L1: After the parent's `start_shutdown` has returned, each signal of a child is triggered.
#[test]
fn signal_of_child_races_shutdown() {
    check(1, || {
        let registry = Registry::new(());
        let child = registry.child();
        let worker = spawn_on_shard(0, move || {
            let mut signal = Polled::new(child.signal());
            let polled = signal.poll();
            (child, signal, polled)
        });
        registry.start_shutdown();
        let (child, signal, polled) = worker.join().unwrap();
        assert!(child.is_shutting_down() && child.is_drained());
        signal.finish(polled);
        assert!(registry.is_drained());
    });
}

/// Invariant L1: Two signals of a child are polled for the first time. The first poll can come after the child has drained, and then
/// `close` does not look for signals. The second poll must not rely on the bit that the first poll has set.
#[test]
fn two_signals_of_child_race_shutdown() {
    check(1, || {
        let registry = Registry::new(());
        let child = registry.child();
        let poll = |signal| {
            spawn_on_shard(0, move || {
                let mut signal = Polled::new(signal);
                let polled = signal.poll();
                (signal, polled)
            })
        };
        let pollers = [poll(child.signal()), poll(child.signal())];
        child.start_shutdown();
        for poller in pollers {
            let (signal, polled) = poller.join().unwrap();
            signal.finish(polled);
        }
        assert!(child.is_drained());
    });
}

/// Invariants S2 and S3: The last task of a child ends while the parent shuts down. The parent drains once. After the drain, the
/// effects of the task are visible.
#[test]
fn last_task_of_child_races_shutdown() {
    check(1, || {
        let (registry, effect) = (Registry::new(()), Effect::new());
        let child = registry.child();
        let guard = child.guard().unwrap();
        let worker = spawn_on_shard(0, {
            let effect = effect.clone();
            move || {
                effect.perform();
                drop(guard);
                drop(child);
            }
        });
        let mut shutdown = Polled::new(registry.shutdown());
        let polled = shutdown.poll();
        if polled.is_ready() {
            effect.observe();
        }
        worker.join().unwrap();
        assert_eq!(counts(shutdown.finish(polled)), [1, 0, 0, 0]);
    });
}

/// Invariant S12: A thread that sees that the parent has drained also sees that the child has drained.
#[test]
fn drained_parent_has_drained_child() {
    check(1, || {
        let registry = Registry::new(());
        let child = registry.child();
        let guard = child.guard().unwrap();
        registry.start_shutdown();
        let worker = spawn_on_shard(0, move || drop(guard));
        registry.start_shutdown();
        if registry.is_drained() {
            assert!(child.is_drained());
        }
        worker.join().unwrap();
        assert!(registry.is_drained() && child.is_drained());
    });
}

/// Invariant S3: A child of another registry reuses the state of a drained child. The shutdown of the first parent does not close
/// the new child.
#[test]
fn reused_child_is_not_shut_down() {
    check_with_bound(2, 1, || {
        let (registry, other) = (Registry::new(()), Registry::new(()));
        let child = registry.child();
        let worker = spawn_on_shard(0, move || {
            drop(child);
            let child = other.child();
            assert!(!child.is_shutting_down());
            assert!(child.guard().is_ok());
            assert!(!child.is_shutting_down());
            drop(child);
            assert_eq!(counts(other.shutdown().wait()), [1, 0, 0, 0]);
        });
        registry.start_shutdown();
        worker.join().unwrap();
        assert!(registry.is_drained());
    });
}

/// Invariants S3 and S5: One thread makes and drops a grandchild while the root shuts down.
#[test]
fn creation_of_grandchild_races_shutdown() {
    check_with_bound(2, 1, || {
        let registry = Registry::new(());
        let child = registry.child();
        let worker = spawn_on_shard(0, move || u64::from(child.child().guard().is_ok()));
        let mut shutdown = Polled::new(registry.shutdown());
        let polled = shutdown.poll();
        let accepted = worker.join().unwrap();
        assert_eq!(counts(shutdown.finish(polled))[0], accepted);
    });
}

/// Invariants S9 and L3: A registry lists and aborts the tasks of its children while one child drains and another registry reuses
/// its state.
#[test]
fn walk_races_reuse() {
    check_with_bound(2, 1, || {
        let registry = manual_builder().inspect().build();
        let other = manual_builder().inspect().build();
        let child = registry.child();
        let worker = spawn_on_shard(0, move || {
            drop(child);
            let child = other.child();
            child.run(pending::<()>());
            let mut task = child.spawner().take();
            assert!(task.poll().is_pending(), "no other registry aborts this task");
            drop(task);
            drop(child);
            assert_eq!(counts(other.shutdown().wait()), [0, 0, 1, 0]);
        });
        assert!(registry.tasks().len() <= 1);
        let report = registry.abort();
        assert_eq!((report.aborted, report.not_abortable), (0, 0));
        worker.join().unwrap();
    });
}

/// Invariant S3: A child that is made while its parent drains stays open until its handle is dropped. A second shutdown of the
/// parent does not close the child.
#[test]
fn child_of_draining_parent_races_second_shutdown() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        registry.start_shutdown();
        let parent = registry.clone();
        let worker = spawn_on_shard(0, move || {
            let child = parent.child();
            assert!(child.signal().is_triggered());
            drop(child.guard().expect("the child is open"));
            drop(child.guard().expect("the child is open"));
        });
        registry.start_shutdown();
        worker.join().unwrap();
        drop(guard);
        assert!(registry.is_drained());
        assert_eq!(counts(registry.summary()), [3, 0, 0, 0]);
    });
}

/// Invariant S3: A child was made while its parent drained. Its last handle is dropped while the last task of the parent ends.
#[test]
fn handle_drop_of_late_child_races_last_task() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let mut shutdown = Polled::new(registry.shutdown());
        assert!(shutdown.poll().is_pending());
        let child = registry.child();
        let worker = spawn_on_shard(0, move || drop(child));
        drop(guard);
        worker.join().unwrap();
        assert_eq!(counts(shutdown.finish(Poll::Pending)), [1, 0, 0, 0]);
    });
}

/// Invariant S5: While a child with lost tasks drains, a summary of the parent never shows too many completed tasks.
#[test]
fn fold_never_overstates() {
    check(1, || {
        let registry = Registry::new(());
        let child = registry.child();
        drop(child.guard().unwrap());
        drop(child.track(pending::<()>()).unwrap());
        drop(child.track(pending::<()>()).unwrap());
        let worker = spawn_on_shard(0, move || drop(child));
        let [completed, _, abandoned, _] = counts(registry.summary());
        assert!(completed <= 1 && abandoned <= 2, "{completed} completed, {abandoned} abandoned");
        worker.join().unwrap();
        assert_eq!(counts(registry.summary()), [1, 0, 2, 0]);
    });
}

/// Invariant S4: If a child rejects a task while the child drains, the root counts the rejection once.
#[test]
fn rejection_races_fold() {
    check(1, || {
        let registry = Registry::new(());
        let child = registry.child();
        let guard = child.guard().unwrap();
        child.start_shutdown();
        let leaver = spawn_on_shard(0, move || drop(guard));
        let accepted = u64::from(child.guard().is_ok());
        leaver.join().unwrap();
        drop(child);
        assert_eq!(counts(registry.shutdown().wait()), [1 + accepted, 0, 0, 1 - accepted]);
    });
}

/// Invariant S5: A drained child rejects work while another registry reuses the state of the child's root. The other registry does
/// not count the rejection.
#[test]
fn rejection_races_reuse_of_root() {
    for swapped in [false, true] {
        check_with_bound(2, 1, move || {
            let registry = Registry::new(());
            let child = registry.child();
            child.start_shutdown();
            let reuse = move || {
                drop(registry);
                let other = Registry::new(());
                assert_eq!(counts(other.summary()), [0, 0, 0, 0]);
                other
            };
            let (other, child) = race(swapped, reuse, move || {
                assert!(child.guard().is_err());
                child
            });
            drop(child);
            assert_eq!(counts(other.shutdown().wait()), [0, 0, 0, 0]);
        });
    }
}

/// Invariant L2: The last task of a child ends while a future starts to wait for the child's drain.
#[test]
fn drain_of_child_races_waiter() {
    check(1, || {
        let registry = Registry::new(());
        let child = registry.child();
        let guard = child.guard().unwrap();
        let mut shutdown = Polled::new(child.shutdown());
        let worker = spawn_on_shard(0, move || drop(guard));
        let polled = shutdown.poll();
        worker.join().unwrap();
        assert_eq!(counts(shutdown.finish(polled)), [1, 0, 0, 0]);
    });
}

/// Invariant L3: `or_abort` aborts all tasks while another thread makes a child. Each task of the child is aborted before its first
/// poll.
#[test]
fn creation_races_or_abort() {
    check(1, || {
        let registry = manual_builder().inspect().build();
        let guard = registry.guard().unwrap();
        let mut aborting = Polled::new(registry.shutdown().or_abort(ready(()), pending::<()>));
        let parent = registry.clone();
        let worker = spawn_on_shard(0, move || parent.child());
        assert!(aborting.poll().is_pending());
        let child = worker.join().unwrap();
        child.run(pending::<()>());
        assert!(child.is_drained() || child.spawner().take().poll().is_ready());
        drop((child, guard));
        assert!(registry.is_drained());
    });
}

/// Returns a registry with a limit of one, and a child of this registry.
fn limited() -> (Arc<background_tasks::Registry<ManualSpawner>>, Arc<background_tasks::Registry<ManualSpawner>>) {
    let registry = manual_builder().max_in_flight(1).build();
    let child = registry.child();
    (Arc::new(registry), Arc::new(child))
}

fn waiter(registry: &Arc<background_tasks::Registry<ManualSpawner>>) -> Polled<impl Future<Output = bool> + use<>> {
    let registry = registry.clone();
    Polled::new(async move { registry.run_when_ready(ready(())).await.is_ok() })
}

/// Invariants S10 and L4: A task of a child releases the parent's permit while a new waiter of the parent arrives. The model also
/// runs with the roles of parent and child exchanged.
#[test]
fn permit_of_ancestor_races_waiter() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, child) = limited();
            let (holder, waiting) = if swapped { (&registry, &child) } else { (&child, &registry) };
            let guard = holder.guard().unwrap();
            let mut waiter = waiter(waiting);
            let poll = move || {
                let polled = waiter.poll();
                (waiter, polled)
            };
            let ((waiter, polled), ()) = race(swapped, poll, move || drop(guard));
            assert!(waiter.finish(polled));
            assert_eq!(waiting.in_flight(), if swapped { 1 } else { 2 }, "the parent also counts its child");
            drop(registry.spawner().take());
        });
    }
}

/// Invariants S10, S11 and L4: A task of a child stores its output and releases the parent's permit under one lock. A waiter of the
/// parent gets the permit.
#[test]
fn end_of_joined_task_races_waiter_for_its_permit() {
    for swapped in [false, true] {
        check_with_bound(2, 1, move || {
            let (registry, child) = limited();
            let mut handle = Polled::new(child.spawn(ready(7)));
            let mut task = child.spawner().take();
            let mut waiter = waiter(&registry);
            let poll = move || {
                let polled = waiter.poll();
                (waiter, polled)
            };
            let ((waiter, polled), ()) = race(swapped, poll, move || assert!(task.poll().is_ready()));
            assert!(waiter.finish(polled));
            assert!(matches!(handle.poll(), Poll::Ready(Ok(7))));
            drop(registry.spawner().take());
        });
    }
}

/// Invariants S10 and S11: When the output of a child's task arrives, the parent's permit is already free.
#[test]
fn joiner_finds_permit_of_ancestor_free() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, child) = limited();
            let mut handle = Polled::new(child.spawn(ready(7)));
            let mut task = child.spawner().take();
            let owner = registry.clone();
            let join = move || {
                let polled = handle.poll();
                assert!(polled.is_pending() || owner.guard().is_ok(), "the permit is released before the output arrives");
                (handle, polled)
            };
            let ((handle, polled), ()) = race(swapped, join, move || assert!(task.poll().is_ready()));
            assert_eq!(handle.finish(polled).unwrap(), 7);
            assert!(registry.guard().is_ok());
        });
    }
}

/// Invariant S10: A child and its parent start a task at the same time, and only one permit exists. Only one task gets the permit.
#[test]
fn child_and_parent_race_for_one_permit() {
    check(1, || {
        let (registry, child) = limited();
        let worker = spawn_on_shard(0, {
            let child = child.clone();
            move || child.guard()
        });
        let own = registry.guard();
        let lent = worker.join().unwrap();
        assert!(own.is_ok() != lent.is_ok(), "exactly one of them holds the permit");
        drop((own, lent));
        assert!(registry.guard().is_ok());
        assert_eq!(registry.summary().completed + child.summary().completed, 2);
    });
}

/// Invariant L4: A child shuts down while its task waits in the parent's queue. The waiter is rejected, and the permit stays
/// available.
#[test]
fn shutdown_of_child_races_its_waiter() {
    check(1, || {
        let (registry, child) = limited();
        let guard = registry.guard().unwrap();
        let mut waiter = waiter(&child);
        let worker = spawn_on_shard(0, move || {
            let polled = waiter.poll();
            (waiter, polled)
        });
        child.start_shutdown();
        let (waiter, polled) = worker.join().unwrap();
        assert!(!waiter.finish(polled), "the child has drained");
        drop(guard);
        assert!(registry.guard().is_ok(), "no waiter is left in the queue");
    });
}

/// Invariants S3 and S10: The last task of a child holds a permit of the parent, and ends while both registries shut down.
#[test]
fn last_permit_of_ancestor_races_shutdown() {
    check_with_bound(2, 1, || {
        let (registry, child) = limited();
        let guard = child.guard().unwrap();
        let worker = spawn_on_shard(0, move || {
            drop(guard);
            drop(child);
        });
        let mut shutdown = Polled::new(registry.shutdown());
        let polled = shutdown.poll();
        worker.join().unwrap();
        assert_eq!(counts(shutdown.finish(polled)), [1, 0, 0, 0]);
    });
}
