//! Auto traits are part of the API: asserted both ways.

use background_tasks::{
    AbortError, AbortReport, DynBlockingSpawner, DynLocalSpawner, DynSpawner, Guard, Registry, RegistryBuilder, RegistryState,
    RejectReason, Rejected, RunUntilShutdown, RunWhenReady, Shutdown, ShutdownGuard, ShutdownSignal, Stragglers, Summary,
    TaskBuilder, TaskId, TaskInfo, TaskKind, Tracked, WaitIdle,
};
use std::cell::Cell;
use std::marker::PhantomPinned;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::rc::Rc;

/// `Asks::<T>::SEND` and so on: the inherent constant is there only if the bound holds, the trait's otherwise.
struct Asks<T: ?Sized>(std::marker::PhantomData<T>);

macro_rules! ask {
    ($($constant:ident $no:ident: $bound:path),*) => {$(
        #[allow(dead_code, reason = "where every type has it")]
        trait $no {
            const $constant: bool = false;
        }
        impl<T: ?Sized> $no for Asks<T> {}
        impl<T: ?Sized + $bound> Asks<T> {
            const $constant: bool = true;
        }
    )*};
}
ask!(SEND NotSend: Send, SYNC NotSync: Sync, UNPIN NotUnpin: Unpin);
ask!(UNWIND NotUnwind: UnwindSafe, REF_UNWIND NotRefUnwind: RefUnwindSafe);

/// Asserts `[Send, Sync, Unpin, UnwindSafe, RefUnwindSafe]` of each type.
macro_rules! each {
    ($($type:ty => $expected:expr),* $(,)?) => {$({
        type T = Asks<$type>;
        assert_eq!([T::SEND, T::SYNC, T::UNPIN, T::UNWIND, T::REF_UNWIND], $expected, stringify!($type));
    })*};
}

const ALL: [bool; 5] = [true; 5];

#[test]
fn what_holds_no_type_of_the_user_has_all() {
    each! {
        AbortError => ALL,
        AbortReport => ALL,
        // It owns observers, which need not be unwind safe.
        RegistryBuilder<()> => [true, true, true, false, false],
        RegistryState => ALL,
        // They hold any spawner.
        DynSpawner => [true, true, true, false, false],
        DynLocalSpawner => [false, false, true, false, false],
        DynBlockingSpawner => [true, true, true, false, false],
        Guard => ALL,
        TaskKind => ALL,
        RejectReason => ALL,
        Registry<()> => ALL,
        Rejected<()> => ALL,
        Shutdown => ALL,
        ShutdownGuard => ALL,
        ShutdownSignal => ALL,
        Stragglers => ALL,
        TaskBuilder<'static, ()> => ALL,
        Summary => ALL,
        TaskId => ALL,
        TaskInfo => ALL,
        WaitIdle => ALL,
    }
}

#[test]
fn what_holds_a_type_of_the_user_has_what_that_has() {
    each! {
        Registry<Rc<()>> => [false, false, true, true, true],
        Registry<Cell<()>> => [true, false, true, true, false],
        Rejected<Rc<()>> => [false, false, true, true, true],
        Tracked<()> => ALL,
        Tracked<Rc<()>> => [false, false, true, true, true],
        Tracked<PhantomPinned> => [true, true, false, true, true],
        RegistryBuilder<Rc<()>> => [false, false, true, false, false],
        TaskBuilder<'static, Rc<()>> => [false, false, true, true, true],
        RunWhenReady<'static, (), ()> => ALL,
        RunWhenReady<'static, (), Rc<()>> => [false, false, true, true, true],
        RunWhenReady<'static, (), PhantomPinned> => ALL,
        RunUntilShutdown<()> => ALL,
        RunUntilShutdown<Rc<()>> => [false, false, true, true, true],
        RunUntilShutdown<PhantomPinned> => [true, true, false, true, true],
    }
}

#[test]
fn copies_and_clones() {
    fn copy<T: Copy>() {}
    fn clone<T: Clone>() {}
    copy::<Summary>();
    copy::<RejectReason>();
    copy::<TaskKind>();
    copy::<TaskId>();
    copy::<TaskInfo>();
    copy::<TaskBuilder<'static, Rc<()>>>();
    clone::<ShutdownSignal>();
    clone::<Registry<()>>();
    clone::<Stragglers>();
}
