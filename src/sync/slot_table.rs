//! The tasks in flight on one shard that have more than a count: a name that observers need, an entry in the list of tasks, or both.
//!
//! Each of them has a slot. Slots are reused and never freed, so there are as many as tasks were in flight at the same time. What the table
//! stores of a task is protected by the table's lock. What the task's own polls need, without that lock, is in the [`Slot`]: whether the
//! task was aborted, and the waker that an abort calls.

use crate::platform::{
    AtomicBool, HAS_CLOCK, Mutex, Ordering, SLOTS_PER_CHUNK, UnmodelledAtomicUsize, const_unless_loom, drop_quietly, now, wake,
};
use crate::report::{SpawnInfo, TaskId, TaskInfo};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::array;
use core::mem::replace;
use core::task::Waker;
use core::time::Duration;

/// `O` is what a slot belongs to, its shard.
pub(crate) struct SlotTable<O: 'static>(Mutex<Rows<O>>);

struct Rows<O: 'static> {
    /// In chunks, so that growth moves no row.
    chunks: Vec<Box<[Row<O>; SLOTS_PER_CHUNK]>>,
    /// The first free row. If all are occupied, it is the first row of the next chunk.
    free_head: usize,
}

struct Row<O: 'static> {
    target: &'static TokenTarget<O>,
    task: Option<Occupant>,
    /// How many tasks this row has had.
    generation: u32,
    next_free: usize,
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
    /// Whether the task can be aborted. Its token writes it before the task starts.
    is_abortable: AtomicBool,
    is_aborted: AtomicBool,
    /// Whether a waker was stored. Only the task itself reads and writes it.
    has_waker: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl<O> SlotTable<O> {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(Mutex::new(Rows { chunks: Vec::new(), free_head: 0 }))
        }
    }

    /// Gives a task a slot.
    pub(crate) fn insert(&self, owner: &'static O, info: SpawnInfo, is_inspected: bool) -> &'static TokenTarget<O> {
        let occupant = Occupant { info, started: is_inspected.then(now), abort_requested: false };
        let is_abortable = is_inspected && info.kind.is_abortable();
        self.0.with(|rows| rows.insert(owner, occupant, is_abortable))
    }

    /// Frees the slot of a task that has ended.
    pub(crate) fn remove(&self, slot: &'static Slot) {
        if slot.has_waker.load(Ordering::Relaxed) {
            slot.has_waker.store(false, Ordering::Relaxed);
            drop_quietly(slot.waker.with(Option::take));
        }
        self.0.with(|rows| {
            let free_head = replace(&mut rows.free_head, slot.row);
            let row = rows.row(slot.row);
            row.task = None;
            row.next_free = free_head;
        });
    }

    /// Returns what is known of the task in a slot, for the task's own token.
    pub(crate) fn info(&self, slot: &'static Slot) -> Option<TaskInfo> {
        let now = now();
        self.0.with(|rows| rows.row(slot.row).info(now))
    }

    pub(crate) fn is_critical(&self, slot: &'static Slot) -> bool {
        self.0.with(|rows| rows.row(slot.row).task.is_some_and(|task| task.info.critical))
    }

    /// Appends the inspected tasks.
    pub(crate) fn list(&self, now: u64, tasks: &mut Vec<TaskInfo>) {
        self.0.with(|rows| tasks.extend(rows.iter_mut().filter_map(|row| row.info(now)).filter(|task| task.id.is_some())));
    }

    /// Aborts the inspected tasks, or only the one with that id. Calls `found` for each, with whether it can be aborted.
    pub(crate) fn abort(&self, id: Option<TaskId>, mut found: impl FnMut(bool)) {
        let mut aborted = Vec::new();
        self.0.with(|rows| {
            for row in rows.iter_mut().filter(|row| id.is_none_or(|id| id == row.id())) {
                let (slot, Some(task)) = (row.slot(), &mut row.task) else { continue };
                if task.started.is_none() {
                    continue;
                }
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

    fn insert(&mut self, owner: &'static O, occupant: Occupant, is_abortable: bool) -> &'static TokenTarget<O> {
        let number = self.free_head;
        if number == self.chunks.len() * SLOTS_PER_CHUNK {
            self.chunks.push(Box::new(array::from_fn(|i| Row::new(owner, number + i))));
        }
        let row = self.row(number);
        let next_free = row.next_free;
        row.generation = row.generation.wrapping_add(1);
        row.task = Some(occupant);
        let (target, slot) = (row.target, row.slot());
        // Relaxed, as everything here: the lock orders the slot's tasks, and the spawner hands the task over.
        slot.is_abortable.store(is_abortable, Ordering::Relaxed);
        slot.is_aborted.store(false, Ordering::Relaxed);
        self.free_head = next_free;
        target
    }
}

impl<O> Row<O> {
    fn new(owner: &'static O, row: usize) -> Self {
        let target = TokenTarget { owner, slot: Some(Slot::new(row)) };
        Self { target: Box::leak(Box::new(target)), task: None, generation: 0, next_free: row + 1 }
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
    fn new(row: usize) -> Self {
        Self {
            row,
            number: next_number(),
            is_abortable: AtomicBool::new(false),
            is_aborted: AtomicBool::new(false),
            has_waker: AtomicBool::new(false),
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
