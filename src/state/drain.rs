//! The shutdown of a registry and its drain.

use super::registry_state::RegistryState;
use super::settings::LIMITED;
use crate::observer::Observer;
use crate::platform::{HAS_CLOCK, Ordering, now};
use crate::report::{Summary, TaskInfo};
use crate::sync::gate::Departure;
use core::time::Duration;

impl RegistryState {
    /// Starts the shutdown, or completes a start that another thread has begun. When it returns, every gate is closed.
    pub(crate) fn start_shutdown(&'static self) {
        // Release: a triggered signal shows what came before the shutdown (L1).
        let is_first = self.phase.fetch_or(1, Ordering::Release) % 2 == 0;
        let mut in_flight = 0;
        if is_first && self.is_observed() {
            self.shared.0.start.with(|start| start.at = now());
            in_flight = self.in_flight();
        }
        for shard in self.shards() {
            if shard.gate().close() {
                self.shard_drained();
            }
        }
        for shard in self.shards() {
            shard.signals().wake_all();
        }
        if self.settings.has(LIMITED) {
            // The first shard's gate counts all tasks.
            self.shared.0.wait_queue.close(self.shards()[0].gate());
        }
        if is_first {
            self.notify_observers(|observer| observer.shutdown_started(in_flight));
            self.shard_drained();
        }
    }

    /// Starts the shutdown because a task was lost that the registry must not lose.
    pub(super) fn start_shutdown_after_loss(&'static self, task: TaskInfo) {
        if !self.is_shutting_down() {
            self.shared.0.start.with(|start| _ = start.cause.get_or_insert(task));
        }
        self.start_shutdown();
    }

    /// Notifies whom a departure concerns.
    pub(super) fn finish_departure(&'static self, departure: Departure) {
        if departure.permit {
            self.shared.0.wait_queue.wake_first();
        }
        if departure.idle {
            self.notifier().notify();
        }
        if departure.drained {
            self.shard_drained();
        }
    }

    /// Counts one of the events that the end of the drain waits for: each shard's gate has drained, and the shutdown's start has been
    /// reported. The last one reports the end, publishes it, notifies the waiters, and releases the reference of the gates (S3, S8, L2).
    ///
    /// `AcqRel`: what the last departures of the other shards acquired passes on to the last of all. Then Release: from it to readers of
    /// `drained`.
    fn shard_drained(&'static self) {
        let drained = &self.shared.0.drained;
        if drained.fetch_add(1, Ordering::AcqRel) == self.shards().len() {
            self.report_drained();
            drained.fetch_add(1, Ordering::Release);
            self.notifier().notify();
            self.release();
        }
    }

    fn report_drained(&'static self) {
        if self.is_observed() {
            let started = self.shared.0.start.with(|start| start.at);
            let took = if HAS_CLOCK { Duration::from_nanos(now().saturating_sub(started)) } else { Duration::ZERO };
            let summary = self.summary();
            self.notify_observers(|observer| observer.drained(&summary, took));
        }
    }

    pub(super) fn notify_observers(&'static self, call: impl Fn(&dyn Observer)) {
        if self.is_observed() {
            self.shared.0.observers.notify(call);
        }
    }

    /// Acquire: pairs with `shard_drained`. So a thread that reads *drained* sees the end of every task (S2, S3).
    pub(crate) fn is_drained(&'static self) -> bool {
        self.shared.0.drained.load(Ordering::Acquire) == self.shards().len() + 2
    }

    /// Returns the summary once it is final.
    pub(crate) fn final_summary(&'static self) -> Option<Summary> {
        self.is_drained().then(|| self.summary())
    }

    /// Acquire: pairs with `start_shutdown`.
    #[inline]
    pub(crate) fn phase(&self) -> usize {
        self.phase.load(Ordering::Acquire)
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.phase() % 2 == 1
    }

    pub(crate) fn shutdown_cause(&self) -> Option<TaskInfo> {
        self.shared.0.start.with(|start| start.cause)
    }
}
