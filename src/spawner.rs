use core::future::Future;

#[cfg(feature = "async-executor")]
mod async_executor;
#[cfg(feature = "async-std")]
mod async_std;
#[cfg(feature = "smol")]
mod smol;
#[cfg(feature = "tokio")]
mod tokio;

#[cfg(feature = "async-executor")]
#[cfg_attr(docsrs, doc(cfg(feature = "async-executor")))]
pub use self::async_executor::ThreadsSpawner;
#[cfg(feature = "async-std")]
#[cfg_attr(docsrs, doc(cfg(feature = "async-std")))]
pub use self::async_std::AsyncStdSpawner;
#[cfg(feature = "smol")]
#[cfg_attr(docsrs, doc(cfg(feature = "smol")))]
pub use self::smol::SmolSpawner;
#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub use self::tokio::TokioSpawner;

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
/// `spawn` returns at once, without having polled the task to its end, and from then on the executor polls it whenever it is woken, from
/// any thread. If the executor cannot take the task it panics, in the caller, with what to do about it; the task is then dropped and
/// counts as abandoned. The same holds for a task that the executor drops later, which it does with all that are left when it is dropped
/// itself: a waker may outlive it, and must not keep a task. A registry's task never panics.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no `Spawner`",
    note = "`TokioSpawner`, `SmolSpawner`, `AsyncStdSpawner` and `ThreadsSpawner` are, each behind its cargo feature"
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
    note = "`TokioSpawner` and `Rc<async_executor::LocalExecutor<'static>>` are, each behind its cargo feature"
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
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no `BlockingSpawner`",
    note = "`TokioSpawner`, `SmolSpawner` and `AsyncStdSpawner` are, each behind its cargo feature"
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
forward!(&S, alloc::boxed::Box<S>, alloc::rc::Rc<S>, alloc::sync::Arc<S>);
