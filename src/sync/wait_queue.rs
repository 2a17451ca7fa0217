//! A queue of tasks that wait for a permit. A permit is a free place below the registry's limit.
//!
//! A waiter enters the gate while its task is polled. The entry succeeds if the waiter is the first in the queue and a permit is
//! free. A task that leaves the gate frees its permit and wakes the first waiter, but does not reserve the permit for that waiter.
//! A waiter that enters or gives up wakes the next waiter if another permit is free.
//!
//! A new entry succeeds only if more permits are free than waiters are queued, so a new entry overtakes no waiter (S10). While the
//! queue is not empty, the gate's `PERMIT` bit is set, and each departure calls [`WaitQueue::wake_first`] (L4).
//!
//! The methods of a waker are user code. Therefore the queue holds no lock while it clones, wakes or drops a waker (S7).

use super::gate::{Gate, Refused};
use crate::platform::{Mutex, const_unless_loom, drop_quietly, wake};
use alloc::collections::BTreeMap;
use core::mem::take;
use core::task::{Poll, Waker};

/// The position of a waiter in the queue. Later waiters have higher tickets.
pub(crate) type Ticket = u64;

pub(crate) struct WaitQueue(Mutex<Waiters>);

struct Waiters {
    /// The waker of each waiter. When the queue wakes a waiter, it replaces the waker with `None`. The waiter's next poll stores a
    /// new waker.
    wakers: BTreeMap<Ticket, Option<Waker>>,
    next_ticket: Ticket,
}

impl WaitQueue {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Waiters { wakers: BTreeMap::new(), next_ticket: 0 }))
        }
    }

    /// Enters the gate without waiting. The entry fails if it would overtake a queued waiter.
    pub(crate) fn try_enter(&self, gate: &Gate, limit: usize) -> Result<(), Refused> {
        gate.enter_below(limit).or_else(|refused| match refused {
            Refused::Drained => Err(refused),
            Refused::Full => self.0.with(|waiters| gate.enter_in_turn(limit.saturating_sub(waiters.wakers.len()))),
        })
    }

    /// Enters the gate when the waiter's turn comes. Returns `Ready(None)` if the closure `is_open` returns false, because the
    /// queue is then closed.
    pub(crate) fn poll_enter(
        &self,
        gate: &Gate,
        limit: usize,
        ticket: &mut Option<Ticket>,
        waker: &Waker,
        is_open: impl Fn() -> bool,
    ) -> Poll<Option<()>> {
        let mut waker = Some(waker.clone());
        let (polled, dropped, next) = self.0.with(|waiters| {
            // `close` takes the same lock after the shutdown has started. Therefore `close` finds every waiter for which `is_open`
            // returns true here.
            if !is_open() {
                return (Poll::Ready(None), waker.take(), None);
            }
            let own = *ticket.get_or_insert(waiters.next_ticket);
            waiters.next_ticket = waiters.next_ticket.max(own + 1);
            let replaced = waiters.wakers.insert(own, waker.take()).flatten();
            let is_first = waiters.wakers.first_key_value().is_some_and(|(first, _)| *first == own);
            // The call of `request_permit` comes before `enter_in_turn` looks for a free permit. Therefore a task that leaves after
            // `enter_in_turn` has failed wakes the first waiter (L4).
            gate.request_permit();
            if is_first && gate.enter_in_turn(limit).is_ok() {
                waker = waiters.wakers.remove(&own).flatten();
                return (Poll::Ready(Some(())), replaced, waiters.waker_after_removal(gate, limit));
            }
            (Poll::Pending, replaced, None)
        });
        wake(next);
        drop_quietly((waker, dropped));
        polled
    }

    /// Removes a waiter that gives up. If a permit is free, wakes the new first waiter.
    pub(crate) fn remove(&self, gate: &Gate, limit: usize, ticket: Ticket) {
        let (own, next) = self.0.with(|waiters| (waiters.wakers.remove(&ticket), waiters.waker_after_removal(gate, limit)));
        wake(next);
        drop_quietly(own);
    }

    /// Wakes the first waiter, because a permit was released.
    pub(crate) fn wake_first(&self) {
        wake(self.0.with(Waiters::take_first));
    }

    /// Removes and wakes all waiters, because the shutdown has started.
    pub(crate) fn close(&self, gate: &Gate) {
        let wakers = self.0.with(|waiters| {
            gate.cancel_permit_request();
            take(&mut waiters.wakers)
        });
        wakers.into_values().for_each(wake);
    }
}

impl Waiters {
    fn take_first(&mut self) -> Option<Waker> {
        self.wakers.first_entry()?.get_mut().take()
    }

    /// Returns the waker of the new first waiter if a permit is free. Cancels the gate's permit request if the queue is empty.
    fn waker_after_removal(&mut self, gate: &Gate, limit: usize) -> Option<Waker> {
        if self.wakers.is_empty() {
            gate.cancel_permit_request();
            return None;
        }
        if gate.snapshot().in_flight() < limit { self.take_first() } else { None }
    }
}
