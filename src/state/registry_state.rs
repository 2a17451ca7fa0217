//! Defines the data of one registry. Most of the data is divided into shards, and each thread uses one shard.

use super::observers::Observers;
use super::settings::{ActiveSettings, OBSERVED};
use crate::platform::{
    AtomicUsize, CachePadded, LifeCheck, Mutex, Once, Ordering, const_unless_loom, per_thread, shard_count, thread_number,
};
use crate::report::{ServiceInfo, TaskInfo};
use crate::sync::child_list::ChildList;
use crate::sync::slot_table::{FreedSlots, SlotTable, TokenTarget};
use crate::sync::{
    gate::Gate,
    notifier::Notifier,
    slab::Key,
    wait_list::{MARGIN, WaitList},
    wait_queue::WaitQueue,
};
use alloc::{boxed::Box, vec::Vec};
use core::{array, cell::Cell, fmt, ptr};

/// The state of a registry that is stored in a `static`. Pass this state to [`Registry::in_static`](crate::Registry::in_static).
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "tokio")] {
/// use background_tasks::{Registry, RegistryState, TokioSpawner};
///
/// static STATE: RegistryState = RegistryState::new();
/// static TASKS: Registry<TokioSpawner> = Registry::in_static(&STATE, TokioSpawner);
/// # assert_eq!(TASKS.in_flight(), 0);
/// # }
/// ```
pub struct RegistryState {
    /// The phase is even while the registry is open, and odd after its shutdown has started. A state in a pool serves several
    /// registries, one after another. Each of these registries has two phase values that no other registry of this state has.
    pub(super) phase: AtomicUsize,
    pub(super) origin: Origin,
    /// One [`TokenTarget`] for each shard. If a task has no slot, its token points to the element for the task's shard.
    targets: Once<Box<[TokenTarget<Shard>]>>,
    pub(super) settings: ActiveSettings,
    shared: Once<&'static Shared>,
}

/// Says what owns the state of a registry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A `static` of the program owns the state. Such a state does not count its handles.
    Static,
    /// The pool for registries without a parent owns the state. Such a state has `shard_count` shards.
    Pooled,
    /// The pool for child registries owns the state. Such a state has only one shard, and its parts are not padded to whole cache
    /// lines, to save memory.
    Child,
}

/// Contains the fields that all threads share and that change rarely.
pub(super) struct Shared {
    /// The number of handles of the registry. The count starts at 1, because a new registry has one handle. The shutdown starts
    /// when the last handle is dropped.
    pub(super) handles: AtomicUsize,
    /// The number of references. The state stays out of the pool while references exist:
    ///
    /// - All handles together have one reference.
    /// - All gates together have one reference until the drain has been reported.
    /// - Each [`StateRef`](super::StateRef) has one reference.
    /// - If this registry is a root with observers, each of its descendants has one reference, until the descendant's state is back
    ///   in the pool.
    pub(super) references: AtomicUsize,
    /// Stores the progress of the drain: the bits [`WAITED`], [`SIGNALLED`] and [`DRAINED`], and the number of completed events in
    /// units of [`EVENT`]; see `count_drain_event`.
    pub(super) drained: AtomicUsize,
    /// Notifies the tasks and threads that wait until the registry has drained or is idle.
    pub(super) notifier: Notifier,
    pub(super) family: Mutex<Family>,
    rare: Once<Box<Rare>>,
    pub(super) life: LifeCheck,
}

/// This bit is set if a future or a thread may wait for the drain.
pub(super) const WAITED: usize = 1;
/// In a child, this bit is set if a shutdown signal may have stored its waker in the child's wait list. A root does not use this
/// bit.
pub(super) const SIGNALLED: usize = 2;
/// This bit is set if the registry has drained.
pub(super) const DRAINED: usize = 4;
/// A root adds this value to the word `drained` for each event of its drain; see `count_drain_event`.
pub(super) const EVENT: usize = 8;

/// Stores the parent and the root of a child registry. The root is the ancestor that has no parent. In the state of a root, both
/// fields are `None`.
pub(super) struct Family {
    /// The root, and the phase that the root has while it is open. After the child has drained, the root's state may serve another
    /// registry. In this case, the state has a different phase.
    pub(super) root: Option<(&'static RegistryState, usize)>,
    /// The parent of the child, or `None` if the child has drained.
    pub(super) parent: Option<Parent>,
}

/// Says where a parent counts and lists a child.
pub(super) struct Parent {
    /// The target of the token that counts the child as in flight in the parent.
    pub(super) target: &'static TokenTarget<Shard>,
    /// The key of the child in its parent's list of children.
    pub(super) key: Key,
    /// The nearest ancestor that has a limit. This field is `None` if the child has its own limit or if no ancestor has a limit.
    pub(super) limiter: Option<&'static RegistryState>,
}

/// An entry in a parent's list of the children that have not drained.
pub(super) struct ListedChild {
    pub(super) state: &'static RegistryState,
    /// Whether the child was made after the shutdown of its parent had started. Such a child stays open even if another call shuts
    /// the parent down.
    pub(super) stays_open: bool,
}

/// Contains the fields that few registries need, such as the wait queue of a limit.
pub(super) struct Rare {
    pub(super) wait_queue: WaitQueue,
    /// The number of permits of this registry that tasks of its descendants hold. This number is incremented after a task has taken
    /// a permit, and decremented before the task releases the permit.
    pub(super) lent: AtomicUsize,
    pub(super) observers: Observers,
    /// The services in flight, in the order of their starts.
    pub(super) services: Mutex<Vec<Service>>,
    pub(super) start: Mutex<ShutdownStart>,
}

pub(super) struct ShutdownStart {
    /// The time at which the shutdown started, from `platform::now`. Only a registry with observers sets this field.
    pub(super) at: u64,
    /// The task whose loss started the shutdown, or `None` if no loss started the shutdown.
    pub(super) cause: Option<TaskInfo>,
}

pub(super) struct Service {
    /// Identifies the service in the list of services.
    pub(super) number: u64,
    pub(super) target: &'static TokenTarget<Shard>,
    pub(super) info: ServiceInfo,
}

/// A shard is a part of a registry's state that only a few threads use. There is no counter for completed tasks: their number is
/// the accepted count minus the tasks in flight and the lost tasks.
pub(crate) struct Shard {
    gate: Gate,
    /// The number of losses for each variant of `Lost`, in the order of the variants.
    pub(super) losses: [AtomicUsize; 5],
    /// The number of tasks that all drained children of this shard have accepted, minus the number of these children. The
    /// subtraction is needed because the gate counts each child as an accepted task. If the result is negative, this number wraps
    /// around.
    pub(super) folded: AtomicUsize,
    /// The slots of tasks that have ended. This field shares cache lines with the gate, because a task with a slot writes both
    /// fields when it ends.
    pub(super) freed: FreedSlots,
    state: &'static RegistryState,
    /// The lists are on other cache lines than the gate, because one thread can write the gate while another thread writes the
    /// lists. For example, a task leaves the gate while another thread registers a signal (invariant H2).
    lists: &'static Lists,
}

pub(super) struct Lists {
    signals: WaitList,
    slots: SlotTable<Shard>,
    children: ChildList<ListedChild>,
}

/// The outcomes for which each shard has a counter.
#[derive(Clone, Copy)]
pub(super) enum Lost {
    Failed,
    Panicked,
    Abandoned,
    Aborted,
    Rejected,
}

impl Shard {
    fn new(state: &'static RegistryState) -> Self {
        let losses = array::from_fn(|_| AtomicUsize::new(0));
        let lists = Lists { signals: WaitList::new(), slots: SlotTable::new(), children: ChildList::new() };
        let lists = state.leak(lists);
        Self { gate: Gate::new(), losses, folded: AtomicUsize::new(0), freed: FreedSlots::new(), state, lists }
    }

    #[inline]
    pub(super) fn state(&self) -> &'static RegistryState {
        self.state
    }

    #[inline]
    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Counts a loss or a rejection.
    ///
    /// Relaxed is enough for a loss, because the same thread calls `Gate::leave` or `Gate::enter_again` afterwards. The Release in
    /// these functions makes the increment visible to readers of the gate. Relaxed is enough for a rejection, because no thread
    /// relies on the order of rejections.
    pub(super) fn count(&self, lost: Lost) {
        self.losses[lost as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the list in which this shard stores waiting shutdown signals.
    pub(super) fn signals(&self) -> &'static WaitList {
        &self.lists.signals
    }

    pub(super) fn children(&self) -> &'static ChildList<ListedChild> {
        &self.lists.children
    }

    /// Returns the number of tasks that this shard and the drained children of this shard have accepted, modulo 2^`usize::BITS`.
    #[expect(clippy::cast_possible_truncation, reason = "the number wraps around")]
    pub(super) fn accepted(&self) -> usize {
        (self.gate.accepted().0 as usize).wrapping_add(self.folded.load(Ordering::Relaxed))
    }

    pub(super) fn slots(&self) -> &'static SlotTable<Self> {
        &self.lists.slots
    }
}

impl RegistryState {
    const_unless_loom! {
        /// Returns a new state, for a registry that lives as long as the program.
        ///
        /// The state serves only one registry and is never reused. After the shutdown of this registry, the state stays drained.
        #[expect(clippy::new_without_default, reason = "a static cannot call `default`")]
        pub const fn new() -> Self {
            Self::with_origin(Origin::Static)
        }
    }

    const_unless_loom! {
        pub(super) const fn with_origin(origin: Origin) -> Self {
            Self {
                phase: AtomicUsize::new(0),
                origin,
                targets: Once::new(),
                settings: ActiveSettings::new(),
                shared: Once::new(),
            }
        }
    }

    pub(super) fn shared(&'static self) -> &'static Shared {
        self.shared.get_or_init(|| {
            let shared = Shared {
                handles: AtomicUsize::new(1),
                references: AtomicUsize::new(2),
                drained: AtomicUsize::new(0),
                notifier: Notifier::new(),
                family: Mutex::new(Family { root: None, parent: None }),
                rare: Once::new(),
                life: LifeCheck::new(),
            };
            self.leak(shared)
        })
    }

    /// Leaks a part of this state. If the state does not belong to a child, the part gets its own cache lines.
    fn leak<T>(&self, part: T) -> &'static T {
        if self.is_child() { Box::leak(Box::new(part)) } else { &Box::leak(Box::new(CachePadded(part))).0 }
    }

    pub(super) fn is_child(&self) -> bool {
        self.origin == Origin::Child
    }

    pub(super) fn rare(&'static self) -> &'static Rare {
        self.shared().rare.get_or_init(|| {
            Box::new(Rare {
                wait_queue: WaitQueue::new(),
                lent: AtomicUsize::new(0),
                observers: Observers::new(),
                services: Mutex::new(Vec::new()),
                start: Mutex::new(ShutdownStart { at: 0, cause: None }),
            })
        })
    }

    /// Returns the fields that few registries use, or `None` if no registry with this state has used them.
    pub(super) fn used_rare(&'static self) -> Option<&'static Rare> {
        self.shared().rare.get().map(|rare| &**rare)
    }

    pub(super) fn shards(&'static self) -> impl Iterator<Item = &'static Shard> {
        self.targets().iter().map(|target| target.owner)
    }

    pub(super) fn targets(&'static self) -> &'static [TokenTarget<Shard>] {
        self.targets.get_or_init(|| {
            if self.is_child() {
                return Box::new([TokenTarget { owner: self.leak(Shard::new(self)), slot: None }]);
            }
            let shards: Box<[_]> = (0..shard_count()).map(|_| CachePadded(Shard::new(self))).collect();
            Box::leak(shards).iter().map(|shard| TokenTarget { owner: &shard.0, slot: None }).collect()
        })
    }

    /// Returns the shard of the calling thread.
    pub(super) fn shard(&'static self) -> &'static Shard {
        self.shard_and_target().0
    }

    /// Returns the shard of the calling thread, and the [`TokenTarget`] of that shard.
    #[inline]
    pub(super) fn shard_and_target(&'static self) -> (&'static Shard, &'static TokenTarget<Shard>) {
        if let Some(found) = self.cached() {
            return (found.shard, found.target);
        }
        let target = self.find_uncached();
        (target.owner, target)
    }

    /// Returns the wait list of the calling thread's shard, for the shutdown signals that this thread polls.
    #[inline]
    pub(crate) fn signals(&'static self) -> &'static WaitList {
        self.cached().map_or_else(|| self.find_signals(), |found| &found.lists.signals)
    }

    /// Returns the wait list of the calling thread's shard. In a child, this function also records that the list is in use.
    ///
    /// Acquire pairs with the Release in `count_drain_event`. If the child has drained before this call, the caller sees that the
    /// shutdown has started, and stores no waker in the list. If the child drains later, `close` finds the bit `SIGNALLED` and
    /// wakes the list (invariant L1).
    #[inline(never)]
    fn find_signals(&'static self) -> &'static WaitList {
        let lists = self.find_uncached().owner.lists;
        let drained = &self.shared().drained;
        if self.is_child() && drained.load(Ordering::Acquire) & SIGNALLED == 0 {
            drained.fetch_or(SIGNALLED, Ordering::Acquire);
        }
        &lists.signals
    }

    /// Returns the number of unused entries at each end of a wait list of shutdown signals.
    pub(crate) fn signal_margin(&self) -> usize {
        if self.is_child() { 0 } else { MARGIN }
    }

    /// Each thread caches its parts of the root that it used last. If this state is that root, returns the cached parts.
    #[inline]
    fn cached(&'static self) -> Option<Found> {
        LAST_USED.with(Cell::get).filter(|(state, _)| ptr::eq(*state, self)).map(|(_, found)| found)
    }

    /// Returns the [`TokenTarget`] of the calling thread's shard. This function returns only one word, so that callers can keep
    /// their data in registers.
    #[inline(never)]
    fn find_uncached(&'static self) -> &'static TokenTarget<Shard> {
        let targets = self.targets();
        // A child does not replace the root in the cache, because a thread often alternates between one root and many children.
        if self.is_child() {
            return &targets[0];
        }
        let target = &targets[thread_number() & (targets.len() - 1)];
        let found = Found { shard: target.owner, target, lists: target.owner.lists };
        LAST_USED.with(|last| last.set(Some((self, found))));
        target
    }

    /// Returns the notifier for the tasks and threads that wait until the registry has drained or is idle.
    pub(crate) fn notifier(&'static self) -> &'static Notifier {
        &self.shared().notifier
    }

    pub(super) fn is_observed(&self) -> bool {
        self.settings.has(OBSERVED)
    }
}

/// Refers to the parts of a state that one thread uses: its shard, and the parts of this shard.
#[derive(Clone, Copy)]
struct Found {
    shard: &'static Shard,
    target: &'static TokenTarget<Shard>,
    lists: &'static Lists,
}

per_thread!(static LAST_USED: Option<(&'static RegistryState, Found)> = None);

impl fmt::Debug for RegistryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The output does not contain the shards, because each shard refers to this state.
        f.debug_struct("RegistryState").finish_non_exhaustive()
    }
}
