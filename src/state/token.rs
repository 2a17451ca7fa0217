//! A token represents one piece of work in flight.

use super::registry_state::{Lost, RegistryState, Shard};
use super::settings::{INSPECTED, NONE, OBSERVED, SHUTDOWN_ON_FAILURE, SHUTDOWN_ON_PANIC};
use crate::platform::{Payload, catch, drop_quietly, panic_message};
use crate::report::{RejectReason, SpawnInfo, TaskInfo};
use crate::sync::slot_table::{Slot, TokenTarget};
use crate::sync::{gate::PreviousWord, wait_queue::Ticket};
use alloc::string::{String, ToString};
use core::task::{Poll, Waker};
use core::{fmt::Display, panic::Location};

/// The outcome of work that did not complete. The message is empty if the registry has no observer.
pub(crate) struct Loss {
    outcome: Lost,
    message: String,
}

impl Loss {
    pub(crate) const ABANDONED: Self = Self { outcome: Lost::Abandoned, message: String::new() };
    pub(crate) const ABORTED: Self = Self { outcome: Lost::Aborted, message: String::new() };

    /// Returns the loss of a guard that a panic dropped.
    pub(crate) fn panicked(message: &str) -> Self {
        Self { outcome: Lost::Panicked, message: message.into() }
    }
}

/// A token proves that one piece of work is counted as in flight (S1).
///
/// Dropping a token releases nothing. The owner of a token calls [`Token::leave`] or [`Token::lose`] exactly once.
#[derive(Clone, Copy)]
pub(crate) struct Token {
    target: &'static TokenTarget<Shard>,
    /// The call site, if the work has no slot. If the work has a slot, the slot's row stores the call site, and this field is
    /// `None`.
    location: Option<&'static Location<'static>>,
}

impl Token {
    /// Counts a piece of work without a name or a critical mark. In most registries this operation is a single addition.
    ///
    /// Returns `None` if the registry is inspected or limited, or if this thread's shard has drained. The caller then calls
    /// [`Token::enter`].
    #[inline]
    pub(crate) fn enter_plain(state: &'static RegistryState, location: &'static Location<'static>) -> Option<Self> {
        state.enter().map(|target| Self { target, location: Some(location) })
    }

    /// Counts a piece of work as in flight, or counts its rejection.
    #[inline(never)]
    pub(crate) fn enter(state: &'static RegistryState, info: SpawnInfo) -> Result<Self, RejectReason> {
        match state.enter_any() {
            Ok(target) => Ok(Self::new(target, info)),
            Err(reason) => Err(state.reject(info, reason)),
        }
    }

    /// Counts a piece of work as soon as a permit is free. If the work is rejected, the caller counts the rejection.
    pub(crate) fn poll_enter(
        state: &'static RegistryState,
        info: SpawnInfo,
        ticket: &mut Option<Ticket>,
        waker: &Waker,
    ) -> Poll<Result<Self, RejectReason>> {
        state.poll_enter(ticket, waker).map_ok(|target| Self::new(target, info))
    }

    /// Creates the token of a piece of work. The work gets a slot if the registry is inspected, if the work is critical, or if
    /// observers need the name of the work.
    #[inline]
    fn new(target: &'static TokenTarget<Shard>, info: SpawnInfo) -> Self {
        let shard = target.owner;
        let settings = &shard.state().settings;
        let is_inspected = settings.has(INSPECTED);
        if is_inspected || info.critical || (info.name.is_some() && settings.has(OBSERVED)) {
            let target = shard.slots().insert(&shard.counters.0.freed, shard, info, is_inspected);
            return Self { target, location: None };
        }
        Self { target, location: Some(info.location) }
    }

    #[inline]
    pub(crate) fn slot(&self) -> Option<&'static Slot> {
        if self.location.is_some() { None } else { self.target.slot.as_ref() }
    }

    #[inline]
    fn shard(&self) -> &'static Shard {
        self.target.owner
    }

    pub(crate) fn info(&self) -> TaskInfo {
        let in_slot = || self.slot().and_then(|slot| self.shard().slots().info(slot));
        let plain = self.location.map(|location| TaskInfo::new(location, None));
        plain.or_else(in_slot).expect("a token has a call site or a slot")
    }

    /// Returns the loss of work that returned an error. The loss contains the text of the error if there are observers.
    pub(crate) fn failed(&self, error: &dyn Display) -> Loss {
        let message = || {
            catch(|| error.to_string()).unwrap_or_else(|payload| {
                drop_quietly(payload);
                "(an error whose Display panicked)".into()
            })
        };
        Loss { outcome: Lost::Failed, message: if self.shard().state().is_observed() { message() } else { String::new() } }
    }

    /// Returns the loss of work that panicked. The loss contains the message of the panic if there are observers.
    pub(crate) fn panicked(&self, payload: &Payload) -> Loss {
        Loss::panicked(if self.shard().state().is_observed() { panic_message(payload) } else { "" })
    }

    /// Releases the count of completed work. The caller has dropped the work already (S2).
    #[inline]
    pub(crate) fn leave(self) {
        if self.location.is_none() {
            self.free_slot();
        }
        if let Some(before) = self.shard().gate().leave() {
            self.finish_departure(before);
        }
    }

    #[inline(never)]
    fn free_slot(self) {
        self.slot().into_iter().for_each(|slot| self.shard().counters.0.freed.push(slot));
    }

    #[cold]
    fn finish_departure(self, before: PreviousWord) {
        self.shard().state().finish_departure(self.shard().gate().depart(before));
    }

    /// Counts the loss, reports the loss to the observers, and then leaves the gate (S2, S5, S8). The caller has dropped the work
    /// already.
    #[cold]
    pub(crate) fn lose(self, loss: Loss) {
        let (state, Loss { outcome, message }) = (self.shard().state(), loss);
        self.shard().count(outcome);
        if state.is_observed() {
            let task = self.info();
            state.notify_observers(|observer| match outcome {
                Lost::Failed => observer.failed(&task, &message),
                Lost::Panicked => observer.panicked(&task, &message),
                Lost::Abandoned => observer.abandoned(&task),
                Lost::Aborted => observer.aborted(&task),
                Lost::Rejected => {}
            });
        }
        let policy = match outcome {
            Lost::Failed => SHUTDOWN_ON_FAILURE,
            Lost::Panicked => SHUTDOWN_ON_PANIC,
            _ => NONE,
        };
        if state.settings.has(policy) || (policy != NONE && self.is_critical()) {
            state.start_shutdown_after_loss(self.info());
        }
        self.leave();
    }

    fn is_critical(&self) -> bool {
        self.slot().is_some_and(|slot| self.shard().slots().is_critical(slot))
    }
}
