//! What a registry's builder asked for.

use crate::observer::Observer;
use crate::platform::{AtomicUsize, Ordering, const_unless_loom};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// What the builder collects.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) observers: Vec<Box<dyn Observer>>,
    pub(crate) inspect: bool,
    pub(crate) shutdown_on_panic: bool,
    pub(crate) shutdown_on_failure: bool,
    pub(crate) limit: Option<usize>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("observers", &self.observers.len())
            .field("inspect", &self.inspect)
            .field("max_in_flight", &self.limit)
            .field("shutdown_on_panic", &self.shutdown_on_panic)
            .field("shutdown_on_failure", &self.shutdown_on_failure)
            .finish()
    }
}

const OBSERVED: usize = 1;
const INSPECTED: usize = 2;
const LIMITED: usize = 4;
const SHUTDOWN_ON_PANIC: usize = 8;
const SHUTDOWN_ON_FAILURE: usize = 16;

/// What each admission reads.
///
/// Relaxed throughout: it is written before the registry's first handle exists.
pub(super) struct ActiveSettings {
    flags: AtomicUsize,
    /// Meaningful if `LIMITED` is set.
    limit: AtomicUsize,
}

impl ActiveSettings {
    const_unless_loom! {
        pub(super) const fn new() -> Self {
            Self { flags: AtomicUsize::new(0), limit: AtomicUsize::new(0) }
        }
    }

    pub(super) fn set(&self, settings: &Settings) {
        let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
        let flags = flag(!settings.observers.is_empty(), OBSERVED)
            | flag(settings.inspect, INSPECTED)
            | flag(settings.limit.is_some(), LIMITED)
            | flag(settings.shutdown_on_panic, SHUTDOWN_ON_PANIC)
            | flag(settings.shutdown_on_failure, SHUTDOWN_ON_FAILURE);
        self.flags.store(flags, Ordering::Relaxed);
        self.limit.store(settings.limit.unwrap_or(0), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn get(&self) -> Flags {
        Flags(self.flags.load(Ordering::Relaxed))
    }

    pub(super) fn limit(&self) -> Option<usize> {
        (self.get().0 & LIMITED != 0).then(|| self.limit.load(Ordering::Relaxed))
    }
}

/// The settings that are on or off.
#[derive(Clone, Copy)]
pub(super) struct Flags(usize);

impl Flags {
    /// Returns whether every task needs more than a count: a slot, or a permit.
    #[inline]
    pub(super) fn concern_every_task(self) -> bool {
        self.0 & (INSPECTED | LIMITED) != 0
    }

    pub(super) fn is_observed(self) -> bool {
        self.0 & OBSERVED != 0
    }

    pub(super) fn is_inspected(self) -> bool {
        self.0 & INSPECTED != 0
    }

    pub(super) fn shutdown_on_panic(self) -> bool {
        self.0 & SHUTDOWN_ON_PANIC != 0
    }

    pub(super) fn shutdown_on_failure(self) -> bool {
        self.0 & SHUTDOWN_ON_FAILURE != 0
    }
}
