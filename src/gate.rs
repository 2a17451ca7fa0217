//! The gate: one atomic word that decides between the last one out and the next one in.
//!
//! ```text
//! | accepted, modulo 2^ACCEPTED_BITS | in flight | DRAINED | WANTED | IDLE | CLOSED |
//! ```
//!
//! To enter is one addition, and what it finds says whether it counts. Whoever empties a closed gate, by `leave` or by `close`, sets
//! DRAINED with a compare-and-swap that fails if somebody has come in since: so exactly one thread sees the gate drain (S3), and
//! whoever comes in later finds it drained and takes back what it added. Such a stray has raised both counts by one, and nobody else is
//! in flight, so `look` can tell and subtracts it: who is refused was never counted (S4).
//!
//! `accepted` wraps. Whoever flips its top bit counts the flip in a word of its own before its `leave`, so that the total is
//! exact once the gate is quiet and can be mended while it is not.

use crate::sync::{AtomicUsize, Ordering, const_unless_loom};
use core::mem::replace;

const CLOSED: usize = 1;
/// Somebody waits for the count to reach zero. One shot.
const IDLE: usize = 2;
/// Somebody waits for a place below a limit: who leaves says so, and a newcomer must not overtake.
const WANTED: usize = 4;
/// Nobody enters any more.
const DRAINED: usize = 8;
const FLAGS: usize = CLOSED | IDLE | WANTED;
const ONE: usize = 16;

/// Of 64 bits it leaves 44 for the count, more than anybody fills: a thread that does nothing but forget guards takes half a day.
const ACCEPTED_BITS: u32 = if cfg!(loom) {
    2
} else if usize::BITS == 64 {
    16
} else {
    8
};
const ACCEPTED_SHIFT: u32 = usize::BITS - ACCEPTED_BITS;
const ACCEPTED_ONE: usize = 1 << ACCEPTED_SHIFT;
/// What is in flight, in units of `ONE`.
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

/// Whether an entry that finds this word flips the top bit of *accepted*.
#[inline]
fn flips(word: usize) -> bool {
    (word ^ word.wrapping_add(ACCEPTED_ONE)) >> TOP != 0
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
    ///
    /// Relaxed: what the newcomer does is published by its own `leave`.
    #[inline]
    pub(crate) fn enter(&self) -> Result<(), Refused> {
        if usize::BITS < 64 {
            return self.enter_after_a_look();
        }
        let before = self.word.fetch_add(ACCEPTED_ONE + ONE, Ordering::Relaxed);
        if before & DRAINED == 0 && !flips(before) { Ok(()) } else { self.entered(before) }
    }

    /// The same for whoever may well be refused, or where the count is so narrow that it may be full: who is refused writes nothing.
    pub(crate) fn enter_after_a_look(&self) -> Result<(), Refused> {
        self.enter_if(|word| word & COUNT != COUNT)
    }

    /// Takes an entry back that found the gate drained, or counts the flip that it was.
    #[cold]
    #[inline(never)]
    fn entered(&self, before: usize) -> Result<(), Refused> {
        if before & DRAINED != 0 {
            self.word.fetch_sub(ACCEPTED_ONE + ONE, Ordering::Relaxed);
            return Err(Refused::Drained);
        }
        self.flip();
        Ok(())
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

    /// Relaxed: as for `enter`.
    fn enter_if(&self, has_place: impl Fn(usize) -> bool) -> Result<(), Refused> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & DRAINED != 0 {
                return Err(Refused::Drained);
            }
            if !has_place(word) {
                return Err(Refused::Full);
            }
            let next = word.wrapping_add(ACCEPTED_ONE + ONE);
            match self.word.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        if flips(word) {
            self.flip();
        }
        Ok(())
    }

    /// Release: who sees the flip sees the entry that flipped (the second look of `RegistryState::is_idle`).
    fn flip(&self) {
        self.flips.fetch_add(1, Ordering::Release);
    }

    /// Gives one count back; `Some` is for `left`, as somebody waits for that or another.
    ///
    /// Release: pairs with the Acquire in `drain` and `look`, so that everything a task did, its destructor and its
    /// outcome included, happened before whoever learns that it is gone (S2, S3).
    #[inline]
    pub(crate) fn leave(&self) -> Option<Before> {
        let before = self.word.fetch_sub(ONE, Ordering::Release);
        debug_assert_ne!(before & COUNT, 0, "left more often than entered");
        (before & FLAGS != 0).then_some(Before(before))
    }

    /// Says what the one that left has to see to.
    pub(crate) fn left(&self, Before(before): Before) -> Left {
        let last = before & COUNT == ONE;
        let left = Left {
            wanted: before & WANTED != 0,
            idle: last && before & IDLE != 0,
            drained: last && before & CLOSED != 0 && self.drain(),
        };
        if left.idle {
            // Cleared before the caller rings: a waiter that comes between sets it again, one that came earlier is rung.
            self.word.fetch_and(!IDLE, Ordering::Relaxed);
        }
        left
    }

    /// Closes the gate; says whether this drained it, which happens at most once.
    ///
    /// Release: who left in a core's last life, and is late, may drain the gate in the place of this one, and must find the core opened.
    pub(crate) fn close(&self) -> bool {
        self.word.fetch_or(CLOSED, Ordering::Release) & COUNT == 0 && self.drain()
    }

    /// Drains a closed gate that nobody is in; says whether this did it.
    ///
    /// Acquire: pairs with the Release of all who left before, and of `close`.
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
        let word = self.word.load(Ordering::Acquire);
        let strays = if word & DRAINED == 0 { 0 } else { Seen(word).in_flight() };
        Seen(word.wrapping_sub(strays.wrapping_mul(ACCEPTED_ONE + ONE)))
    }

    /// Acquire: pairs with `flip`.
    pub(crate) fn flips(&self) -> usize {
        self.flips.load(Ordering::Acquire)
    }

    /// How many have been let in, and the look at the word that says so. Never too many.
    ///
    /// The flip that the word shows may not be counted yet; then the parity is wrong by one.
    pub(crate) fn accepted(&self) -> (u64, Seen) {
        let mut flips = self.flips();
        let seen = loop {
            let seen = self.look();
            let before = replace(&mut flips, self.flips());
            if flips == before {
                break seen;
            }
        };
        let mended = flips.wrapping_add((flips ^ (seen.0 >> TOP)) & 1);
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

    const NOTHING: Left = Left { wanted: false, idle: false, drained: false };

    fn leave(gate: &Gate) -> Left {
        gate.leave().map_or(NOTHING, |before| gate.left(before))
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
        assert_eq!(leave(&gate), NOTHING);
        assert_eq!(leave(&gate), Left { drained: true, ..NOTHING });
        assert_eq!(gate.enter(), Err(Refused::Drained));
        assert!(!gate.close(), "drained once only");
    }

    #[test]
    fn a_full_gate_refuses_and_does_not_overflow() {
        let gate = gate(COUNT, 0);
        assert_eq!(gate.enter_after_a_look(), Err(Refused::Full));
        gate.close();
        assert_eq!(gate.enter_after_a_look(), Err(Refused::Full));
        gate.leave();
        assert_eq!(gate.enter_after_a_look(), Ok(()));
        assert_eq!(gate.look().in_flight(), COUNT / ONE);
    }

    #[test]
    fn a_stray_is_not_seen_and_leaves_nothing() {
        let half = 1 << (ACCEPTED_BITS - 1);
        let gate = gate((half - 1) << ACCEPTED_SHIFT, 0);
        assert!(gate.close());
        let drained = gate.word.load(Ordering::Relaxed);
        assert_eq!(gate.enter(), Err(Refused::Drained));
        assert_eq!(gate.word.load(Ordering::Relaxed), drained);
        // One that flips the top bit, halfway.
        gate.word.fetch_add(ACCEPTED_ONE + ONE, Ordering::Relaxed);
        let (accepted, seen) = gate.accepted();
        assert_eq!((accepted, seen.in_flight()), (half as u64 - 1, 0));
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

    #[cfg(feature = "std")]
    #[test]
    fn whoever_waits_for_a_place_is_not_overtaken() {
        let gate = Gate::new();
        assert_eq!((gate.enter_below(2), gate.enter_below(2)), (Ok(()), Ok(())));
        assert_eq!(gate.enter_below(2), Err(Refused::Full));
        gate.want_places();
        assert_eq!(gate.enter_in_turn(2), Err(Refused::Full));
        assert_eq!(leave(&gate), Left { wanted: true, ..NOTHING });
        assert_eq!(gate.enter_below(2), Err(Refused::Full), "there is a place, and it is wanted");
        assert_eq!(gate.enter_in_turn(2), Ok(()));
        gate.want_no_place();
        assert_eq!(leave(&gate), NOTHING);
        assert_eq!(gate.enter_below(2), Ok(()));
    }

    #[test]
    fn idle_is_told_once() {
        let gate = Gate::new();
        gate.enter().unwrap();
        gate.ask_idle();
        assert_eq!(leave(&gate), Left { idle: true, ..NOTHING });
        gate.enter().unwrap();
        assert_eq!(leave(&gate), NOTHING);
    }
}
