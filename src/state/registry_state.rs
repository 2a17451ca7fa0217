//! Defines the data of one registry, and assigns each thread to a shard.

use super::observers::Observers;
use super::settings::{ActiveSettings, OBSERVED};
use crate::platform::{
    AtomicUsize, CachePadded, LifeCheck, Mutex, Once, Ordering, const_unless_loom, per_thread, shard_count, thread_number,
};
use crate::report::{ServiceInfo, TaskInfo};
use crate::sync::slot_table::{FreedSlots, SlotTable, TokenTarget};
use crate::sync::{gate::Gate, notifier::Notifier, wait_list::WaitList, wait_queue::WaitQueue};
use alloc::{boxed::Box, vec::Vec};
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
    /// The phase is even while the registry is open, and odd once its shutdown has started. A pooled state serves several
    /// registries one after another, and each of these registries has two phase values of its own.
    pub(super) phase: AtomicUsize,
    /// Whether the state belongs to the pool. A state in a `static` does not count its handles.
    pub(super) is_pooled: bool,
    shards: Once<Box<[Shard]>>,
    /// One [`TokenTarget`] for each shard. The token of a task without a slot points to the element for its shard.
    targets: Once<Box<[TokenTarget<Shard>]>>,
    pub(super) settings: ActiveSettings,
    pub(super) shared: CachePadded<Shared>,
}

/// The fields that many threads write, but seldom.
pub(super) struct Shared {
    /// The number of handles of the registry. The count starts at 1, because a new registry has one handle. The shutdown starts
    /// when the last handle is dropped.
    pub(super) handles: AtomicUsize,
    /// The number of references that keep the state out of the pool:
    ///
    /// - All handles together have one reference.
    /// - All gates together have one reference until the drain has been reported.
    /// - Each [`StateRef`](super::StateRef) has one reference.
    pub(super) references: AtomicUsize,
    /// The number of completed events of the drain; see `shard_drained`.
    pub(super) drained: AtomicUsize,
    /// Notifies the tasks and threads that wait for the drain or for idleness.
    pub(super) notifier: Notifier,
    pub(super) wait_queue: WaitQueue,
    pub(super) observers: Observers,
    pub(super) services: Mutex<Services>,
    pub(super) start: Mutex<ShutdownStart>,
    pub(super) life: LifeCheck,
}

pub(super) struct ShutdownStart {
    /// The time at which the shutdown started, from `platform::now`. Only an observed registry sets this field.
    pub(super) at: u64,
    /// The task whose loss started the shutdown, or `None` if no loss started the shutdown.
    pub(super) cause: Option<TaskInfo>,
}

/// The services in flight, in the order of their starts.
pub(super) struct Services {
    /// The number of the service that starts next.
    pub(super) next: u64,
    pub(super) services: Vec<Service>,
}

pub(super) struct Service {
    pub(super) number: u64,
    pub(super) target: &'static TokenTarget<Shard>,
    pub(super) info: ServiceInfo,
}

/// The part of a registry's state that only a few threads use.
pub(crate) struct Shard {
    pub(super) counters: CachePadded<Counters>,
    lists: CachePadded<Lists>,
}

struct Lists {
    signals: WaitList,
    slots: SlotTable<Shard>,
}

/// The counters of one shard. There is no counter for completed tasks: their number is the accepted count minus the tasks in flight
/// and the lost tasks.
pub(super) struct Counters {
    pub(super) gate: Gate,
    /// The number of losses for each variant of `Lost`, in the order of the variants.
    pub(super) losses: [AtomicUsize; 5],
    /// The slots that departures have freed. This field shares cache lines with the gate, because each departure writes both
    /// fields.
    pub(super) freed: FreedSlots,
    state: &'static RegistryState,
}

/// The outcomes that have their own counters.
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

    /// Counts a loss or a rejection.
    ///
    /// Relaxed is enough for a loss, because the same thread calls `Gate::leave` afterwards. The Release in `Gate::leave` makes the
    /// increment visible to readers of the gate. Relaxed is enough for a rejection, because no thread relies on the order of
    /// rejections.
    pub(super) fn count(&self, lost: Lost) {
        self.counters.0.losses[lost as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the wait list of the shutdown signals on this shard.
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
        /// The state serves one registry once. After the shutdown of that registry, the state stays drained.
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
                    services: Mutex::new(Services { next: 0, services: Vec::new() }),
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

    /// Returns the shard of the calling thread.
    #[inline]
    pub(crate) fn shard(&'static self) -> &'static Shard {
        self.shard_and_target().0
    }

    /// Returns the shard of the calling thread, and the [`TokenTarget`] of that shard. Each thread caches the shard that it used
    /// last, so most calls of this function read only the cache.
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

    /// Returns the notifier for the tasks and threads that wait for the drain or for idleness.
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
        // The output omits the shards because each shard refers back to this state.
        f.debug_struct("RegistryState").finish_non_exhaustive()
    }
}
