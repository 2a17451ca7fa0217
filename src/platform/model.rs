//! Implements the platform for loom models, with the primitives of loom. Loom can replay a run only if nothing except loom's
//! scheduler influences the run. Therefore each test in `models/` chooses the shard of each of its threads.

use core::cell::Cell;
use loom::cell::UnsafeCell;
use std::sync::OnceLock;

/// An atomic integer that loom does not model. Loom does not have to explore the accesses to this integer, because no other memory
/// access depends on their order.
pub(crate) use core::sync::atomic::AtomicUsize as UnmodelledAtomicUsize;
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(crate) use std::sync::Arc;

pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().unwrap())
    }

    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner().unwrap()
    }
}

pub(crate) struct Once<T: 'static>(OnceLock<T>);

impl<T> Once<T> {
    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    pub(crate) fn get_or_init(&'static self, make: impl FnOnce() -> T) -> &'static T {
        self.0.get_or_init(make)
    }

    /// Returns the value, or `None` if the value has not been created yet.
    pub(crate) fn get(&'static self) -> Option<&'static T> {
        self.0.get()
    }
}

macro_rules! per_thread {
    (static $name:ident: $type:ty = $value:expr) => {
        loom::thread_local!(static $name: core::cell::Cell<$type> = core::cell::Cell::new($value));
    };
}
pub(crate) use per_thread;

macro_rules! global {
    (static $name:ident: $type:ty = $value:expr) => {
        loom::lazy_static! { static ref $name: $type = $value; }
    };
}
pub(crate) use global;

/// Each chunk has only one slot, so that the slot table grows in a model with two tasks.
pub(crate) const SLOTS_PER_CHUNK: usize = 1;

std::thread_local!(static SHARDS: Cell<usize> = const { Cell::new(2) });
loom::thread_local!(static NUMBER: Cell<usize> = Cell::new(0));

pub(crate) fn shard_count() -> usize {
    SHARDS.get()
}

/// A sharded pool has only one part. At the end of a run, a check expects each item in the part of the pool that created the item.
pub(crate) fn pool_count() -> usize {
    1
}

pub(crate) fn thread_number() -> usize {
    NUMBER.with(Cell::get)
}

/// Sets the number of shards of each registry in this model.
pub fn set_shards(shards: usize) {
    SHARDS.set(shards);
}

/// Sets the thread number of the calling thread. This number selects the shard that the thread uses.
pub fn set_number(number: usize) {
    NUMBER.with(|own| own.set(number));
}

type Inner = Arc<std::sync::Mutex<Option<Arc<event_listener::Event>>>>;

/// The event in a leaked registry state.
///
/// An event contains a loom `Arc`, and loom requires that every `Arc` is freed before the end of a run. A leaked state never drops
/// its event. Therefore the static `EVENTS` drops all events at the end of a run.
pub(crate) struct Event(Inner);

struct Events(std::sync::Mutex<Vec<Inner>>);

loom::lazy_static! { static ref EVENTS: Events = Events(std::sync::Mutex::new(Vec::new())); }

impl Drop for Events {
    fn drop(&mut self) {
        for event in self.0.get_mut().unwrap() {
            drop(event.lock().unwrap().take());
        }
    }
}

impl Event {
    pub(crate) fn new() -> Self {
        let event = Inner::new(std::sync::Mutex::new(Some(Arc::default())));
        EVENTS.0.lock().unwrap().push(event.clone());
        Self(event)
    }

    fn get(&self) -> Arc<event_listener::Event> {
        self.0.lock().unwrap().clone().expect("a run must not end before its registries are drained")
    }

    pub(crate) fn listen(&self) -> event_listener::EventListener {
        self.get().listen()
    }

    pub(crate) fn notify(&self, listeners: usize) -> usize {
        self.get().notify(listeners)
    }
}

/// Represents the data that is overwritten when the pool reuses a registry state.
///
/// Every use of the state by one registry must happen before the next registry reuses the state. If a run violates this order, loom
/// fails the run.
pub(crate) struct LifeCheck(std::sync::Mutex<UnsafeCell<()>>);

impl LifeCheck {
    pub(crate) fn new() -> Self {
        Self(std::sync::Mutex::new(UnsafeCell::new(())))
    }

    pub(crate) fn begin(&self) {
        self.0.lock().unwrap().with_mut(|_| ());
    }

    pub(crate) fn touch(&self) {
        self.0.lock().unwrap().with(|_| ());
    }
}
