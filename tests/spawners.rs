//! What is each spawner's own.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

mod common;

use background_tasks::{AsyncStdSpawner, LocalSpawner, Registry, SmolSpawner, Spawner, ThreadsSpawner, TokioSpawner};
use common::HANG;
use futures_lite::future::{block_on, yield_now};
use std::cell::Cell;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

#[test]
fn tokio_spawns_on_the_ambient_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let registry = Registry::new(TokioSpawner);
    runtime.block_on(async {
        registry.run(async { tokio::task::yield_now().await });
        assert_eq!(registry.shutdown().await.completed, 1);
    });
}

#[test]
fn tokio_outside_a_runtime_says_so_and_loses_nothing() {
    let registry = Registry::new(TokioSpawner);
    let panic = catch_unwind(AssertUnwindSafe(|| registry.run(async {}))).unwrap_err();
    let message = panic.downcast_ref::<&str>().copied().map(String::from).or(panic.downcast_ref().cloned()).unwrap();
    for part in ["TokioSpawner", "`handle.enter()`", "Registry::new(runtime.handle().clone())"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(registry.shutdown().wait().abandoned, 1);
}

#[test]
fn tokio_runs_local_tasks_on_a_local_set() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let registry = Registry::new(TokioSpawner);
    let set = tokio::task::LocalSet::new();
    set.block_on(&runtime, local_tasks_run_and_are_counted(registry));
}

#[test]
fn async_executor_s_local_executor_through_an_rc() {
    let executor = Rc::new(async_executor::LocalExecutor::new());
    let registry = Registry::new(executor.clone());
    block_on(executor.run(local_tasks_run_and_are_counted(registry)));
}

async fn local_tasks_run_and_are_counted<S: LocalSpawner>(registry: Registry<S>) {
    let ran = Rc::new(Cell::new(0));
    for _ in 0..3 {
        let ran = ran.clone();
        registry.run_local(async move {
            yield_now().await;
            ran.set(ran.get() + 1);
        });
    }
    registry.run_local(async { panic!("a panic, as planned") });
    let summary = registry.shutdown().await;
    assert_eq!((ran.get(), summary.completed, summary.panicked), (3, 3, 1));
    let back = registry.try_run_local(async move { drop(ran) }).unwrap_err();
    drop(back.into_inner());
    registry.run_local(async { unreachable!("the registry has drained") });
    assert_eq!(registry.summary().rejected, 2);
}

#[test]
fn a_local_executor_that_is_dropped_abandons_what_is_in_flight() {
    let executor = Rc::new(async_executor::LocalExecutor::new());
    let registry = Registry::new(executor.clone());
    registry.run_local(pending::<()>());
    let shutdown = registry.shutdown();
    drop((executor, registry));
    assert_eq!(shutdown.wait_timeout(HANG).unwrap().abandoned, 1);
}

#[test]
fn a_spawner_may_be_held_in_any_way() {
    fn runs(registry: &Registry<impl Spawner>) {
        registry.run(async {});
        assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 1);
    }
    static EXECUTOR: async_executor::Executor<'static> = async_executor::Executor::new();
    runs(&Registry::new(&SmolSpawner));
    runs(&Registry::new(Box::new(SmolSpawner)));
    runs(&Registry::new(Rc::new(AsyncStdSpawner)));
    runs(&Registry::new(Arc::new(&SmolSpawner)));
    thread::scope(|scope| {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        scope.spawn(|| block_on(EXECUTOR.run(stopped)).unwrap());
        runs(&Registry::new(&EXECUTOR));
        stop.send(()).unwrap();
    });
}

#[test]
fn no_threads_are_a_clear_error() {
    let error = ThreadsSpawner::new(0).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert_eq!(error.to_string(), "a ThreadsSpawner needs at least one thread to run tasks on");
}

#[test]
fn threads_have_names_and_all_of_them_run_tasks() {
    let registry = Registry::new(ThreadsSpawner::new(2).unwrap());
    let (name, names) = channel();
    let together = Arc::new(std::sync::Barrier::new(2));
    for _ in 0..2 {
        let (name, together) = (name.clone(), together.clone());
        registry.run(async move {
            together.wait();
            name.send(thread::current().name().unwrap().to_owned()).unwrap();
        });
    }
    registry.shutdown().wait_timeout(HANG).unwrap();
    let mut names: Vec<_> = names.try_iter().collect();
    names.sort();
    assert_eq!(names, ["background-0", "background-1"]);
}

/// Tells when its thread ends.
struct Ends(std::sync::mpsc::Sender<()>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.send(()).unwrap();
    }
}

thread_local!(static ENDS: Cell<Option<Ends>> = const { Cell::new(None) });

/// Has each of two threads tell when it ends.
fn watch(registry: &Registry<ThreadsSpawner>) -> std::sync::mpsc::Receiver<()> {
    let (ends, ended) = channel();
    let together = Arc::new(std::sync::Barrier::new(2));
    for _ in 0..2 {
        let (ends, together) = (ends.clone(), together.clone());
        registry.run(async move {
            ENDS.set(Some(Ends(ends)));
            together.wait();
        });
    }
    block_on(registry.wait_idle());
    ended
}

#[test]
fn threads_end_when_the_last_clone_is_dropped_and_abandon_what_is_in_flight() {
    let registry = Registry::new(ThreadsSpawner::new(2).unwrap());
    let ended = watch(&registry);
    registry.run(pending::<()>());
    let second = registry.clone();
    let shutdown = registry.shutdown();
    drop(registry);
    assert_eq!(ended.try_iter().count(), 0, "one clone is left");
    drop(second);
    assert_eq!(ended.try_iter().count(), 2, "joined");
    assert_eq!(shutdown.wait().abandoned, 1);
}

#[test]
fn threads_end_when_the_last_clone_is_dropped_on_one_of_them() {
    let registry = Registry::new(ThreadsSpawner::new(2).unwrap());
    let ended = watch(&registry);
    let (last, is_last) = channel::<()>();
    let own = registry.clone();
    registry.run(async move {
        is_last.recv_timeout(HANG).unwrap();
        drop(own);
    });
    let shutdown = registry.shutdown();
    drop(registry);
    last.send(()).unwrap();
    let summary = shutdown.wait_timeout(HANG).unwrap();
    assert_eq!((summary.completed, summary.panicked), (3, 0));
    for _ in 0..2 {
        ended.recv_timeout(HANG).unwrap();
    }
}

#[test]
fn threads_survive_a_foreign_task_that_panics() {
    let spawner = ThreadsSpawner::new(1).unwrap();
    let (sender, receiver) = channel();
    spawner.spawn(async { panic!("a foreign task's panic, as planned") });
    spawner.spawn(async move { sender.send(()).unwrap() });
    receiver.recv_timeout(HANG).unwrap();
}
