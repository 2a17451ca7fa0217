//! Everything that loom must see, from core and std or from loom.

#[cfg(loom)]
pub(crate) use self::model::*;
#[cfg(not(loom))]
pub(crate) use self::real::*;

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

/// Locks a mutex under which no foreign code runs, so that poison says nothing.
#[cfg(feature = "std")]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(not(loom))]
mod real {
    #[cfg(not(feature = "portable-atomic"))]
    pub(crate) use core::sync::atomic::AtomicUsize;
    pub(crate) use core::sync::atomic::Ordering;
    pub(crate) use event_listener::Event;
    #[cfg(feature = "portable-atomic")]
    pub(crate) use portable_atomic::AtomicUsize;
    #[cfg(feature = "std")]
    pub(crate) use {
        super::wide::AtomicU64,
        core::sync::atomic::{AtomicBool, AtomicU32},
        std::sync::{Mutex, MutexGuard},
        std::thread_local,
    };
}

/// 64 bits, on targets too whose atomics have fewer.
#[cfg(all(feature = "std", not(loom)))]
mod wide {
    #[cfg(target_has_atomic = "64")]
    pub(crate) use core::sync::atomic::AtomicU64;

    #[cfg(not(target_has_atomic = "64"))]
    pub(crate) struct AtomicU64(std::sync::Mutex<u64>);

    #[cfg(not(target_has_atomic = "64"))]
    impl AtomicU64 {
        pub(crate) const fn new(value: u64) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        pub(crate) fn load(&self, _: super::Ordering) -> u64 {
            *super::lock(&self.0)
        }

        pub(crate) fn store(&self, value: u64, _: super::Ordering) {
            *super::lock(&self.0) = value;
        }

        pub(crate) fn compare_exchange_weak(
            &self,
            current: u64,
            new: u64,
            _: super::Ordering,
            _: super::Ordering,
        ) -> Result<u64, u64> {
            let mut value = super::lock(&self.0);
            if *value != current {
                return Err(*value);
            }
            Ok(core::mem::replace(&mut value, new))
        }
    }
}

#[cfg(loom)]
pub(crate) mod model {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
    pub(crate) use loom::thread_local;

    /// Its stores are swaps: nothing comes between what an exchange read and what it wrote, which loom knows of swaps and not of stores.
    #[derive(Debug)]
    pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            Self(loom::sync::atomic::AtomicU64::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> u64 {
            self.0.load(order)
        }

        pub(crate) fn store(&self, value: u64, order: Ordering) {
            self.0.swap(value, order);
        }

        pub(crate) fn compare_exchange_weak(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.0.compare_exchange_weak(current, new, success, failure)
        }
    }

    type Shared = std::sync::Arc<event_listener::Event>;

    /// An `Event` inside a leaked core. It holds a loom `Arc`, which loom wants freed when a model ends: the pool's end closes it. The
    /// `Arc` beside it is for an event that nobody has used yet: so a core that did not come back is a leak in any case.
    #[derive(Debug)]
    pub(crate) struct Event(std::sync::Mutex<Option<(Shared, loom::sync::Arc<()>)>>);

    impl Event {
        pub(crate) fn new() -> Self {
            Self(std::sync::Mutex::new(Some((Shared::default(), loom::sync::Arc::new(())))))
        }

        fn get(&self) -> Shared {
            let event = self.0.lock().unwrap();
            event.as_ref().expect("a model must not end before its core is idle").0.clone()
        }

        pub(crate) fn listen(&self) -> event_listener::EventListener {
            self.get().listen()
        }

        pub(crate) fn notify(&self, n: usize) {
            self.get().notify(n);
        }

        pub(crate) fn close(&self) {
            self.0.lock().unwrap().take().expect("a core is closed once");
        }
    }

    /// Stands for all that a core's next life overwrites: loom fails a run in which somebody's letting go of the last life did not
    /// happen before it.
    #[derive(Debug)]
    pub(crate) struct Life(std::sync::Mutex<loom::cell::UnsafeCell<()>>);

    impl Life {
        pub(crate) fn new() -> Self {
            Self(std::sync::Mutex::new(loom::cell::UnsafeCell::new(())))
        }

        pub(crate) fn begin(&self) {
            self.0.lock().unwrap().with_mut(|_| ());
        }

        pub(crate) fn let_go(&self) {
            self.0.lock().unwrap().with(|_| ());
        }
    }
}
