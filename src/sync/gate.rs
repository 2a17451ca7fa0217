//! A gate counts the tasks in flight in one atomic word. A departure of the last task may race with a new entry. The modification
//! order of the word decides which of the two comes first.
//!
//! ```text
//! bits   high                                                                         low
//!        | accepted, modulo 2^ACCEPTED_BITS | in flight | DRAINED | PERMIT | IDLE | CLOSED |
//! ```
//!
//! An entry is one `fetch_add`. The previous word, which `fetch_add` returns, shows whether the gate accepts the entry. When the
//! last task leaves a closed gate, the departure sets `DRAINED` with a compare-and-swap. If the gate is already empty when it is
//! closed, `close` sets `DRAINED` in the same way. The compare-and-swap fails if another task has entered or another thread has set
//! `DRAINED`. Therefore exactly one thread drains the gate (S3).
//!
//! An entry that finds `DRAINED` set is refused and undoes its addition. Until the undo, each refused entry makes the accepted
//! count and the in-flight count too high by one. A drained gate has no accepted task in flight, so its whole in-flight count
//! consists of refused entries. `snapshot` subtracts them, so no reader ever sees a refused entry (S4).
//!
//! In a registry with a limit, the in-flight count has two halves. A task that holds a permit adds one to the low half. A task
//! without a permit adds one to the high half:
//!
//! ```text
//!        | accepted, modulo 2^ACCEPTED_BITS | without permit | permits | DRAINED | PERMIT | IDLE | CLOSED |
//! ```
//!
//! An entry that takes a permit compares only the low half with the limit, so the limit is exact (S10). The gate drains when both
//! halves are zero, so a task without a permit keeps the gate open for all tasks (S3, S4).
//!
//! The accepted count wraps. An entry that flips the top bit of the accepted count increments a second word, `wraps`, before its
//! task leaves. The two words together give the total number of accepted entries. The total is exact while no task enters. While
//! tasks enter, the function `accepted` corrects the total.

use crate::platform::{AtomicUsize, Ordering, const_unless_loom, reset};
use core::mem::replace;

const CLOSED: usize = 1;
/// A waiter has requested a notification about idleness. The departure that makes the in-flight count zero clears this bit.
/// While services are in flight, each departure and each start of a service clears it.
const IDLE: usize = 2;
/// The wait queue is not empty. While this bit is set, each departure that releases a permit wakes the first waiter in the queue. A
/// new entry that takes a permit must not overtake any waiter.
const PERMIT: usize = 4;
/// The gate has drained and refuses every entry.
const DRAINED: usize = 8;
const NOTIFY: usize = CLOSED | IDLE | PERMIT;
const ONE: usize = 16;

/// On 64-bit targets the in-flight count has 44 bits. A thread that does nothing but leak guards would need half a day to make a
/// count of 44 bits overflow.
const ACCEPTED_BITS: u32 = if cfg!(loom) {
    2
} else if usize::BITS == 64 {
    16
} else {
    8
};
const ACCEPTED_SHIFT: u32 = usize::BITS - ACCEPTED_BITS;
const ACCEPTED_ONE: usize = 1 << ACCEPTED_SHIFT;
/// This mask selects the in-flight count. `ONE` is the lowest bit of the count.
const COUNT: usize = ACCEPTED_ONE - ONE;
const TOP: u32 = usize::BITS - 1;
/// In a registry with a limit, each half of the in-flight count has this many bits.
const HALF_BITS: u32 = (ACCEPTED_SHIFT - ONE.trailing_zeros()) / 2;
const WITHOUT_PERMIT_ONE: usize = ONE << HALF_BITS;
/// This mask selects the low half of the in-flight count.
const PERMITS: usize = WITHOUT_PERMIT_ONE - ONE;
/// This mask selects the high half of the in-flight count.
const WITHOUT_PERMIT: usize = COUNT - PERMITS;
/// One change of the number of services, in the high half of the word that counts services.
const SERVICE_CHANGE: usize = 1 << (usize::BITS / 2);
/// The largest limit that a gate can count to.
pub(crate) const MAX_PERMITS: usize = PERMITS / ONE;

/// Says who counts the task that takes a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permit {
    /// The gate counts the task as accepted.
    Own,
    /// The gate of a child counts the task. This gate counts only the permit, until [`Gate::leave`] releases it.
    Lent,
}

impl Permit {
    #[inline]
    fn added(self) -> usize {
        match self {
            Self::Own => ACCEPTED_ONE + ONE,
            Self::Lent => ONE,
        }
    }
}

/// The reason why a gate refused an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Drained,
    Full,
}

/// The actions that the caller must take after a departure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Departure {
    /// The caller must wake the first waiter of the wait queue.
    pub(crate) permit: bool,
    /// The caller must notify the tasks and threads that wait for idleness, because for an instant this gate had no task in
    /// flight, or because it counts services.
    pub(crate) idle: bool,
    /// The caller must record that this gate has drained.
    pub(crate) drained: bool,
}

/// The gate's word immediately before a departure, and what the departure subtracts from the word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PreviousWord {
    word: usize,
    one: usize,
}

/// The counts of a gate at one instant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot(usize);

impl Snapshot {
    /// Returns the number of tasks in flight in a registry without a limit. In a registry with a limit, the result is zero if and
    /// only if no task is in flight.
    pub(crate) fn in_flight(self) -> usize {
        (self.0 & COUNT) / ONE
    }

    /// Returns the number of tasks in flight in a registry with a limit.
    pub(crate) fn in_flight_with_limit(self) -> usize {
        self.permits() + (self.0 & WITHOUT_PERMIT) / WITHOUT_PERMIT_ONE
    }

    /// Returns the number of tasks that hold a permit.
    pub(crate) fn permits(self) -> usize {
        (self.0 & PERMITS) / ONE
    }

    pub(crate) fn is_drained(self) -> bool {
        self.0 & DRAINED != 0
    }

    /// Returns the number of accepted entries modulo 2^`ACCEPTED_BITS`.
    pub(crate) fn accepted(self) -> usize {
        self.0 >> ACCEPTED_SHIFT
    }
}

/// Returns whether an entry flips the top bit of the accepted count. `word` is the gate's word before the entry.
#[inline]
fn flips_top_bit(word: usize) -> bool {
    (word ^ word.wrapping_add(ACCEPTED_ONE)) >> TOP != 0
}

#[derive(Debug)]
pub(crate) struct Gate {
    word: AtomicUsize,
    /// The number of times that the top bit of the accepted count has flipped. The bit flips twice each time that the accepted
    /// count wraps.
    wraps: AtomicUsize,
    /// The number of services in flight, which also count in `word`. The high half counts the changes of the low half, so that
    /// `RegistryState::is_idle` notices every change.
    services: AtomicUsize,
}

impl Gate {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self {
                word: AtomicUsize::new(0),
                wraps: AtomicUsize::new(0),
                services: AtomicUsize::new(0),
            }
        }
    }

    /// Counts one more task, unless the gate has drained or is full (S1, S4).
    ///
    /// Relaxed is enough because an entry publishes nothing. The Release in `leave` publishes the writes of the task.
    #[inline]
    pub(crate) fn enter(&self) -> Result<(), Refused> {
        if usize::BITS < 64 {
            return self.enter_checked();
        }
        let before = self.word.fetch_add(ACCEPTED_ONE + ONE, Ordering::Relaxed);
        if before & DRAINED == 0 && !flips_top_bit(before) { Ok(()) } else { self.finish_entry(before) }
    }

    /// Counts one more task. Unlike `enter`, this function writes nothing if the gate refuses the entry.
    ///
    /// Callers use this function for entries that are likely to be refused. Targets with fewer than 64 bits use it for all entries,
    /// because their narrow in-flight count can become full.
    pub(crate) fn enter_checked(&self) -> Result<(), Refused> {
        self.enter_if(ACCEPTED_ONE + ONE, |word| word & COUNT != COUNT)
    }

    /// Finishes an entry that found the word `before`. If the gate had drained, this function undoes the entry. Otherwise the entry
    /// has flipped the top bit of the accepted count, and this function counts the flip.
    #[cold]
    #[inline(never)]
    fn finish_entry(&self, before: usize) -> Result<(), Refused> {
        if before & DRAINED != 0 {
            self.word.fetch_sub(ACCEPTED_ONE + ONE, Ordering::Relaxed);
            return Err(Refused::Drained);
        }
        self.count_wrap();
        Ok(())
    }

    /// Counts one more task if fewer than `limit` tasks hold permits and the wait queue is empty. The task holds a permit.
    #[inline]
    pub(crate) fn enter_below(&self, limit: usize, permit: Permit) -> Result<(), Refused> {
        self.enter_if(permit.added(), |word| Snapshot(word).permits() < limit && word & PERMIT == 0)
    }

    /// Counts one more task if fewer than `limit` tasks hold permits. The task holds a permit. The caller holds the lock of the
    /// wait queue, and has chosen `limit` and the task so that the entry overtakes no waiter.
    pub(crate) fn enter_in_turn(&self, limit: usize, permit: Permit) -> Result<(), Refused> {
        self.enter_if(permit.added(), |word| Snapshot(word).permits() < limit)
    }

    /// Counts one more task of a registry with a limit. The task holds no permit, and must leave by `leave_without_permit`.
    pub(crate) fn enter_without_permit(&self) -> Result<(), Refused> {
        self.enter_if(ACCEPTED_ONE + WITHOUT_PERMIT_ONE, |word| word & WITHOUT_PERMIT != WITHOUT_PERMIT)
    }

    /// Counts one more task by adding `added` if the gate has not drained and `has_space` returns true for the current word.
    ///
    /// Relaxed is enough because an entry publishes nothing. The Release in `leave` publishes the writes of the task.
    fn enter_if(&self, added: usize, has_space: impl Fn(usize) -> bool) -> Result<(), Refused> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & DRAINED != 0 {
                return Err(Refused::Drained);
            }
            if !has_space(word) {
                return Err(Refused::Full);
            }
            let next = word.wrapping_add(added);
            match self.word.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        if (word ^ word.wrapping_add(added)) >> TOP != 0 {
            self.count_wrap();
        }
        Ok(())
    }

    /// Counts a flip of the top bit of the accepted count.
    ///
    /// Release pairs with the Acquire in `wraps`: a thread that sees the counted flip also sees the entry that flipped the bit.
    /// `RegistryState::is_idle` relies on this pair when it takes its second snapshot.
    fn count_wrap(&self) {
        self.wraps.fetch_add(1, Ordering::Release);
    }

    /// Counts one task as ended, and another task as entered in its place. The in-flight count does not change.
    ///
    /// Release, as in `leave`: a thread that sees the new task also sees everything that the ended task did, and the count of its
    /// outcome.
    pub(crate) fn enter_again(&self) {
        if flips_top_bit(self.word.fetch_add(ACCEPTED_ONE, Ordering::Release)) {
            self.count_wrap();
        }
    }

    /// Counts a task in flight as a service, which waiters for idleness ignore. Returns whether the caller must notify these waiters.
    ///
    /// The first Release pairs with the Acquire in `services`. The second operation on `word` decides between this call and a waiter
    /// that requests a notification. If this call comes first, its Release pairs with the Acquire in `request_idle`, so the waiter
    /// sees the service. Otherwise this call finds `IDLE` set.
    pub(crate) fn begin_service(&self) -> bool {
        self.services.fetch_add(SERVICE_CHANGE + 1, Ordering::Release);
        self.word.fetch_and(!IDLE, Ordering::Release) & IDLE != 0
    }

    /// Stops counting a task as a service. The task is still in flight, and its departure notifies the waiters for idleness.
    pub(crate) fn end_service(&self) {
        self.services.fetch_add(SERVICE_CHANGE - 1, Ordering::Release);
    }

    /// Returns the number of services in flight, and the word that differs after each change of this number.
    ///
    /// Acquire pairs with the Release in `begin_service` and `end_service`: the snapshots that the caller takes next contain the
    /// entry of each counted service.
    pub(crate) fn services(&self) -> (usize, usize) {
        let word = self.services.load(Ordering::Acquire);
        (word % SERVICE_CHANGE, word)
    }

    /// Subtracts one task from the in-flight count. Returns `Some` if a waiter may need a notification or the gate is closed. The
    /// caller must pass the returned word to `depart`.
    ///
    /// Release pairs with the Acquire in `drain` and in `snapshot`. A thread that sees the departure in one of these functions also
    /// sees everything that the task did. This includes the task's destructor and the count of the task's outcome (S2, S3).
    #[inline]
    pub(crate) fn leave(&self) -> Option<PreviousWord> {
        self.leave_by(ONE)
    }

    /// Subtracts a task that entered by `enter_without_permit`. Otherwise this function does what `leave` does.
    pub(crate) fn leave_without_permit(&self) -> Option<PreviousWord> {
        self.leave_by(WITHOUT_PERMIT_ONE)
    }

    #[inline]
    fn leave_by(&self, one: usize) -> Option<PreviousWord> {
        let word = self.word.fetch_sub(one, Ordering::Release);
        debug_assert!(word & COUNT >= one, "more departures than entries");
        (word & NOTIFY != 0).then_some(PreviousWord { word, one })
    }

    /// Returns the actions that the caller of `leave` must take after the departure. The parameter is the word that `leave`
    /// returned.
    pub(crate) fn depart(&self, PreviousWord { word: before, one }: PreviousWord) -> Departure {
        let last = before & COUNT == one;
        // While services are in flight, each departure notifies, and the waiters compare the counts. The Acquire pairs with the
        // Release in `begin_service`: this thread sees each service that started before the request for the notification.
        let may_be_idle = || {
            last || {
                self.word.load(Ordering::Acquire);
                self.services().0 != 0
            }
        };
        let departure = Departure {
            permit: one == ONE && before & PERMIT != 0,
            idle: before & IDLE != 0 && may_be_idle(),
            drained: last && before & CLOSED != 0 && self.drain(),
        };
        if departure.idle {
            // Clear `IDLE` before the caller notifies. A waiter that comes after the clearing sets `IDLE` again. The notification
            // reaches all waiters that came before.
            self.word.fetch_and(!IDLE, Ordering::Relaxed);
        }
        departure
    }

    /// Closes the gate. Returns whether this call set `DRAINED`. Between two calls of `reopen`, exactly one thread sets `DRAINED`.
    ///
    /// Release pairs with the Acquire in `drain`. The state that contains this gate may have belonged to an earlier registry. A
    /// task of the earlier registry may call `drain` so late that it drains the gate for the current registry, before this call
    /// does. The thread of that task must then see the state as the current registry prepared it. Acquire, as in `drain`.
    pub(crate) fn close(&self) -> bool {
        // Most gates are empty. One operation closes and drains such a gate.
        let word = self.word.load(Ordering::Relaxed);
        let close = |next| self.word.compare_exchange(word, next, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        (word & (COUNT | CLOSED) == 0 && close(word | CLOSED | DRAINED))
            || (self.word.fetch_or(CLOSED, Ordering::Release) & COUNT == 0 && self.drain())
    }

    /// Drains the gate if it is closed and empty. Returns whether this call drained the gate.
    ///
    /// Acquire pairs with the Release in `leave`: the thread that drains the gate sees everything that the departed tasks did. The
    /// Acquire also pairs with the Release in `close`; the comment on `close` explains why.
    fn drain(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & (COUNT | DRAINED | CLOSED) == CLOSED {
            match self.word.compare_exchange_weak(word, word | DRAINED, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Requests a notification of the tasks and threads that wait for idleness. The next departure that makes the in-flight
    /// count zero notifies them. While services are in flight, the next departure or the next start of a service does.
    ///
    /// The word has one modification order. A departure that comes after the request in this order finds `IDLE` set. A departure that
    /// comes before the request is visible in the snapshot that the waiter takes next. Acquire pairs with the Release in
    /// `begin_service`.
    pub(crate) fn request_idle(&self) {
        self.word.fetch_or(IDLE, Ordering::Acquire);
    }

    /// Makes each departure that releases a permit wake the first waiter of the wait queue, and makes `enter_below` refuse new
    /// entries.
    ///
    /// Relaxed is enough because the word has one modification order. A departure that comes after the request in this order finds
    /// `PERMIT` set. A departure that comes before the request is visible to the call of `enter_in_turn` that follows the request.
    /// The lock of the wait queue orders all other accesses to `PERMIT`.
    pub(crate) fn request_permit(&self) {
        self.word.fetch_or(PERMIT, Ordering::Relaxed);
    }

    /// Makes departures stop waking waiters of the wait queue.
    ///
    /// Relaxed is enough because callers hold the lock of the wait queue both here and in `request_permit`.
    pub(crate) fn cancel_permit_request(&self) {
        self.word.fetch_and(!PERMIT, Ordering::Relaxed);
    }

    /// Returns the counts of the gate.
    ///
    /// Acquire pairs with the Release in `leave`: a thread that sees a task's departure also sees everything that the task did. If
    /// the task counts as a loss, the thread also sees that count.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let word = self.word.load(Ordering::Acquire);
        let refused = if word & DRAINED == 0 { 0 } else { Snapshot(word).in_flight() };
        Snapshot(word.wrapping_sub(refused.wrapping_mul(ACCEPTED_ONE + ONE)))
    }

    /// Returns the number of counted flips of the top bit.
    ///
    /// Acquire pairs with the Release in `count_wrap`: a thread that sees a counted flip also sees the entry that flipped the bit.
    pub(crate) fn wraps(&self) -> usize {
        self.wraps.load(Ordering::Acquire)
    }

    /// Returns the number of accepted entries, and the snapshot from which this function computes the number. The number is never
    /// too high.
    ///
    /// The snapshot can contain a flip of the top bit that `wraps` does not count yet. In this case, the lowest bit of `wraps`
    /// differs from the top bit of the snapshot, and this function adds the missing flip.
    pub(crate) fn accepted(&self) -> (u64, Snapshot) {
        let mut wraps = self.wraps();
        let snapshot = loop {
            let snapshot = self.snapshot();
            let before = replace(&mut wraps, self.wraps());
            if wraps == before {
                break snapshot;
            }
        };
        let corrected = wraps.wrapping_add((wraps ^ (snapshot.0 >> TOP)) & 1);
        let half = 1 << (ACCEPTED_BITS - 1);
        (corrected as u64 * half + snapshot.accepted() as u64 % half, snapshot)
    }

    /// Opens a drained gate for the next registry of a pooled state.
    ///
    /// Relaxed is enough because of the mutex of the pool: everything that the previous registry did with the state happens before
    /// the next registry takes the state.
    ///
    /// A late departure of a task of the previous registry may still clear `IDLE` with a `fetch_and`.
    pub(crate) fn reopen(&self) {
        reset(&self.word);
        self.wraps.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
