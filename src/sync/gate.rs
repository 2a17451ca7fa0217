//! The gate: one atomic word that decides between the last task to leave and the next one to enter.
//!
//! ```text
//! bits   high                                                                         low
//!        | accepted, modulo 2^ACCEPTED_BITS | in flight | DRAINED | PERMIT | IDLE | CLOSED |
//! ```
//!
//! To enter is one addition. The word that the addition finds says whether the entry counts. The thread that empties a closed gate, by
//! `leave` or by `close`, sets `DRAINED` with a compare-and-swap, which fails if another task has entered meanwhile. So exactly one
//! thread drains the gate (S3). A later entry finds the gate drained and undoes its addition. Until then it has raised both counts by
//! one, and nothing else is in flight, so `snapshot` subtracts such entries: a refused entry is never visible (S4).
//!
//! The count *accepted* wraps. The entry that flips its top bit counts that in a second word, `wraps`, before its task leaves. So the total
//! is exact while nothing enters, and can be corrected while something does.

use crate::platform::{AtomicUsize, Ordering, const_unless_loom};
use core::mem::replace;

const CLOSED: usize = 1;
/// A waiter wants to know when the count reaches zero. The departure that reaches it clears the bit.
const IDLE: usize = 2;
/// The wait queue is not empty: each departure must wake its first waiter, and a new entry must not overtake it.
const PERMIT: usize = 4;
/// No entry succeeds any more.
const DRAINED: usize = 8;
const NOTIFY: usize = CLOSED | IDLE | PERMIT;
const ONE: usize = 16;

/// On 64-bit targets 44 bits remain for the count in flight. A thread that only leaks guards would need half a day to fill them.
const ACCEPTED_BITS: u32 = if cfg!(loom) {
    2
} else if usize::BITS == 64 {
    16
} else {
    8
};
const ACCEPTED_SHIFT: u32 = usize::BITS - ACCEPTED_BITS;
const ACCEPTED_ONE: usize = 1 << ACCEPTED_SHIFT;
/// The bits of the count in flight, which counts in units of `ONE`.
const COUNT: usize = ACCEPTED_ONE - ONE;
const TOP: u32 = usize::BITS - 1;
/// The most entries that a gate can count at the same time.
pub(crate) const MAX_IN_FLIGHT: usize = COUNT / ONE;

/// Why a gate refused an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Drained,
    Full,
}

/// What a departure must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Departure {
    /// Wake the first waiter of the wait queue.
    pub(crate) permit: bool,
    /// Notify the waiters for idleness: nothing was in flight for an instant.
    pub(crate) idle: bool,
    /// Record that this gate has drained.
    pub(crate) drained: bool,
}

/// The word that a departure found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PreviousWord(usize);

/// The counts of a gate at one instant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot(usize);

impl Snapshot {
    pub(crate) fn in_flight(self) -> usize {
        (self.0 & COUNT) / ONE
    }

    /// Returns the number of accepted entries, modulo 2^`ACCEPTED_BITS`.
    pub(crate) fn accepted(self) -> usize {
        self.0 >> ACCEPTED_SHIFT
    }
}

/// Returns whether an entry that finds this word flips the top bit of *accepted*.
#[inline]
fn flips_top_bit(word: usize) -> bool {
    (word ^ word.wrapping_add(ACCEPTED_ONE)) >> TOP != 0
}

#[derive(Debug)]
pub(crate) struct Gate {
    word: AtomicUsize,
    /// How often the top bit of *accepted* has flipped: twice for each time that the count wraps.
    wraps: AtomicUsize,
}

impl Gate {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self {
                word: AtomicUsize::new(0),
                wraps: AtomicUsize::new(0),
            }
        }
    }

    /// Counts one more, unless the gate has drained or is full (S1, S4).
    ///
    /// Relaxed: the `leave` of the same task publishes what the task did.
    #[inline]
    pub(crate) fn enter(&self) -> Result<(), Refused> {
        if usize::BITS < 64 {
            return self.enter_checked();
        }
        let before = self.word.fetch_add(ACCEPTED_ONE + ONE, Ordering::Relaxed);
        if before & DRAINED == 0 && !flips_top_bit(before) { Ok(()) } else { self.finish_entry(before) }
    }

    /// Counts one more, and writes nothing if it refuses.
    ///
    /// For entries that are likely to be refused, and for targets whose count is so narrow that it can be full.
    pub(crate) fn enter_checked(&self) -> Result<(), Refused> {
        self.enter_if(|word| word & COUNT != COUNT)
    }

    /// Undoes an entry that found the gate drained, or counts the flip of the top bit.
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

    /// Counts one more if fewer than `limit` are in flight and the wait queue is empty.
    pub(crate) fn enter_below(&self, limit: usize) -> Result<(), Refused> {
        self.enter_if(|word| Snapshot(word).in_flight() < limit && word & PERMIT == 0)
    }

    /// Counts one more if fewer than `limit` are in flight, for an entry whose turn in the wait queue has come.
    pub(crate) fn enter_in_turn(&self, limit: usize) -> Result<(), Refused> {
        self.enter_if(|word| Snapshot(word).in_flight() < limit)
    }

    /// Relaxed: as for `enter`.
    fn enter_if(&self, has_permit: impl Fn(usize) -> bool) -> Result<(), Refused> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & DRAINED != 0 {
                return Err(Refused::Drained);
            }
            if !has_permit(word) {
                return Err(Refused::Full);
            }
            let next = word.wrapping_add(ACCEPTED_ONE + ONE);
            match self.word.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        if flips_top_bit(word) {
            self.count_wrap();
        }
        Ok(())
    }

    /// Release: a thread that sees the flip sees the entry that flipped the bit. The second snapshot of `RegistryState::is_idle` needs it.
    fn count_wrap(&self) {
        self.wraps.fetch_add(1, Ordering::Release);
    }

    /// Counts one less. Returns the previous word if the caller must pass it to `depart`, because some waiter may need a notification.
    ///
    /// Release: pairs with the Acquire in `drain` and `snapshot`. So everything that the task did, including its destructor and the count
    /// of its outcome, happened before another thread learns that it is gone (S2, S3).
    #[inline]
    pub(crate) fn leave(&self) -> Option<PreviousWord> {
        let before = self.word.fetch_sub(ONE, Ordering::Release);
        debug_assert_ne!(before & COUNT, 0, "more departures than entries");
        (before & NOTIFY != 0).then_some(PreviousWord(before))
    }

    /// Returns what the caller of `leave` must do.
    pub(crate) fn depart(&self, PreviousWord(before): PreviousWord) -> Departure {
        let last = before & COUNT == ONE;
        let departure = Departure {
            permit: before & PERMIT != 0,
            idle: last && before & IDLE != 0,
            drained: last && before & CLOSED != 0 && self.drain(),
        };
        if departure.idle {
            // Cleared before the caller notifies: a later waiter sets the bit again, and an earlier one is notified.
            self.word.fetch_and(!IDLE, Ordering::Relaxed);
        }
        departure
    }

    /// Closes the gate. Returns whether this call drained it. At most one call or departure drains it.
    ///
    /// Release: a late departure of the state's previous life may drain the gate in place of this call. It must then see the gate as it
    /// was reopened.
    pub(crate) fn close(&self) -> bool {
        self.word.fetch_or(CLOSED, Ordering::Release) & COUNT == 0 && self.drain()
    }

    /// Drains a closed and empty gate. Returns whether this call did it.
    ///
    /// Acquire: pairs with the Release of all earlier departures, and of `close`.
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

    /// Makes the next departure that reaches zero notify the waiters for idleness.
    ///
    /// Relaxed: the word has one modification order, and the snapshot that follows decides whether the request came too late.
    pub(crate) fn request_idle(&self) {
        self.word.fetch_or(IDLE, Ordering::Relaxed);
    }

    /// Makes each departure wake a waiter of the wait queue, and new entries queue up.
    ///
    /// Relaxed: as for `request_idle`, decided by the `enter_in_turn` that follows. The lock of the wait queue orders the rest.
    pub(crate) fn request_permit(&self) {
        self.word.fetch_or(PERMIT, Ordering::Relaxed);
    }

    /// Relaxed: the caller holds the lock of the wait queue, as it did in `request_permit`.
    pub(crate) fn cancel_permit_request(&self) {
        self.word.fetch_and(!PERMIT, Ordering::Relaxed);
    }

    /// Acquire: pairs with `leave`. So a thread that sees a task gone sees what the task did, and its loss counted.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let word = self.word.load(Ordering::Acquire);
        let refused = if word & DRAINED == 0 { 0 } else { Snapshot(word).in_flight() };
        Snapshot(word.wrapping_sub(refused.wrapping_mul(ACCEPTED_ONE + ONE)))
    }

    /// Acquire: pairs with `count_wrap`.
    pub(crate) fn wraps(&self) -> usize {
        self.wraps.load(Ordering::Acquire)
    }

    /// Returns how many entries were accepted, and the snapshot that the number comes from. The number is never too high.
    ///
    /// The snapshot can show a flip of the top bit that is not counted yet. Then the parity of `wraps` is wrong, and one is added.
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
    /// Relaxed: the pool's mutex hands the state over. A swap rather than a store, because a late departure of the previous life may still
    /// clear `IDLE`. Nothing can come between its read and its write; loom knows that of swaps but not of stores.
    pub(crate) fn reopen(&self) {
        self.word.swap(0, Ordering::Relaxed);
        self.wraps.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
