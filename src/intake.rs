//! The queue before a registry that is full.
//!
//! The first in the queue enters when it is polled and finds a place. Places are not handed over: who leaves wakes the first, and who
//! enters or gives up wakes the next first if a place is left. A newcomer enters only if there are more places than those who wait, so
//! nobody is overtaken. The gate is *wanted* while the queue is not empty, which sends those who leave here. No foreign code runs under
//! the lock (S7).

use crate::gate::{Gate, Refused};
use crate::panics::{discard, wake};
use crate::sync::{Mutex, MutexGuard, const_unless_loom, lock};
use core::mem;
use core::task::{Poll, Waker};
use std::collections::BTreeMap;

/// What its owner finds its place in the queue by; they grow from first to last.
pub(crate) type Ticket = u64;

pub(crate) struct Intake(Mutex<Queue>);

struct Queue {
    /// A waker is taken when it is woken, and put back by the next poll.
    waiting: BTreeMap<Ticket, Option<Waker>>,
    next: Ticket,
}

impl Intake {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Queue { waiting: BTreeMap::new(), next: 0 }))
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
        let waker = Some(waker.clone());
        let mut queue = lock(&self.0);
        // Asked under the lock that `close` takes after the shutdown has begun.
        if !is_open() {
            drop(queue);
            discard(waker);
            return Poll::Ready(None);
        }
        let own = *ticket.get_or_insert(queue.next);
        queue.next = queue.next.max(own + 1);
        let replaced = queue.waiting.insert(own, waker);
        let is_first = queue.waiting.first_key_value().is_some_and(|(first, _)| *first == own);
        // Before the look that decides to wait: who leaves after it comes here.
        gate.want_places();
        if is_first && gate.enter_in_turn(limit).is_ok() {
            let own = queue.waiting.remove(&own);
            settle(queue, gate, limit);
            discard((own, replaced));
            return Poll::Ready(Some(()));
        }
        drop(queue);
        discard(replaced);
        Poll::Pending
    }

    /// Takes somebody out of the queue who waits no longer.
    pub(crate) fn leave(&self, gate: &Gate, limit: usize, ticket: Ticket) {
        let mut queue = lock(&self.0);
        let own = queue.waiting.remove(&ticket);
        settle(queue, gate, limit);
        discard(own);
    }

    /// Tells the first in the queue that somebody has left.
    pub(crate) fn place_left(&self) {
        let mut queue = lock(&self.0);
        let first = queue.first_waker();
        drop(queue);
        wake(first);
    }

    /// Sends everybody away, as the shutdown has begun.
    pub(crate) fn close(&self, gate: &Gate) {
        let mut queue = lock(&self.0);
        let sent_away = mem::take(&mut queue.waiting);
        gate.want_no_place();
        drop(queue);
        sent_away.into_values().for_each(wake);
    }
}

impl Queue {
    fn first_waker(&mut self) -> Option<Waker> {
        self.waiting.first_entry()?.get_mut().take()
    }
}

/// After somebody has left the queue: wakes who is first now, if a place is free; or has newcomers come in again, if nobody waits.
fn settle(mut queue: MutexGuard<'_, Queue>, gate: &Gate, limit: usize) {
    if queue.waiting.is_empty() {
        gate.want_no_place();
    } else if gate.look().in_flight() < limit {
        let first = queue.first_waker();
        drop(queue);
        wake(first);
    }
}
