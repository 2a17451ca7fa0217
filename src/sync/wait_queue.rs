//! The queue of those who wait for a permit of a gate that has a limit.
//!
//! A waiter enters when it is polled, is the first in the queue, and finds a permit. Permits are not handed over: a departure wakes the
//! first waiter, and a waiter that enters or gives up wakes the next one if another permit is free. A new entry succeeds only if more
//! permits are free than waiters are queued, so it overtakes nobody (S10). While the queue is not empty, the gate carries a permit
//! request, which makes departures call [`WaitQueue::wake_first`] (L4). User code (cloning, calling and dropping wakers) runs outside the
//! lock (S7).

use super::gate::{Gate, Refused};
use crate::platform::{Mutex, const_unless_loom, drop_quietly, wake};
use alloc::collections::BTreeMap;
use core::mem::take;
use core::task::{Poll, Waker};

/// The position of a waiter in the queue. Later waiters have higher tickets.
pub(crate) type Ticket = u64;

pub(crate) struct WaitQueue(Mutex<Waiters>);

struct Waiters {
    /// A waker is taken when it is called. The next poll stores another.
    wakers: BTreeMap<Ticket, Option<Waker>>,
    next_ticket: Ticket,
}

impl WaitQueue {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Waiters { wakers: BTreeMap::new(), next_ticket: 0 }))
        }
    }

    /// Enters the gate without waiting.
    pub(crate) fn try_enter(&self, gate: &Gate, limit: usize) -> Result<(), Refused> {
        gate.enter_below(limit).or_else(|refused| match refused {
            Refused::Drained => Err(refused),
            Refused::Full => self.0.with(|waiters| gate.enter_in_turn(limit.saturating_sub(waiters.wakers.len()))),
        })
    }

    /// Enters the gate when the waiter's turn comes. Returns `None` once the shutdown has started: then nobody waits.
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
            // Checked under the lock that `close` takes after the shutdown has started.
            if !is_open() {
                return (Poll::Ready(None), waker.take(), None);
            }
            let own = *ticket.get_or_insert(waiters.next_ticket);
            waiters.next_ticket = waiters.next_ticket.max(own + 1);
            let replaced = waiters.wakers.insert(own, waker.take()).flatten();
            let is_first = waiters.wakers.first_key_value().is_some_and(|(first, _)| *first == own);
            // Requested before the check that decides to wait: a departure after that check finds the request.
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

    /// Removes a waiter that gives up.
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

    /// Returns the waker of the new first waiter, if a permit is free. Cancels the request for permits if the queue is empty.
    fn waker_after_removal(&mut self, gate: &Gate, limit: usize) -> Option<Waker> {
        if self.wakers.is_empty() {
            gate.cancel_permit_request();
            return None;
        }
        if gate.snapshot().in_flight() < limit { self.take_first() } else { None }
    }
}
