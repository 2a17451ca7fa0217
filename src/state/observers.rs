//! Stores and notifies the observers of a registry.

use crate::observer::Observer;
use crate::platform::{Arc, Mutex, const_unless_loom, drop_quietly, ignore_panic};
use alloc::{boxed::Box, vec::Vec};

type List = Vec<Box<dyn Observer>>;

pub(super) struct Observers(Mutex<Option<Arc<List>>>);

impl Observers {
    const_unless_loom! {
        pub(super) const fn new() -> Self {
            Self(Mutex::new(None))
        }
    }

    pub(super) fn set(&self, observers: List) {
        let observers = Some(Arc::new(observers));
        self.0.with(|stored| *stored = observers);
    }

    /// Calls each observer while no lock is held (invariant S7). If an observer panics, the remaining observers are still called
    /// (invariant S6).
    pub(super) fn notify(&self, call: impl Fn(&dyn Observer)) {
        let observers = self.0.with(|stored| stored.clone());
        for observer in observers.iter().flat_map(|observers| observers.iter()) {
            ignore_panic(|| call(&**observer));
        }
        drop_quietly(observers);
    }

    /// Drops the observers one at a time. If a destructor panics, this function catches the panic before it calls the next
    /// destructor. If two destructors panicked at the same time, the process would abort.
    pub(super) fn clear(&self) {
        let observers = self.0.with(Option::take);
        observers.and_then(Arc::into_inner).into_iter().flatten().for_each(drop_quietly);
    }
}
