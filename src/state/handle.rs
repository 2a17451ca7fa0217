//! Counts the handles of a registry.

use super::lifetime::StateRef;
use super::registry_state::{Origin, RegistryState};
use super::settings::Settings;
use crate::platform::{AtomicUsize, Ordering};
use crate::report::SpawnInfo;

/// A handle of a registry. The shutdown starts when the last handle is dropped.
#[derive(Debug)]
pub(crate) struct RegistryHandle(&'static RegistryState);

impl RegistryHandle {
    pub(crate) fn pooled(settings: Settings) -> Self {
        Self(RegistryState::take(settings))
    }

    pub(crate) fn child(parent: &'static RegistryState, info: &SpawnInfo, limit: Option<usize>) -> Self {
        Self(parent.make_child(info, limit))
    }

    pub(crate) const fn in_static(state: &'static RegistryState) -> Self {
        Self(state)
    }

    #[inline]
    pub(crate) fn state(&self) -> &'static RegistryState {
        self.0
    }

    pub(crate) fn state_ref(&self) -> StateRef {
        StateRef::new(self.0)
    }
}

impl Clone for RegistryHandle {
    /// Relaxed is enough because the caller holds a handle during this call, so the count of handles cannot reach zero.
    fn clone(&self) -> Self {
        if self.0.origin != Origin::Static {
            self.0.shared().handles.fetch_add(1, Ordering::Relaxed);
        }
        Self(self.0)
    }
}

impl Drop for RegistryHandle {
    /// The drop of the last handle starts the shutdown. `AcqRel` makes each drop of a handle synchronize with the next drop of a
    /// handle. Therefore the thread that drops the last handle sees every write that preceded the drop of any other handle.
    ///
    /// Only the owner of a handle can clone the handle. If the count is 1, this thread is the only owner, so no other thread can
    /// change the count. Therefore this thread does not have to decrement the count. The load is Acquire for the same reason as the
    /// `fetch_sub`.
    fn drop(&mut self) {
        let is_last = |handles: &AtomicUsize| handles.load(Ordering::Acquire) == 1 || handles.fetch_sub(1, Ordering::AcqRel) == 1;
        if self.0.origin != Origin::Static && is_last(&self.0.shared().handles) {
            self.0.start_shutdown();
            self.0.release();
        }
    }
}
