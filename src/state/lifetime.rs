//! The lives of a pooled state: how a registry takes it, what keeps it, and when it returns to the pool.
//!
//! States are leaked and reused, so everything points to them with `&'static`, and no task counts references. A signal keeps nothing: if
//! its phase is not the state's phase, it is triggered.

use super::registry_state::RegistryState;
use super::settings::Settings;
use crate::platform::{Ordering, global};
use crate::sync::pool::Pool;

global!(static POOL: Pool<RegistryState> = Pool::new());

impl RegistryState {
    /// Takes a state from the pool for a new registry.
    pub(super) fn take(settings: Settings) -> &'static Self {
        let state = POOL.take(|| Self::with_pooling(true));
        state.reopen();
        state.settings.set(&settings);
        if !settings.observers.is_empty() {
            state.shared.0.observers.set(settings.observers);
        }
        state
    }

    /// Prepares a state for its next registry.
    ///
    /// Nothing else uses it but leftovers of its previous life: signals, which are triggered because the phase has changed; and departures
    /// that clear a bit of a gate and then notify, or that drain a gate in place of the thread that closes it next.
    ///
    /// Relaxed except for the phase: the pool's mutex hands the state over.
    fn reopen(&'static self) {
        for shard in self.shards() {
            shard.gate().reopen();
            shard.counters.0.losses.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        }
        self.shared.0.life.begin();
        self.shared.0.handles.store(1, Ordering::Relaxed);
        self.shared.0.references.store(2, Ordering::Relaxed);
        self.shared.0.drained.store(0, Ordering::Relaxed);
        self.shared.0.start.with(|start| start.cause = None);
        // Release: a signal of the previous life may read this phase, and must see what came before that life's shutdown.
        let next = (self.phase.load(Ordering::Relaxed) | 1).wrapping_add(1);
        self.phase.store(next, Ordering::Release);
    }

    /// Relaxed: the caller has a reference, or a handle, already.
    fn retain(&'static self) {
        self.shared.0.references.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives up a reference. The last one returns the state to the pool.
    ///
    /// `AcqRel`: what any holder of a reference did happened before the state's next life.
    pub(super) fn release(&'static self) {
        self.shared.0.life.touch();
        if self.shared.0.references.fetch_sub(1, Ordering::AcqRel) == 1 {
            if self.is_observed() {
                self.shared.0.observers.clear();
            }
            POOL.put_back(self);
        }
    }
}

/// Keeps a state from returning to the pool.
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
