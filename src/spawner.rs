use core::future::Future;

#[cfg(feature = "async-executor")]
mod async_executor;
#[cfg(feature = "async-std")]
mod async_std;
mod erased;
#[cfg(feature = "futures")]
mod futures;
#[cfg(feature = "tracing")]
mod in_span;
#[cfg(feature = "smol")]
mod smol;
#[cfg(feature = "tokio")]
mod tokio;
#[cfg(feature = "wasm-bindgen-futures")]
mod wasm_bindgen_futures;

#[cfg(feature = "async-executor")]
#[cfg_attr(docsrs, doc(cfg(feature = "async-executor")))]
pub use self::async_executor::ThreadsSpawner;
#[cfg(feature = "async-std")]
#[cfg_attr(docsrs, doc(cfg(feature = "async-std")))]
pub use self::async_std::AsyncStdSpawner;
pub use self::erased::{BoxLocalTask, BoxTask, BoxWork, DynLocalSpawner};
#[cfg(target_has_atomic = "ptr")]
pub use self::erased::{DynBlockingSpawner, DynSpawner};
#[cfg(feature = "futures")]
#[cfg_attr(docsrs, doc(cfg(feature = "futures")))]
pub use self::futures::FuturesSpawner;
#[cfg(feature = "tracing")]
#[cfg_attr(docsrs, doc(cfg(feature = "tracing")))]
pub use self::in_span::InSpan;
#[cfg(feature = "smol")]
#[cfg_attr(docsrs, doc(cfg(feature = "smol")))]
pub use self::smol::SmolSpawner;
#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub use self::tokio::TokioSpawner;
#[cfg(feature = "wasm-bindgen-futures")]
#[cfg_attr(docsrs, doc(cfg(feature = "wasm-bindgen-futures")))]
pub use self::wasm_bindgen_futures::WasmSpawner;

/// Starts futures on an executor.
///
/// Three traits stand for three capabilities that executors have or lack: this one, [`LocalSpawner`] for futures that are not
/// `Send`, [`BlockingSpawner`] for closures that block. A registry has the methods that its spawner can serve, and no others.
///
/// # For a library
///
/// Bound `S: Spawner` and the program chooses the runtime. (Import the trait to bound or implement it; for a call it may stand before a
/// method of the same name, as that of an `Arc<Executor>`.)
///
/// ```
/// use background_tasks::{Registry, Spawner};
///
/// fn audit<S: Spawner>(tasks: &Registry<S>, line: String) {
///     tasks.run(async move { eprintln!("{line}") });
/// }
/// ```
///
/// # For an implementor
///
/// An executor that detaches what it spawns is five lines. This one gives each task a thread:
///
/// ```
/// # #[cfg(feature = "smol")] {
/// use background_tasks::{Registry, Spawner};
///
/// struct ThreadEach;
///
/// impl Spawner for ThreadEach {
///     fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
///         std::thread::spawn(|| smol::block_on(task));
///     }
/// }
///
/// let registry = Registry::new(ThreadEach);
/// registry.run(async {});
/// assert_eq!(registry.shutdown().wait().completed, 1);
/// # }
/// ```
///
/// A spawner promises, and the suite in the module `conformance` (its feature) checks:
///
/// - `spawn` returns at once, from any thread and from tasks, without having polled the task on its caller's stack.
/// - The executor polls the task again whenever it has been woken, from any thread, until it has ended; the others go on while it waits.
/// - If it cannot take the task, `spawn` panics, in the caller, with what to do about it; the task is dropped and counts as abandoned.
/// - So does a task that it drops later, which it does with all that are left when it is dropped itself: a waker may outlive it, and
///   must not keep a task.
///
/// In turn, a registry's task never panics. The suite has 10,000 tasks in flight at once: check an executor that is bounded with a larger bound.
///
/// # Around each task
///
/// A spawner that holds another can put something around each task: a span (`InSpan` does), a task-local, a deadline.
///
/// ```
/// # #[cfg(feature = "tokio")]
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// use background_tasks::{Registry, Spawner, TokioSpawner};
/// use std::time::Duration;
///
/// /// Drops each task that takes longer: it counts as abandoned.
/// struct Within<S>(Duration, S);
///
/// impl<S: Spawner> Spawner for Within<S> {
///     fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
///         let limit = self.0;
///         self.1.spawn(async move { drop(tokio::time::timeout(limit, task).await) });
///     }
/// }
///
/// let registry = Registry::new(Within(Duration::from_millis(10), TokioSpawner));
/// registry.run(std::future::pending::<()>());
/// assert_eq!(registry.shutdown().await.abandoned, 1);
/// # });
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no `Spawner`",
    note = "`TokioSpawner`, `SmolSpawner`, `AsyncStdSpawner`, `ThreadsSpawner` and `FuturesSpawner` are, each behind its cargo feature, \
            `WasmSpawner` is in the browser, and so are those of the crate `background-tasks-runtimes`"
)]
pub trait Spawner {
    /// Starts a future and returns at once.
    ///
    /// # Panics
    ///
    /// If the executor cannot take it, as an ambient one outside its runtime.
    fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static;
}

/// Starts futures that are not `Send`, on the thread that calls; see [`Spawner`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no `LocalSpawner`",
    note = "`TokioSpawner`, `Rc<async_executor::LocalExecutor<'static>>` and `FuturesSpawner` are, each behind its cargo feature, \
            `WasmSpawner` is in the browser, and so are those of the crate `background-tasks-runtimes`"
)]
pub trait LocalSpawner {
    /// Starts a future on this thread's executor and returns at once.
    ///
    /// # Panics
    ///
    /// If the executor cannot take it.
    fn spawn_local<F>(&self, task: F)
    where
        F: Future<Output = ()> + 'static;
}

/// Starts closures that block, on threads that are for that; see [`Spawner`].
///
/// They may wait for each other, so one thread is not enough: the suite in the module `conformance` has four of them block at once.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no `BlockingSpawner`",
    note = "`TokioSpawner`, `SmolSpawner` and `AsyncStdSpawner` are, each behind its cargo feature, and so are those of the crate \
            `background-tasks-runtimes`"
)]
pub trait BlockingSpawner {
    /// Starts a closure where it may block, and returns at once.
    ///
    /// # Panics
    ///
    /// If the executor cannot take it.
    fn spawn_blocking<F>(&self, work: F)
    where
        F: FnOnce() + Send + 'static;
}

/// Any way of holding a spawner is one.
macro_rules! forward {
    ($($holder:ty),*) => {$(
        impl<S: Spawner + ?Sized> Spawner for $holder {
            #[track_caller]
            fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
                (**self).spawn(task);
            }
        }

        impl<S: LocalSpawner + ?Sized> LocalSpawner for $holder {
            #[track_caller]
            fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
                (**self).spawn_local(task);
            }
        }

        impl<S: BlockingSpawner + ?Sized> BlockingSpawner for $holder {
            #[track_caller]
            fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
                (**self).spawn_blocking(work);
            }
        }
    )*};
}
forward!(&S, alloc::boxed::Box<S>, alloc::rc::Rc<S>);
#[cfg(target_has_atomic = "ptr")]
forward!(alloc::sync::Arc<S>);
