//! One piece of work in flight.

use super::registry_state::{RegistryState, Shard};
use crate::platform::{Ordering, Payload, catch, drop_quietly, panic_message};
use crate::report::{RejectReason, SpawnInfo, TaskInfo};
use crate::sync::gate::PreviousWord;
use crate::sync::slot_table::{Slot, TokenTarget};
use crate::sync::wait_queue::Ticket;
use alloc::string::{String, ToString};
use core::fmt::Display;
use core::panic::Location;
use core::task::{Poll, Waker};

/// How work ended that did not complete. The messages are empty if the registry has no observer.
#[derive(Debug)]
pub(crate) enum Loss {
    Failed(String),
    Panicked(String),
    Abandoned,
    Aborted,
}

/// Proof that one piece of work is counted as in flight (S1).
///
/// Dropping it releases nothing: its owner calls [`Token::leave`] or [`Token::lose`] exactly once.
#[derive(Clone, Copy)]
pub(crate) struct Token {
    target: &'static TokenTarget<Shard>,
    /// The call site. `None` means that the work has a slot, which stores the call site. So a token without a slot never reads its target.
    location: Option<&'static Location<'static>>,
}

impl Token {
    /// Counts work that has neither name nor mark. In most registries this is one addition.
    #[inline]
    pub(crate) fn enter_plain(state: &'static RegistryState, location: &'static Location<'static>) -> Option<Self> {
        state.enter().map(|target| Self { target, location: Some(location) })
    }

    /// Counts one more piece of work, or one more rejection.
    #[inline(never)]
    pub(crate) fn enter(state: &'static RegistryState, info: SpawnInfo) -> Result<Self, RejectReason> {
        match state.enter_any() {
            Ok(target) => Ok(Self::new(target, info)),
            Err(reason) => Err(state.reject(info, reason)),
        }
    }

    /// Counts one more piece of work as soon as a permit is free. The caller counts a rejection.
    pub(crate) fn poll_enter(
        state: &'static RegistryState,
        info: SpawnInfo,
        ticket: &mut Option<Ticket>,
        waker: &Waker,
    ) -> Poll<Result<Self, RejectReason>> {
        state.poll_enter(ticket, waker).map_ok(|target| Self::new(target, info))
    }

    /// Gives the work a slot if the registry is inspected, if its loss starts the shutdown, or if observers need its name.
    #[inline]
    fn new(target: &'static TokenTarget<Shard>, info: SpawnInfo) -> Self {
        let shard = target.owner;
        let settings = shard.state().settings.get();
        let is_inspected = settings.is_inspected();
        if is_inspected || info.critical || (info.name.is_some() && settings.is_observed()) {
            let target = shard.slots().insert(&shard.counters.freed, shard, info, is_inspected);
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

    /// Returns the loss of work that returned an error, with the error's text if there are observers.
    pub(crate) fn failed(&self, error: &dyn Display) -> Loss {
        if !self.shard().state().is_observed() {
            return Loss::Failed(String::new());
        }
        Loss::Failed(catch(|| error.to_string()).unwrap_or_else(|payload| {
            drop_quietly(payload);
            "(an error whose Display panicked)".into()
        }))
    }

    /// Returns the loss of work that panicked, with the panic's message if there are observers.
    pub(crate) fn panicked(&self, payload: &Payload) -> Loss {
        let is_observed = self.shard().state().is_observed();
        Loss::Panicked(if is_observed { panic_message(payload).into() } else { String::new() })
    }

    /// Releases the count of work that completed and was dropped (S2).
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
        self.slot().into_iter().for_each(|slot| self.shard().counters.freed.push(slot));
    }

    #[cold]
    fn finish_departure(self, before: PreviousWord) {
        self.shard().state().finish_departure(self.shard().gate().depart(before));
    }

    /// Counts and reports the loss of work that was dropped, then releases its count (S2, S5, S8).
    #[cold]
    #[expect(clippy::needless_pass_by_value, reason = "a loss is reported once")]
    pub(crate) fn lose(self, loss: Loss) {
        let (state, counters) = (self.shard().state(), &self.shard().counters);
        let count = match loss {
            Loss::Failed(..) => &counters.failed,
            Loss::Panicked(..) => &counters.panicked,
            Loss::Abandoned => &counters.abandoned,
            Loss::Aborted => &counters.aborted,
        };
        // Relaxed: the Release in `Gate::leave` publishes it.
        count.fetch_add(1, Ordering::Relaxed);
        if state.is_observed() {
            let task = self.info();
            state.notify_observers(|observer| match &loss {
                Loss::Failed(error) => observer.failed(&task, error),
                Loss::Panicked(message) => observer.panicked(&task, message),
                Loss::Abandoned => observer.abandoned(&task),
                Loss::Aborted => observer.aborted(&task),
            });
        }
        let settings = state.settings.get();
        let starts_shutdown = match loss {
            Loss::Failed(_) => settings.shutdown_on_failure() || self.is_critical(),
            Loss::Panicked(_) => settings.shutdown_on_panic() || self.is_critical(),
            Loss::Abandoned | Loss::Aborted => false,
        };
        if starts_shutdown {
            state.start_shutdown_after_loss(self.info());
        }
        self.leave();
    }

    fn is_critical(&self) -> bool {
        self.slot().is_some_and(|slot| self.shard().slots().is_critical(slot))
    }
}
