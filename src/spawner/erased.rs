use super::LocalSpawner;
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::fmt;
use core::pin::Pin;

#[cfg(target_has_atomic = "ptr")]
use {
    super::{BlockingSpawner, Spawner},
    alloc::sync::Arc,
};

/// A task as a [`DynSpawner`] has it.
pub type BoxTask = Pin<Box<dyn Future<Output = ()> + Send>>;
/// A task as a [`DynLocalSpawner`] has it.
pub type BoxLocalTask = Pin<Box<dyn Future<Output = ()>>>;
/// Blocking work as a [`DynBlockingSpawner`] has it.
pub type BoxWork = Box<dyn FnOnce() + Send>;

/// Any [`Spawner`], or a closure, without its type.
///
/// For a library or an application state that does not want the type parameter: `Registry<DynSpawner>` is one type. It costs an
/// allocation a task, and a call that cannot be inlined. Clones are cheap.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "smol")]
/// # smol::block_on(async {
/// use background_tasks::{DynSpawner, Registry, SmolSpawner};
///
/// struct State {
///     tasks: Registry<DynSpawner>,
/// }
///
/// let state = State { tasks: Registry::new(DynSpawner::new(SmolSpawner)) };
/// state.tasks.run(async {});
/// assert_eq!(state.tasks.shutdown().await.completed, 1);
/// # });
/// ```
#[cfg(target_has_atomic = "ptr")]
#[derive(Clone)]
pub struct DynSpawner(Arc<dyn Fn(BoxTask) + Send + Sync>);

/// Any [`LocalSpawner`], or a closure, without its type; see [`DynSpawner`].
#[derive(Clone)]
pub struct DynLocalSpawner(Rc<dyn Fn(BoxLocalTask)>);

/// Any [`BlockingSpawner`], or a closure, without its type; see [`DynSpawner`].
#[cfg(target_has_atomic = "ptr")]
#[derive(Clone)]
pub struct DynBlockingSpawner(Arc<dyn Fn(BoxWork) + Send + Sync>);

#[cfg(target_has_atomic = "ptr")]
impl DynSpawner {
    /// Returns any spawner as this one.
    pub fn new(spawner: impl Spawner + Send + Sync + 'static) -> Self {
        Self::from_fn(move |task| spawner.spawn(task))
    }

    /// Returns a spawner that a closure makes: it starts the task and returns at once, or panics.
    ///
    /// # Examples
    ///
    /// For a test that runs everything when it is time:
    ///
    /// ```
    /// # #[cfg(feature = "smol")] {
    /// use background_tasks::{DynSpawner, Registry};
    /// use std::sync::mpsc::channel;
    ///
    /// let (queue, tasks) = channel();
    /// let registry = Registry::new(DynSpawner::from_fn(move |task| queue.send(task).unwrap()));
    /// registry.run(async {});
    /// assert_eq!(registry.in_flight(), 1);
    ///
    /// tasks.try_iter().for_each(smol::block_on);
    /// assert_eq!(registry.shutdown().wait().completed, 1);
    /// # }
    /// ```
    pub fn from_fn(spawn: impl Fn(BoxTask) + Send + Sync + 'static) -> Self {
        Self(Arc::new(spawn))
    }
}

impl DynLocalSpawner {
    /// Returns any spawner of local tasks as this one.
    pub fn new(spawner: impl LocalSpawner + 'static) -> Self {
        Self::from_fn(move |task| spawner.spawn_local(task))
    }

    /// Returns a spawner that a closure makes: it starts the task on this thread and returns at once, or panics.
    pub fn from_fn(spawn: impl Fn(BoxLocalTask) + 'static) -> Self {
        Self(Rc::new(spawn))
    }
}

#[cfg(target_has_atomic = "ptr")]
impl DynBlockingSpawner {
    /// Returns any spawner of blocking work as this one.
    pub fn new(spawner: impl BlockingSpawner + Send + Sync + 'static) -> Self {
        Self::from_fn(move |work| spawner.spawn_blocking(work))
    }

    /// Returns a spawner that a closure makes: it starts the work where it may block and returns at once, or panics.
    pub fn from_fn(spawn: impl Fn(BoxWork) + Send + Sync + 'static) -> Self {
        Self(Arc::new(spawn))
    }
}

#[cfg(target_has_atomic = "ptr")]
impl Spawner for DynSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        (self.0)(Box::pin(task));
    }
}

impl LocalSpawner for DynLocalSpawner {
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        (self.0)(Box::pin(task));
    }
}

#[cfg(target_has_atomic = "ptr")]
impl BlockingSpawner for DynBlockingSpawner {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        (self.0)(Box::new(work));
    }
}

macro_rules! opaque {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}
opaque!(DynLocalSpawner);
#[cfg(target_has_atomic = "ptr")]
opaque!(DynSpawner, DynBlockingSpawner);
