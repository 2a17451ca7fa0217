//! A slot table stores details of tasks. Each shard of a registry has one slot table. Most tasks are only counted and have no slot.
//!
//! A task gets a slot in six cases:
//!
//! - The task has a name, and the registry may report this name: it has observers, or a loss can start its shutdown.
//! - The task is critical: the loss of this task starts the shutdown.
//! - The registry is inspected: the program can list and abort its tasks.
//! - The registry has a limit, but the task holds no permit.
//! - The task belongs to a child registry, and holds a permit of an ancestor.
//! - The task is a guard, and its thread was already panicking when it took the guard.
//!
//! Each of these tasks occupies one slot while it is in flight. The table never frees the memory of a slot, but reuses the slot for
//! a later task. The number of slots therefore never grows far beyond the largest number of tasks that occupied slots at the same
//! time.
//!
//! ```text
//! SlotTable, one mutex   rows: one task in each        free ─▶ slot ─▶ slot          `insert` takes from this list
//! FreedSlots, one word                                freed ─▶ slot ─▶ slot ─▶ slot  refills `free` when `free` is empty
//! ```
//!
//! A task often starts on one thread and ends on another thread. If both threads locked the table, they would often have to wait
//! for each other. Therefore a task does not lock the table to free its slot. Instead, the task's token clears `is_live` in the
//! slot and pushes the slot on the stack [`FreedSlots`]. The table never pops a single slot, but takes the whole stack in one
//! atomic operation. This avoids the ABA problem. When a task ends, it locks the table only to report its loss, or to report its
//! completion to an observer that observes every task.
//!
//! Each slot has two parts. The `Row` describes the task, and the lock of the table protects it. The [`Slot`] stores the abort
//! state, and the waker that an abort calls. The polls of the task read the `Slot` without the lock of the table.

use crate::platform::{
    AtomicBool, AtomicUsize, HAS_CLOCK, Mutex, Ordering, SLOTS_PER_CHUNK, UnmodelledAtomicUsize, const_unless_loom, drop_quietly,
    now, wake,
};
use crate::report::{SpawnInfo, TaskId, TaskInfo, TaskKind};
use alloc::{boxed::Box, vec::Vec};
use core::{array, mem::replace, task::Waker, time::Duration};

/// The slots of one shard. The type `O` is the type of the shard, which owns the slots.
pub(crate) struct SlotTable<O: 'static>(Mutex<Rows<O>>);

#[expect(clippy::vec_box, reason = "growth must not move the rows while the table is locked")]
struct Rows<O: 'static> {
    chunks: Vec<Box<[Row<O>; SLOTS_PER_CHUNK]>>,
    /// The start of the free list, which links the free rows. This field is one more than the index of the first free row, because
    /// 0 means that there is no free row ([`NONE`]).
    free: usize,
}

/// Every link to a row is one more than the index of the row. This value means that there is no row.
const NONE: usize = 0;

/// A stack of the slots that were freed since the last call to `take_all`. This word is the link to the first row of the stack.
pub(crate) struct FreedSlots(AtomicUsize);

struct Row<O: 'static> {
    target: &'static TokenTarget<O>,
    slot: &'static Slot,
    /// The task that occupied this slot most recently. `Slot::is_live` says whether this task is still in flight.
    task: Option<Occupant>,
    /// The number of tasks that have occupied this slot, modulo 2³².
    generation: u32,
}

/// The task that occupies a slot.
#[derive(Clone, Copy)]
struct Occupant {
    info: SpawnInfo,
    /// The time at which the task started, or `None` if the task is not inspected.
    started: Option<u64>,
    abort_requested: bool,
}

/// The data that a task's token refers to: the shard that counts the task, and the task's slot if the task has a slot.
pub(crate) struct TokenTarget<O: 'static> {
    pub(crate) owner: &'static O,
    pub(crate) slot: Option<&'static Slot>,
}

pub(crate) struct Slot {
    row: usize,
    /// Identifies this slot in the program; see [`next_number`].
    number: u32,
    /// Whether the task is in flight. The table sets this flag under its lock. The task's token clears the flag without the lock.
    is_live: AtomicBool,
    /// One of the values [`NOT_ABORTABLE`], [`ABORTABLE`] and [`ABORTED`]. The table writes this word before the task starts. After
    /// the task has started, this word changes at most once, from `ABORTABLE` to one of the other values.
    abort_state: AtomicUsize,
    /// One of the values of [`PermitKind`]. The table writes this word before the task starts.
    permit: AtomicUsize,
    /// Whether a waker was stored. Only the task itself reads and writes this flag.
    has_waker: AtomicBool,
    /// The link to the next row in the free list or in the stack, or [`NONE`] if there is no next row.
    next: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

/// With this value, an abort does not end the task. Either the task is not inspected, or it is a guard, a tracked future, a child
/// registry, or a blocking closure that has started.
const NOT_ABORTABLE: usize = 0;
const ABORTABLE: usize = 1;
const ABORTED: usize = 2;

const WITHOUT: usize = PermitKind::Without as usize;
const OF_ANCESTOR: usize = PermitKind::OfAncestor as usize;

/// Says which permit the task in a slot holds. A task must leave its gate in a different way for each kind of permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PermitKind {
    /// The registry has no limit, or the task holds a permit of the registry's own gate.
    Own,
    /// The registry has a limit, and the task entered the gate without a permit.
    Without,
    /// The task holds a permit of an ancestor's gate.
    OfAncestor,
}

impl FreedSlots {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self(AtomicUsize::new(NONE))
        }
    }

    /// Frees the slot of a task that has ended.
    pub(crate) fn push(&self, slot: &'static Slot) {
        slot.drop_waker();
        // Release pairs with the Acquire in `Row::is_live`: a thread that sees that a task has ended also sees everything that the
        // task did (invariant S2).
        slot.is_live.store(false, Ordering::Release);
        let mut head = self.0.load(Ordering::Relaxed);
        loop {
            slot.next.store(head, Ordering::Relaxed);
            // Release pairs with the Acquire in `take_all`: the end of the slot's previous task happens before the start of the
            // slot's next task (invariant S9).
            match self.0.compare_exchange_weak(head, slot.row + 1, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes the whole stack. Returns the link to the stack's first row, or `NONE` if the stack is empty.
    ///
    /// Acquire pairs with the Release in `push`: the caller sees everything that the ended tasks did.
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

    /// Assigns a slot to a task. The closure `is_aborting` returns whether `or_abort` has already aborted the tasks of the
    /// registry. If it returns true, the new task is aborted before its first poll, unless the task is not inspected or not
    /// abortable.
    ///
    /// This function calls the closure under the lock of the table. If `or_abort` aborts the tasks after this call, it finds this
    /// task in the table (invariant L3).
    pub(crate) fn insert(
        &self,
        freed: &FreedSlots,
        owner: &'static O,
        info: SpawnInfo,
        permit: PermitKind,
        is_inspected: bool,
        is_aborting: impl FnOnce() -> bool,
    ) -> &'static TokenTarget<O> {
        let started = is_inspected.then(now);
        self.0.with(|rows| {
            let row = rows.take_free(freed, owner);
            let abort_requested = is_inspected && is_aborting();
            row.generation = row.generation.wrapping_add(1);
            row.task = Some(Occupant { info, started, abort_requested });
            // Relaxed is enough: other threads read these words under the table's lock. The spawner passes the task to its thread,
            // which makes the words visible to this thread.
            let slot = row.slot;
            let abort_state = match abort_requested {
                _ if !is_inspected || !info.kind.is_abortable() => NOT_ABORTABLE,
                true => ABORTED,
                false => ABORTABLE,
            };
            slot.abort_state.store(abort_state, Ordering::Relaxed);
            slot.permit.store(permit as usize, Ordering::Relaxed);
            slot.is_live.store(true, Ordering::Relaxed);
            row.target
        })
    }

    /// Returns the description of the task in a slot. The caller must ensure that the task is in flight, so that the row still
    /// describes this task.
    pub(crate) fn info(&self, slot: &'static Slot) -> Option<TaskInfo> {
        let now = now();
        self.0.with(|rows| rows.row(slot.row).info(now))
    }

    /// Returns the `SpawnInfo` that was passed to [`insert`](Self::insert) for the task in a slot. The caller must ensure that the
    /// task is in flight.
    pub(crate) fn spawn_info(&self, slot: &'static Slot) -> Option<SpawnInfo> {
        self.0.with(|rows| rows.row(slot.row).task.map(|task| task.info))
    }

    /// Appends the inspected tasks of this shard to `tasks`.
    pub(crate) fn list(&self, now: u64, tasks: &mut Vec<TaskInfo>) {
        self.0.with(|rows| {
            let live = rows.iter_mut().filter(|row| row.is_live());
            tasks.extend(live.filter_map(|row| row.info(now)).filter(|task| task.id.is_some()));
        });
    }

    /// Aborts all inspected tasks, or only the task with the given ID. Calls the closure `found` once for each of these tasks. The
    /// argument of `found` says whether the abort ends the task.
    pub(crate) fn abort(&self, id: Option<TaskId>, mut found: impl FnMut(bool)) {
        let mut aborted = Vec::new();
        self.0.with(|rows| {
            // An abort of all tasks skips the entries of child registries. The tasks of a child are in the child's own table, and
            // the caller aborts them there.
            let is_meant = |row: &&mut Row<O>| row.is_live() && id.map_or_else(|| !row.is_child(), |id| id == row.id());
            for row in rows.iter_mut().filter(is_meant) {
                let Some(is_aborted) = row.abort() else { continue };
                if is_aborted {
                    aborted.push(row.slot);
                }
                found(is_aborted);
            }
        });
        // The aborted task may have ended in the meantime, and the stored waker may belong to a later task in the same slot. An
        // unneeded wake-up of the later task is harmless.
        for slot in aborted {
            wake(slot.waker.with(Option::take));
        }
    }

    /// Returns the ID of the task in a slot, or `None` if the task is not inspected. The caller must ensure that the task is in
    /// flight.
    pub(crate) fn id(&self, slot: &'static Slot) -> Option<TaskId> {
        self.0.with(|rows| {
            let row = rows.row(slot.row);
            row.task.filter(|task| task.started.is_some()).map(|_| row.id())
        })
    }

    /// Aborts the task with the given ID if it still occupies the slot. This function works like [`abort`](Self::abort) with an ID,
    /// but reads only the row of this slot.
    pub(crate) fn abort_in_slot(&self, slot: &'static Slot, id: TaskId) {
        let is_aborted = self.0.with(|rows| {
            let row = rows.row(slot.row);
            row.is_live() && row.id() == id && row.abort() == Some(true)
        });
        if is_aborted {
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

    /// Takes a row from the free list. If the free list is empty, this function first refills the list with the slots that tasks
    /// have freed. If tasks have freed no slots, it allocates a new chunk.
    fn take_free(&mut self, freed: &FreedSlots, owner: &'static O) -> &mut Row<O> {
        if self.free == NONE {
            self.free = freed.take_all();
        }
        if self.free == NONE {
            self.free = self.grow(owner);
        }
        let taken = self.free - 1;
        // Relaxed is enough because the Acquire in `take_all` makes the links of freed slots visible.
        self.free = self.row(taken).slot.next.load(Ordering::Relaxed);
        self.row(taken)
    }

    /// Adds a chunk of free rows, and links each row to the next row. Returns the link to the first new row.
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
        let slot = &*Box::leak(Box::new(Slot::new(row, next)));
        Self { target: Box::leak(Box::new(TokenTarget { owner, slot: Some(slot) })), slot, task: None, generation: 0 }
    }

    /// Returns whether the task that occupied this slot most recently is still in flight.
    ///
    /// Acquire pairs with the Release in `FreedSlots::push`: a thread that sees that a task has ended also sees everything that the
    /// task did (invariant S2).
    fn is_live(&self) -> bool {
        self.slot.is_live.load(Ordering::Acquire)
    }

    fn is_child(&self) -> bool {
        self.task.is_some_and(|task| task.info.kind == TaskKind::Child)
    }

    /// Aborts the task. Returns whether the abort ends the task, or `None` if the task is not inspected.
    fn abort(&mut self) -> Option<bool> {
        let task = self.task.as_mut().filter(|task| task.started.is_some())?;
        task.abort_requested = true;
        Some(self.slot.abort())
    }

    fn id(&self) -> TaskId {
        TaskId { slot: self.slot.number, generation: self.generation }
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
            is_abortable: self.slot.is_abortable(),
            parent: None,
        })
    }
}

impl Slot {
    fn new(row: usize, next: usize) -> Self {
        Self {
            row,
            number: next_number(),
            is_live: AtomicBool::new(false),
            abort_state: AtomicUsize::new(NOT_ABORTABLE),
            permit: AtomicUsize::new(PermitKind::Own as usize),
            has_waker: AtomicBool::new(false),
            next: AtomicUsize::new(next),
            waker: Mutex::new(None),
        }
    }

    /// Returns whether the task must end. An aborted future ends at its await point. An aborted blocking closure never starts
    /// (invariant L3).
    ///
    /// Relaxed is enough because an abort writes this word before it locks the mutex of the waker. If
    /// [`store_waker`](Self::store_waker) locks that mutex after the abort, the next call to `is_aborted` sees the abort. If
    /// `store_waker` locks the mutex first, the abort finds the stored waker and calls it.
    #[inline]
    pub(crate) fn is_aborted(&self) -> bool {
        self.abort_state.load(Ordering::Relaxed) == ABORTED
    }

    /// Returns whether the task can be aborted or was aborted.
    pub(crate) fn is_abortable(&self) -> bool {
        self.abort_state.load(Ordering::Relaxed) != NOT_ABORTABLE
    }

    /// Aborts the task. Returns whether this abort or an earlier abort ends the task.
    ///
    /// Relaxed is enough. If an abort races with the start of a blocking closure, the modification order of this word alone decides
    /// which of them comes first; see [`disable_abort`](Self::disable_abort).
    fn abort(&self) -> bool {
        let previous = self.abort_state.compare_exchange(ABORTABLE, ABORTED, Ordering::Relaxed, Ordering::Relaxed);
        previous != Err(NOT_ABORTABLE)
    }

    /// Prevents later aborts of the task. Returns true if the task was already aborted.
    ///
    /// The task of a blocking closure calls this function before the closure starts. Either an abort changes the word first, or
    /// this call does. Therefore, if an abort has reported a closure as aborted, this closure never starts (invariant L3).
    pub(crate) fn disable_abort(&self) -> bool {
        let previous = self.abort_state.compare_exchange(ABORTABLE, NOT_ABORTABLE, Ordering::Relaxed, Ordering::Relaxed);
        previous == Err(ABORTED)
    }

    /// Returns which permit the task holds.
    ///
    /// Relaxed is enough because the table writes this word before the task starts, and only the task's token reads it.
    pub(crate) fn permit(&self) -> PermitKind {
        match self.permit.load(Ordering::Relaxed) {
            WITHOUT => PermitKind::Without,
            OF_ANCESTOR => PermitKind::OfAncestor,
            _ => PermitKind::Own,
        }
    }

    /// Drops the task's waker. The task has stored it so that an abort by the registry can wake the task. Only the token of a task
    /// that has ended calls this function.
    pub(crate) fn drop_waker(&self) {
        if self.has_waker.load(Ordering::Relaxed) {
            self.has_waker.store(false, Ordering::Relaxed);
            drop_quietly(self.waker.with(Option::take));
        }
    }

    /// Stores the waker that an abort calls. The caller must call [`is_aborted`](Self::is_aborted) after this call.
    pub(crate) fn store_waker(&self, waker: &Waker) {
        if !self.is_abortable() {
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

/// Returns a number that identifies a new slot. The numbers repeat only after 2³² new slots.
#[expect(clippy::cast_possible_truncation, reason = "the number wraps at 2³²")]
fn next_number() -> u32 {
    static NEXT: UnmodelledAtomicUsize = UnmodelledAtomicUsize::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) as u32
}

#[cfg(all(test, not(loom)))]
mod tests;
