//! Checks which public types implement auto traits such as `Send`. A new or a missing auto trait is a change of the API.

use background_tasks::{
    AbortError, AbortHandle, AbortReport, CompletionGuard, DynBlockingSpawner, DynLocalSpawner, DynSpawner, DynTimer, Guard,
    JoinError, JoinHandle, Loss, Registry, RegistryBuilder, RegistryState, RejectReason, Rejected, Restart, RunUntilShutdown,
    ServiceInfo, Shutdown, ShutdownGuard, ShutdownSignal, SpawnInfo, StartWhenReady, Stragglers, Summary, TaskBuilder, TaskId,
    TaskInfo, TaskKind, Tracked, WaitIdle, WithTimer,
};
use std::cell::Cell;
use std::marker::PhantomPinned;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::rc::Rc;

/// Provides `Probe::<T>::SEND` and the other constants. The inherent constant (`true`) exists only if `T` implements the auto trait.
/// Otherwise the path names the constant of the helper trait (`false`).
struct Probe<T: ?Sized>(std::marker::PhantomData<T>);

macro_rules! probes {
    ($($constant:ident $no:ident: $bound:path),*) => {$(
        #[allow(dead_code, reason = "unused if all types in this file meet the bound")]
        trait $no {
            const $constant: bool = false;
        }
        impl<T: ?Sized> $no for Probe<T> {}
        impl<T: ?Sized + $bound> Probe<T> {
            const $constant: bool = true;
        }
    )*};
}
probes!(SEND NotSend: Send, SYNC NotSync: Sync, UNPIN NotUnpin: Unpin);
probes!(UNWIND NotUnwind: UnwindSafe, REF_UNWIND NotRefUnwind: RefUnwindSafe);

/// Asserts `[Send, Sync, Unpin, UnwindSafe, RefUnwindSafe]` of each type.
macro_rules! assert_auto_traits {
    ($($type:ty => $expected:expr),* $(,)?) => {$({
        type T = Probe<$type>;
        assert_eq!([T::SEND, T::SYNC, T::UNPIN, T::UNWIND, T::REF_UNWIND], $expected, stringify!($type));
    })*};
}

const ALL: [bool; 5] = [true; 5];

#[test]
fn types_without_user_types_have_all_auto_traits() {
    assert_auto_traits! {
        AbortError => ALL,
        AbortHandle => ALL,
        AbortReport => ALL,
        // A builder owns observers, which need not be unwind safe.
        RegistryBuilder<()> => [true, true, true, false, false],
        RegistryState => ALL,
        // The contract of a spawner allows panics, so a dynamic spawner is unwind safe for every spawner that it owns.
        DynSpawner => ALL,
        DynSpawner<()> => ALL,
        DynLocalSpawner => [false, false, true, true, true],
        DynBlockingSpawner => ALL,
        DynTimer => ALL,
        DynSpawner<DynBlockingSpawner, DynTimer> => ALL,
        Registry<DynSpawner> => ALL,
        Registry<DynSpawner<()>> => ALL,
        Guard => ALL,
        CompletionGuard => ALL,
        // The error contains the payload of a panic in a mutex, so the error is `Sync`.
        JoinError => ALL,
        Loss<'static> => ALL,
        TaskKind => ALL,
        RejectReason => ALL,
        Registry<()> => ALL,
        Rejected<()> => ALL,
        Restart => ALL,
        ServiceInfo => ALL,
        Shutdown => ALL,
        ShutdownGuard => ALL,
        ShutdownSignal => ALL,
        Stragglers => ALL,
        TaskBuilder<'static, ()> => ALL,
        SpawnInfo => ALL,
        Summary => ALL,
        TaskId => ALL,
        TaskInfo => ALL,
        WaitIdle => ALL,
    }
}

#[test]
fn generic_types_inherit_auto_traits_of_user_types() {
    assert_auto_traits! {
        Registry<Rc<()>> => [false, false, true, true, true],
        Registry<Cell<()>> => [true, false, true, true, false],
        Rejected<Rc<()>> => [false, false, true, true, true],
        Tracked<()> => ALL,
        Tracked<Rc<()>> => [false, false, true, true, true],
        Tracked<PhantomPinned> => [true, true, false, true, true],
        RegistryBuilder<Rc<()>> => [false, false, true, false, false],
        TaskBuilder<'static, Rc<()>> => [false, false, true, true, true],
        StartWhenReady<'static, (), ()> => ALL,
        StartWhenReady<'static, (), Rc<()>> => [false, false, true, true, true],
        StartWhenReady<'static, (), PhantomPinned> => ALL,
        StartWhenReady<'static, (), (), JoinHandle<Rc<()>>> => ALL,
        StartWhenReady<'static, (), Rc<()>, JoinHandle<()>> => [false, false, true, true, true],
        // Only the traits of the output matter, not the traits of the future. This is the same as for tokio's handle.
        JoinHandle<()> => ALL,
        JoinHandle<Rc<()>> => [false, false, true, true, true],
        JoinHandle<Cell<()>> => ALL,
        JoinHandle<PhantomPinned> => ALL,
        RunUntilShutdown<()> => ALL,
        WithTimer<(), ()> => ALL,
        WithTimer<(), Rc<()>> => [false, false, true, true, true],
        RunUntilShutdown<Rc<()>> => [false, false, true, true, true],
        RunUntilShutdown<PhantomPinned> => [true, true, false, true, true],
    }
}

#[test]
fn public_types_are_copy_or_clone() {
    fn copy<T: Copy>() {}
    fn clone<T: Clone>() {}
    copy::<Loss<'static>>();
    copy::<SpawnInfo>();
    copy::<Summary>();
    copy::<RejectReason>();
    copy::<TaskKind>();
    copy::<TaskId>();
    copy::<TaskInfo>();
    copy::<TaskBuilder<'static, Rc<()>>>();
    clone::<AbortHandle>();
    clone::<ShutdownSignal>();
    clone::<Registry<()>>();
    clone::<Stragglers>();
}
