//! Accepts and rejects tasks.

use super::registry_state::{RegistryState, Shard};
use super::settings::{INSPECTED, LIMITED};
use crate::platform::per_thread;
use crate::report::{Loss, RejectReason, SpawnInfo, TaskInfo};
use crate::sync::{gate::Refused, slot_table::TokenTarget, wait_queue::Ticket};
use core::task::{Poll, Waker};

impl From<Refused> for RejectReason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Drained => Self::Drained,
            Refused::Full => Self::Full,
        }
    }
}

impl RegistryState {
    /// Counts one more task if this thread's shard accepts the task (S1).
    ///
    /// Returns `None` in three cases: the shard refuses the task, the registry is inspected, or the registry has a limit.
    #[inline]
    pub(super) fn enter(&'static self) -> Option<&'static TokenTarget<Shard>> {
        if self.settings.has(INSPECTED | LIMITED) {
            return None;
        }
        let (shard, target) = self.shard_and_target();
        shard.gate().enter().ok().map(|()| target)
    }

    /// Counts one more task. This function tries this thread's shard first, and then the other shards.
    ///
    /// The other shards matter because a registry accepts tasks while any of its shards has tasks in flight. In a registry with a
    /// limit, this function tries only the shard with index 0, because only that shard counts tasks.
    ///
    /// If `without_permit` is true and the registry has a limit, the task must leave by `Gate::leave_without_permit`.
    #[inline]
    pub(super) fn enter_any(&'static self, without_permit: bool) -> Result<&'static TokenTarget<Shard>, RejectReason> {
        if let Some((target, limit)) = self.limited() {
            let gate = target.owner.gate();
            if without_permit {
                gate.enter_without_permit()?;
            } else {
                gate.enter_below(limit).or_else(|refused| match refused {
                    Refused::Drained => Err(refused),
                    Refused::Full => self.rare().wait_queue.try_enter(gate, limit),
                })?;
            }
            return Ok(target);
        }
        let (shard, target) = self.shard_and_target();
        match shard.gate().enter_checked() {
            Ok(()) => Ok(target),
            Err(refused) => self.enter_other_shard(refused),
        }
    }

    #[cold]
    fn enter_other_shard(&'static self, refused: Refused) -> Result<&'static TokenTarget<Shard>, RejectReason> {
        if self.is_drained() {
            return Err(RejectReason::Drained);
        }
        let mut is_full = refused == Refused::Full;
        for target in self.targets() {
            match target.owner.gate().enter_checked() {
                Ok(()) => return Ok(target),
                Err(refused) => is_full |= refused == Refused::Full,
            }
        }
        Err(if is_full { RejectReason::Full } else { RejectReason::Drained })
    }

    /// Returns the limit, and the [`TokenTarget`] of the shard with index 0. Returns `None` if the registry has no limit.
    ///
    /// If a registry has a limit, the gate of that shard counts all tasks, because a single counter makes the limit exact (S10).
    /// The gate counts tasks without a permit too, so the registry accepts tasks while any task is in flight.
    #[inline]
    pub(super) fn limited(&'static self) -> Option<(&'static TokenTarget<Shard>, usize)> {
        self.settings.limit().map(|limit| (&self.targets()[0], limit))
    }

    /// Counts one more task as soon as the limit permits one more. This function does not count rejections. If it returns an error,
    /// the caller counts the rejection.
    ///
    /// If the shutdown has started, only a follow-up waits. It waits until a permit is free or the gate has drained.
    pub(super) fn poll_enter(
        &'static self,
        ticket: &mut Option<Ticket>,
        waker: &Waker,
        without_permit: bool,
        is_follow_up: bool,
    ) -> Poll<Result<&'static TokenTarget<Shard>, RejectReason>> {
        let Some((target, limit)) = self.limited().filter(|_| !without_permit) else {
            return Poll::Ready(self.enter_any(without_permit));
        };
        if ticket.is_none() {
            match self.enter_any(false) {
                Err(RejectReason::Full) => {}
                done => return Poll::Ready(done),
            }
        }
        let is_open = || !self.is_shutting_down();
        let entered = self.rare().wait_queue.poll_enter(target.owner.gate(), limit, ticket, waker, is_follow_up, is_open);
        let reason = if is_follow_up { RejectReason::Drained } else { RejectReason::ShuttingDown };
        entered.map(|entered| entered.map(|()| target).ok_or(reason))
    }

    /// Removes the waiter with this ticket from the wait queue. The caller no longer waits.
    pub(crate) fn cancel_wait(&'static self, ticket: Ticket) {
        if let Some((target, limit)) = self.limited() {
            self.rare().wait_queue.remove(target.owner.gate(), limit, ticket);
        }
    }

    /// Counts and reports a rejection. Returns the reason for the rejection.
    #[cold]
    pub(crate) fn reject(&'static self, info: &SpawnInfo, reason: RejectReason) -> RejectReason {
        self.count_rejection();
        // While an observer handles a rejection, the observer can itself start a task that is rejected. This second rejection is
        // not reported, because its report could cause a third rejection, and so on forever.
        if self.is_observed() && !IS_REPORTING.with(|is_reporting| is_reporting.replace(true)) {
            let kind = self.settings.has(INSPECTED).then_some(info.kind);
            let task = TaskInfo { kind, ..TaskInfo::new(info.location, info.name) };
            self.notify_observers(|observer| observer.lost(&task, &Loss::Rejected(reason)));
            IS_REPORTING.with(|is_reporting| is_reporting.set(false));
        }
        reason
    }
}

per_thread!(static IS_REPORTING: bool = false);
