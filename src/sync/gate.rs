//! A gate counts the tasks in flight in one atomic word. A task enters the gate when the gate accepts it, and leaves the gate when
//! it ends. If a new task enters while the last task leaves, the modification order of the word decides which of them comes first.
//!
//! ```text
//! bits   high                                                                         low
//!        | accepted, modulo 2^ACCEPTED_BITS | in flight | DRAINED | PERMIT | IDLE | CLOSED |
//! ```
//!
//! To let a task enter, `enter` adds to the word with one `fetch_add`. This operation returns the previous word, which shows
//! whether the gate accepts the task.
//!
//! The shutdown closes the gate, but a closed gate still accepts tasks while it is not empty. A gate drains when it is closed and
//! empty: one thread then sets `DRAINED` with a compare-and-swap. This is the thread whose task leaves a closed gate as the last
//! task, or the thread that closes an empty gate. The compare-and-swap fails if another task has entered or another thread has set
//! `DRAINED`. Therefore exactly one thread drains the gate (invariant S3).
//!
//! If `DRAINED` is set, the gate refuses the task, and `enter` undoes its addition. Until then, each refused task makes the
//! accepted count and the in-flight count too high by one. In a drained gate, no accepted task is in flight. So the in-flight
//! count is exactly the number of refused tasks whose addition is not yet undone. `snapshot` subtracts this number from both
//! counts, so no reader ever sees a refused task (invariant S4).
//!
//! In a registry with a limit, the in-flight count has two halves. A task that holds a permit adds one to the low half. A task
//! without a permit adds one to the high half:
//!
//! ```text
//!        | accepted, modulo 2^ACCEPTED_BITS | without permit | permits | DRAINED | PERMIT | IDLE | CLOSED |
//! ```
//!
//! When a task takes a permit, the gate compares only the low half with the limit. Tasks without a permit therefore do not count
//! towards the limit (invariant S10). The gate drains only when both halves are zero, so the drain also waits for tasks without a
//! permit (invariants S3 and S4).
//!
//! The accepted count has few bits and wraps around. A second atomic word, `wraps`, therefore counts the flips of this count's top
//! bit. The bit flips twice each time that the count wraps around. If a new task flips the bit, the thread that starts the task
//! increments `wraps` before the task leaves the gate. The function `accepted` calculates the total number of accepted tasks from
//! both words. If the bit has flipped, but `wraps` has not been incremented yet, `accepted` corrects the total.

use crate::platform::{AtomicUsize, Ordering, const_unless_loom, reset};
use core::mem::replace;

const CLOSED: usize = 1;
/// A task or thread that waits until the registry is idle sets this bit to request a notification. When the last task leaves the
/// gate, its thread clears the bit and notifies these waiters. While services are in flight, each task that leaves does the same,
/// and so does each service that starts. The waiters then compare the counts, because they do not wait for services.
const IDLE: usize = 2;
/// This bit is set while the wait queue is not empty. If the bit is set, each task that releases a permit wakes the first waiter in
/// the queue. Also, `enter_below` then refuses new tasks, so that no new task overtakes a waiter.
const PERMIT: usize = 4;
/// This bit is set if the gate has drained. A drained gate refuses every new task.
const DRAINED: usize = 8;
const NOTIFY: usize = CLOSED | IDLE | PERMIT;
const ONE: usize = 16;

/// The number of bits of the accepted count. On 64-bit targets, this leaves 44 bits for the in-flight count. Only leaked guards
/// could make 44 bits overflow: a thread that does nothing else would need half a day.
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
/// Each start and each end of a service adds this value to the word `services`, to increment the high half of the word.
const SERVICE_CHANGE: usize = 1 << (usize::BITS / 2);
/// The largest limit on tasks in flight that a gate supports.
pub(crate) const MAX_PERMITS: usize = PERMITS / ONE;

/// Says which gate counts the task that takes a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permit {
    /// The gate that gives the permit also counts the task as accepted.
    Own,
    /// The gate of a child registry counts the task as accepted. The gate that gives the permit counts only the permit, until
    /// [`Gate::leave`] releases it.
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

/// The reason why a gate refused a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Drained,
    Full,
}

/// Lists the actions that the caller must take after a task has left the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Departure {
    /// The caller must wake the first waiter of the wait queue.
    pub(crate) permit: bool,
    /// The caller must notify the tasks and threads that wait until the registry is idle. This field is true only if such a waiter
    /// has requested a notification. Also, either this gate was empty for an instant, or services are in flight in it.
    pub(crate) idle: bool,
    /// The caller must record that this gate has drained.
    pub(crate) drained: bool,
}

/// The gate's word immediately before a task left, and the number that was subtracted from the word.
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

    /// Returns the number of accepted tasks modulo 2^`ACCEPTED_BITS`.
    pub(crate) fn accepted(self) -> usize {
        self.0 >> ACCEPTED_SHIFT
    }
}

/// Returns whether the next task flips the top bit of the accepted count. `word` is the gate's word before the task enters.
#[inline]
fn flips_top_bit(word: usize) -> bool {
    (word ^ word.wrapping_add(ACCEPTED_ONE)) >> TOP != 0
}

#[derive(Debug)]
pub(crate) struct Gate {
    word: AtomicUsize,
    /// The number of times that the top bit of the accepted count has flipped. The bit flips twice each time that the accepted
    /// count wraps around.
    wraps: AtomicUsize,
    /// The low half is the number of services in flight. `word` counts these services too. The high half counts the changes of the
    /// low half, so that `RegistryState::is_idle` detects every change.
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

    /// Counts one more task, unless the gate has drained or is full (invariants S1 and S4).
    ///
    /// A thread that reads the new count does not rely on earlier writes of this thread, so Relaxed is enough. When the task leaves,
    /// the Release in `leave` makes the writes of the task visible.
    #[inline]
    pub(crate) fn enter(&self) -> Result<(), Refused> {
        if usize::BITS < 64 {
            return self.enter_checked();
        }
        let before = self.word.fetch_add(ACCEPTED_ONE + ONE, Ordering::Relaxed);
        if before & DRAINED == 0 && !flips_top_bit(before) { Ok(()) } else { self.finish_entry(before) }
    }

    /// Counts one more task. Unlike `enter`, this function does not write to the word if the gate refuses the task.
    ///
    /// Callers use this function if the gate is likely to refuse the task. On targets with fewer than 64 bits, `enter` always calls
    /// this function, because the in-flight count has fewer bits and can become full.
    pub(crate) fn enter_checked(&self) -> Result<(), Refused> {
        self.enter_if(ACCEPTED_ONE + ONE, |word| word & COUNT != COUNT)
    }

    /// Finishes a call to `enter` whose addition found the word `before`. If the gate had drained, this function undoes the
    /// addition. If not, the addition has flipped the top bit of the accepted count, and this function counts the flip.
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

    /// Counts one more task if fewer than `limit` tasks hold permits. The task holds a permit.
    ///
    /// The caller must hold the lock of the wait queue, and must ensure that the task overtakes no waiter. Either the task is the
    /// first waiter of the queue, or the caller has subtracted the number of waiters from `limit`.
    pub(crate) fn enter_in_turn(&self, limit: usize, permit: Permit) -> Result<(), Refused> {
        self.enter_if(permit.added(), |word| Snapshot(word).permits() < limit)
    }

    /// Counts one more task of a registry with a limit. The task holds no permit, and must leave the gate through
    /// `leave_without_permit`.
    pub(crate) fn enter_without_permit(&self) -> Result<(), Refused> {
        self.enter_if(ACCEPTED_ONE + WITHOUT_PERMIT_ONE, |word| word & WITHOUT_PERMIT != WITHOUT_PERMIT)
    }

    /// Adds `added` to the gate's word if the gate has not drained and `has_space` returns true for the current word.
    ///
    /// A thread that reads the new word does not rely on earlier writes of this thread, so Relaxed is enough. When the task leaves,
    /// the Release in `leave` makes the writes of the task visible.
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
    /// Release pairs with the Acquire in `wraps`: a thread that sees the counted flip also sees the task that flipped the bit. If
    /// `RegistryState::is_idle` has read the counted flip, its next snapshots therefore contain this task.
    fn count_wrap(&self) {
        self.wraps.fetch_add(1, Ordering::Release);
    }

    /// Counts one more accepted task, but does not change the in-flight count, because the new task replaces a task that has ended.
    /// For example, the next run of a service replaces the previous run.
    ///
    /// The ordering is Release, as in `leave`. A thread that sees the new task also sees everything that the ended task did, and
    /// the counted outcome of the ended task.
    pub(crate) fn enter_again(&self) {
        if flips_top_bit(self.word.fetch_add(ACCEPTED_ONE, Ordering::Release)) {
            self.count_wrap();
        }
    }

    /// Counts a task in flight as a service. From now on, `wait_idle` does not wait for this task. Returns whether the caller must
    /// notify the tasks and threads that wait until the registry is idle.
    ///
    /// The first Release pairs with the Acquire in `services`. The second operation, on `word`, can race with a waiter that calls
    /// `request_idle`. If the operation on `word` comes before the request, its Release pairs with the Acquire of the waiter's next
    /// `snapshot`, so the waiter sees the service. If the operation on `word` comes after the request, it finds `IDLE` set, and the
    /// caller notifies the waiter.
    pub(crate) fn begin_service(&self) -> bool {
        self.services.fetch_add(SERVICE_CHANGE + 1, Ordering::Release);
        self.word.fetch_and(!IDLE, Ordering::Release) & IDLE != 0
    }

    /// Stops counting a task as a service. The task is still in flight. When it later leaves the gate, its thread notifies the
    /// tasks and threads that wait until the registry is idle, as for any other task.
    ///
    /// Relaxed is enough for two reasons. First, this operation continues the release sequence of each earlier `begin_service`, so
    /// a thread that reads the new value also sees the start of each counted service. Second, a thread that sees the task leave the
    /// gate also sees this operation.
    pub(crate) fn end_service(&self) {
        self.services.fetch_add(SERVICE_CHANGE - 1, Ordering::Relaxed);
    }

    /// Returns the number of services in flight, and a word that changes each time that this number changes.
    ///
    /// Acquire pairs with the Release in `begin_service`. Therefore the caller's next snapshots contain each counted service as a
    /// task in flight or as a task that has left.
    pub(crate) fn services(&self) -> (usize, usize) {
        let word = self.services.load(Ordering::Acquire);
        (word % SERVICE_CHANGE, word)
    }

    /// Subtracts one task from the in-flight count. Returns `Some` if the gate is closed or a waiter may need a notification. The
    /// caller must then pass the returned word to `depart`.
    ///
    /// Release pairs with the Acquire in `drain` and in `snapshot`. A thread that learns from one of these functions that a task
    /// has left also sees everything that the task did. This includes the task's destructors and its counted outcome (invariants S2
    /// and S3).
    #[inline]
    pub(crate) fn leave(&self) -> Option<PreviousWord> {
        self.leave_by(ONE)
    }

    /// Does the same as `leave`, for a task that entered through `enter_without_permit`.
    pub(crate) fn leave_without_permit(&self) -> Option<PreviousWord> {
        self.leave_by(WITHOUT_PERMIT_ONE)
    }

    #[inline]
    fn leave_by(&self, one: usize) -> Option<PreviousWord> {
        let word = self.word.fetch_sub(one, Ordering::Release);
        debug_assert!(word & COUNT >= one, "more departures than entries");
        (word & NOTIFY != 0).then_some(PreviousWord { word, one })
    }

    /// Returns the actions that the caller of `leave` must take after a task has left. The parameter is the word that `leave`
    /// returned.
    pub(crate) fn depart(&self, PreviousWord { word: before, one }: PreviousWord) -> Departure {
        let last = before & COUNT == one;
        // While services are in flight, each task that leaves wakes all `WaitIdle` futures, and these futures compare the counts.
        // Acquire pairs with the Release in `begin_service`: this thread sees each service that started before a `WaitIdle` future
        // requested the notification.
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
            // `IDLE` must be cleared before the caller notifies the waiters. The notification then reaches all waiters that
            // requested it before `IDLE` was cleared. Each later waiter sets `IDLE` again.
            self.word.fetch_and(!IDLE, Ordering::Relaxed);
        }
        departure
    }

    /// Closes the gate. Returns whether this call set `DRAINED`. Between two calls to `reopen`, exactly one thread sets `DRAINED`.
    ///
    /// Release pairs with the Acquire in `drain`. An earlier registry may have used the state that contains this gate, and a thread
    /// of the earlier registry may be late in its call to `drain`. This thread can then drain the gate of the current registry
    /// before this call does. In this case, the thread must see the state as the current registry prepared it. If this call drains
    /// the gate itself, no other thread drains the gate, so the compare-and-swap needs no Release. Its Acquire has the same purpose
    /// as in `drain`.
    pub(crate) fn close(&self) -> bool {
        // Most gates are empty when they are closed. For an empty gate, one operation both closes and drains the gate.
        let word = self.word.load(Ordering::Relaxed);
        let close = |next| self.word.compare_exchange(word, next, Ordering::Acquire, Ordering::Relaxed).is_ok();
        (word & (COUNT | CLOSED) == 0 && close(word | CLOSED | DRAINED))
            || (self.word.fetch_or(CLOSED, Ordering::Release) & COUNT == 0 && self.drain())
    }

    /// Drains the gate if it is closed and empty. Returns whether this call drained the gate.
    ///
    /// Acquire pairs with the Release in `leave`: the thread that drains the gate sees everything that the earlier tasks did. The
    /// Acquire also pairs with the Release in `close`, as the comment on `close` explains.
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

    /// Requests a notification for the tasks and threads that wait until the registry is idle. When the last task in flight leaves
    /// the gate, it notifies these waiters. While services are in flight, the next task that leaves notifies the waiters, and so
    /// does the next service that starts.
    ///
    /// The word has one modification order. A task that leaves after the request in this order finds `IDLE` set. If a task leaves
    /// before the request, the waiter's next snapshot shows that the task has left.
    ///
    /// Relaxed is enough, although a service may have started before the request. The request and the counts of the gate are in one
    /// atomic word. After the request, the waiter calls `snapshot`, which loads this word with Acquire. The load returns the value
    /// that the request has written, or a later value. Each of these values belongs to the release sequence that the
    /// service's `begin_service` has started, so the load pairs with the Release in `begin_service`. Therefore the waiter sees the
    /// service.
    pub(crate) fn request_idle(&self) {
        self.word.fetch_or(IDLE, Ordering::Relaxed);
    }

    /// Sets the bit `PERMIT`. After this call, each task that releases a permit wakes the first waiter of the wait queue, and
    /// `enter_below` refuses new tasks.
    ///
    /// Relaxed is enough because the word has one modification order. A task that leaves after the request in this order finds `PERMIT`
    /// set. If a task leaves before the request, the next call to `enter_in_turn` finds the released permit. All changes of `PERMIT`
    /// happen under the lock of the wait queue, which orders these changes.
    pub(crate) fn request_permit(&self) {
        self.word.fetch_or(PERMIT, Ordering::Relaxed);
    }

    /// Clears the bit `PERMIT`. After this call, a task that releases a permit no longer wakes a waiter of the wait queue.
    ///
    /// Relaxed is enough because the callers of this function and of `request_permit` hold the lock of the wait queue.
    pub(crate) fn cancel_permit_request(&self) {
        self.word.fetch_and(!PERMIT, Ordering::Relaxed);
    }

    /// Returns the counts of the gate.
    ///
    /// Acquire pairs with the Release in `leave`: a thread that sees that a task has left also sees everything that the task did.
    /// If the task was lost, the thread also sees the counted loss.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let word = self.word.load(Ordering::Acquire);
        let refused = if word & DRAINED == 0 { 0 } else { Snapshot(word).in_flight() };
        Snapshot(word.wrapping_sub(refused.wrapping_mul(ACCEPTED_ONE + ONE)))
    }

    /// Returns the number of flips that `count_wrap` has counted.
    ///
    /// Acquire pairs with the Release in `count_wrap`: a thread that sees a counted flip also sees the task that flipped the bit.
    pub(crate) fn wraps(&self) -> usize {
        self.wraps.load(Ordering::Acquire)
    }

    /// Returns the number of accepted tasks, and the snapshot from which this function computes the number. The number is never too
    /// high.
    ///
    /// The top bit of the snapshot may have flipped although `wraps` does not count this flip yet. In this case, the lowest bit of
    /// `wraps` differs from the top bit of the snapshot, and this function adds the missing flip.
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

    /// Opens a drained gate for the next registry that uses the pooled state.
    ///
    /// Relaxed is enough because of the mutex of the pool: the previous registry puts the state back under this mutex, and the next
    /// registry takes the state under it.
    ///
    /// However, a thread of the previous registry may still be in `depart`, and may clear `IDLE` with a `fetch_and` at the same
    /// time. The function `reset` allows this race.
    pub(crate) fn reopen(&self) {
        reset(&self.word);
        self.wraps.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
