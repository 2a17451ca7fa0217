use crate::panics::discard;
use crate::shards::{Core, Handle, Token};
use crate::shutdown::{Shutdown, ShutdownGuard, WaitIdle};
use crate::signal::ShutdownSignal;
use crate::tracked::{Guard, Task, Tracked};
use crate::{BlockingSpawner, LocalSpawner, Rejected, Spawner, Summary, TaskOutput};
use core::fmt;
use core::future::Future;
use core::panic::Location;
use futures_util::future::lazy;

/// The background tasks of one host: starts them, counts them, tells them to stop, and waits for them.
///
/// Clones are handles of one registry. It is *open* until [`shutdown`](Self::shutdown) is called, or its last handle is dropped. Then it is
/// *draining*: the signal is on, and work is still accepted while anything is in flight, so that a task, or the holder of a
/// [`Guard`], can start the work that it owes. When nothing is in flight it is *drained*, for good, and accepts nothing.
///
/// So stop the intake from outside first (close the listener: it can wait on the [`signal`](Self::signal)), and give the drain a deadline.
///
/// A task that owns a handle keeps its registry open: dropping all others begins no shutdown then.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "smol")]
/// # smol::block_on(async {
/// use background_tasks::{Registry, SmolSpawner};
///
/// let registry = Registry::new(SmolSpawner);
/// registry.run(async { println!("in the background") });
///
/// let summary = registry.shutdown().await;
/// assert_eq!(summary.completed, 1);
/// # });
/// ```
#[derive(Clone)]
pub struct Registry<S> {
    handle: Handle,
    spawner: S,
}

impl<S> Registry<S> {
    /// Returns a new registry that starts its tasks with `spawner`.
    ///
    /// Its state comes from a process-wide pool and goes back there when it has drained and its handles are gone.
    #[cfg(feature = "std")]
    #[cfg_attr(docsrs, doc(cfg(feature = "std")))]
    pub fn new(spawner: S) -> Self {
        Self { handle: Handle::pooled(), spawner }
    }

    /// Returns the registry whose state is `core`, for a `static` and for programs without `std`.
    ///
    /// It begins no shutdown when it is dropped. All that is made on one core are one registry. See [`Core`] for an example.
    pub const fn in_static(core: &'static Core, spawner: S) -> Self {
        Self { handle: Handle::in_static(core), spawner }
    }

    fn core(&self) -> &'static Core {
        self.handle.core()
    }

    /// Counts a future that somebody else polls (a `JoinSet`, a `select!`, a server) as in flight until it has finished or is dropped.
    ///
    /// Any output counts as completed, a panic as panicked before it goes on, and dropping it unfinished as abandoned.
    ///
    /// # Errors
    ///
    /// [`Rejected`] gives the future back when the registry has drained (or is [full](crate::Reason::Full)).
    #[track_caller]
    pub fn track<F: Future>(&self, future: F) -> Result<Tracked<F>, Rejected<F>> {
        let (future, token) = self.admit(future)?;
        Ok(Tracked::new(future, token))
    }

    /// Counts something that is no future (a request, a thread, a lock that is held) as in flight until the guard is dropped.
    ///
    /// # Errors
    ///
    /// [`Rejected`] when the registry has drained (or is [full](crate::Reason::Full)).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")] {
    /// # use background_tasks::{Registry, SmolSpawner};
    /// # let registry = Registry::new(SmolSpawner);
    /// let guard = registry.guard().unwrap();
    /// std::thread::spawn(move || {
    ///     // work
    ///     drop(guard);
    /// });
    /// assert_eq!(registry.shutdown().wait().completed, 1);
    /// # }
    /// ```
    #[track_caller]
    #[inline]
    pub fn guard(&self) -> Result<Guard, Rejected<()>> {
        let ((), token) = self.admit(())?;
        Ok(Guard::new(token))
    }

    /// Returns a future that resolves once the shutdown has begun.
    pub fn signal(&self) -> ShutdownSignal {
        ShutdownSignal::new(self.core())
    }

    /// Begins the shutdown, now, and returns a future that resolves to the [`Summary`] once everything has drained.
    ///
    /// All signals are triggered when this returns. Call it again for another wait; drop what it returns to wait for nothing.
    /// [`Shutdown`] has waits with a deadline, and waits that block a thread.
    ///
    /// # Deadlocks
    ///
    /// A task, or the holder of a guard, that awaits it waits for itself. There, call it and drop what it returns.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, SmolSpawner};
    ///
    /// let registry = Registry::new(SmolSpawner);
    /// let own = registry.clone();
    /// registry.run(async move {
    ///     own.shutdown(); // not awaited: this task is in flight itself
    /// });
    /// registry.signal().await;
    /// assert_eq!(registry.shutdown().await.completed, 1);
    /// # });
    /// ```
    pub fn shutdown(&self) -> Shutdown {
        self.core().begin_shutdown();
        Shutdown::new(self.handle.hold())
    }

    /// Returns a guard that begins the shutdown when it is dropped, for a `main` that can return early.
    ///
    /// It does not wait. It can be disarmed.
    pub fn shutdown_on_drop(&self) -> ShutdownGuard {
        ShutdownGuard::new(self.handle.hold())
    }

    /// Waits until an instant with nothing in flight has been observed, without shutting down.
    ///
    /// That is what a test of code that fires and forgets needs: tasks started by tasks are waited for too. There may be something in
    /// flight again when it resolves.
    ///
    /// # Deadlocks
    ///
    /// As with [`shutdown`](Self::shutdown), inside tracked work it waits for itself.
    ///
    /// # Cancel safety
    ///
    /// It may be dropped at any time.
    pub fn wait_idle(&self) -> WaitIdle {
        WaitIdle::new(self.handle.hold())
    }

    /// Returns how the work that has ended did so; exact once drained.
    pub fn summary(&self) -> Summary {
        self.core().summary()
    }

    /// Returns how many are in flight: exact while nothing comes or goes, so a figure to show, not one to wait for.
    pub fn in_flight(&self) -> usize {
        self.core().in_flight()
    }

    /// Returns whether the shutdown has begun.
    pub fn is_shutting_down(&self) -> bool {
        self.core().is_shutting_down()
    }

    /// Returns whether the shutdown has begun and nothing is in flight, nor ever will be.
    pub fn is_drained(&self) -> bool {
        self.core().is_drained()
    }

    /// Counts some work (S1) and gives it back with its token, or as rejected.
    #[track_caller]
    #[inline]
    fn admit<F>(&self, work: F) -> Result<(F, Token), Rejected<F>> {
        match self.core().enter(Location::caller()) {
            Ok(token) => Ok((work, token)),
            Err(reason) => Err(Rejected::new(work, reason)),
        }
    }

    /// Starts a task in the background.
    ///
    /// Its output says whether it failed, see [`TaskOutput`]; a panic is caught and counted (with `std`). When the registry has drained the
    /// future is dropped and counted as rejected; [`try_run`](Self::try_run) gives it back instead.
    ///
    /// # Panics
    ///
    /// If the spawner does, as an ambient one outside its runtime. The task then counts as abandoned.
    #[track_caller]
    pub fn run<F>(&self, future: F)
    where
        S: Spawner,
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.try_run(future).unwrap_or_else(discard);
    }

    /// Starts a task in the background, as [`run`](Self::run) does.
    ///
    /// # Errors
    ///
    /// [`Rejected`] gives the future back when the registry has drained (or is [full](crate::Reason::Full)).
    ///
    /// # Panics
    ///
    /// If the spawner does.
    #[track_caller]
    pub fn try_run<F>(&self, future: F) -> Result<(), Rejected<F>>
    where
        S: Spawner,
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        let (future, token) = self.admit(future)?;
        self.spawner.spawn(Task::new(future, token));
        Ok(())
    }

    /// Starts a task that is not `Send`, on this thread; otherwise as [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// If the spawner does.
    #[track_caller]
    pub fn run_local<F>(&self, future: F)
    where
        S: LocalSpawner,
        F: Future<Output: TaskOutput> + 'static,
    {
        self.try_run_local(future).unwrap_or_else(discard);
    }

    /// Starts a task that is not `Send`, on this thread.
    ///
    /// # Errors
    ///
    /// [`Rejected`] gives the future back when the registry has drained (or is [full](crate::Reason::Full)).
    ///
    /// # Panics
    ///
    /// If the spawner does.
    #[track_caller]
    pub fn try_run_local<F>(&self, future: F) -> Result<(), Rejected<F>>
    where
        S: LocalSpawner,
        F: Future<Output: TaskOutput> + 'static,
    {
        let (future, token) = self.admit(future)?;
        self.spawner.spawn_local(Task::new(future, token));
        Ok(())
    }

    /// Starts a closure that blocks, on a thread that is for that; otherwise as [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// If the spawner does.
    #[track_caller]
    pub fn run_blocking<F, T>(&self, work: F)
    where
        S: BlockingSpawner,
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.try_run_blocking(work).unwrap_or_else(discard);
    }

    /// Starts a closure that blocks, on a thread that is for that.
    ///
    /// # Errors
    ///
    /// [`Rejected`] gives the closure back when the registry has drained (or is [full](crate::Reason::Full)).
    ///
    /// # Panics
    ///
    /// If the spawner does.
    #[track_caller]
    pub fn try_run_blocking<F, T>(&self, work: F) -> Result<(), Rejected<F>>
    where
        S: BlockingSpawner,
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        let (work, token) = self.admit(work)?;
        let task = Task::new(lazy(|_| work()), token);
        self.spawner.spawn_blocking(move || task.run());
        Ok(())
    }
}

#[cfg(loom)]
impl<S> Registry<S> {
    /// For the models: the looks by which [`wait_idle`](Self::wait_idle) decides, without its asking and listening.
    #[doc(hidden)]
    pub fn is_idle(&self) -> bool {
        self.core().is_idle()
    }
}

impl<S> fmt::Debug for Registry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("in_flight", &self.in_flight())
            .field("is_shutting_down", &self.is_shutting_down())
            .field("is_drained", &self.is_drained())
            .finish_non_exhaustive()
    }
}
