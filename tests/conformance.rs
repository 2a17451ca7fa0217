//! Each shipped adapter keeps the contract.
#![cfg(all(
    feature = "conformance",
    feature = "tokio",
    feature = "smol",
    feature = "async-std",
    feature = "async-executor",
    feature = "futures",
    feature = "tracing"
))]

use async_executor::{Executor, LocalExecutor, StaticExecutor};
use background_tasks::{
    AsyncStdSpawner, BlockingSpawner, DynBlockingSpawner, DynLocalSpawner, DynSpawner, FuturesSpawner, InSpan, SmolSpawner,
    Spawner, ThreadsSpawner, TokioSpawner, conformance,
};
use futures_executor::{LocalPool, ThreadPool};
use futures_lite::future::block_on;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

fn multi_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).build().unwrap()
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// The ambient one, which takes tasks inside its runtime alone.
struct Entered(Handle);

impl Spawner for Entered {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        let _inside = self.0.enter();
        TokioSpawner.spawn(task);
    }
}

impl BlockingSpawner for Entered {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        let _inside = self.0.enter();
        TokioSpawner.spawn_blocking(work);
    }
}

/// Runs something on a thread until it is dropped, which ends it.
struct Driver<T>(Option<(T, thread::JoinHandle<()>)>);

impl<T> Driver<T> {
    fn new(ends: T, work: impl FnOnce() + Send + 'static) -> Self {
        Self(Some((ends, thread::spawn(work))))
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        let (ends, thread) = self.0.take().unwrap();
        drop(ends);
        thread.join().expect("the executor's thread lives on");
    }
}

#[test]
fn tokio_handle() {
    conformance::executor(|| {
        let runtime = multi_thread();
        (runtime.handle().clone(), runtime)
    });
    let runtime = multi_thread();
    let handle = runtime.handle().clone();
    conformance::blocking_spawner(move || handle.clone());
}

#[test]
fn tokio_handle_of_a_current_thread_runtime() {
    conformance::executor(|| {
        let runtime = current_thread();
        let (ends, ended) = oneshot::channel::<()>();
        (runtime.handle().clone(), Driver::new(ends, move || drop(runtime.block_on(ended))))
    });
}

#[test]
fn tokio_ambient() {
    conformance::executor(|| {
        let runtime = multi_thread();
        (Entered(runtime.handle().clone()), runtime)
    });
    let runtime = multi_thread();
    let handle = runtime.handle().clone();
    conformance::blocking_spawner(move || Entered(handle.clone()));
}

#[test]
fn tokio_ambient_local_set() {
    conformance::local_spawner(|| {
        let runtime = current_thread();
        (TokioSpawner, move |main| LocalSet::new().block_on(&runtime, main))
    });
}

#[test]
fn tokio_local_set() {
    conformance::local_spawner(|| {
        let set = Rc::new(LocalSet::new());
        (set.clone(), move |main| set.block_on(&current_thread(), main))
    });
}

#[test]
fn smol() {
    conformance::spawner(|| SmolSpawner);
    conformance::blocking_spawner(|| SmolSpawner);
}

#[test]
fn async_std() {
    conformance::spawner(|| AsyncStdSpawner);
    conformance::blocking_spawner(|| AsyncStdSpawner);
}

#[test]
fn async_executor() {
    conformance::executor(|| {
        let executor = Arc::new(Executor::new());
        let own = executor.clone();
        let (ends, ended) = oneshot::channel::<()>();
        (executor, Driver::new(ends, move || drop(block_on(own.run(ended)))))
    });
}

#[test]
fn async_executor_local() {
    conformance::local_spawner(|| {
        let executor = Rc::new(LocalExecutor::new());
        (executor.clone(), move |main| block_on(executor.run(main)))
    });
}

/// What is static is never dropped.
#[test]
fn async_executor_static() {
    static EXECUTOR: StaticExecutor = StaticExecutor::new();
    let (ends, ended) = oneshot::channel::<()>();
    let _driver = Driver::new(ends, || drop(block_on(EXECUTOR.run(ended))));
    conformance::spawner(|| &EXECUTOR);
}

#[test]
fn async_executor_static_local() {
    let executor = LocalExecutor::new().leak();
    block_on(executor.run(conformance::local_tasks(executor)));
}

#[test]
fn threads() {
    conformance::executor(|| {
        let threads = ThreadsSpawner::new(2).unwrap();
        (threads.clone(), threads)
    });
}

/// It keeps a task whose waker somebody holds, when it is dropped.
#[test]
fn futures_thread_pool() {
    conformance::spawner(|| FuturesSpawner(ThreadPool::builder().pool_size(2).create().unwrap()));
}

#[test]
fn futures_local_pool() {
    conformance::local_spawner(|| {
        let mut pool = LocalPool::new();
        (FuturesSpawner(pool.spawner()), move |main| pool.run_until(main))
    });
}

#[test]
fn without_their_types() {
    conformance::executor(|| {
        let threads = ThreadsSpawner::new(2).unwrap();
        (DynSpawner::new(threads.clone()), threads)
    });
    conformance::local_spawner(|| {
        let executor = Rc::new(LocalExecutor::new());
        (DynLocalSpawner::new(executor.clone()), move |main| block_on(executor.run(main)))
    });
    conformance::blocking_spawner(|| DynBlockingSpawner::new(SmolSpawner));
}

#[test]
fn from_closures() {
    conformance::spawner(|| DynSpawner::from_fn(|task| smol::spawn(task).detach()));
    conformance::local_spawner(|| {
        let executor = Rc::new(LocalExecutor::new());
        let own = executor.clone();
        (DynLocalSpawner::from_fn(move |task| own.spawn(task).detach()), move |main| block_on(executor.run(main)))
    });
    conformance::blocking_spawner(|| DynBlockingSpawner::from_fn(|work| drop(thread::spawn(work))));
}

#[test]
fn in_a_span() {
    conformance::executor(|| {
        let threads = ThreadsSpawner::new(2).unwrap();
        (InSpan(threads.clone()), threads)
    });
    conformance::local_spawner(|| {
        let executor = Rc::new(LocalExecutor::new());
        (InSpan(executor.clone()), move |main| block_on(executor.run(main)))
    });
    conformance::blocking_spawner(|| InSpan(SmolSpawner));
}
