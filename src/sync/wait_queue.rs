//! A wait queue stores the waiters for permits: the futures of `run_when_ready`. A registry with a limit has as many permits as its
//! limit. Each permit allows one task to be in flight.
//!
//! Each poll of a waiter tries to enter the gate. The poll succeeds if the waiter is the first in the queue and a permit is free.
//! When a task leaves the gate, it releases its permit and wakes the first waiter. This waiter takes the permit in its next poll.
//! When a waiter has entered the gate or was dropped, and another permit is free, the queue wakes the next waiter.
//!
//! If `n` waiters are in the queue, the first `n` free permits are reserved for them. A new task can enter without waiting only if
//! one more permit is free. Therefore a new task overtakes no waiter (invariant S10). While the queue is not empty, the gate's
//! `PERMIT` bit is set, and each task that releases a permit calls [`WaitQueue::wake_first`] (invariant L4).
//!
//! A *follow-up* is a task that continues the work of another task, and that may wait for a permit during the drain; see
//! `Registry::follow_up`. When the shutdown starts, [`WaitQueue::close`] removes all waiters except the waiters of follow-ups. The waiters
//! of follow-ups stay in the queue, so no later task overtakes them. When the registry has drained, it accepts no more tasks, so
//! `close` then removes these waiters too.
//!
//! A registry and its descendants can share one limit and one queue. Each waiter stores the registry that owns it, so `close`
//! removes only the waiters of one registry.
//!
//! The methods of a waker are user code. Therefore the queue holds no lock while it clones, wakes or drops a waker (invariant S7).

use super::gate::{Gate, Permit, Refused};
use crate::platform::{Mutex, const_unless_loom, drop_quietly, wake};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::task::{Poll, Waker};

/// The position of a waiter in the queue. A waiter that arrives later has a higher ticket.
pub(crate) type Ticket = u64;

/// Identifies the registry that owns a waiter.
pub(crate) type Owner = usize;

pub(crate) struct WaitQueue(Mutex<Waiters>);

/// A gate with a limit, and the kind of permit that a task takes from this gate.
#[derive(Clone, Copy)]
pub(crate) struct LimitedGate<'a> {
    pub(crate) gate: &'a Gate,
    pub(crate) limit: usize,
    pub(crate) permit: Permit,
}

struct Waiters {
    queue: BTreeMap<Ticket, Waiter>,
    next_ticket: Ticket,
}

struct Waiter {
    owner: Owner,
    /// When the queue wakes a waiter, it replaces the waker with `None`. The waiter's next poll stores a new waker.
    waker: Option<Waker>,
    /// Whether the waiter's task is a follow-up. If so, the waiter stays in the queue after the shutdown has started.
    is_follow_up: bool,
}

impl WaitQueue {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Waiters { queue: BTreeMap::new(), next_ticket: 0 }))
        }
    }

    /// Tries to enter the gate without waiting. Callers call this function after `enter_below` has returned `Refused::Full`. The
    /// task enters only if the number of free permits is higher than the number of waiters in the queue.
    pub(crate) fn try_enter(&self, LimitedGate { gate, limit, permit }: LimitedGate<'_>) -> Result<(), Refused> {
        self.0.with(|waiters| gate.enter_in_turn(limit.saturating_sub(waiters.queue.len()), permit))
    }

    /// Enters the gate if the waiter is the first in the queue and a permit is free. Returns `Ready(None)` if the gate has drained
    /// or the closure `is_open` returns false. If `is_open` returns false, this function does not remove the waiter, because
    /// `close` does so.
    pub(crate) fn poll_enter(
        &self,
        LimitedGate { gate, limit, permit }: LimitedGate<'_>,
        ticket: &mut Option<Ticket>,
        waker: &Waker,
        (owner, is_follow_up): (Owner, bool),
        is_open: impl Fn() -> bool,
    ) -> Poll<Option<()>> {
        let mut waker = Some(waker.clone());
        let (polled, dropped, next) = self.0.with(|waiters| {
            // `close` takes the same lock after the shutdown has started, and once more after the registry has drained. Therefore
            // `close` finds every waiter for which `is_open` returns true here.
            if !is_open() {
                return (Poll::Ready(None), waker.take(), None);
            }
            let own = *ticket.get_or_insert(waiters.next_ticket);
            waiters.next_ticket = waiters.next_ticket.max(own + 1);
            let replaced =
                waiters.queue.insert(own, Waiter { owner, waker: waker.take(), is_follow_up }).and_then(|waiter| waiter.waker);
            let is_first = waiters.queue.first_key_value().is_some_and(|(first, _)| *first == own);
            // `request_permit` sets the bit `PERMIT` before `enter_in_turn` checks for a free permit. Therefore, if `enter_in_turn`
            // finds no free permit, the next task that releases a permit wakes the first waiter (invariant L4).
            gate.request_permit();
            let entered = if is_first { gate.enter_in_turn(limit, permit) } else { Err(Refused::Full) };
            if entered == Err(Refused::Full) {
                return (Poll::Pending, replaced, None);
            }
            waker = waiters.remove(own);
            (Poll::Ready(entered.ok()), replaced, waiters.waker_after_removal(gate, limit))
        });
        wake(next);
        // Each of these calls drops one waker. If both destructors panicked in one call, the process would abort (invariant S6).
        drop_quietly(waker);
        drop_quietly(dropped);
        polled
    }

    /// Removes a waiter whose future was dropped. If a permit is free, wakes the new first waiter.
    pub(crate) fn remove(&self, gate: &Gate, limit: usize, ticket: Ticket) {
        let (own, next) = self.0.with(|waiters| (waiters.remove(ticket), waiters.waker_after_removal(gate, limit)));
        wake(next);
        drop_quietly(own);
    }

    /// Wakes the first waiter, because a permit was released.
    pub(crate) fn wake_first(&self) {
        wake(self.0.with(Waiters::take_first));
    }

    /// Removes and wakes all waiters of `owner` except the waiters of follow-ups, because the shutdown has started. If the closure
    /// `is_drained` returns true, this function also removes and wakes the waiters of follow-ups.
    ///
    /// Perhaps a removed waiter was woken because a permit became free, but has not taken the permit. Therefore, if a permit is
    /// free, this function wakes the new first waiter (invariant L4).
    pub(crate) fn close(&self, gate: &Gate, limit: usize, owner: Owner, is_drained: impl Fn() -> bool) {
        let (removed, next) = self.0.with(|waiters| {
            let is_drained = is_drained();
            let mut removed = Vec::new();
            waiters.queue.retain(|_, waiter| {
                let is_kept = waiter.owner != owner || (waiter.is_follow_up && !is_drained);
                if !is_kept {
                    removed.push(waiter.waker.take());
                }
                is_kept
            });
            (removed, waiters.waker_after_removal(gate, limit))
        });
        removed.into_iter().chain([next]).for_each(wake);
    }
}

impl Waiters {
    fn take_first(&mut self) -> Option<Waker> {
        self.queue.first_entry()?.get_mut().waker.take()
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Waker> {
        self.queue.remove(&ticket)?.waker
    }

    /// Returns the waker of the new first waiter if a permit is free. If the queue is empty, clears the gate's bit `PERMIT`.
    fn waker_after_removal(&mut self, gate: &Gate, limit: usize) -> Option<Waker> {
        if self.queue.is_empty() {
            gate.cancel_permit_request();
            return None;
        }
        if gate.snapshot().permits() < limit { self.take_first() } else { None }
    }
}
