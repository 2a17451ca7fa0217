//! What differs between a program with an operating system, bare metal, and a loom model.
//!
//! There is one module for each of the three, and all have the same shape, so the layers above contain no `cfg`.

#[cfg(not(feature = "std"))]
mod bare;
#[cfg(feature = "std")]
mod clock;
#[cfg(loom)]
pub mod model;
#[cfg(all(feature = "std", not(loom)))]
mod threads;
#[cfg(feature = "std")]
mod unwind;

#[cfg(not(feature = "std"))]
pub(crate) use bare::*;
#[cfg(loom)]
pub(crate) use model::*;
#[cfg(all(feature = "std", not(loom)))]
pub(crate) use threads::*;
#[cfg(feature = "std")]
pub(crate) use {clock::*, unwind::*};

use core::ops::Deref;
use core::task::Waker;

#[cfg(not(any(feature = "std", feature = "critical-section", target_os = "none")))]
compile_error!("background-tasks needs the feature `std`, or `critical-section` in a program without the standard library");

/// Declares a function `const`, except under loom, whose primitives have no `const` constructors.
macro_rules! const_unless_loom {
    ($(#[$meta:meta])* $vis:vis const fn $($rest:tt)*) => {
        #[cfg(not(loom))]
        $(#[$meta])* $vis const fn $($rest)*
        #[cfg(loom)]
        $(#[$meta])* $vis fn $($rest)*
    };
}
pub(crate) use const_unless_loom;

/// Keeps a value on cache lines of its own: two lines, because the prefetcher loads pairs.
///
/// Without `std` there is one thread, and the memory would be wasted.
#[cfg_attr(feature = "std", repr(align(128)))]
pub(crate) struct CachePadded<T>(pub(crate) T);

impl<T> Deref for CachePadded<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

/// Runs user code whose panic must not reach the caller (S6).
///
/// The payload's destructor may panic as well. The payload of that second panic is leaked.
pub(crate) fn ignore_panic(f: impl FnOnce()) {
    if let Err(payload) = catch(f) {
        if let Err(second) = catch(|| drop(payload)) {
            core::mem::forget(second);
        }
    }
}

/// Drops a user's value. A panic of its destructor is ignored.
pub(crate) fn drop_quietly<T>(value: T) {
    ignore_panic(|| drop(value));
}

/// Calls a waker, if there is one. A panic of the waker is ignored.
pub(crate) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        ignore_panic(|| waker.wake());
    }
}
