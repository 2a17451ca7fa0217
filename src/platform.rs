//! Hides the differences between three platforms: programs with an operating system, bare-metal programs, and loom models.
//!
//! Each platform has its own module. All platform modules export the same items, so the rest of the crate needs no `cfg(feature =
//! "std")`.

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

use core::task::Waker;

/// Declares a `const` function. In loom models the function is not `const`, because loom's primitives have no `const`
/// constructors.
macro_rules! const_unless_loom {
    ($(#[$meta:meta])* $vis:vis const fn $($rest:tt)*) => {
        #[cfg(not(loom))]
        $(#[$meta])* $vis const fn $($rest)*
        #[cfg(loom)]
        $(#[$meta])* $vis fn $($rest)*
    };
}
pub(crate) use const_unless_loom;

/// Declares a static. In a loom model, each run of the model starts with a new value of the static.
#[cfg(not(loom))]
macro_rules! global {
    (static $name:ident: $type:ty = $value:expr) => {
        static $name: $type = $value;
    };
}
#[cfg(not(loom))]
pub(crate) use global;

/// Implements `Wake` for the type `$type`. A wake-up calls the function `$wake` with an `Arc` of the type. If the type has
/// generic parameters, they come first, in brackets.
macro_rules! wake_with {
    ([$($generics:tt)*] $type:ty, $wake:path) => {
        #[cfg(any(feature = "std", not(feature = "portable-atomic")))]
        impl<$($generics)*> alloc::task::Wake for $type {
            fn wake(self: Arc<Self>) {
                $wake(self);
            }
        }

        #[cfg(not(any(feature = "std", not(feature = "portable-atomic"))))]
        impl<$($generics)*> portable_atomic_util::task::Wake for $type {
            fn wake(this: Arc<Self>) {
                $wake(this);
            }
        }
    };
    ($type:ty, $wake:path) => {
        crate::platform::wake_with!([] $type, $wake);
    };
}
pub(crate) use wake_with;

/// Does nothing. In loom models, `model::LifeCheck` replaces this type. `model::LifeCheck` checks that no code uses a registry
/// state after another registry has taken the state.
#[cfg(not(loom))]
pub(crate) struct LifeCheck;

#[cfg(not(loom))]
#[expect(clippy::unused_self, reason = "the type for loom models has the same methods")]
impl LifeCheck {
    pub(crate) const fn new() -> Self {
        Self
    }

    pub(crate) fn begin(&self) {}

    pub(crate) fn touch(&self) {}
}

/// Stores a value in cache lines that no other value shares. The alignment is two cache lines, because the prefetcher loads cache
/// lines in pairs.
///
/// Without the feature `std`, the crate treats the program as a single thread, so the value has no padding.
#[cfg_attr(feature = "std", repr(align(128)))]
pub(crate) struct CachePadded<T>(pub(crate) T);

/// Sets an atomic word to 0. At the same time, another thread can change the word with a read-modify-write operation.
///
/// On real hardware, a store never takes effect between the read and the write of such an operation. Loom does not guarantee
/// this for a plain store, so loom models use a swap.
pub(crate) fn reset(word: &AtomicUsize) {
    if cfg!(loom) {
        word.swap(0, Ordering::Relaxed);
    } else {
        word.store(0, Ordering::Relaxed);
    }
}

/// Calls the closure `f`, which runs user code. If `f` panics, the panic does not reach the caller (invariant S6).
///
/// The destructor of the panic's payload can also panic. This function leaks the payload of this second panic, because its
/// destructor could panic again.
pub(crate) fn ignore_panic(f: impl FnOnce()) {
    if let Err(payload) = catch(f) {
        if let Err(second) = catch(|| drop(payload)) {
            core::mem::forget(second);
        }
    }
}

/// Drops a user's value. Ignores a panic of the value's destructor.
pub(crate) fn drop_quietly<T>(value: T) {
    ignore_panic(|| drop(value));
}

/// Calls a waker if there is one. Ignores a panic of the waker.
pub(crate) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        ignore_panic(|| waker.wake());
    }
}
