//! Implements the shutdown and the drain of a registry.

use super::registry_state::{DRAINED, EVENT, RegistryState, SIGNALLED, WAITED};
use super::token::Token;
use crate::observer::Observer;
use crate::platform::{HAS_CLOCK, Ordering, now, per_thread};
use crate::report::{Loss, Summary, TaskInfo};
use crate::sync::gate::Departure;
use core::cell::Cell;
use core::time::Duration;

impl RegistryState {
    /// Starts the shutdown of this registry and then of its descendants. When this function returns, every gate is closed. This is
    /// true even if another thread has started the shutdown, because each call closes all gates and wakes all signals.
    ///
    /// There is one exception: the gates of children that were made after the shutdown had started stay open; see `make_child`.
    pub(crate) fn start_shutdown(&'static self) {
        self.start_shutdown_by(|| self.start_phase());
    }

    fn start_shutdown_by(&'static self, start_phase: impl FnOnce() -> bool) {
        // If the registry has drained, every gate is already closed. Usually, this is the case when the last handle is dropped.
        if self.is_drained() {
            return;
        }
        let is_first = start_phase();
        let mut in_flight = 0;
        if is_first && self.reports_shutdown() {
            self.rare().start.with(|start| start.at = now());
            in_flight = self.in_flight();
        }
        self.close();
        // A drained registry has no open descendants (invariant S12).
        if !self.is_drained() {
            self.for_each_descendant(
                |child| !child.stays_open,
                |child| {
                    child.start_phase();
                    child.close();
                },
            );
        }
        if is_first && !self.is_child() {
            if self.reports_shutdown() {
                self.notify_observers(|observer| observer.shutdown_started(in_flight));
            }
            self.shard_drained();
        }
    }

    /// Makes the phase odd, which means that the shutdown has started. Returns whether this call changed the phase.
    ///
    /// Release pairs with the Acquire in `phase`: a thread that sees the phase change also sees every write that preceded the
    /// shutdown (invariant L1).
    pub(super) fn start_phase(&'static self) -> bool {
        self.phase.fetch_or(1, Ordering::Release) % 2 == 0
    }

    /// Closes the gates, wakes the shutdown signals, and removes all waiters for permits except the waiters of follow-ups.
    fn close(&'static self) {
        for shard in self.shards() {
            if shard.gate().close() {
                // The wait queue must be closed before `shard_drained`, because a drained child can no longer find the wait queue
                // of its ancestor.
                self.close_wait_queue();
                self.shard_drained();
            }
        }
        // If a child has drained before any of its signals has stored a waker, its wait list is empty; see `find_signals`.
        if !self.is_child() || self.shared().drained.load(Ordering::Relaxed) & (DRAINED | SIGNALLED) != DRAINED {
            self.shards().for_each(|shard| shard.signals().wake_all());
        }
        self.close_wait_queue();
    }

    /// Returns whether this registry reports the start of the shutdown and the end of the drain to observers. A child does not
    /// report these events.
    fn reports_shutdown(&self) -> bool {
        self.is_observed() && !self.is_child()
    }

    /// Starts the shutdown after `task` was lost. If the shutdown has not started before, records `task` as the cause.
    ///
    /// The caller must check that this loss starts the shutdown. Either the task is critical, or the setting `SHUTDOWN_ON_FAILURE`
    /// or `SHUTDOWN_ON_PANIC` applies to the loss.
    pub(super) fn start_shutdown_after_loss(&'static self, task: TaskInfo) {
        // The phase changes under the lock. Therefore, if a thread sees the new phase and then takes the lock, it also sees the cause.
        self.start_shutdown_by(|| self.rare().start.with(|start| self.start_phase() && start.cause.replace(task).is_none()));
    }

    /// Performs the actions that are required after a task has left a gate; see [`Departure`]. If this departure drains a child,
    /// the child leaves the gate of its parent, and then the parent may drain too. This function handles all these departures in a
    /// loop. It does not use recursion, because registries can nest to any depth.
    pub(super) fn finish_departure(&'static self, departure: Departure) {
        let mut next = Some((self, departure));
        while let Some((state, departure)) = next {
            next = state.finish_own_departure(departure);
        }
    }

    fn finish_own_departure(&'static self, departure: Departure) -> Option<(&'static Self, Departure)> {
        if departure.permit {
            self.rare().wait_queue.wake_first();
        }
        if departure.idle {
            self.notifier().notify();
        }
        if !departure.drained {
            return None;
        }
        // This call rejects the waiters that are still in the queue. It must come before `count_drain_event`, which may put the
        // state back into the pool.
        self.close_wait_queue();
        self.count_drain_event()
    }

    fn shard_drained(&'static self) {
        if let Some((parent, departure)) = self.count_drain_event() {
            parent.finish_departure(departure);
        }
    }

    /// Counts one of the events that must occur before the drain is complete.
    ///
    /// Each shard causes one event when its gate has drained. In a root, the report of the start of the shutdown to the observers
    /// is one more event. A child has only one shard and does not report the start, so it has only one event, and this function
    /// does not count.
    ///
    /// The call for the last event ends the drain in these steps (invariants S3, S8 and L2):
    ///
    /// 1. It reports the end of the drain to the observers.
    /// 2. In a child, it adds the counts of the child to the parent.
    /// 3. It makes `is_drained` return true.
    /// 4. In a child, it leaves the gate of the parent. Therefore a drained registry has only drained descendants.
    /// 5. It notifies the waiters for the drain if the bit `WAITED` is set.
    /// 6. It releases the reference that all gates share. Until this step, the reference keeps the state out of the pool.
    ///
    /// If a child leaves the gate of its parent in step 4, this function returns the parent and the [`Departure`]. The caller must
    /// then pass the `Departure` to `finish_departure` of the parent.
    ///
    /// The `fetch_add` in this function is `AcqRel`, so each call to this function synchronizes with the next call. Therefore the
    /// call for the last event sees everything that the tasks of all shards did. The `fetch_or` in this function is Release and
    /// pairs with the Acquire in `is_drained`.
    fn count_drain_event(&'static self) -> Option<(&'static Self, Departure)> {
        let drained = &self.shared().drained;
        if !self.is_child() && drained.fetch_add(EVENT, Ordering::AcqRel) / EVENT != self.targets().len() {
            return None;
        }
        self.report_drained();
        let token = self.leave_parent();
        let before = drained.fetch_or(DRAINED, Ordering::Release);
        let departure = token.and_then(Token::leave_child);
        if before & WAITED != 0 {
            self.notifier().notify();
        }
        self.release();
        departure
    }

    fn report_drained(&'static self) {
        if self.reports_shutdown() {
            let started = self.rare().start.with(|start| start.at);
            let took = if HAS_CLOCK { Duration::from_nanos(now().saturating_sub(started)) } else { Duration::ZERO };
            let summary = self.summary();
            self.notify_observers(|observer| observer.drained(&summary, took));
        }
    }

    /// Reports a loss to the observers. An observer can itself start a task that is lost before the observer returns, for example
    /// because its runtime has shut down. Without a limit, each report could cause another loss, until the stack overflows.
    pub(super) fn report_loss(&'static self, task: &TaskInfo, loss: &Loss<'_>) {
        if NESTED_REPORTS.with(|reports| reports.replace(reports.get() + 1)) < MAX_NESTED_REPORTS {
            self.notify_observers(|observer| observer.lost(task, loss));
        }
        NESTED_REPORTS.with(|reports| reports.set(reports.get() - 1));
    }

    pub(super) fn notify_observers(&'static self, call: impl Fn(&dyn Observer)) {
        if let Some(root) = if self.is_observed() { self.root() } else { None } {
            root.state().rare().observers.notify(call);
        }
    }

    pub(crate) fn is_shutdown_logged(&'static self) -> bool {
        let is_logged = Cell::new(false);
        if self.reports_shutdown() {
            self.notify_observers(|observer| is_logged.set(is_logged.get() || observer.logs_shutdown()));
        }
        is_logged.get()
    }

    /// Returns whether the registry has drained.
    ///
    /// Acquire pairs with the Release in `count_drain_event`: a thread that sees the end of the drain also sees the end of every
    /// task (invariants S2 and S3).
    pub(crate) fn is_drained(&'static self) -> bool {
        self.shared().drained.load(Ordering::Acquire) & DRAINED != 0
    }

    /// Returns the final summary. If the registry has not drained, returns `None` and requests a notification at the end of the
    /// drain.
    ///
    /// To wait for the drain, a caller must first register a listener, and then call this function. If this function returns
    /// `None`, the caller may wait for the listener. The reason is the modification order of the word `drained`. If the request
    /// comes first in this order, `count_drain_event` notifies the listener. If the end of the drain comes first, this function
    /// sees it and returns the summary (invariant L2). Acquire has the same purpose as in `is_drained`.
    pub(crate) fn poll_drained(&'static self) -> Option<Summary> {
        let drained = &self.shared().drained;
        let mut word = drained.load(Ordering::Acquire);
        if word & (DRAINED | WAITED) == 0 {
            word = drained.fetch_or(WAITED, Ordering::Acquire);
        }
        (word & DRAINED != 0).then(|| self.summary())
    }

    /// Returns the final summary, or `None` if the registry has not drained.
    pub(crate) fn final_summary(&'static self) -> Option<Summary> {
        self.is_drained().then(|| self.summary())
    }

    /// Returns the current phase.
    ///
    /// Acquire pairs with the Release in `start_phase`: a thread that sees the phase change also sees every write that preceded the
    /// shutdown.
    #[inline]
    pub(crate) fn phase(&self) -> usize {
        self.phase.load(Ordering::Acquire)
    }

    pub(crate) fn is_shutting_down(&self) -> bool {
        self.phase() % 2 == 1
    }

    pub(crate) fn shutdown_cause(&'static self) -> Option<TaskInfo> {
        self.used_rare()?.start.with(|start| start.cause)
    }
}

per_thread!(static NESTED_REPORTS: usize = 0);
const MAX_NESTED_REPORTS: usize = 8;
