//! Who is in flight, where somebody may ask: a slot for each task that has more to tell than that it is there.
//!
//! A lane has a roster for each label (name, call site, kind) that it has met, and a roster has slots, which are used again: as many as
//! were in flight at once. So a slot's label never changes and is read without care; what changes is a turn's number, its
//! beginning and its flags, and those are atomics. Whoever reads a slot that is not theirs looks at `state` before and after.
//!
//! ```text
//! state: | turn | ABORT | LIVE |     LIVE is set and cleared by the task's token alone, ABORT set by whoever aborts it
//! ```
//!
//! Vacant slots are a stack (Treiber, 1986) of indices; the tag that each pop counts up keeps it from mistaking a head that has
//! gone and come back for one that has stayed.

#![expect(clippy::cast_possible_truncation, reason = "words are taken apart")]

use crate::clock;
use crate::panics::{discard, wake};
use crate::shards::{Line, Post, Tally};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering, lock};
use crate::token::Call;
use crate::{TaskId, TaskInfo};
use core::ptr;
use core::task::Waker;
use std::sync::OnceLock;

/// What the tasks of one call have in common.
#[derive(Clone, Copy)]
pub(crate) struct Label {
    pub(crate) call: Call,
    pub(crate) inspected: bool,
}

impl Label {
    /// By address where that will do: a label that is met at two addresses has two rosters.
    fn is(&self, other: &Self) -> bool {
        let Call { site, name, kind, critical } = self.call;
        let same_name = match (name, other.call.name) {
            (Some(one), Some(two)) => ptr::eq(one, two),
            (one, two) => one.is_none() && two.is_none(),
        };
        let same_flags = (kind, critical, self.inspected) == (other.call.kind, other.call.critical, other.inspected);
        ptr::eq(site, other.call.site) && same_name && same_flags
    }

    /// Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4) of the two addresses.
    fn bucket(&self) -> usize {
        let name = self.call.name.map_or(0, |name| name.as_ptr().addr());
        let address = ptr::from_ref(self.call.site).addr() ^ name.rotate_left(7);
        let hash = (address >> 3).wrapping_mul(0x9E37_79B9);
        (hash >> (u32::BITS - BUCKETS.ilog2())) % BUCKETS
    }
}

const BUCKETS: usize = 64;

/// The rosters of one lane: a table of lists that only grow.
pub(crate) struct Rosters(OnceLock<Box<[Entry]>>);

type Entry = OnceLock<Box<Roster>>;

impl Rosters {
    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// Gives a task of this label a slot.
    pub(crate) fn begin(&'static self, label: Label, tally: &'static Tally) -> &'static Post {
        let buckets = self.0.get_or_init(|| (0..BUCKETS).map(|_| Entry::new()).collect());
        let mut entry = &buckets[label.bucket()];
        loop {
            let roster = entry.get_or_init(|| Box::new(Roster::new(label, tally)));
            if roster.label.is(&label) {
                return roster.begin();
            }
            entry = &roster.next;
        }
    }

    /// All slots that have ever been used.
    pub(crate) fn slots(&'static self) -> impl Iterator<Item = &'static Slot> {
        let buckets = self.0.get().into_iter().flatten();
        let rosters = buckets.flat_map(|entry| core::iter::successors(entry.get(), |roster| roster.next.get()));
        rosters.flat_map(|roster| &roster.chunks).filter_map(OnceLock::get).flatten().filter_map(Post::slot)
    }
}

/// The slots of one label on one lane.
pub(crate) struct Roster {
    label: Label,
    /// Where its tasks are counted.
    tally: &'static Tally,
    /// The top of the stack of vacant slots, as its index and one more, below a tag.
    vacant: Line<AtomicU64>,
    growing: Mutex<()>,
    /// Each twice as long as the one before.
    chunks: [OnceLock<Box<[Post]>>; CHUNKS],
    next: Entry,
}

const CHUNKS: usize = 30;
const FIRST_CHUNK: u32 = if cfg!(loom) { 1 } else { 4 };
const TAG: u64 = 1 << 32;

impl Roster {
    fn new(label: Label, tally: &'static Tally) -> Self {
        Self {
            label,
            tally,
            vacant: Line(AtomicU64::new(0)),
            growing: Mutex::new(()),
            chunks: [const { OnceLock::new() }; CHUNKS],
            next: Entry::new(),
        }
    }

    #[inline]
    fn begin(&'static self) -> &'static Post {
        let post = self.pop().unwrap_or_else(|| self.grow());
        if let Some(slot) = post.slot() {
            slot.begin();
        }
        post
    }

    fn at(&'static self, index: u32) -> Option<&'static Post> {
        let chunk = (index / FIRST_CHUNK + 1).ilog2();
        let first = ((1 << chunk) - 1) * FIRST_CHUNK;
        self.chunks[chunk as usize].get()?.get((index - first) as usize)
    }

    /// Acquire: pairs with `push`, so that a slot's next tenant comes after its last; on success too, should the tag have come full circle.
    fn pop(&'static self) -> Option<&'static Post> {
        let mut head = self.vacant.0.load(Ordering::Acquire);
        loop {
            let index = (head as u32).checked_sub(1)?;
            let post = self.at(index)?;
            // It may have been popped since: then what is read here means nothing, and the tag has moved on.
            let next = post.slot()?.below.load(Ordering::Relaxed);
            let popped = (head & !(TAG - 1)).wrapping_add(TAG) | u64::from(next);
            match self.vacant.0.compare_exchange_weak(head, popped, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(post),
                Err(now) => head = now,
            }
        }
    }

    /// Release: pairs with `pop`.
    fn push(&self, slot: &Slot) {
        let mut head = self.vacant.0.load(Ordering::Relaxed);
        loop {
            slot.below.store(head as u32, Ordering::Relaxed);
            let pushed = head & !(TAG - 1) | u64::from(slot.index + 1);
            match self.vacant.0.compare_exchange_weak(head, pushed, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Makes the next chunk, keeps its first slot and lays the others on the stack. One thread does: the others find what it made.
    #[cold]
    fn grow(&'static self) -> &'static Post {
        let _one = lock(&self.growing);
        if let Some(post) = self.pop() {
            return post;
        }
        let grown = self.chunks.iter().take_while(|chunk| chunk.get().is_some()).count();
        let length = FIRST_CHUNK << grown;
        let first = length - FIRST_CHUNK;
        let slot = |index| Post::beside(self.tally, Slot::new(self, index));
        let posts = self.chunks[grown].get_or_init(|| (first..first + length).map(slot).collect());
        posts[1..].iter().rev().filter_map(Post::slot).for_each(|slot| self.push(slot));
        &posts[0]
    }
}

const LIVE: u64 = 1;
const ABORT: u64 = 2;
const FLAGS: u64 = LIVE | ABORT;
const TURN: u64 = 4;

/// One task's place in a roster.
pub(crate) struct Slot {
    roster: &'static Roster,
    /// No other slot of the program has it.
    number: u32,
    index: u32,
    state: AtomicU64,
    /// When this turn began, by the `clock`.
    began: AtomicU64,
    /// The index, and one more, of the vacant slot under this one.
    below: AtomicU32,
    /// Whether there is a waker to see to at the end; its task's own knowledge.
    parked: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Slot {
    fn new(roster: &'static Roster, index: u32) -> Self {
        Self {
            roster,
            number: number(),
            index,
            state: AtomicU64::new(0),
            began: AtomicU64::new(0),
            below: AtomicU32::new(0),
            parked: AtomicBool::new(false),
            waker: Mutex::new(None),
        }
    }

    #[inline]
    pub(crate) fn tally(&self) -> &'static Tally {
        self.roster.tally
    }

    pub(crate) fn is_critical(&self) -> bool {
        self.roster.label.call.critical
    }

    /// Whether an abort can end its task: such a task is inspected, and has await points.
    #[inline]
    fn can_abort(&self) -> bool {
        let Label { call, inspected } = &self.roster.label;
        *inspected && call.kind.is_abortable()
    }

    /// Release on both: `began` belongs to this turn, so whoever reads it must find the last one over; and whoever finds this turn live
    /// must read its beginning.
    #[inline]
    fn begin(&self) {
        if self.roster.label.inspected {
            self.began.store(clock::now(), Ordering::Release);
        }
        let turn = self.state.load(Ordering::Relaxed) & !FLAGS;
        self.state.store(turn.wrapping_add(TURN) | LIVE, Ordering::Release);
    }

    /// Ends the turn and leaves the slot to the next.
    ///
    /// Release: as in `begin`. A plain store: an abort that comes between the two is over with its task.
    pub(crate) fn end(&self) {
        let state = self.state.load(Ordering::Relaxed);
        self.state.store(state & !FLAGS, Ordering::Release);
        if self.parked.load(Ordering::Relaxed) {
            self.parked.store(false, Ordering::Relaxed);
            let waker = lock(&self.waker).take();
            discard(waker);
        }
        self.roster.push(self);
    }

    /// What is in it now, and when that began, if anything is and stays while this looks.
    ///
    /// Acquire: pairs with the two stores of `begin`, so that the second look at the state finds what the first store follows.
    fn look(&self) -> Option<(u64, u64)> {
        let state = self.state.load(Ordering::Acquire);
        let began = self.began.load(Ordering::Acquire);
        let unchanged = (self.state.load(Ordering::Relaxed) ^ state) & !ABORT == 0;
        (state & LIVE != 0 && unchanged).then_some((state, began))
    }

    fn describe(&self, state: u64, age: Option<u64>) -> TaskInfo {
        let Label { call: Call { site, name, kind, .. }, inspected } = self.roster.label;
        TaskInfo {
            id: inspected.then_some(TaskId { slot: self.number, generation: (state / TURN) as u32 }),
            name,
            location: site,
            kind: inspected.then_some(kind),
            age: age.map(core::time::Duration::from_nanos),
            abort_requested: state & ABORT != 0,
        }
    }

    /// What its own task is, while that is in flight.
    pub(crate) fn info(&self) -> TaskInfo {
        let age = self.roster.label.inspected.then(|| clock::now().saturating_sub(self.began.load(Ordering::Relaxed)));
        self.describe(self.state.load(Ordering::Relaxed), age.filter(|_| clock::IS_THERE))
    }

    /// The inspected task that is in it, if there is one.
    pub(crate) fn task(&self, now: u64) -> Option<TaskInfo> {
        let (state, began) = self.look().filter(|_| self.roster.label.inspected)?;
        Some(self.describe(state, clock::IS_THERE.then(|| now.saturating_sub(began))))
    }

    /// Asks the task in it to abort: one whose id is `id`, or any inspected one. Returns whether it can.
    ///
    /// Acquire, where it says that nothing is there: whoever is told so sees what the task did. Relaxed, where it asks: the waker's lock orders that
    /// with `park`. The waker is of this turn, or of a later one, which is then woken for nothing.
    pub(crate) fn abort(&self, id: Option<TaskId>) -> Option<bool> {
        let is_meant = |state: u64| {
            let turn = TaskId { slot: self.number, generation: (state / TURN) as u32 };
            state & LIVE != 0 && self.roster.label.inspected && id.is_none_or(|id| id == turn)
        };
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            if !is_meant(state) {
                return None;
            }
            match self.state.compare_exchange_weak(state, state | ABORT, Ordering::Relaxed, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => state = now,
            }
        }
        let waker = lock(&self.waker).take();
        wake(waker);
        Some(self.can_abort())
    }

    /// Whether its task is to end at its await point.
    ///
    /// Relaxed: it decides for itself, and the waker's lock orders the look after `park` with an abort.
    #[inline]
    pub(crate) fn must_abort(&self) -> bool {
        self.can_abort() && self.state.load(Ordering::Relaxed) & ABORT != 0
    }

    /// Leaves the waker by which an abort reaches a task that waits. Look afterwards whether there is one.
    pub(crate) fn park(&self, waker: &Waker) {
        if !self.can_abort() {
            return;
        }
        let same = lock(&self.waker).as_ref().is_some_and(|old| old.will_wake(waker));
        if !same {
            let waker = Some(waker.clone());
            self.parked.store(true, Ordering::Relaxed);
            let old = core::mem::replace(&mut *lock(&self.waker), waker);
            drop(old);
        }
    }
}

/// A number that no other slot of the program has (of the last four billion).
fn number() -> u32 {
    use core::sync::atomic::AtomicU32;
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
