//! Takes registry states from the pool, and puts unused states back into the pool.
//!
//! A state is never freed: the pool leaks it and reuses it. Therefore every reference to a state is `&'static`, and tasks need no
//! reference count. A signal does not keep its state out of the pool, so another registry can reuse the state while the signal
//! exists. To detect the reuse, the signal compares its stored phase with the state's current phase. The signal is triggered if the
//! two phases differ.

use super::registry_state::{Origin, RegistryState, Shared};
use super::settings::Settings;
use crate::platform::{Ordering, global, reset, thread_number};
use crate::sync::pool::{Pool, ShardedPool};

global!(static POOL: Pool<RegistryState> = Pool::new());
global!(static CHILD_POOL: ShardedPool<RegistryState> = ShardedPool::new());

impl RegistryState {
    /// Takes a state from the pool for a new registry.
    pub(super) fn take(settings: Settings) -> &'static Self {
        let state = POOL.take(|| Self::with_origin(Origin::Pooled));
        state.reopen();
        state.settings.set(&settings);
        if !settings.observers.is_empty() {
            state.rare().observers.set(settings.observers);
        }
        state
    }

    /// Takes a state for a new child registry from the pool for children. The caller must store the child's root in the field
    /// `family`.
    pub(super) fn take_for_child() -> &'static Self {
        let child = CHILD_POOL.take(thread_number(), || Self::with_origin(Origin::Child));
        child.reopen();
        child
    }

    /// Prepares a state for its next registry.
    ///
    /// If the state has served a previous registry, two kinds of leftovers of that registry may still use the state:
    ///
    /// - Signals of the previous registry. These signals are triggered, because the phase changes here.
    /// - Threads on which a task of the previous registry is still leaving its gate. Such a thread may clear a bit of a gate and
    ///   then notify the waiters of the next registry. The thread may also drain a gate of the next registry, immediately after
    ///   another thread has closed this gate.
    ///
    /// Relaxed is enough for all fields except `phase` and `references`, because the mutex of the pool makes the writes of the
    /// previous registry visible to the next registry.
    fn reopen(&'static self) {
        for shard in self.shards() {
            shard.gate().reopen();
            shard.losses.iter().chain([&shard.folded]).for_each(|count| count.store(0, Ordering::Relaxed));
        }
        let shared = self.shared();
        shared.life.begin();
        shared.handles.store(1, Ordering::Relaxed);
        reset(&shared.drained);
        if let Some(rare) = self.used_rare() {
            rare.lent.store(0, Ordering::Relaxed);
            rare.start.with(|start| start.cause = None);
        }
        // Release pairs with the Acquire in `phase`. A signal of the previous registry is triggered if it reads this new phase. The
        // thread that polls this signal must then see every write that preceded the shutdown of the previous registry.
        let next = (self.phase.load(Ordering::Relaxed) | 1).wrapping_add(1);
        self.phase.store(next, Ordering::Release);
        // Release pairs with the Acquire in `StateRef::of_used`: a caller that takes a reference sees the new phase.
        shared.references.store(2, Ordering::Release);
    }

    /// Adds a reference.
    ///
    /// Relaxed is enough because the caller keeps the state in use during this call, so the count of references cannot reach zero.
    pub(super) fn retain(&'static self) {
        self.shared().references.fetch_add(1, Ordering::Relaxed);
    }

    /// Releases a reference. The release of the last reference puts the state back into the pool.
    ///
    /// `AcqRel` makes each release of a reference synchronize with the next release of a reference. Therefore the thread that puts
    /// the state back into the pool sees every write that preceded the release of any other reference.
    pub(super) fn release(&'static self) {
        let Shared { life, references, .. } = self.shared();
        life.touch();
        // Only the owner of a reference to a child can add another reference. If the count is 1, this thread is the only owner, so
        // no other thread can change the count. Therefore this thread does not have to decrement the count. The load is Acquire for
        // the same reason as the `fetch_sub`.
        let is_only = self.is_child() && references.load(Ordering::Acquire) == 1;
        if !is_only && references.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        if self.is_child() {
            let root = if self.is_observed() { self.shared().family.with(|family| family.root) } else { None };
            CHILD_POOL.put_back(thread_number(), self);
            // A root is not a child, so this function calls itself at most once.
            return root.into_iter().for_each(|(root, _)| root.release());
        }
        if self.is_observed() {
            self.rare().observers.clear();
        }
        POOL.put_back(self);
    }
}

/// A reference to a state. The state stays out of the pool while the reference exists.
#[derive(Debug)]
pub(crate) struct StateRef(&'static RegistryState);

impl StateRef {
    pub(super) fn new(state: &'static RegistryState) -> Self {
        state.retain();
        Self(state)
    }

    /// Returns a reference to a root, or `None` if the root's state is in the pool. A caller of this function holds no handle and
    /// no reference, so the state may already serve another registry. Therefore the caller must check the phase.
    ///
    /// Acquire pairs with the Release in `reopen`.
    pub(super) fn of_used(root: &'static RegistryState) -> Option<Self> {
        let add = |count| if count == 0 { None } else { Some(count + 1) };
        root.shared().references.fetch_update(Ordering::Acquire, Ordering::Relaxed, add).ok().map(|_| Self(root))
    }

    pub(crate) fn state(&self) -> &'static RegistryState {
        self.0
    }
}

impl Drop for StateRef {
    fn drop(&mut self) {
        self.0.release();
    }
}
