//! Lists and aborts the tasks of an inspected registry.

use super::registry_state::{RegistryState, Shard};
use super::settings::INSPECTED;
use crate::platform::now;
use crate::report::{AbortError, AbortReport, Stragglers, TaskId, TaskInfo};
use crate::sync::slot_table::TokenTarget;
use alloc::vec::Vec;
use core::cmp::Reverse;

/// Identifies an inspected task, and the slot that the task occupies. If the task has ended, another task may occupy the slot.
#[derive(Clone, Copy)]
pub(crate) struct InspectedTask {
    pub(super) target: &'static TokenTarget<Shard>,
    pub(crate) id: TaskId,
}

impl InspectedTask {
    /// Does the same as [`RegistryState::abort_task`]: aborts the task if it is still in flight.
    pub(crate) fn abort(self) {
        if let Some(slot) = self.target.slot {
            self.target.owner.slots().abort_in_slot(slot, self.id);
        }
    }
}

impl RegistryState {
    /// Returns the inspected tasks. The oldest task comes first. Without a clock, the tasks are in the order of their IDs.
    pub(crate) fn tasks(&'static self) -> Vec<TaskInfo> {
        let (now, mut tasks) = (now(), Vec::<TaskInfo>::new());
        self.for_each_in_subtree(|state| {
            let first = tasks.len();
            state.shards().for_each(|shard| shard.slots().list(now, &mut tasks));
            let parent = if tasks.len() > first { state.id_in_parent() } else { None };
            for task in &mut tasks[first..] {
                task.parent = parent;
            }
        });
        // This code uses an unstable sort, because a stable sort needs a buffer that does not fit on the stack of a
        // microcontroller.
        tasks.sort_unstable_by_key(|task| (Reverse(task.age), task.id));
        tasks
    }

    pub(crate) fn is_inspected(&self) -> bool {
        self.settings.has(INSPECTED)
    }

    pub(crate) fn stragglers(&'static self) -> Stragglers {
        let tasks = self.tasks();
        Stragglers::new(self.in_flight(), self.summary(), tasks)
    }

    pub(crate) fn abort(&'static self) -> AbortReport {
        let mut report = AbortReport::default();
        self.for_each_in_subtree(|state| state.abort_own(&mut report));
        report
    }

    /// Aborts the tasks of this registry, but not of its descendants.
    fn abort_own(&'static self, report: &mut AbortReport) {
        if !self.is_inspected() {
            report.not_abortable += self.in_flight().saturating_sub(self.child_count());
        }
        for shard in self.shards() {
            shard.slots().abort(None, |is_abortable| {
                let count = if is_abortable { &mut report.aborted } else { &mut report.not_abortable };
                *count += 1;
            });
        }
    }

    /// Aborts all tasks in flight, as [`abort`](Self::abort) does. Also aborts each task that starts later (invariant L3).
    ///
    /// This function first sets the flag `ABORTING`, and then `abort_own` locks each slot table. If a task takes its slot before
    /// `abort_own` locks the table, `abort_own` finds the task. If a task takes its slot later, `SlotTable::insert` sees the flag.
    pub(crate) fn start_aborting(&'static self) {
        self.for_each_in_subtree(|state| {
            state.settings.start_aborting();
            state.abort_own(&mut AbortReport::default());
        });
    }

    pub(crate) fn abort_task(&'static self, id: TaskId) -> Result<(), AbortError> {
        let mut result = Err(AbortError::NotInFlight);
        self.for_each_in_subtree(|state| {
            for shard in state.shards() {
                shard.slots().abort(Some(id), |is_abortable| {
                    result = if is_abortable { Ok(()) } else { Err(AbortError::NotAbortable) };
                });
            }
        });
        result
    }
}
