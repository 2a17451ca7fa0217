//! The data of one registry, and which part of it each thread uses.

use super::observers::Observers;
use super::settings::{ActiveSettings, OBSERVED};
use crate::platform::{
    AtomicUsize, CachePadded, LifeCheck, Mutex, Once, Ordering, const_unless_loom, per_thread, shard_count, thread_number,
};
use crate::report::TaskInfo;
use crate::sync::slot_table::{FreedSlots, SlotTable, TokenTarget};
use crate::sync::{gate::Gate, notifier::Notifier, wait_list::WaitList, wait_queue::WaitQueue};
use alloc::boxed::Box;
use core::{array, cell::Cell, fmt, ptr};

/// The shared state of one registry, for [`Registry::in_static`](crate::Registry::in_static).
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
    /// Even while the registry is open, odd once its shutdown has started. Each reuse from the pool adds two.
    pub(super) phase: AtomicUsize,
    /// Whether the state belongs to the pool. The handles of a state in a `static` are not counted.
    pub(super) is_pooled: bool,
    shards: Once<Box<[Shard]>>,
    /// One for each shard, for tasks that need no slot.
    targets: Once<Box<[TokenTarget<Shard>]>>,
    pub(super) settings: ActiveSettings,
    pub(super) shared: CachePadded<Shared>,
}

/// What many threads write, but seldom.
pub(super) struct Shared {
    /// The number of clones of the registry. When the last one is dropped, the shutdown starts.
    pub(super) handles: AtomicUsize,
    /// What keeps the state out of the pool: the handles together, the gates until the drain has been reported, and each waiting future.
    pub(super) references: AtomicUsize,
    /// How much of the drain is complete; see `shard_drained`.
    pub(super) drained: AtomicUsize,
    /// Notifies waiters of the drain and of idleness.
    pub(super) notifier: Notifier,
    pub(super) wait_queue: WaitQueue,
    pub(super) observers: Observers,
    pub(super) start: Mutex<ShutdownStart>,
    pub(super) life: LifeCheck,
}

pub(super) struct ShutdownStart {
    /// When the shutdown started, by `platform::now`. Only an observed registry sets it.
    pub(super) at: u64,
    /// The task whose loss started the shutdown, if one did.
    pub(super) cause: Option<TaskInfo>,
}

/// The part of a state that a few threads use.
pub(crate) struct Shard {
    pub(super) counters: CachePadded<Counters>,
    lists: CachePadded<Lists>,
}

struct Lists {
    signals: WaitList,
    slots: SlotTable<Shard>,
}

/// The counts of a shard. Completed tasks need no counter: they are the accepted ones less all others.
pub(super) struct Counters {
    pub(super) gate: Gate,
    /// How often each loss happened, in the order of `Lost`.
    pub(super) losses: [AtomicUsize; 5],
    /// Beside the gate, because each departure writes both.
    pub(super) freed: FreedSlots,
    state: &'static RegistryState,
}

/// The outcomes that are counted one by one.
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
        Self {
            counters: CachePadded(Counters { gate: Gate::new(), losses, freed: FreedSlots::new(), state }),
            lists: CachePadded(Lists { signals: WaitList::new(), slots: SlotTable::new() }),
        }
    }

    #[inline]
    pub(super) fn state(&self) -> &'static RegistryState {
        self.counters.0.state
    }

    #[inline]
    pub(super) fn gate(&self) -> &Gate {
        &self.counters.0.gate
    }

    /// Relaxed: the Release in `Gate::leave` publishes it. A rejection is ordered only with what its own thread reads.
    pub(super) fn count(&self, lost: Lost) {
        self.counters.0.losses[lost as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the shutdown signals that wait on this shard.
    pub(crate) fn signals(&self) -> &WaitList {
        &self.lists.0.signals
    }

    pub(super) fn slots(&self) -> &SlotTable<Self> {
        &self.lists.0.slots
    }
}

impl RegistryState {
    const_unless_loom! {
        /// Returns the state of a registry that lives as long as the program.
        ///
        /// It serves one registry once: after that registry's shutdown it stays drained.
        #[expect(clippy::new_without_default, reason = "a static cannot call `default`")]
        pub const fn new() -> Self {
            Self::with_pooling(false)
        }
    }

    const_unless_loom! {
        pub(super) const fn with_pooling(is_pooled: bool) -> Self {
            Self {
                phase: AtomicUsize::new(0),
                is_pooled,
                shards: Once::new(),
                targets: Once::new(),
                settings: ActiveSettings::new(),
                shared: CachePadded(Shared {
                    handles: AtomicUsize::new(1),
                    references: AtomicUsize::new(2),
                    drained: AtomicUsize::new(0),
                    notifier: Notifier::new(),
                    wait_queue: WaitQueue::new(),
                    observers: Observers::new(),
                    start: Mutex::new(ShutdownStart { at: 0, cause: None }),
                    life: LifeCheck::new(),
                }),
            }
        }
    }

    #[inline]
    pub(super) fn shards(&'static self) -> &'static [Shard] {
        self.shards.get_or_init(|| (0..shard_count()).map(|_| Shard::new(self)).collect())
    }

    pub(super) fn targets(&'static self) -> &'static [TokenTarget<Shard>] {
        self.targets.get_or_init(|| self.shards().iter().map(|owner| TokenTarget { owner, slot: None }).collect())
    }

    /// Returns the shard of this thread.
    #[inline]
    pub(crate) fn shard(&'static self) -> &'static Shard {
        self.shard_and_target().0
    }

    /// Returns this thread's shard and its target. The thread remembers the last ones, which saves most calls a chain of loads.
    #[inline]
    pub(super) fn shard_and_target(&'static self) -> (&'static Shard, &'static TokenTarget<Shard>) {
        match LAST_USED.with(Cell::get) {
            Some((state, shard, target)) if ptr::eq(state, self) => (shard, target),
            _ => self.find_shard_and_target(),
        }
    }

    #[inline(never)]
    fn find_shard_and_target(&'static self) -> (&'static Shard, &'static TokenTarget<Shard>) {
        let targets = self.targets();
        let target = &targets[thread_number() & (targets.len() - 1)];
        LAST_USED.with(|last| last.set(Some((self, target.owner, target))));
        (target.owner, target)
    }

    /// Returns what notifies waiters of the drain and of idleness.
    pub(crate) fn notifier(&'static self) -> &'static Notifier {
        &self.shared.0.notifier
    }

    pub(super) fn is_observed(&self) -> bool {
        self.settings.has(OBSERVED)
    }
}

per_thread!(static LAST_USED: Option<(&'static RegistryState, &'static Shard, &'static TokenTarget<Shard>)> = None);

impl fmt::Debug for RegistryState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its shards point back to it.
        f.debug_struct("RegistryState").finish_non_exhaustive()
    }
}
