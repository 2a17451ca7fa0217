//! Lists and aborts the tasks of an inspected registry.

use super::registry_state::RegistryState;
use super::settings::INSPECTED;
use crate::platform::now;
use crate::report::{AbortError, AbortReport, Stragglers, TaskId, TaskInfo};
use alloc::vec::Vec;
use core::cmp::Reverse;

impl RegistryState {
    /// Returns the inspected tasks. The oldest task comes first.
    pub(crate) fn tasks(&'static self) -> Vec<TaskInfo> {
        let (now, mut tasks) = (now(), Vec::new());
        self.shards().for_each(|shard| shard.slots().list(now, &mut tasks));
        // A stable sort would need a buffer that does not fit on the stack of a microcontroller.
        tasks.sort_unstable_by_key(|task| (Reverse(task.age), task.id));
        tasks
    }

    pub(crate) fn stragglers(&'static self) -> Stragglers {
        let tasks = self.tasks();
        Stragglers::new(self.in_flight(), self.summary(), tasks)
    }

    pub(crate) fn abort(&'static self) -> AbortReport {
        let not_inspected = if self.settings.has(INSPECTED) { 0 } else { self.in_flight() };
        let mut report = AbortReport { aborted: 0, not_abortable: not_inspected };
        for shard in self.shards() {
            shard.slots().abort(None, |is_abortable| {
                let count = if is_abortable { &mut report.aborted } else { &mut report.not_abortable };
                *count += 1;
            });
        }
        report
    }

    /// Aborts all tasks, as [`abort`](Self::abort) does, and each task that starts later (L3).
    ///
    /// `abort` locks each slot table after this function has set the flag. A task that takes its slot before that lock is found by
    /// `abort`. A task that takes its slot after that lock sees the flag.
    pub(crate) fn start_aborting(&'static self) {
        self.settings.start_aborting();
        self.abort();
    }

    pub(crate) fn abort_task(&'static self, id: TaskId) -> Result<(), AbortError> {
        let mut result = Err(AbortError::NotInFlight);
        for shard in self.shards() {
            shard.slots().abort(Some(id), |is_abortable| {
                result = if is_abortable { Ok(()) } else { Err(AbortError::NotAbortable) };
            });
        }
        result
    }
}
