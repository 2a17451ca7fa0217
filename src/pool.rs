//! Cores that wait for their next registry. Memory is bounded by the most registries that were alive at once.

use crate::shards::RegistryState;
use crate::sync::lock;

#[cfg(not(loom))]
static FREE: std::sync::Mutex<Vec<&'static RegistryState>> = std::sync::Mutex::new(Vec::new());

pub(crate) fn take() -> &'static RegistryState {
    let free = lock(&FREE).pop();
    let core = free.unwrap_or_else(|| Box::leak(Box::new(RegistryState::with(true))));
    core.open();
    core
}

pub(crate) fn give_back(core: &'static RegistryState) {
    lock(&FREE).push(core);
}

/// A pool for each run of a model. When that ends each core must be back, once.
#[cfg(loom)]
mod model {
    use super::RegistryState;

    loom::lazy_static! {
        pub(super) static ref FREE: Free = Free(loom::sync::Mutex::new(Vec::new()));
    }

    pub(super) struct Free(loom::sync::Mutex<Vec<&'static RegistryState>>);

    impl core::ops::Deref for Free {
        type Target = loom::sync::Mutex<Vec<&'static RegistryState>>;

        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    impl Drop for Free {
        fn drop(&mut self) {
            let free = core::mem::take(self.0.get_mut().unwrap());
            free.into_iter().for_each(RegistryState::close);
        }
    }
}
#[cfg(loom)]
use model::FREE;
