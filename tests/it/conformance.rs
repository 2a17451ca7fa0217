//! Runs the conformance suite on each spawner that the crate provides.
use async_executor::{Executor, LocalExecutor, StaticExecutor};
use background_tasks::{
    AsyncStdSpawner, BlockingSpawner, DynBlockingSpawner, DynLocalSpawner, DynSpawner, DynTimer, FuturesSpawner, InSpan,
    SmolSpawner, Spawner, TaskSpan, ThreadsSpawner, TokioSpawner, WithTimer, conformance,
};
use futures_executor::{LocalPool, ThreadPool};
use futures_lite::future::block_on;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

fn multi_thread_runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).build().unwrap()
}

fn current_thread_runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// A spawner that enters the tokio runtime before each call to `TokioSpawner`, so that it works outside the runtime.
struct EnteringSpawner(Handle);

impl Spawner for EnteringSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        let _context = self.0.enter();
        TokioSpawner.spawn(task);
    }
}

impl BlockingSpawner for EnteringSpawner {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        let _context = self.0.enter();
        TokioSpawner.spawn_blocking(work);
    }
}

/// Runs an executor on a thread. The destructor drops the stop handle and then joins the thread.
struct Driver<T>(Option<(T, thread::JoinHandle<()>)>);

impl<T> Driver<T> {
    fn new(stop: T, work: impl FnOnce() + Send + 'static) -> Self {
        Self(Some((stop, thread::spawn(work))))
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        let (stop, thread) = self.0.take().unwrap();
        drop(stop);
        thread.join().expect("the executor's thread must not panic");
    }
}

#[test]
fn tokio_handle_conforms() {
    conformance::executor(|| {
        let runtime = multi_thread_runtime();
        (runtime.handle().clone(), runtime)
    });
    let runtime = multi_thread_runtime();
    let handle = runtime.handle().clone();
    conformance::blocking_spawner(move || handle.clone());
}

#[test]
fn current_thread_tokio_handle_conforms() {
    conformance::executor(|| {
        let runtime = current_thread_runtime();
        let (stop, stopped) = oneshot::channel::<()>();
        (runtime.handle().clone(), Driver::new(stop, move || drop(runtime.block_on(stopped))))
    });
}

#[test]
fn tokio_spawner_conforms() {
    conformance::executor(|| {
        let runtime = multi_thread_runtime();
        (EnteringSpawner(runtime.handle().clone()), runtime)
    });
    let runtime = multi_thread_runtime();
    let handle = runtime.handle().clone();
    conformance::blocking_spawner(move || EnteringSpawner(handle.clone()));
}

#[test]
fn tokio_spawner_in_a_local_set_conforms() {
    conformance::local_spawner(|| {
        let runtime = current_thread_runtime();
        (TokioSpawner, move |main| LocalSet::new().block_on(&runtime, main))
    });
}

#[test]
fn tokio_local_set_conforms() {
    conformance::local_spawner(|| {
        let set = Rc::new(LocalSet::new());
        (set.clone(), move |main| set.block_on(&current_thread_runtime(), main))
    });
}

#[test]
fn smol_spawner_conforms() {
    conformance::spawner(|| SmolSpawner);
    conformance::blocking_spawner(|| SmolSpawner);
}

#[test]
fn async_std_spawner_conforms() {
    conformance::spawner(|| AsyncStdSpawner);
    conformance::blocking_spawner(|| AsyncStdSpawner);
}

#[test]
fn async_executor_conforms() {
    conformance::executor(|| {
        let executor = Arc::new(Executor::new());
        let background = executor.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        (executor, Driver::new(stop, move || drop(block_on(background.run(stopped)))))
    });
}

#[test]
fn local_executor_conforms() {
    conformance::local_spawner(|| {
        let executor = Rc::new(LocalExecutor::new());
        (executor.clone(), move |main| block_on(executor.run(main)))
    });
}

/// This test uses `conformance::spawner`. It cannot use `conformance::executor`, because a static executor is never dropped.
#[test]
fn static_executor_conforms() {
    static EXECUTOR: StaticExecutor = StaticExecutor::new();
    let (stop, stopped) = oneshot::channel::<()>();
    let _driver = Driver::new(stop, || drop(block_on(EXECUTOR.run(stopped))));
    conformance::spawner(|| &EXECUTOR);
}

#[test]
fn static_local_executor_conforms() {
    let executor = LocalExecutor::new().leak();
    block_on(executor.run(conformance::local_tasks(executor)));
}

#[test]
fn threads_spawner_conforms() {
    conformance::executor(|| {
        let threads = ThreadsSpawner::new(2).unwrap();
        (threads.clone(), threads)
    });
}

/// This test uses `conformance::spawner`. It cannot use `conformance::executor`, because a dropped `ThreadPool` keeps each task that
/// still has a waker.
#[test]
fn futures_thread_pool_conforms() {
    conformance::spawner(|| FuturesSpawner(ThreadPool::builder().pool_size(2).create().unwrap()));
}

#[test]
fn futures_local_pool_conforms() {
    conformance::local_spawner(|| {
        let mut pool = LocalPool::new();
        (FuturesSpawner(pool.spawner()), move |main| pool.run_until(main))
    });
}

#[test]
fn dyn_spawners_conform() {
    conformance::executor(|| {
        let threads = ThreadsSpawner::new(2).unwrap();
        (DynSpawner::without_blocking(threads.clone()), threads)
    });
    conformance::executor(|| {
        let runtime = multi_thread_runtime();
        (DynSpawner::new(runtime.handle().clone()), runtime)
    });
    let runtime = multi_thread_runtime();
    let handle = runtime.handle().clone();
    conformance::blocking_spawner(move || DynSpawner::new(handle.clone()));
    conformance::spawner(|| DynSpawner::new(SmolSpawner));
    conformance::blocking_spawner(|| DynSpawner::new(SmolSpawner));
    conformance::spawner(|| DynSpawner::new(AsyncStdSpawner));
    conformance::blocking_spawner(|| DynSpawner::new(AsyncStdSpawner));
    conformance::local_spawner(|| {
        let executor = Rc::new(LocalExecutor::new());
        (DynLocalSpawner::new(executor.clone()), move |main| block_on(executor.run(main)))
    });
    conformance::blocking_spawner(|| DynBlockingSpawner::new(SmolSpawner));
}

#[test]
fn dyn_spawners_from_closures_conform() {
    let spawn = |task| smol::spawn(task).detach();
    conformance::spawner(move || DynSpawner::from_fn(spawn));
    conformance::spawner(move || DynSpawner::from_fn(spawn).with_blocking(AsyncStdSpawner));
    conformance::blocking_spawner(move || DynSpawner::from_fn(spawn).with_blocking(AsyncStdSpawner));
    conformance::local_spawner(|| {
        let executor = Rc::new(LocalExecutor::new());
        let target = executor.clone();
        (DynLocalSpawner::from_fn(move |task| target.spawn(task).detach()), move |main| block_on(executor.run(main)))
    });
    conformance::blocking_spawner(|| DynBlockingSpawner::from_fn(|work| drop(thread::spawn(work))));
}

#[test]
fn in_span_conforms() {
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

#[test]
fn task_span_conforms() {
    conformance::executor(|| {
        let threads = ThreadsSpawner::new(2).unwrap();
        (TaskSpan(threads.clone()), threads)
    });
    conformance::local_spawner(|| {
        let executor = Rc::new(LocalExecutor::new());
        (TaskSpan(executor.clone()), move |main| block_on(executor.run(main)))
    });
    conformance::blocking_spawner(|| TaskSpan(SmolSpawner));
}

fn runtime_with_timer() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

#[test]
fn tokio_timers_conform() {
    conformance::timer(|| {
        let runtime = runtime_with_timer();
        (TokioSpawner, move |main| runtime.block_on(main))
    });
    conformance::timer(|| {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        (TokioSpawner, move |main| runtime.block_on(main))
    });
    conformance::timer(|| {
        let set = Rc::new(LocalSet::new());
        (set.clone(), move |main| set.block_on(&runtime_with_timer(), main))
    });
}

/// Uses the timer of a runtime handle on a thread outside the runtime. Another thread runs the runtime.
#[test]
fn timer_of_tokio_handle_conforms_outside_the_runtime() {
    conformance::timer(|| {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        (runtime.handle().clone(), move |main| {
            block_on(main);
            drop(runtime);
        })
    });
}

#[test]
fn smol_timer_conforms() {
    conformance::timer(|| (SmolSpawner, |main| smol::block_on(main)));
}

#[test]
fn async_std_timer_conforms() {
    conformance::timer(|| (AsyncStdSpawner, |main| block_on(main)));
}

#[test]
fn wrapped_timers_conform() {
    conformance::timer(|| (WithTimer((), smol::Timer::after), |main| smol::block_on(main)));
    conformance::timer(|| (DynTimer::new(SmolSpawner), |main| smol::block_on(main)));
    conformance::timer(|| (DynSpawner::new(SmolSpawner).with_timer(SmolSpawner), |main| smol::block_on(main)));
    conformance::timer(|| (TaskSpan(Arc::new(InSpan(SmolSpawner))), |main| smol::block_on(main)));
}

#[test]
fn spawners_with_a_timer_conform() {
    conformance::executor(|| {
        let threads = ThreadsSpawner::new(2).unwrap();
        (WithTimer(threads.clone(), smol::Timer::after), threads)
    });
    conformance::local_spawner(|| {
        let executor = Rc::new(LocalExecutor::new());
        (WithTimer(executor.clone(), smol::Timer::after), move |main| block_on(executor.run(main)))
    });
    conformance::blocking_spawner(|| WithTimer(SmolSpawner, smol::Timer::after));
    conformance::blocking_spawner(|| DynSpawner::new(SmolSpawner).with_timer(SmolSpawner));
}
