//! Tasks on one shard take, free and reuse the slots of the shard's slot table.
//!
//! Every task in flight has exactly one slot, even if several threads take and free slots at the same time.

use crate::common::{Effect, ManualSpawner, Task, check, manual_builder, race, spawn_on_shard};
use background_tasks::{AbortError, Guard, TaskId, TaskInfo};
use core::future::pending;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Registry = background_tasks::Registry<ManualSpawner>;

fn inspected() -> Arc<Registry> {
    Arc::new(manual_builder().inspect().build())
}

/// Takes a guard from the registry. The call site is the same for all guards.
fn enter(registry: &Registry) -> Guard {
    registry.guard().unwrap()
}

fn start(registry: &Registry) -> Task {
    registry.run(pending::<()>());
    registry.spawner().take()
}

fn only_id(registry: &Registry) -> TaskId {
    let tasks = registry.tasks();
    assert_eq!(tasks.len(), 1);
    tasks[0].id().unwrap()
}

fn distinct_ids(tasks: &[TaskInfo]) -> Vec<Option<TaskId>> {
    let mut ids: Vec<_> = tasks.iter().map(TaskInfo::id).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// Returns the numbers of the slots in use. An ID consists of the number and the generation of a slot.
fn slots(registry: &Registry) -> BTreeSet<u32> {
    let slot = |task: &TaskInfo| task.id().unwrap().to_string().split_once('-').unwrap().0.parse().unwrap();
    registry.tasks().iter().map(slot).collect()
}

/// Invariant S9: Asserts that `count` tasks are in flight, and that each of them is listed with its own slot.
fn assert_listed(registry: &Registry, count: usize) {
    let ids = distinct_ids(&registry.tasks());
    assert_eq!((ids.len(), registry.in_flight()), (count, count));
}

/// Invariant S9: Two threads take slots while one slot is free. One thread reuses the free slot, and the other thread gets a new
/// slot.
#[test]
fn free_slot_is_taken_by_one_of_two_threads() {
    check(1, || {
        let registry = inspected();
        drop(enter(&registry));
        let other = spawn_on_shard(0, {
            let registry = registry.clone();
            move || enter(&registry)
        });
        let guards = [enter(&registry), other.join().unwrap()];
        assert_listed(&registry, 2);
        drop(guards);
        assert_listed(&registry, 0);
    });
}

/// Invariant S9: A new task takes a slot while the previous task frees this slot. The new task stays in the table.
#[test]
fn release_keeps_task_that_reuses_slot_listed() {
    check(1, || {
        let registry = inspected();
        let guard = enter(&registry);
        let leaver = spawn_on_shard(0, move || drop(guard));
        let guard = enter(&registry);
        leaver.join().unwrap();
        assert_listed(&registry, 1);
        drop(guard);
    });
}

/// Invariant S9: Two threads find no free slot and grow the table. Each task gets its own slot.
#[test]
fn table_grown_by_two_threads_gives_each_task_one_slot() {
    check(1, || {
        let registry = inspected();
        let first = enter(&registry);
        let other = spawn_on_shard(0, {
            let registry = registry.clone();
            move || [enter(&registry), enter(&registry)]
        });
        let guards = [enter(&registry), enter(&registry)];
        let others = other.join().unwrap();
        assert_listed(&registry, 5);
        drop((first, guards, others));
        assert_listed(&registry, 0);
    });
}

/// Invariant S9: One thread takes both free slots and then frees the first slot. Another thread takes a slot at the same time. No
/// two tasks share a slot.
#[test]
fn slot_taken_and_freed_during_another_take_is_not_shared() {
    check(1, || {
        let registry = inspected();
        drop([enter(&registry), enter(&registry)]);
        let other = spawn_on_shard(0, {
            let registry = registry.clone();
            move || {
                let first = enter(&registry);
                let second = enter(&registry);
                drop(first);
                second
            }
        });
        let guard = enter(&registry);
        let other = other.join().unwrap();
        let last = enter(&registry);
        assert_listed(&registry, 3);
        drop((guard, other, last));
    });
}

/// Invariant S9: A slot is freed while another thread takes the other free slot. Three later tasks each get a separate slot.
#[test]
fn slot_freed_during_another_take_is_not_shared() {
    check(1, || {
        let registry = inspected();
        drop([enter(&registry), enter(&registry)]);
        let guard = enter(&registry);
        let leaver = spawn_on_shard(0, move || drop(guard));
        let guard = enter(&registry);
        leaver.join().unwrap();
        let others = [enter(&registry), enter(&registry)];
        assert_listed(&registry, 3);
        drop((guard, others));
    });
}

/// Invariant S9: Two threads each free a slot, and one thread immediately takes a slot again. Three later tasks each get a separate
/// slot.
#[test]
fn two_slots_freed_concurrently_are_not_shared() {
    check(1, || {
        let registry = inspected();
        let [first, second] = [enter(&registry), enter(&registry)];
        let other = spawn_on_shard(0, {
            let registry = registry.clone();
            move || {
                drop(first);
                enter(&registry)
            }
        });
        drop(second);
        let guards = [other.join().unwrap(), enter(&registry), enter(&registry)];
        assert_listed(&registry, 3);
        drop(guards);
    });
}

/// Invariant H4: Two slots are freed while another thread takes slots. No freed slot is lost: the table has at most as many slots
/// as tasks were in flight at the same time.
#[test]
fn slots_freed_during_takes_are_reused() {
    check(1, || {
        let registry = inspected();
        let guards = [enter(&registry), enter(&registry)];
        let mut used = slots(&registry);
        let leaver = spawn_on_shard(0, move || drop(guards));
        let taken = [enter(&registry), enter(&registry)];
        used.append(&mut slots(&registry));
        leaver.join().unwrap();
        let others = [enter(&registry), enter(&registry)];
        assert_listed(&registry, 4);
        used.append(&mut slots(&registry));
        assert!(used.len() <= 4, "a freed slot is lost");
        drop((taken, others));
    });
}

/// Invariant H4: Two slots are freed simultaneously. The next two tasks reuse both slots.
#[test]
fn slots_freed_by_two_threads_are_reused() {
    check(1, || {
        let registry = inspected();
        let [first, second] = [enter(&registry), enter(&registry)];
        let used = slots(&registry);
        let leaver = spawn_on_shard(0, move || drop(first));
        drop(second);
        leaver.join().unwrap();
        let guards = [enter(&registry), enter(&registry)];
        assert_listed(&registry, 2);
        assert_eq!(slots(&registry), used, "a freed slot is lost");
        drop(guards);
    });
}

/// Invariant S9: `tasks` runs while another thread grows the table. The result contains the earlier task, and contains no task
/// twice.
#[test]
fn tasks_listed_during_growth_are_distinct_and_keep_earlier_task() {
    check(1, || {
        let registry = inspected();
        let guard = enter(&registry);
        let first = only_id(&registry);
        let other = spawn_on_shard(0, {
            let registry = registry.clone();
            move || [enter(&registry), enter(&registry)]
        });
        let tasks = registry.tasks();
        let ids = distinct_ids(&tasks);
        assert_eq!(ids.len(), tasks.len());
        assert!((1..=3).contains(&tasks.len()));
        assert!(ids.contains(&Some(first)));
        let others = other.join().unwrap();
        assert_listed(&registry, 3);
        drop((guard, others));
        assert_listed(&registry, 0);
    });
}

/// Invariant S9: `abort_task` runs while its task ends and another task reuses the slot. `abort_task` never aborts the other task.
#[test]
fn stale_id_never_aborts_next_task() {
    for swapped in [false, true] {
        check(1, move || {
            let registry = inspected();
            let task = start(&registry);
            let id = only_id(&registry);
            let aborter = registry.clone();
            let abort = move || aborter.abort_task(id);
            let restart = {
                let registry = registry.clone();
                move || {
                    drop(task);
                    let mut next = start(&registry);
                    assert!(next.poll().is_pending());
                    next
                }
            };
            let (_, mut next) = race(swapped, abort, restart);
            assert!(next.poll().is_pending());
            assert_ne!(only_id(&registry), id);
            assert!(!registry.tasks()[0].abort_requested());
            assert_eq!(registry.abort_task(id), Err(AbortError::NotInFlight));
            drop(next);
            let summary = registry.shutdown().wait();
            assert_eq!((summary.abandoned, summary.aborted), (2, 0));
        });
    }
}

/// Invariant L3: An abort marks a task, but takes the waker from the slot only after another task has reused the slot. This waker
/// belongs to the other task.
///
/// The other task may be woken without need, but a later abort of the other task still wakes it.
#[test]
fn late_abort_of_previous_task_loses_no_wakeup() {
    for swapped in [false, true] {
        check(1, move || {
            let registry = inspected();
            let mut task = start(&registry);
            assert!(task.poll().is_pending());
            let id = only_id(&registry);
            let aborter = registry.clone();
            let abort = move || aborter.abort_task(id);
            let restart = {
                let registry = registry.clone();
                move || {
                    drop(task);
                    let mut next = start(&registry);
                    let polled = next.poll();
                    let polled = if next.is_woken() { next.poll() } else { polled };
                    registry.abort();
                    (next, polled)
                }
            };
            let (_, (next, polled)) = race(swapped, abort, restart);
            next.finish(polled);
            assert_eq!(registry.shutdown().wait().aborted, 1);
        });
    }
}

/// Invariant L3: A task ends on one thread while another thread reuses its slot. The end of the first task does not remove the
/// waker of the next task.
#[test]
fn departure_keeps_waker_of_next_task() {
    check(1, || {
        let registry = inspected();
        let mut task = start(&registry);
        assert!(task.poll().is_pending());
        let leaver = spawn_on_shard(0, move || drop(task));
        let mut next = start(&registry);
        let polled = next.poll();
        assert!(polled.is_pending());
        leaver.join().unwrap();
        assert_eq!(registry.abort().aborted, 1);
        next.finish(polled);
        let summary = registry.shutdown().wait();
        assert_eq!((summary.abandoned, summary.aborted), (1, 1));
    });
}

/// Invariants S3 and S9: A registry that has drained lists no task, and an abort finds none.
#[test]
fn drained_registry_lists_and_aborts_no_task() {
    check(1, || {
        let registry = inspected();
        let guard = enter(&registry);
        registry.start_shutdown();
        let leaver = spawn_on_shard(0, move || drop(guard));
        if registry.is_drained() {
            assert!(registry.tasks().is_empty());
            let report = registry.abort();
            assert_eq!((report.aborted, report.not_abortable), (0, 0));
        }
        leaver.join().unwrap();
    });
}

/// Invariant S2: When `abort_task` returns `NotInFlight`, the effects of the task are visible, although another task may have its
/// slot.
#[test]
fn not_in_flight_shows_effects() {
    check(1, || {
        let (registry, effect) = (inspected(), Effect::new());
        // Both slots exist before the threads start, so that only the operation that frees the slot can make the effect visible.
        drop([enter(&registry), enter(&registry)]);
        let guard = enter(&registry);
        let id = only_id(&registry);
        let leaver = spawn_on_shard(0, {
            let effect = effect.clone();
            move || {
                effect.perform();
                drop(guard);
            }
        });
        let next = spawn_on_shard(0, {
            let registry = registry.clone();
            move || enter(&registry)
        });
        // This thread starts last. Loom first runs the threads in the order of their starts, and explores too few orders with a
        // read before a write.
        let aborter = spawn_on_shard(0, {
            let registry = registry.clone();
            move || {
                if registry.abort_task(id) == Err(AbortError::NotInFlight) {
                    effect.observe();
                }
            }
        });
        leaver.join().unwrap();
        drop(next.join().unwrap());
        aborter.join().unwrap();
    });
}

/// Invariant S9: `tasks` runs while one task frees a slot and another task reuses the slot. A listed task has its own age, not the
/// age of the other task.
#[test]
fn task_listed_during_reuse_has_its_own_age() {
    check(1, || {
        let registry = inspected();
        let guard = enter(&registry);
        let first = only_id(&registry);
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(1) {}
        let lister = spawn_on_shard(0, {
            let registry = registry.clone();
            move || {
                let at_least = started.elapsed();
                (at_least, registry.tasks(), Instant::now())
            }
        });
        drop(guard);
        let not_before = Instant::now();
        let guard = enter(&registry);
        let (at_least, tasks, listed) = lister.join().unwrap();
        assert!(tasks.len() <= 1);
        for task in tasks {
            let age = task.age().unwrap();
            if task.id() == Some(first) {
                assert!(age >= at_least, "the first task is listed with the age of the second task");
            } else {
                assert!(age <= listed - not_before, "the second task is listed with the age of the first task");
            }
        }
        drop(guard);
    });
}
