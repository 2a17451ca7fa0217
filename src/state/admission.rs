//! Decides whether a registry accepts or rejects a new task.

use super::lifetime::StateRef;
use super::registry_state::{RegistryState, Shard};
use super::settings::{INSPECTED, LIMITED, LIMITED_BY_ANCESTOR};
use super::token::UnfinishedDeparture;
use crate::platform::Ordering;
use crate::report::{Loss, RejectReason, SpawnInfo, TaskInfo};
use crate::sync::gate::{Permit, Refused};
use crate::sync::slot_table::TokenTarget;
use crate::sync::wait_queue::{LimitedGate, Owner, Ticket, WaitQueue};
use core::ptr;
use core::task::{Poll, Waker};

impl From<Refused> for RejectReason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Drained => Self::Drained,
            Refused::Full => Self::Full,
        }
    }
}

/// Describes the registry whose limit applies to a task.
struct Limiter {
    state: &'static RegistryState,
    at: LimitedGate<'static>,
    /// A reference to the ancestor whose limit applies. While this reference exists, the ancestor's state stays out of the pool.
    _ancestor: Option<StateRef>,
}

impl Limiter {
    fn queue(&self) -> &'static WaitQueue {
        &self.state.rare().wait_queue
    }
}

impl RegistryState {
    /// Counts one more task if the gate of the calling thread's shard accepts the task (invariant S1).
    ///
    /// Returns `None` and counts nothing in three cases: the gate refuses the task, the registry is inspected, or a limit applies
    /// to the registry's tasks.
    #[inline]
    pub(super) fn enter(&'static self) -> Option<&'static TokenTarget<Shard>> {
        if self.settings.has(INSPECTED | LIMITED | LIMITED_BY_ANCESTOR) {
            return None;
        }
        let (shard, target) = self.shard_and_target();
        shard.gate().enter().ok().map(|()| target)
    }

    /// Counts one more task. This function first tries the gate of the calling thread's shard, and then the gates of the other
    /// shards.
    ///
    /// It tries the other shards because a draining registry must accept tasks while any of its shards has tasks in flight. In a
    /// registry with a limit, this function tries only the shard with index 0, because only that shard counts tasks.
    ///
    /// If `without_permit` is true and the registry has a limit, the task must leave the gate through `Gate::leave_without_permit`.
    #[inline]
    pub(super) fn enter_any(&'static self, without_permit: bool) -> Result<&'static TokenTarget<Shard>, RejectReason> {
        if let Some((target, limit)) = self.limited() {
            let gate = target.owner.gate();
            if without_permit {
                gate.enter_without_permit()?;
            } else {
                self.take_permit(LimitedGate { gate, limit, permit: Permit::Own })?;
            }
            return Ok(target);
        }
        if !without_permit && self.settings.has(LIMITED_BY_ANCESTOR) {
            return self.enter_with_permit_of_ancestor();
        }
        let (shard, target) = self.shard_and_target();
        match shard.gate().enter_checked() {
            Ok(()) => Ok(target),
            Err(refused) => self.enter_other_shard(refused),
        }
    }

    #[inline]
    fn take_permit(&'static self, at: LimitedGate<'_>) -> Result<(), Refused> {
        at.gate.enter_below(at.limit, at.permit).or_else(|refused| match refused {
            Refused::Drained => Err(refused),
            Refused::Full => self.rare().wait_queue.try_enter(at),
        })
    }

    /// Takes a permit from the ancestor whose limit applies to this child. Then enters the child's own gate.
    fn enter_with_permit_of_ancestor(&'static self) -> Result<&'static TokenTarget<Shard>, RejectReason> {
        let limiter = self.limiter().ok_or(RejectReason::Drained)?;
        limiter.state.take_permit(limiter.at)?;
        self.enter_with_lent_permit(limiter.state)
    }

    /// Enters the child's own gate after `limiter` has lent a permit. If the gate refuses the task, releases the permit.
    fn enter_with_lent_permit(&'static self, limiter: &'static Self) -> Result<&'static TokenTarget<Shard>, RejectReason> {
        limiter.rare().lent.fetch_add(1, Ordering::Relaxed);
        let target = &self.targets()[0];
        match target.owner.gate().enter_checked() {
            Ok(()) => Ok(target),
            Err(refused) => {
                if let Some(left) = limiter.release_lent_permit() {
                    left.finish();
                }
                Err(refused.into())
            }
        }
    }

    /// Releases the permit of an ancestor, on behalf of a task that is still in flight. The ancestor cannot drain while the task is
    /// in flight, so this function needs no reference to the ancestor's state. The caller must call `finish` on the returned value,
    /// or pass the value to its own caller.
    pub(super) fn release_permit_of_ancestor(&'static self) -> Option<UnfinishedDeparture> {
        self.limiting_ancestor(|ancestor| ancestor)?.release_lent_permit()
    }

    fn release_lent_permit(&'static self) -> Option<UnfinishedDeparture> {
        self.rare().lent.fetch_sub(1, Ordering::Relaxed);
        let shard = self.targets()[0].owner;
        shard.gate().leave().map(|word| UnfinishedDeparture { shard, word })
    }

    /// Returns the registry whose limit applies to the tasks of this registry: this registry itself, or its nearest ancestor that
    /// has a limit. Returns `None` in two cases: no limit applies, or this registry is a drained child that took its permits from
    /// an ancestor.
    fn limiter(&'static self) -> Option<Limiter> {
        if !self.settings.has(LIMITED | LIMITED_BY_ANCESTOR) {
            return None;
        }
        let own = self.limited();
        let ancestor = if own.is_some() { None } else { Some(self.limiting_ancestor(StateRef::new)?) };
        let state = ancestor.as_ref().map_or(self, StateRef::state);
        let (target, limit) = state.limited()?;
        let permit = if own.is_some() { Permit::Own } else { Permit::Lent };
        Some(Limiter { state, at: LimitedGate { gate: target.owner.gate(), limit, permit }, _ancestor: ancestor })
    }

    /// Returns a value that identifies this registry as the owner of a waiter in a wait queue.
    fn owner(&'static self) -> Owner {
        ptr::from_ref(self).addr()
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
    /// If a registry has a limit, the gate of that shard counts all tasks, because a single counter makes the limit exact
    /// (invariant S10). The same gate also counts the tasks without a permit. Therefore, during the drain, the gate accepts tasks
    /// while any task is in flight, with or without a permit.
    #[inline]
    pub(super) fn limited(&'static self) -> Option<(&'static TokenTarget<Shard>, usize)> {
        self.settings.limit().map(|limit| (&self.targets()[0], limit))
    }

    /// Waits until the limit allows the task, and then counts the task. If this function returns an error, the caller must count
    /// the rejection.
    ///
    /// After the shutdown has started, only a follow-up waits for a permit. A follow-up waits until a permit is free or the gate
    /// has drained.
    pub(super) fn poll_enter(
        &'static self,
        ticket: &mut Option<Ticket>,
        waker: &Waker,
        without_permit: bool,
        is_follow_up: bool,
    ) -> Poll<Result<&'static TokenTarget<Shard>, RejectReason>> {
        if without_permit || !self.settings.has(LIMITED | LIMITED_BY_ANCESTOR) {
            return Poll::Ready(self.enter_any(without_permit));
        }
        if ticket.is_none() {
            match self.enter_any(false) {
                Err(RejectReason::Full) => {}
                done => return Poll::Ready(done),
            }
        }
        let is_open = || if is_follow_up { !self.is_gate_drained() } else { !self.is_shutting_down() };
        let reason = if is_follow_up { RejectReason::Drained } else { RejectReason::ShuttingDown };
        let Some(limiter) = self.limiter() else { return Poll::Ready(Err(reason)) };
        let entered = limiter.queue().poll_enter(limiter.at, ticket, waker, (self.owner(), is_follow_up), is_open);
        entered.map(|entered| match entered {
            Some(()) if limiter.at.permit == Permit::Lent => self.enter_with_lent_permit(limiter.state),
            Some(()) => Ok(&self.targets()[0]),
            None => Err(reason),
        })
    }

    /// Returns whether the gate of the first shard has drained. If this registry has a limit, this gate counts all its tasks. If
    /// this registry is a child, this gate is its only gate.
    fn is_gate_drained(&'static self) -> bool {
        self.targets()[0].owner.gate().snapshot().is_drained()
    }

    /// Removes the waiter with the given ticket from the wait queue, because the waiting future is dropped.
    pub(crate) fn cancel_wait(&'static self, ticket: Ticket) {
        // For a drained child whose permits come from an ancestor, `limiter` returns `None`. The drain of this child has already
        // removed the waiter.
        if let Some(limiter) = self.limiter() {
            limiter.queue().remove(limiter.at.gate, limiter.at.limit, ticket);
        }
    }

    /// Removes and wakes the waiters of this registry that can no longer get a permit (invariant L4).
    pub(super) fn close_wait_queue(&'static self) {
        if let Some(limiter) = self.limiter() {
            limiter.queue().close(limiter.at.gate, limiter.at.limit, self.owner(), || self.is_gate_drained());
        }
    }

    /// Counts and reports a rejection. If the task is critical, starts the shutdown. Returns the reason for the rejection.
    #[cold]
    pub(crate) fn reject(&'static self, info: &SpawnInfo, reason: RejectReason) -> RejectReason {
        self.count_rejection();
        let kind = self.settings.has(INSPECTED).then_some(info.kind);
        let task = TaskInfo { kind, ..TaskInfo::new(info.location, info.name) };
        self.report_loss(&task, &Loss::Rejected(reason));
        if info.critical {
            self.start_shutdown_after_loss(task);
        }
        reason
    }
}
