//! The queue before a registry that is full.
//!
//! One rule decides who may enter: as many places must be free as there are waiters ahead, and one more. A newcomer has the whole queue
//! ahead, so nobody overtakes. Places are not handed over: whoever leaves wakes the first who has not been woken yet, that one enters
//! when it is polled, and if it gives up instead it wakes the next. The gate is *wanted* while the queue is not empty, which sends those
//! who leave here. No foreign code runs under the lock (S7).

use crate::gate::{Gate, Refused};
use crate::panics::shield;
use crate::sync::{Mutex, const_unless_loom, lock};
use core::mem;
use core::task::{Poll, Waker};
use std::collections::VecDeque;

pub(crate) struct Intake(Mutex<Queue>);

struct Queue {
    waiting: VecDeque<Waiting>,
    next: Ticket,
}

/// What its owner finds its place in the queue by; they grow from first to last.
pub(crate) type Ticket = u64;

struct Waiting {
    ticket: Ticket,
    /// `None` once it has been woken, as a place is free.
    waker: Option<Waker>,
}

impl Queue {
    fn find(&self, ticket: Ticket) -> Option<usize> {
        self.waiting.binary_search_by_key(&ticket, |waiting| waiting.ticket).ok()
    }

    fn wake_next(&mut self) -> Option<Waker> {
        self.waiting.iter_mut().find_map(|waiting| waiting.waker.take())
    }

    /// Has the gate be wanted no more if nobody waits.
    fn settle(&self, gate: &Gate) {
        if self.waiting.is_empty() {
            gate.want_no_place();
        }
    }
}

impl Intake {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Queue { waiting: VecDeque::new(), next: 0 }))
        }
    }

    /// Lets a newcomer in who does not wait.
    pub(crate) fn enter(&self, gate: &Gate, limit: usize) -> Result<(), Refused> {
        gate.enter_below(limit).or_else(|refused| match refused {
            Refused::Drained => Err(refused),
            Refused::Full => {
                let queue = lock(&self.0);
                gate.enter_in_turn(limit.saturating_sub(queue.waiting.len()))
            }
        })
    }

    /// Lets somebody in who waits, when it is their turn; `None` says that the shutdown has begun, after which nobody waits.
    pub(crate) fn poll_enter(
        &self,
        gate: &Gate,
        limit: usize,
        ticket: &mut Option<Ticket>,
        waker: &Waker,
        is_open: impl Fn() -> bool,
    ) -> Poll<Option<()>> {
        let waker = waker.clone();
        let mut queue = lock(&self.0);
        // Asked under the lock that `close` takes after the shutdown has begun.
        if !is_open() {
            drop(queue);
            drop(waker);
            return Poll::Ready(None);
        }
        let own = ticket.and_then(|ticket| queue.find(ticket));
        let ahead = own.unwrap_or(queue.waiting.len());
        // Before the look that decides to wait: who leaves after it comes here.
        gate.want_places();
        if gate.enter_in_turn(limit.saturating_sub(ahead)).is_ok() {
            let removed = own.and_then(|own| queue.waiting.remove(own));
            queue.settle(gate);
            drop(queue);
            drop((removed, waker));
            return Poll::Ready(Some(()));
        }
        let replaced = if let Some(own) = own {
            queue.waiting[own].waker.replace(waker)
        } else {
            let own = queue.next;
            queue.next += 1;
            queue.waiting.push_back(Waiting { ticket: own, waker: Some(waker) });
            *ticket = Some(own);
            None
        };
        drop(queue);
        drop(replaced);
        Poll::Pending
    }

    /// Takes somebody out of the queue who waits no longer.
    pub(crate) fn leave(&self, gate: &Gate, ticket: Ticket) {
        let mut queue = lock(&self.0);
        let Some(own) = queue.find(ticket) else { return };
        let removed = queue.waiting.remove(own);
        queue.settle(gate);
        let was_woken = removed.as_ref().is_some_and(|waiting| waiting.waker.is_none());
        let next = if was_woken { queue.wake_next() } else { None };
        drop(queue);
        drop(removed);
        wake(next);
    }

    /// Tells the next in the queue that somebody has left.
    pub(crate) fn place_left(&self) {
        let next = lock(&self.0).wake_next();
        wake(next);
    }

    /// Sends everybody away, as the shutdown has begun.
    pub(crate) fn close(&self, gate: &Gate) {
        let mut queue = lock(&self.0);
        let sent_away = mem::take(&mut queue.waiting);
        queue.settle(gate);
        drop(queue);
        for waiting in sent_away {
            wake(waiting.waker);
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        shield(|| waker.wake());
    }
}
