//! Implements the platform for programs without an operating system.
//!
//! To lock a mutex, the crate enters a critical section. Each registry has one shard. There is no clock, and panics are not caught.

use alloc::boxed::Box;
use core::cell::{Cell, RefCell};
use core::convert::Infallible;

pub(crate) use AtomicUsize as UnmodelledAtomicUsize;
#[cfg(not(feature = "portable-atomic"))]
pub(crate) use alloc::sync::Arc;
#[cfg(not(feature = "portable-atomic"))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(crate) use event_listener::Event;
#[cfg(feature = "portable-atomic")]
pub(crate) use portable_atomic::{AtomicBool, AtomicUsize, Ordering};
#[cfg(feature = "portable-atomic")]
pub(crate) use portable_atomic_util::Arc;

pub(crate) struct Mutex<T>(critical_section::Mutex<RefCell<T>>);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(critical_section::Mutex::new(RefCell::new(value)))
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        critical_section::with(|section| f(&mut self.0.borrow_ref_mut(section)))
    }

    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner().into_inner()
    }
}

pub(crate) struct Once<T: 'static>(Mutex<Option<&'static T>>);

impl<T> Once<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    pub(crate) fn get_or_init(&'static self, make: impl FnOnce() -> T) -> &'static T {
        self.0.with(|made| *made.get_or_insert_with(|| Box::leak(Box::new(make()))))
    }

    /// Returns the value, or `None` if the value has not been created yet.
    pub(crate) fn get(&'static self) -> Option<&'static T> {
        self.0.with(|made| *made)
    }
}

/// The macro `per_thread!` declares statics of this type. This platform treats the program as a single thread, so such a static
/// contains one cell for the whole program.
pub(crate) struct SharedCell<T>(Mutex<T>);

impl<T: Copy> SharedCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&Cell<T>) -> R) -> R {
        self.0.with(|value| {
            let cell = Cell::new(*value);
            let result = f(&cell);
            *value = cell.get();
            result
        })
    }
}

macro_rules! per_thread {
    (static $name:ident: $type:ty = $value:expr) => {
        static $name: crate::platform::SharedCell<$type> = crate::platform::SharedCell::new($value);
    };
}
pub(crate) use per_thread;

/// Each chunk has few slots, because memory is scarce on bare metal.
pub(crate) const SLOTS_PER_CHUNK: usize = 4;

pub(crate) fn shard_count() -> usize {
    1
}

pub(crate) fn pool_count() -> usize {
    1
}

pub(crate) fn thread_number() -> usize {
    0
}

pub(crate) const HAS_CLOCK: bool = false;

pub(crate) fn now() -> u64 {
    0
}

/// The payload of a caught panic. This platform catches no panics, so no value of this type exists.
///
/// This type is a `Box` on every platform, so that the same calling code, which drops payloads, compiles on every platform.
pub(crate) type Payload = Box<Infallible>;

pub(crate) fn panic_message(payload: &Payload) -> &str {
    match **payload {}
}

#[expect(clippy::unnecessary_wraps, reason = "the signature of the function that catches panics")]
pub(crate) fn catch<T>(f: impl FnOnce() -> T) -> Result<T, Payload> {
    Ok(f())
}

#[expect(clippy::boxed_local, clippy::needless_pass_by_value, reason = "the signature of the function that resumes panics")]
pub(crate) fn resume(payload: Payload) -> ! {
    match *payload {}
}

pub(crate) type ThreadId = Infallible;

pub(crate) fn panicking_thread() -> Option<ThreadId> {
    None
}
