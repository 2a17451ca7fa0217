//! The gate: one atomic word that decides between the last one out and the next one in.
//!
//! ```text
//! | accepted, modulo 2^ACCEPTED_BITS | in flight | WANTED | IDLE | CLOSED |
//! ```
//!
//! The word reads *closed, 0* from the moment when `close` finds nobody in flight, or the last one leaves a closed gate, and
//! for ever after: `enter` refuses that word alone. So exactly one thread, the one whose `leave` or `close` says so, sees the
//! gate drain (S3), and who is refused was never counted (S4).
//!
//! `accepted` wraps. Whoever flips its top bit counts the flip in a word of its own before its `leave`, so that the total is
//! exact once the gate is quiet and can be mended while it is not.

use crate::sync::{AtomicUsize, Ordering, const_unless_loom};

const CLOSED: usize = 1;
/// Somebody waits for the count to reach zero. One shot.
const IDLE: usize = 2;
/// Somebody waits for a place below a limit: who leaves says so, and a newcomer must not overtake.
const WANTED: usize = 4;
const FLAGS: usize = CLOSED | IDLE | WANTED;
const ONE: usize = 8;

const ACCEPTED_BITS: u32 = if cfg!(loom) {
    2
} else if usize::BITS == 64 {
    32
} else {
    10
};
const ACCEPTED_SHIFT: u32 = usize::BITS - ACCEPTED_BITS;
const ACCEPTED_ONE: usize = 1 << ACCEPTED_SHIFT;
/// What is in flight, in units of `ONE`; all ones when the gate is full.
const COUNT: usize = ACCEPTED_ONE - ONE;
const TOP: u32 = usize::BITS - 1;
/// As many as a gate can count.
#[cfg(feature = "std")]
pub(crate) const MOST: usize = COUNT / ONE;

/// Why a gate let nobody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Drained,
    Full,
}

/// What the one that left has to see to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    /// Somebody waits for the place that this one leaves.
    pub(crate) wanted: bool,
    /// Nothing was in flight for an instant, and somebody waits for that: ring.
    pub(crate) idle: bool,
    /// This was the last one out of a closed gate.
    pub(crate) drained: bool,
}

/// The word that one who left has found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before(usize);

/// What one look at a gate saw.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen(usize);

impl Seen {
    pub(crate) fn in_flight(self) -> usize {
        (self.0 & COUNT) / ONE
    }

    /// Accepted so far, modulo 2^`ACCEPTED_BITS`.
    pub(crate) fn accepted(self) -> usize {
        self.0 >> ACCEPTED_SHIFT
    }
}

#[derive(Debug)]
pub(crate) struct Gate {
    word: AtomicUsize,
    /// How often the top bit of *accepted* has flipped.
    flips: AtomicUsize,
}

impl Gate {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self {
                word: AtomicUsize::new(0),
                flips: AtomicUsize::new(0),
            }
        }
    }

    /// Counts one more, unless the gate has drained or is full (S1, S4).
    #[inline]
    pub(crate) fn enter(&self) -> Result<(), Refused> {
        self.enter_if(|word| word & COUNT != COUNT)
    }

    /// Counts one more if fewer than `limit` are in flight, and nobody who waits is overtaken.
    #[cfg(feature = "std")]
    pub(crate) fn enter_below(&self, limit: usize) -> Result<(), Refused> {
        self.enter_if(|word| Seen(word).in_flight() < limit && word & WANTED == 0)
    }

    /// Counts one more, who waited, if fewer than `limit` are in flight.
    #[cfg(feature = "std")]
    pub(crate) fn enter_in_turn(&self, limit: usize) -> Result<(), Refused> {
        self.enter_if(|word| Seen(word).in_flight() < limit)
    }

    /// Relaxed: what the newcomer does is published by its own `leave`.
    #[inline]
    fn enter_if(&self, has_place: impl Fn(usize) -> bool) -> Result<(), Refused> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & (COUNT | CLOSED) == CLOSED {
                return Err(Refused::Drained);
            }
            if !has_place(word) {
                return Err(Refused::Full);
            }
            let next = word.wrapping_add(ACCEPTED_ONE + ONE);
            match self.word.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) if (word ^ next) >> TOP == 0 => return Ok(()),
                Ok(_) => return self.flip(),
                Err(now) => word = now,
            }
        }
    }

    /// Release: who sees the flip sees the entry that flipped (the second look of `Core::is_idle`).
    #[cold]
    #[expect(clippy::unnecessary_wraps, reason = "the tail of `enter`")]
    fn flip(&self) -> Result<(), Refused> {
        self.flips.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Gives one count back; `Some` is for `left`, as somebody may wait for that.
    ///
    /// Release: pairs with the Acquire in `left`, `close` and `look`, so that everything a task did, its destructor and its
    /// outcome included, happened before whoever learns that it is gone (S2, S3).
    #[inline]
    pub(crate) fn leave(&self) -> Option<Before> {
        let before = self.word.fetch_sub(ONE, Ordering::Release);
        debug_assert_ne!(before & COUNT, 0, "left more often than entered");
        (before & FLAGS != 0 && (before & COUNT == ONE || before & WANTED != 0)).then_some(Before(before))
    }

    /// Says what the one that left has to see to.
    pub(crate) fn left(&self, Before(before): Before) -> Left {
        let last = before & COUNT == ONE;
        let left = Left { wanted: before & WANTED != 0, idle: last && before & IDLE != 0, drained: last && before & CLOSED != 0 };
        if left.drained {
            // Pairs with the Release of all who left before. A load, not a fence: ThreadSanitizer does not know fences.
            self.word.load(Ordering::Acquire);
        }
        if left.idle {
            // Cleared before the caller rings: a waiter that comes between sets it again, one that came earlier is rung.
            self.word.fetch_and(!IDLE, Ordering::Relaxed);
        }
        left
    }

    /// Closes the gate; says whether this drained it, which happens at most once.
    ///
    /// Acquire: as in `left`.
    pub(crate) fn close(&self) -> bool {
        self.word.fetch_or(CLOSED, Ordering::Acquire) & (COUNT | CLOSED) == 0
    }

    /// Asks the next one that leaves nobody behind to say so.
    ///
    /// Relaxed: whether it was too late is decided by the look that follows, as the word has one order for all.
    pub(crate) fn ask_idle(&self) {
        self.word.fetch_or(IDLE, Ordering::Relaxed);
    }

    /// Has everyone who leaves from now on say so, and keeps newcomers from overtaking.
    ///
    /// Relaxed: as for `ask_idle`, with the entry in turn that follows; the queue's lock orders the rest.
    #[cfg(feature = "std")]
    pub(crate) fn want_places(&self) {
        self.word.fetch_or(WANTED, Ordering::Relaxed);
    }

    /// Relaxed: the queue's lock is held, as when it was set.
    #[cfg(feature = "std")]
    pub(crate) fn want_no_place(&self) {
        self.word.fetch_and(!WANTED, Ordering::Relaxed);
    }

    /// Acquire: pairs with `leave`, so that who sees a count given back sees what the task did, and its loss counted.
    pub(crate) fn look(&self) -> Seen {
        Seen(self.word.load(Ordering::Acquire))
    }

    /// Acquire: pairs with `flip`.
    pub(crate) fn flips(&self) -> usize {
        self.flips.load(Ordering::Acquire)
    }

    /// How many have been let in, and the look at the word that says so. Never too many.
    ///
    /// The flips are read first, so they may be old by the one that the word shows already; then the parity is wrong by one.
    pub(crate) fn accepted(&self) -> (u64, Seen) {
        let flips = self.flips();
        let seen = self.look();
        let mended = flips + ((flips ^ (seen.0 >> TOP)) & 1);
        let half = 1 << (ACCEPTED_BITS - 1);
        (mended as u64 * half + seen.accepted() as u64 % half, seen)
    }

    /// Opens a drained gate again for the next registry of a pooled core.
    ///
    /// Relaxed: the pool's mutex hands the core over. A swap, as a stray of the last life may yet clear `IDLE`: nothing comes between what
    /// that read and what it wrote, which loom knows of swaps and not of stores.
    #[cfg(feature = "std")]
    pub(crate) fn reset(&self) {
        self.word.swap(0, Ordering::Relaxed);
        self.flips.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn leave(gate: &Gate) -> Option<Left> {
        gate.leave().map(|before| gate.left(before))
    }

    fn gate(word: usize, flips: usize) -> Gate {
        Gate { word: AtomicUsize::new(word), flips: AtomicUsize::new(flips) }
    }

    #[test]
    fn closed_and_empty_is_final() {
        let gate = Gate::new();
        assert_eq!(gate.enter(), Ok(()));
        assert!(!gate.close(), "one is in flight");
        assert_eq!(gate.enter(), Ok(()), "a draining gate still lets in");
        assert_eq!(leave(&gate), None);
        assert_eq!(leave(&gate), Some(Left { wanted: false, idle: false, drained: true }));
        assert_eq!(gate.enter(), Err(Refused::Drained));
        assert!(!gate.close(), "drained once only");
    }

    #[test]
    fn a_full_gate_refuses_and_does_not_overflow() {
        let gate = gate(COUNT, 0);
        assert_eq!(gate.enter(), Err(Refused::Full));
        gate.close();
        assert_eq!(gate.enter(), Err(Refused::Full));
        gate.leave();
        assert_eq!(gate.enter(), Ok(()));
        assert_eq!(gate.look().in_flight(), COUNT / ONE);
    }

    #[test]
    fn accepted_is_exact_across_a_wrap() {
        let half = 1_u64 << (ACCEPTED_BITS - 1);
        let last = gate(usize::MAX << ACCEPTED_SHIFT, 1);
        assert_eq!(last.accepted().0, 2 * half - 1);
        last.enter().unwrap();
        assert_eq!(last.accepted().0, 2 * half);
        last.leave();
        last.enter().unwrap();
        assert_eq!(last.accepted().0, 2 * half + 1);
    }

    #[test]
    fn accepted_is_mended_while_the_flip_is_not_counted_yet() {
        let half = 1_u64 << (ACCEPTED_BITS - 1);
        assert_eq!(gate(1 << TOP, 0).accepted().0, half);
        assert_eq!(gate(0, 1).accepted().0, 2 * half);
    }

    #[test]
    fn whoever_waits_for_a_place_is_not_overtaken() {
        let gate = Gate::new();
        assert_eq!((gate.enter_below(2), gate.enter_below(2)), (Ok(()), Ok(())));
        assert_eq!(gate.enter_below(2), Err(Refused::Full));
        gate.want_places();
        assert_eq!(gate.enter_in_turn(2), Err(Refused::Full));
        assert_eq!(leave(&gate), Some(Left { wanted: true, idle: false, drained: false }));
        assert_eq!(gate.enter_below(2), Err(Refused::Full), "there is a place, and it is wanted");
        assert_eq!(gate.enter_in_turn(2), Ok(()));
        gate.want_no_place();
        assert_eq!(leave(&gate), None);
        assert_eq!(gate.enter_below(2), Ok(()));
    }

    #[test]
    fn idle_is_told_once() {
        let gate = Gate::new();
        gate.enter().unwrap();
        gate.ask_idle();
        assert_eq!(leave(&gate), Some(Left { wanted: false, idle: true, drained: false }));
        gate.enter().unwrap();
        assert_eq!(leave(&gate), None);
    }
}
