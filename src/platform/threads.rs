//! Implements the platform for programs with an operating system, with the threads and primitives of `std`.

use std::collections::BTreeSet;
use std::sync::{OnceLock, PoisonError};

pub(crate) use AtomicUsize as UnmodelledAtomicUsize;
#[cfg(not(feature = "portable-atomic"))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(crate) use event_listener::Event;
#[cfg(feature = "portable-atomic")]
pub(crate) use portable_atomic::{AtomicBool, AtomicUsize, Ordering};
pub(crate) use std::sync::Arc;

/// No user code runs while a thread holds this mutex (invariant S7). Therefore the thread cannot panic at that time, and the mutex
/// ignores poisoning.
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    #[inline]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A cell that creates its value when it is first used.
pub(crate) struct Once<T: 'static>(OnceLock<T>);

impl<T> Once<T> {
    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    #[inline]
    pub(crate) fn get_or_init(&'static self, make: impl FnOnce() -> T) -> &'static T {
        self.0.get_or_init(make)
    }

    /// Returns the value, or `None` if the value has not been created yet.
    pub(crate) fn get(&'static self) -> Option<&'static T> {
        self.0.get()
    }
}

/// Declares a thread-local `Cell`.
macro_rules! per_thread {
    (static $name:ident: $type:ty = $value:expr) => {
        std::thread_local!(static $name: core::cell::Cell<$type> = const { core::cell::Cell::new($value) });
    };
}
pub(crate) use per_thread;

/// A slot table allocates this many slots at a time.
pub(crate) const SLOTS_PER_CHUNK: usize = 16;

/// Returns the number of shards of each registry. The number is about four times the number of cores, is a power of two, and is at
/// most 128.
///
/// The number of a thread selects the thread's shard; see [`thread_number`]. With several shards for each core, two threads that
/// run simultaneously rarely share a shard.
pub(crate) fn shard_count() -> usize {
    static SHARDS: OnceLock<usize> = OnceLock::new();
    *SHARDS.get_or_init(|| {
        let four_per_core = || 4 * std::thread::available_parallelism().map_or(1, Into::into);
        forced_shard_count().unwrap_or_else(four_per_core).clamp(1, 128).next_power_of_two()
    })
}

/// Returns the number of parts of a sharded pool. The number is at most 16, because a thread tries all other parts if its own part
/// is empty.
pub(crate) fn pool_count() -> usize {
    shard_count().min(16)
}

/// Returns the number of shards that an environment variable sets. Only tests of this crate set this variable. A release build does
/// not read this variable.
fn forced_shard_count() -> Option<usize> {
    if cfg!(debug_assertions) { std::env::var("BACKGROUND_TASKS_SHARDS").ok()?.parse().ok() } else { None }
}

/// Returns the number of the calling thread. The first call on a thread takes the smallest number that no other running thread has.
///
/// When a thread exits, another thread can take its number. Therefore every number is smaller than the largest number of threads
/// that used registries at the same time. If there are never more such threads than shards, no two of them share a shard.
///
/// When a thread exits, it releases its number in the destructor of a thread-local. If the destructor of another thread-local runs
/// later and calls this function, the function returns 0.
pub(crate) fn thread_number() -> usize {
    std::thread_local!(static NUMBER: ThreadNumber = ThreadNumber(NUMBERS.with(Numbers::take)));
    NUMBER.try_with(|number| number.0).unwrap_or(0)
}

struct ThreadNumber(usize);

impl Drop for ThreadNumber {
    fn drop(&mut self) {
        NUMBERS.with(|numbers| numbers.returned.insert(self.0));
    }
}

static NUMBERS: Mutex<Numbers> = Mutex::new(Numbers { returned: BTreeSet::new(), next: 0 });

/// Stores the numbers that no running thread has: the numbers in `returned`, and all numbers from `next` on.
struct Numbers {
    returned: BTreeSet<usize>,
    next: usize,
}

impl Numbers {
    fn take(&mut self) -> usize {
        self.returned.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }
}

#[cfg(test)]
mod tests;
