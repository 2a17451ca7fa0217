//! Runs tests on the supported runtimes. The enabled features select these runtimes.

use std::sync::Arc;
use std::thread;

/// Runs `f` with the handle of a tokio runtime that has two worker threads. `f` runs on a thread outside the runtime.
#[cfg(feature = "tokio")]
pub(crate) fn tokio_multi_thread(f: impl FnOnce(tokio::runtime::Handle)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    f(runtime.handle().clone());
    runtime.shutdown_background();
}

/// Runs `f` with the handle of a current-thread tokio runtime. `f` runs outside the runtime, and another thread runs the runtime.
#[cfg(feature = "tokio")]
pub(crate) fn tokio_current_thread(f: impl FnOnce(tokio::runtime::Handle)) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let handle = runtime.handle().clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let driver = thread::spawn(move || runtime.block_on(stopped).unwrap());
    f(handle);
    stop.send(()).unwrap();
    driver.join().expect("the executor's thread must not panic");
}

/// Runs `f` with smol's global executor.
#[cfg(feature = "smol")]
pub(crate) fn smol(f: impl FnOnce(background_tasks::SmolSpawner)) {
    f(background_tasks::SmolSpawner);
}

/// Runs `f` with async-std's global executor.
#[cfg(feature = "async-std")]
pub(crate) fn async_std(f: impl FnOnce(background_tasks::AsyncStdSpawner)) {
    f(background_tasks::AsyncStdSpawner);
}

/// Runs `f` with an executor of async-executor that has one thread. If a panic leaves a task, the thread ends, and the join of the thread
/// reports the panic.
pub(crate) fn async_executor(f: impl FnOnce(Arc<async_executor::Executor<'static>>)) {
    let executor = Arc::new(async_executor::Executor::new());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let background = executor.clone();
    let driver = thread::spawn(move || futures_lite::future::block_on(background.run(stopped)).unwrap());
    f(executor);
    stop.send(()).unwrap();
    driver.join().expect("the executor's thread must not panic");
}

/// Runs `f` with a `ThreadsSpawner` of two threads.
pub(crate) fn threads(f: impl FnOnce(background_tasks::ThreadsSpawner)) {
    f(background_tasks::ThreadsSpawner::new(2).unwrap());
}

/// Generates one test for each scenario and each runtime. The enabled features select the runtimes. This module needs the feature
/// `async-executor`.
///
/// A scenario is a generic function: `fn name<S: Spawner>(registry: &Registry<S>)`. The optional expression after `with` creates the
/// registry from a spawner. Default: `Registry::new`.
///
/// The compiler compiles each scenario for only two spawner types, `ThreadsSpawner` and `DynSpawner`. To compile the scenarios for each
/// spawner type would take twice as long. The modules `spawners` and `conformance` test each spawner type.
#[macro_export]
macro_rules! on_every_runtime {
    (with $make:expr; $($scenario:ident),* $(,)?) => {
        #[cfg(feature = "tokio")]
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] [background_tasks::DynSpawner::without_blocking] tokio_multi_thread }
        #[cfg(feature = "tokio")]
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] [background_tasks::DynSpawner::without_blocking] tokio_current_thread }
        #[cfg(feature = "smol")]
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] [background_tasks::DynSpawner::without_blocking] smol }
        #[cfg(feature = "async-std")]
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] [background_tasks::DynSpawner::without_blocking] async_std }
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] [background_tasks::DynSpawner::without_blocking] async_executor }
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] [std::convert::identity] threads }
    };
    (@each [$($scenario:ident)*] [$make:expr] [$wrap:expr] $runtime:ident) => {
        mod $runtime {
            use background_tasks::Registry;

            $(
                #[test]
                fn $scenario() {
                    $crate::common::$runtime(|spawner| super::$scenario(&$make($wrap(spawner))));
                }
            )*
        }
    };
    ($($scenario:ident),* $(,)?) => {
        $crate::on_every_runtime! { with Registry::new; $($scenario),* }
    };
}
