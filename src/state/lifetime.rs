//! Takes pooled states from the pool, and returns unused states to the pool.
//!
//! States are leaked and reused, so every reference to a state is `&'static`, and tasks do not count references. A signal does not
//! keep its state out of the pool, so the next registry can reuse the state while the signal exists. The signal detects the reuse
//! because a signal is triggered if its stored phase differs from the state's current phase.

use super::registry_state::{Origin, RegistryState};
use super::settings::Settings;
use crate::platform::{Ordering, global, thread_number};
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

    /// Takes a state for a new child from the pool of children. `root` is the root of the child, to which the child has a
    /// reference. The caller stores the root in the child's family.
    ///
    /// The caller holds a handle of the child's parent, which keeps the root out of the pool during this call.
    pub(super) fn take_for_child(root: &'static Self) -> &'static Self {
        let child = CHILD_POOL.take(thread_number(), || Self::with_origin(Origin::Child));
        child.reopen();
        root.retain();
        child
    }

    /// Prepares a state for its next registry.
    ///
    /// The state may have served a previous registry. Two remainders of the previous registry may still use the state:
    ///
    /// - Signals. They are triggered, because the phase has changed.
    /// - Threads that are still finishing the departure of a task. Such a thread may clear a bit of a gate and then notify the
    ///   waiters. It may also drain a gate before the thread that closes the gate can do so.
    ///
    /// Relaxed is enough for all fields except the phase, because the mutex of the pool makes all writes of the previous registry
    /// visible to the next registry.
    fn reopen(&'static self) {
        for shard in self.shards() {
            shard.gate().reopen();
            shard.losses.iter().chain([&shard.folded]).for_each(|count| count.store(0, Ordering::Relaxed));
        }
        let shared = self.shared();
        shared.life.begin();
        shared.handles.store(1, Ordering::Relaxed);
        shared.references.store(2, Ordering::Relaxed);
        shared.drained.store(0, Ordering::Relaxed);
        if let Some(rare) = self.used_rare() {
            rare.lent.store(0, Ordering::Relaxed);
            rare.start.with(|start| start.cause = None);
        }
        // Release pairs with the Acquire in `phase`. A signal of the previous registry may read this new phase, which triggers the
        // signal. The polling thread must then see every write that preceded the shutdown of that registry.
        let next = (self.phase.load(Ordering::Relaxed) | 1).wrapping_add(1);
        self.phase.store(next, Ordering::Release);
    }

    /// Adds a reference.
    ///
    /// Relaxed is enough because the caller holds a reference or a handle during this call, so the count of references cannot reach
    /// zero.
    fn retain(&'static self) {
        self.shared().references.fetch_add(1, Ordering::Relaxed);
    }

    /// Releases a reference. The release of the last reference returns the state to the pool.
    ///
    /// `AcqRel` makes each release of a reference synchronize with the next release of a reference. The thread that returns the
    /// state to the pool therefore sees every write that preceded the release of any other reference.
    pub(super) fn release(&'static self) {
        self.shared().life.touch();
        if self.shared().references.fetch_sub(1, Ordering::AcqRel) == 1 {
            if self.is_child() {
                return self.put_back_child();
            }
            if self.is_observed() {
                self.rare().observers.clear();
            }
            POOL.put_back(self);
        }
    }

    /// Returns the state of a child to the pool, and then releases the reference to the root. A root has no root, so this function
    /// does not recurse.
    fn put_back_child(&'static self) {
        let root = self.shared().family.with(|family| family.root.take());
        CHILD_POOL.put_back(thread_number(), self);
        if let Some(root) = root {
            root.release();
        }
    }
}

/// A reference that keeps a state out of the pool.
#[derive(Debug)]
pub(crate) struct StateRef(&'static RegistryState);

impl StateRef {
    pub(super) fn new(state: &'static RegistryState) -> Self {
        state.retain();
        Self(state)
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
