//! Stores the settings that a registry receives from its builder.

use crate::observer::Observer;
use crate::platform::{AtomicUsize, Ordering, const_unless_loom};
use alloc::{boxed::Box, vec::Vec};

/// Stores the settings that the builder collects.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) observers: Vec<Box<dyn Observer>>,
    /// The flags that the builder has set. Possible flags: `OBSERVED`, `EVERY_TASK`, `INSPECTED`, `SHUTDOWN_ON_PANIC` and
    /// `SHUTDOWN_ON_FAILURE`.
    pub(crate) flags: usize,
    pub(crate) limit: Option<usize>,
}

pub(super) const NONE: usize = 0;
pub(crate) const OBSERVED: usize = 1;
pub(crate) const INSPECTED: usize = 2;
pub(super) const LIMITED: usize = 4;
pub(crate) const SHUTDOWN_ON_PANIC: usize = 8;
pub(crate) const SHUTDOWN_ON_FAILURE: usize = 16;
/// With this flag, each inspected task is aborted when it starts. The builder never sets this flag; see
/// [`ActiveSettings::start_aborting`].
pub(super) const ABORTING: usize = 32;
/// With this flag, the limit of an ancestor applies to the tasks of this child. A registry never has both `LIMITED` and this flag.
pub(super) const LIMITED_BY_ANCESTOR: usize = 64;
/// With this flag, the observers are notified not only of losses, but also when a task starts and when a task completes. A registry
/// with this flag is always inspected.
pub(crate) const EVERY_TASK: usize = 128;

/// Stores the settings that the registry reads for each new task.
///
/// Relaxed is enough for all accesses because the settings are written before the registry's first handle exists. Only the flag
/// `ABORTING` is written later; see [`start_aborting`](Self::start_aborting).
pub(super) struct ActiveSettings {
    flags: AtomicUsize,
    /// The largest number of tasks that may be in flight. This value is meaningful only if `flags` contains `LIMITED`.
    limit: AtomicUsize,
}

impl ActiveSettings {
    const_unless_loom! {
        pub(super) const fn new() -> Self {
            Self { flags: AtomicUsize::new(0), limit: AtomicUsize::new(0) }
        }
    }

    pub(super) fn set(&self, settings: &Settings) {
        let limited = if settings.limit.is_some() { LIMITED } else { NONE };
        self.flags.store(settings.flags | limited, Ordering::Relaxed);
        self.limit.store(settings.limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// Copies the settings of the parent to a child, and sets the child's own limit.
    pub(super) fn set_for_child(&self, parent: &Self, limit: Option<usize>) {
        let inherited = OBSERVED | EVERY_TASK | INSPECTED | SHUTDOWN_ON_PANIC | SHUTDOWN_ON_FAILURE;
        let flags = parent.flags.load(Ordering::Relaxed) & inherited;
        let limited = match limit {
            Some(_) => LIMITED,
            None if parent.has(LIMITED | LIMITED_BY_ANCESTOR) => LIMITED_BY_ANCESTOR,
            None => NONE,
        };
        self.flags.store(flags | limited, Ordering::Relaxed);
        self.limit.store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// Sets the flag `ABORTING`. The flag stays set until another registry reuses the state.
    ///
    /// Relaxed is enough because the lock of each slot table orders this write; see `RegistryState::start_aborting`.
    pub(super) fn start_aborting(&self) {
        self.flags.fetch_or(ABORTING, Ordering::Relaxed);
    }

    /// Returns whether any of the settings in `flags` is enabled.
    #[inline]
    pub(super) fn has(&self, flags: usize) -> bool {
        self.flags.load(Ordering::Relaxed) & flags != 0
    }

    pub(super) fn limit(&self) -> Option<usize> {
        self.has(LIMITED).then(|| self.limit.load(Ordering::Relaxed))
    }
}
