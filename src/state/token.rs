//! A token represents one piece of work in flight.

use super::inspection::InspectedTask;
use super::registry_state::{Lost, RegistryState, Shard};
use super::settings::{
    ABORTING, EVERY_TASK, INSPECTED, LIMITED, LIMITED_BY_ANCESTOR, NONE, OBSERVED, SHUTDOWN_ON_FAILURE, SHUTDOWN_ON_PANIC,
};
use crate::observer::Observer;
use crate::platform::{Payload, ThreadId, catch, drop_quietly, panic_message};
use crate::report::{Loss, RejectReason, SpawnInfo, TaskInfo, TaskKind};
use crate::sync::gate::{Departure, Gate, PreviousWord};
use crate::sync::slot_table::{PermitKind, Slot, TokenTarget};
use crate::sync::wait_queue::Ticket;
use alloc::{format, string::String};
use core::task::{Poll, Waker};
use core::{fmt::Display, panic::Location};

/// A loss that has not been counted and reported yet. If the registry has no observer, the message of a failure or panic can be
/// empty.
pub(crate) enum UnreportedLoss {
    Failed(String),
    Panicked(String),
    Abandoned,
    Aborted,
}

impl UnreportedLoss {
    pub(crate) fn as_loss(&self) -> Loss<'_> {
        match self {
            Self::Failed(error) => Loss::Failed(error),
            Self::Panicked(message) => Loss::Panicked(message),
            Self::Abandoned => Loss::Abandoned,
            Self::Aborted => Loss::Aborted,
        }
    }
}

/// A token proves that one piece of work is counted as in flight (invariant S1).
///
/// The drop of a token has no effect. The owner of a token must call [`Token::leave`], [`Token::lose`] or [`Token::depart`] exactly
/// once.
#[derive(Clone, Copy)]
pub(crate) struct Token {
    target: &'static TokenTarget<Shard>,
    /// The call site of work that has no slot. If the work has a slot, this field is `None`, because the slot stores the call site.
    location: Option<&'static Location<'static>>,
}

impl Token {
    /// Counts a piece of work as in flight. The work must have no name, must not be critical, and must not be a guard that a
    /// panicking thread takes. In most registries, this function performs only one atomic addition.
    ///
    /// Returns `None` in three cases: the registry is inspected, a limit applies to its work, or the shard of the calling thread
    /// refuses the work. In these cases, the caller must call [`Token::enter`] instead.
    #[inline]
    pub(crate) fn enter_plain(state: &'static RegistryState, location: &'static Location<'static>) -> Option<Self> {
        state.enter().map(|target| Self { target, location: Some(location) })
    }

    /// Counts a piece of work as in flight. If the registry rejects the work, counts the rejection.
    #[inline(never)]
    pub(crate) fn enter(state: &'static RegistryState, info: &SpawnInfo) -> Result<Self, RejectReason> {
        match state.enter_any(info.without_permit) {
            Ok(target) => Ok(Self::new(target, info)),
            Err(reason) => Err(state.reject(info, reason)),
        }
    }

    /// Waits until the limit allows a piece of work, and then counts the work as in flight. If this function returns an error, the
    /// caller must count the rejection.
    pub(crate) fn poll_enter(
        state: &'static RegistryState,
        info: &SpawnInfo,
        is_follow_up: bool,
        ticket: &mut Option<Ticket>,
        waker: &Waker,
    ) -> Poll<Result<Self, RejectReason>> {
        state.poll_enter(ticket, waker, info.without_permit, is_follow_up).map_ok(|target| Self::new(target, info))
    }

    /// Creates the token of a piece of work. The caller must have counted the work.
    ///
    /// The work gets a slot in six cases:
    ///
    /// - The registry is inspected.
    /// - The work is critical.
    /// - The work has a name, and the registry may report this name: it has observers, or a loss can start its shutdown.
    /// - The work is a guard, and its thread was already panicking when it took the guard.
    /// - The registry has a limit, but the work has no permit.
    /// - The work has a permit of an ancestor.
    ///
    /// In the last three cases, the slot stores data that the end of the work needs: the ID of the panicking thread, or the kind of
    /// permit that the work must release.
    #[inline]
    fn new(target: &'static TokenTarget<Shard>, info: &SpawnInfo) -> Self {
        let shard = target.owner;
        let settings = &shard.state().settings;
        let is_inspected = settings.has(INSPECTED);
        let permit = match info.without_permit {
            true if settings.has(LIMITED) => PermitKind::Without,
            false if settings.has(LIMITED_BY_ANCESTOR) => PermitKind::OfAncestor,
            _ => PermitKind::Own,
        };
        let is_name_used = info.name.is_some() && settings.has(OBSERVED | SHUTDOWN_ON_FAILURE | SHUTDOWN_ON_PANIC);
        let needs_slot = is_inspected || info.critical || is_name_used || info.panicking_at_start.is_some();
        if needs_slot || permit != PermitKind::Own {
            let is_aborting = || settings.has(ABORTING);
            let target = shard.slots().insert(&shard.freed, shard, *info, permit, is_inspected, is_aborting);
            let token = Self { target, location: None };
            if is_inspected && info.kind != TaskKind::Child {
                token.report_progress(<dyn Observer>::started);
            }
            return token;
        }
        Self { target, location: Some(info.location) }
    }

    /// Returns the token that counts a child in its parent. The parameter `target` is the value that [`target`](Self::target) has
    /// returned for this token.
    #[track_caller]
    pub(super) fn from_target(target: &'static TokenTarget<Shard>) -> Self {
        Self { target, location: if target.slot.is_some() { None } else { Some(Location::caller()) } }
    }

    #[inline]
    pub(crate) fn slot(&self) -> Option<&'static Slot> {
        if self.location.is_some() { None } else { self.target.slot }
    }

    #[inline]
    fn shard(&self) -> &'static Shard {
        self.target.owner
    }

    pub(crate) fn state(&self) -> &'static RegistryState {
        self.shard().state()
    }

    pub(super) fn target(&self) -> &'static TokenTarget<Shard> {
        self.target
    }

    pub(super) fn gate(&self) -> &'static Gate {
        self.shard().gate()
    }

    pub(crate) fn info(&self) -> TaskInfo {
        let in_slot = || self.slot().and_then(|slot| self.shard().slots().info(slot));
        let plain = self.location.map(|location| TaskInfo::new(location, None));
        plain.or_else(in_slot).expect("a token has a call site or a slot")
    }

    /// Returns the loss of work that was dropped before it finished.
    ///
    /// If a future is dropped before a requested abort takes effect, the task counts as abandoned. A blocking closure that was
    /// aborted counts as aborted, because the abort has prevented its start (invariant L3).
    #[cold]
    pub(crate) fn dropped(&self) -> UnreportedLoss {
        let is_closure = |_: &&Slot| self.info().kind == Some(TaskKind::Blocking);
        let is_aborted = self.slot().filter(is_closure).is_some_and(Slot::disable_abort);
        if is_aborted { UnreportedLoss::Aborted } else { UnreportedLoss::Abandoned }
    }

    /// Returns the loss of work that returned an error. If there are observers, the loss contains the message of the error in the
    /// alternate form (`{:#}`). Some error types then also print the causes of the error.
    pub(crate) fn failed(&self, error: &dyn Display) -> UnreportedLoss {
        if self.state().is_observed() { Self::failed_with_text(error) } else { UnreportedLoss::Failed(String::new()) }
    }

    /// Returns the loss of work that returned an error. The loss contains the message of the error even if there are no observers.
    pub(crate) fn failed_with_text(error: &dyn Display) -> UnreportedLoss {
        UnreportedLoss::Failed(catch(|| format!("{error:#}")).unwrap_or_else(|payload| {
            drop_quietly(payload);
            "(an error whose Display panicked)".into()
        }))
    }

    /// Returns the loss of work that panicked. If there are observers, the loss contains the message of the panic.
    pub(crate) fn panicked(&self, payload: &Payload) -> UnreportedLoss {
        UnreportedLoss::Panicked(if self.shard().state().is_observed() { panic_message(payload).into() } else { String::new() })
    }

    /// Stops counting the work as in flight. The caller must drop the work before this call, so that a waiter for the drain resumes
    /// only after the work's destructors have finished (invariant S2).
    #[inline]
    pub(crate) fn leave(self) {
        if self.location.is_none() {
            return self.leave_slot();
        }
        if let Some(word) = self.gate().leave() {
            UnfinishedDeparture { shard: self.shard(), word }.finish();
        }
    }

    #[inline(never)]
    fn leave_slot(self) {
        self.report_progress(<dyn Observer>::completed);
        finish_departure(self.depart());
    }

    /// Stops counting a child as in flight in its parent. Returns the state of the parent and the [`Departure`], which the caller
    /// must pass to `finish_departure` of the parent.
    pub(super) fn leave_child(self) -> Option<(&'static RegistryState, Departure)> {
        let [_, own] = self.depart();
        own.map(UnfinishedDeparture::depart)
    }

    /// Frees the work's slot if the work has one, and releases the work's permit of an ancestor if the work holds one. After both,
    /// leaves the gate. The caller must pass the result to [`finish_departure`].
    ///
    /// If the caller has called [`prepare_departure`](Self::prepare_departure), this function runs no user code. In this case, the
    /// caller may hold a lock.
    #[inline]
    pub(crate) fn depart(self) -> [Option<UnfinishedDeparture>; 2] {
        let shard = self.shard();
        // This code reads the kind of permit before `push`, because another task may occupy the slot after `push`.
        let permit = self.slot().map_or(PermitKind::Own, |slot| {
            let permit = slot.permit();
            shard.freed.push(slot);
            permit
        });
        // The permit must be released before the work leaves its own gate, because the ancestor could drain after that.
        let ancestor = if permit == PermitKind::OfAncestor { shard.state().release_permit_of_ancestor() } else { None };
        let left = if permit == PermitKind::Without { self.gate().leave_without_permit() } else { self.gate().leave() };
        [ancestor, left.map(|word| UnfinishedDeparture { shard, word })]
    }

    /// Performs the steps of a departure that run user code. If the work has completed, reports its completion to the observers of
    /// every task. Then drops the waker that the work has stored so that an abort can wake the work.
    #[inline]
    pub(crate) fn prepare_departure(self, has_completed: bool) {
        if let Some(slot) = self.slot() {
            if has_completed {
                self.report_progress(<dyn Observer>::completed);
            }
            slot.drop_waker();
        }
    }

    /// Counts the loss, reports the loss to the observers, and stops counting the work as in flight (invariants S2, S5 and S8). The
    /// caller must drop the work before this call.
    ///
    /// If the loss requires a shutdown, this function also starts the shutdown.
    #[cold]
    #[expect(clippy::needless_pass_by_value, reason = "a loss is reported once, so this function consumes it")]
    pub(crate) fn lose(self, loss: UnreportedLoss) {
        self.report(&loss);
        finish_departure(self.depart());
    }

    /// Does the same as [`lose`](Self::lose), except that the work still counts as in flight after this call.
    #[cold]
    pub(crate) fn report(self, loss: &UnreportedLoss) {
        self.count_and_report(loss);
        let policy = match loss {
            UnreportedLoss::Failed(_) => SHUTDOWN_ON_FAILURE,
            UnreportedLoss::Panicked(_) => SHUTDOWN_ON_PANIC,
            UnreportedLoss::Abandoned | UnreportedLoss::Aborted => NONE,
        };
        let state = self.state();
        // If the work is critical, its own registry must shut down. It is not enough to shut the root down, because a child that
        // was made during the drain of the root stays open.
        if self.is_critical() {
            state.start_shutdown_after_loss(self.info());
        }
        if let Some(root) = if state.settings.has(policy) { state.root() } else { None } {
            root.state().start_shutdown_after_loss(self.info());
        }
    }

    /// Returns the identity of inspected work, or `None` if the work is not inspected.
    #[inline]
    pub(crate) fn inspected(self) -> Option<InspectedTask> {
        let id = self.slot().and_then(|slot| self.shard().slots().id(slot))?;
        Some(InspectedTask { target: self.target, id })
    }

    /// Counts and reports the end of one run of a service, and then counts and reports the start of the next run (invariants S5 and
    /// S8). The parameter `loss` is `None` if the run completed. The caller must drop the future of the ended run before this call.
    pub(crate) fn end_run(self, loss: Option<&UnreportedLoss>) {
        match loss {
            Some(loss) => self.count_and_report(loss),
            None => self.report_progress(<dyn Observer>::completed),
        }
        self.gate().enter_again();
        self.report_progress(<dyn Observer>::started);
    }

    /// If at least one observer observes every task, calls the method `call` of each observer with a description of the work.
    #[inline(never)]
    fn report_progress(self, call: fn(&dyn Observer, &TaskInfo)) {
        if self.state().settings.has(EVERY_TASK) {
            let task = self.info();
            self.state().notify_observers(|observer| call(observer, &task));
        }
    }

    fn count_and_report(self, loss: &UnreportedLoss) {
        self.shard().count(match loss {
            UnreportedLoss::Failed(_) => Lost::Failed,
            UnreportedLoss::Panicked(_) => Lost::Panicked,
            UnreportedLoss::Abandoned => Lost::Abandoned,
            UnreportedLoss::Aborted => Lost::Aborted,
        });
        let state = self.state();
        if state.is_observed() {
            state.report_loss(&self.info(), &loss.as_loss());
        }
    }

    fn is_critical(&self) -> bool {
        self.spawn_info().is_some_and(|info| info.critical)
    }

    /// Returns the ID of the thread that took this guard, if that thread was already panicking at that time.
    #[cold]
    pub(crate) fn panicking_at_start(&self) -> Option<ThreadId> {
        self.spawn_info()?.panicking_at_start
    }

    fn spawn_info(&self) -> Option<SpawnInfo> {
        self.slot().and_then(|slot| self.shard().slots().spawn_info(slot))
    }
}

/// Records that work has left the gate of a shard, and that the caller must still act, for example notify a waiter.
#[derive(Clone, Copy)]
pub(crate) struct UnfinishedDeparture {
    pub(super) shard: &'static Shard,
    pub(super) word: PreviousWord,
}

impl UnfinishedDeparture {
    fn depart(self) -> (&'static RegistryState, Departure) {
        (self.shard.state(), self.shard.gate().depart(self.word))
    }

    #[cold]
    pub(super) fn finish(self) {
        let (state, departure) = self.depart();
        state.finish_departure(departure);
    }
}

/// Performs the actions that are required after work has left its gate, such as notifications. This function may call user code, so
/// the caller must hold no lock.
#[inline]
pub(crate) fn finish_departure(left: [Option<UnfinishedDeparture>; 2]) {
    left.into_iter().flatten().for_each(UnfinishedDeparture::finish);
}
