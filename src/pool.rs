//! Cores that wait for their next registry. Memory is bounded by the most registries that were alive at once.

use crate::shards::Core;
use crate::sync::lock;

#[cfg(not(loom))]
static FREE: std::sync::Mutex<Vec<&'static Core>> = std::sync::Mutex::new(Vec::new());

pub(crate) fn take() -> &'static Core {
    let free = lock(&FREE).pop();
    let core = free.unwrap_or_else(|| Box::leak(Box::new(Core::with(true))));
    core.open();
    core
}

pub(crate) fn give_back(core: &'static Core) {
    lock(&FREE).push(core);
}

/// A pool for each run of a model. When that ends each core must be back, once.
#[cfg(loom)]
mod model {
    use super::Core;

    loom::lazy_static! {
        pub(super) static ref FREE: Free = Free(loom::sync::Mutex::new(Vec::new()));
    }

    pub(super) struct Free(loom::sync::Mutex<Vec<&'static Core>>);

    impl core::ops::Deref for Free {
        type Target = loom::sync::Mutex<Vec<&'static Core>>;

        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    impl Drop for Free {
        fn drop(&mut self) {
            let free = core::mem::take(self.0.get_mut().unwrap());
            free.into_iter().for_each(Core::close);
        }
    }
}
#[cfg(loom)]
use model::FREE;
