//! Tests behaviour that only one of the spawners in this crate has.
use crate::common::HANG;
use background_tasks::{AsyncStdSpawner, LocalSpawner, Registry, SmolSpawner, Spawner, ThreadsSpawner, TokioSpawner};
use futures_lite::future::{block_on, yield_now};
use std::cell::Cell;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

#[test]
fn tokio_spawner_uses_the_ambient_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let registry = Registry::new(TokioSpawner);
    runtime.block_on(async {
        registry.run(async { tokio::task::yield_now().await });
        assert_eq!(registry.shutdown().await.completed, 1);
    });
}

#[test]
fn tokio_spawner_outside_a_runtime_panics_with_advice_and_abandons_the_task() {
    let registry = Registry::new(TokioSpawner);
    let panic = catch_unwind(AssertUnwindSafe(|| registry.run(async {}))).unwrap_err();
    let message = panic.downcast_ref::<&str>().copied().map(String::from).or(panic.downcast_ref().cloned()).unwrap();
    for part in ["TokioSpawner", "`handle.enter()`", "Registry::new(runtime.handle().clone())"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(registry.shutdown().wait().abandoned, 1);
}

#[test]
fn tokio_spawner_runs_local_tasks_on_a_local_set() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let registry = Registry::new(TokioSpawner);
    let set = tokio::task::LocalSet::new();
    set.block_on(&runtime, assert_local_tasks_run_and_are_counted(registry));
}

#[test]
fn local_executor_behind_an_rc_runs_local_tasks() {
    let executor = Rc::new(async_executor::LocalExecutor::new());
    let registry = Registry::new(executor.clone());
    block_on(executor.run(assert_local_tasks_run_and_are_counted(registry)));
}

async fn assert_local_tasks_run_and_are_counted<S: LocalSpawner>(registry: Registry<S>) {
    let runs = Rc::new(Cell::new(0));
    for _ in 0..3 {
        let runs = runs.clone();
        registry.run_local(async move {
            yield_now().await;
            runs.set(runs.get() + 1);
        });
    }
    registry.run_local(async { panic!("intentional panic") });
    let summary = registry.shutdown().await;
    assert_eq!((runs.get(), summary.completed, summary.panicked), (3, 3, 1));
    let rejected = registry.task().try_run_local(async move { drop(runs) }).unwrap_err();
    drop(rejected.into_inner());
    registry.run_local(async { unreachable!("the registry has drained") });
    assert_eq!(registry.summary().rejected, 2);
}

#[test]
fn dropped_local_executor_abandons_its_tasks() {
    let executor = Rc::new(async_executor::LocalExecutor::new());
    let registry = Registry::new(executor.clone());
    registry.run_local(pending::<()>());
    let shutdown = registry.shutdown();
    drop((executor, registry));
    assert_eq!(shutdown.wait_timeout(HANG).unwrap().abandoned, 1);
}

#[test]
fn spawner_works_behind_any_pointer() {
    fn assert_runs_a_task(registry: &Registry<impl Spawner>) {
        registry.run(async {});
        assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 1);
    }
    static EXECUTOR: async_executor::Executor<'static> = async_executor::Executor::new();
    assert_runs_a_task(&Registry::new(&SmolSpawner));
    assert_runs_a_task(&Registry::new(Box::new(SmolSpawner)));
    assert_runs_a_task(&Registry::new(Rc::new(AsyncStdSpawner)));
    assert_runs_a_task(&Registry::new(Arc::new(&SmolSpawner)));
    thread::scope(|scope| {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        scope.spawn(|| block_on(EXECUTOR.run(stopped)).unwrap());
        assert_runs_a_task(&Registry::new(&EXECUTOR));
        stop.send(()).unwrap();
    });
}

#[test]
fn threads_spawner_without_threads_is_an_error() {
    let error = ThreadsSpawner::new(0).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert_eq!(error.to_string(), "a ThreadsSpawner needs at least one thread to run tasks on");
}

#[test]
fn worker_threads_have_names_and_all_run_tasks() {
    let registry = Registry::new(ThreadsSpawner::new(2).unwrap());
    let (name, names) = channel();
    // Because of the barrier, each task blocks its thread until a second thread runs the second task.
    let both_run = Arc::new(Barrier::new(2));
    for _ in 0..2 {
        let (name, both_run) = (name.clone(), both_run.clone());
        registry.run(async move {
            both_run.wait();
            name.send(thread::current().name().unwrap().to_owned()).unwrap();
        });
    }
    registry.shutdown().wait_timeout(HANG).unwrap();
    let mut names: Vec<_> = names.try_iter().collect();
    names.sort();
    assert_eq!(names, ["background-0", "background-1"]);
}

/// A thread-local value that sends a message when its thread exits.
struct ThreadExit(Sender<()>);

impl Drop for ThreadExit {
    fn drop(&mut self) {
        self.0.send(()).unwrap();
    }
}

thread_local!(static THREAD_EXIT: Cell<Option<ThreadExit>> = const { Cell::new(None) });

/// Returns a channel. When one of the registry's two threads exits, the channel receives a message.
fn watch_thread_exits(registry: &Registry<ThreadsSpawner>) -> Receiver<()> {
    let (exit, exits) = channel();
    let both_run = Arc::new(Barrier::new(2));
    for _ in 0..2 {
        let (exit, both_run) = (exit.clone(), both_run.clone());
        registry.run(async move {
            THREAD_EXIT.set(Some(ThreadExit(exit)));
            both_run.wait();
        });
    }
    block_on(registry.wait_idle());
    exits
}

#[test]
fn dropping_the_last_clone_joins_the_threads_and_abandons_their_tasks() {
    let registry = Registry::new(ThreadsSpawner::new(2).unwrap().join_timeout(HANG));
    let exits = watch_thread_exits(&registry);
    registry.run(pending::<()>());
    let second = registry.clone();
    let shutdown = registry.shutdown();
    drop(registry);
    assert_eq!(exits.try_iter().count(), 0, "one clone is left");
    drop(second);
    assert_eq!(exits.try_iter().count(), 2, "the drop joins both threads");
    assert_eq!(shutdown.wait().abandoned, 1);
}

#[test]
fn last_clone_dropped_on_a_worker_thread_ends_all_threads() {
    let registry = Registry::new(ThreadsSpawner::new(2).unwrap());
    let exits = watch_thread_exits(&registry);
    let (drop_last, may_drop_last) = channel::<()>();
    let last = registry.clone();
    registry.run(async move {
        may_drop_last.recv_timeout(HANG).unwrap();
        drop(last);
    });
    let shutdown = registry.shutdown();
    drop(registry);
    drop_last.send(()).unwrap();
    let summary = shutdown.wait_timeout(HANG).unwrap();
    assert_eq!((summary.completed, summary.panicked), (3, 0));
    for _ in 0..2 {
        exits.recv_timeout(HANG).unwrap();
    }
}

/// Checks that a task that blocks its thread does not block the drop of the spawner. A waiting task must be dropped when the blocked
/// thread exits.
fn task_that_hangs_does_not_block_the_drop(spawner: ThreadsSpawner) {
    let registry = Registry::new(spawner);
    let ((start, started), (resume, resumed), (finish, finished)) = (channel(), channel::<()>(), channel());
    registry.run(async move {
        start.send(()).unwrap();
        resumed.recv().unwrap();
    });
    started.recv_timeout(HANG).unwrap();
    registry.run(pending::<()>());
    let shutdown = registry.shutdown();
    assert_eq!(registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err().len(), 2);
    thread::spawn(move || {
        drop(registry);
        finish.send(()).unwrap();
    });
    finished.recv_timeout(HANG).expect("the drop must not wait for the task that hangs");
    resume.send(()).unwrap();
    let summary = shutdown.wait_timeout(HANG).unwrap();
    assert_eq!((summary.completed, summary.abandoned), (1, 1));
}

#[test]
fn hanging_task_does_not_block_the_drop_forever() {
    task_that_hangs_does_not_block_the_drop(ThreadsSpawner::new(1).unwrap());
    task_that_hangs_does_not_block_the_drop(ThreadsSpawner::new(2).unwrap());
}

#[test]
fn drop_without_a_join_timeout_detaches_all_threads() {
    let spawner = ThreadsSpawner::new(2).unwrap().join_timeout(Duration::MAX);
    drop(spawner.clone().join_timeout(Duration::ZERO));
    task_that_hangs_does_not_block_the_drop(spawner);
}

/// A spawner can also run futures without a registry. In this case, no registry catches the panic of a future.
#[test]
fn worker_thread_survives_a_panic_of_an_untracked_future() {
    let spawner = ThreadsSpawner::new(1).unwrap();
    let (sender, receiver) = channel();
    spawner.spawn(async { panic!("intentional panic") });
    spawner.spawn(async move { sender.send(()).unwrap() });
    receiver.recv_timeout(HANG).unwrap();
}
