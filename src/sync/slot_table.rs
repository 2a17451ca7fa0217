//! The tasks in flight on one shard that have more than a count: a name that observers need, an entry in the list of tasks, or both.
//!
//! Each of them has a slot. Slots are reused and never freed to the allocator, so there are as many as tasks were in flight at the same time.
//!
//! ```text
//! SlotTable, one mutex   rows: what each task is       free ─▶ slot ─▶ slot          taken from here first
//! FreedSlots, one word                                 freed ─▶ slot ─▶ slot ─▶ slot  refills `free` when that is empty
//! ```
//!
//! A task is often started on one thread and ends on another. So its end does not lock the table: it clears `is_live` in the slot and pushes
//! the slot on [`FreedSlots`], a stack from which one operation takes everything (so no slot can come back in the middle of a pop).
//! What the task's own polls need without the lock is in the [`Slot`] as well: whether the task was aborted, and the waker that an abort calls.

use crate::platform::{
    AtomicBool, AtomicUsize, HAS_CLOCK, Mutex, Ordering, SLOTS_PER_CHUNK, UnmodelledAtomicUsize, const_unless_loom, drop_quietly,
    now, wake,
};
use crate::report::{SpawnInfo, TaskId, TaskInfo};
use alloc::{boxed::Box, vec::Vec};
use core::{array, mem::replace, task::Waker, time::Duration};

/// `O` is what a slot belongs to, its shard.
pub(crate) struct SlotTable<O: 'static>(Mutex<Rows<O>>);

#[expect(clippy::vec_box, reason = "growth must not move the rows while the table is locked")]
struct Rows<O: 'static> {
    chunks: Vec<Box<[Row<O>; SLOTS_PER_CHUNK]>>,
    /// The first free row, or `NONE`.
    free: usize,
}

/// Stands for no row. Other values are the row's index plus one.
const NONE: usize = 0;

/// The slots that were freed since the table last took them. Only departures and the table's refill write it.
pub(crate) struct FreedSlots(AtomicUsize);

struct Row<O: 'static> {
    target: &'static TokenTarget<O>,
    /// The last task, which may have ended; see `Slot::is_live`.
    task: Option<Occupant>,
    /// How many tasks this row has had.
    generation: u32,
}

/// The task in a slot.
#[derive(Clone, Copy)]
struct Occupant {
    info: SpawnInfo,
    /// When the task started, if it is inspected.
    started: Option<u64>,
    abort_requested: bool,
}

/// What a token points to: the owner that counts the task, and the task's slot if it has one.
pub(crate) struct TokenTarget<O: 'static> {
    pub(crate) owner: &'static O,
    pub(crate) slot: Option<Slot>,
}

pub(crate) struct Slot {
    row: usize,
    /// Unique in the program.
    number: u32,
    /// Whether the task is in flight. Set under the table's lock, cleared by the task's token.
    is_live: AtomicBool,
    /// Whether the task can be aborted. Written before the task starts.
    is_abortable: AtomicBool,
    is_aborted: AtomicBool,
    /// Whether a waker was stored. Only the task itself reads and writes it.
    has_waker: AtomicBool,
    /// The next row in the list or stack that the slot is in.
    next: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

impl FreedSlots {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(AtomicUsize::new(NONE))
        }
    }

    /// Frees the slot of a task that has ended.
    pub(crate) fn push(&self, slot: &'static Slot) {
        if slot.has_waker.load(Ordering::Relaxed) {
            slot.has_waker.store(false, Ordering::Relaxed);
            drop_quietly(slot.waker.with(Option::take));
        }
        // Release: pairs with the Acquire in `Row::is_live`. So a thread that learns that a task is not in flight sees what it did (S2).
        slot.is_live.store(false, Ordering::Release);
        let mut head = self.0.load(Ordering::Relaxed);
        loop {
            slot.next.store(head, Ordering::Relaxed);
            // Release: pairs with `take_all`, so that a slot's next task comes after its last one (S9).
            match self.0.compare_exchange_weak(head, slot.row + 1, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes the whole stack. Returns its first row, or `NONE`.
    ///
    /// Acquire: pairs with `push`.
    fn take_all(&self) -> usize {
        self.0.swap(NONE, Ordering::Acquire)
    }
}

impl<O> SlotTable<O> {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Rows { chunks: Vec::new(), free: NONE }))
        }
    }

    /// Gives a task a slot.
    pub(crate) fn insert(
        &self,
        freed: &FreedSlots,
        owner: &'static O,
        info: SpawnInfo,
        is_inspected: bool,
    ) -> &'static TokenTarget<O> {
        let occupant = Occupant { info, started: is_inspected.then(now), abort_requested: false };
        self.0.with(|rows| {
            let row = rows.take_free(freed, owner);
            row.generation = row.generation.wrapping_add(1);
            row.task = Some(occupant);
            // Relaxed: the table's lock orders what others read, and the spawner hands the task over.
            let slot = row.slot();
            slot.is_abortable.store(is_inspected && info.kind.is_abortable(), Ordering::Relaxed);
            slot.is_aborted.store(false, Ordering::Relaxed);
            slot.is_live.store(true, Ordering::Relaxed);
            row.target
        })
    }

    /// Returns what is known of the task in a slot, for the task's own token: it is in flight, so the row is its own.
    pub(crate) fn info(&self, slot: &'static Slot) -> Option<TaskInfo> {
        let now = now();
        self.0.with(|rows| rows.row(slot.row).info(now))
    }

    pub(crate) fn is_critical(&self, slot: &'static Slot) -> bool {
        self.0.with(|rows| rows.row(slot.row).task.is_some_and(|task| task.info.critical))
    }

    /// Appends the inspected tasks.
    pub(crate) fn list(&self, now: u64, tasks: &mut Vec<TaskInfo>) {
        self.0.with(|rows| {
            let live = rows.iter_mut().filter(|row| row.is_live());
            tasks.extend(live.filter_map(|row| row.info(now)).filter(|task| task.id.is_some()));
        });
    }

    /// Aborts the inspected tasks, or only the one with that id. Calls `found` for each, with whether it can be aborted.
    pub(crate) fn abort(&self, id: Option<TaskId>, mut found: impl FnMut(bool)) {
        let mut aborted = Vec::new();
        self.0.with(|rows| {
            for row in rows.iter_mut().filter(|row| row.is_live() && id.is_none_or(|id| id == row.id())) {
                let slot = row.slot();
                let Some(task) = row.task.as_mut().filter(|task| task.started.is_some()) else { continue };
                task.abort_requested = true;
                let is_abortable = task.info.kind.is_abortable();
                if is_abortable {
                    slot.is_aborted.store(true, Ordering::Relaxed);
                    aborted.push(slot);
                }
                found(is_abortable);
            }
        });
        // The waker belongs to the aborted task, or to a later one in its slot. The latter is woken without need.
        for slot in aborted {
            wake(slot.waker.with(Option::take));
        }
    }
}

impl<O> Rows<O> {
    fn row(&mut self, row: usize) -> &mut Row<O> {
        &mut self.chunks[row / SLOTS_PER_CHUNK][row % SLOTS_PER_CHUNK]
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Row<O>> {
        self.chunks.iter_mut().flat_map(|chunk| chunk.iter_mut())
    }

    /// Takes a row from the free list, which the freed slots refill, or else a new chunk.
    fn take_free(&mut self, freed: &FreedSlots, owner: &'static O) -> &mut Row<O> {
        if self.free == NONE {
            self.free = freed.take_all();
        }
        if self.free == NONE {
            self.free = self.grow(owner);
        }
        let taken = self.free - 1;
        // Relaxed: `take_all` acquired the links of freed slots.
        self.free = self.row(taken).slot().next.load(Ordering::Relaxed);
        self.row(taken)
    }

    /// Adds a chunk. Returns its first row, which links to the others.
    #[cold]
    fn grow(&mut self, owner: &'static O) -> usize {
        let first = self.chunks.len() * SLOTS_PER_CHUNK;
        let last = first + SLOTS_PER_CHUNK - 1;
        self.chunks.push(Box::new(array::from_fn(|i| {
            let row = first + i;
            Row::new(owner, row, if row == last { NONE } else { row + 2 })
        })));
        first + 1
    }
}

impl<O> Row<O> {
    fn new(owner: &'static O, row: usize, next: usize) -> Self {
        let target = TokenTarget { owner, slot: Some(Slot::new(row, next)) };
        Self { target: Box::leak(Box::new(target)), task: None, generation: 0 }
    }

    /// Acquire: pairs with `FreedSlots::push`.
    fn is_live(&self) -> bool {
        self.slot().is_live.load(Ordering::Acquire)
    }

    fn slot(&self) -> &'static Slot {
        self.target.slot.as_ref().expect("each row has a slot")
    }

    fn id(&self) -> TaskId {
        TaskId { slot: self.slot().number, generation: self.generation }
    }

    fn info(&self, now: u64) -> Option<TaskInfo> {
        let Occupant { info, started, abort_requested } = self.task?;
        let age = started.filter(|_| HAS_CLOCK).map(|started| Duration::from_nanos(now.saturating_sub(started)));
        Some(TaskInfo {
            id: started.map(|_| self.id()),
            name: info.name,
            location: info.location,
            kind: started.map(|_| info.kind),
            age,
            abort_requested,
        })
    }
}

impl Slot {
    fn new(row: usize, next: usize) -> Self {
        Self {
            row,
            number: next_number(),
            is_live: AtomicBool::new(false),
            is_abortable: AtomicBool::new(false),
            is_aborted: AtomicBool::new(false),
            has_waker: AtomicBool::new(false),
            next: AtomicUsize::new(next),
            waker: Mutex::new(None),
        }
    }

    /// Returns whether the task must end at its await point (L3).
    ///
    /// Relaxed: the lock of the waker orders the check after [`store_waker`](Self::store_waker) with an abort.
    #[inline]
    pub(crate) fn is_aborted(&self) -> bool {
        self.is_aborted.load(Ordering::Relaxed)
    }

    /// Stores the waker that an abort calls. The caller checks [`is_aborted`](Self::is_aborted) afterwards.
    pub(crate) fn store_waker(&self, waker: &Waker) {
        if !self.is_abortable.load(Ordering::Relaxed) {
            return;
        }
        if !self.waker.with(|stored| stored.as_ref().is_some_and(|stored| stored.will_wake(waker))) {
            let waker = Some(waker.clone());
            self.has_waker.store(true, Ordering::Relaxed);
            let replaced = self.waker.with(|stored| replace(stored, waker));
            drop(replaced);
        }
    }
}

/// Returns a number that no other slot has, among the last 2³².
#[expect(clippy::cast_possible_truncation, reason = "the number wraps at 2³²")]
fn next_number() -> u32 {
    static NEXT: UnmodelledAtomicUsize = UnmodelledAtomicUsize::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) as u32
}
