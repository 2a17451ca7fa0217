use crate::report::{AbortError, AbortReport, Rejected, Summary, TaskId, TaskInfo, TaskOutput};
use crate::shutdown::{Shutdown, ShutdownGuard, WaitIdle};
use crate::signal::ShutdownSignal;
use crate::spawner::{BlockingSpawner, LocalSpawner, Spawner};
use crate::state::{RegistryHandle, RegistryState};
use crate::task::{Guard, Tracked};
use crate::task_builder::{RunWhenReady, TaskBuilder};
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;

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
    handle: RegistryHandle,
    spawner: S,
}

impl<S> Registry<S> {
    pub(crate) fn from_handle(handle: RegistryHandle, spawner: S) -> Self {
        Self { handle, spawner }
    }

    /// Returns the registry whose state is `core`, for a `static` and for programs without `std`.
    ///
    /// It begins no shutdown when it is dropped. All that is made on one core are one registry. See [`RegistryState`] for an example.
    pub const fn in_static(state: &'static RegistryState, spawner: S) -> Self {
        Self { handle: RegistryHandle::in_static(state), spawner }
    }

    #[inline]
    fn state(&self) -> &'static RegistryState {
        self.handle.state()
    }

    #[inline]
    fn task(&self) -> TaskBuilder<'_, S> {
        TaskBuilder::new(self.state(), &self.spawner)
    }

    /// Returns another handle of this registry, which starts its tasks with another spawner.
    ///
    /// So one drain covers what runs on several executors, or has something put around it.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(all(feature = "smol", feature = "async-executor"))]
    /// # fn main() -> std::io::Result<()> {
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, SmolSpawner, ThreadsSpawner};
    ///
    /// let requests = Registry::new(SmolSpawner);
    /// let thumbnails = requests.with_spawner(ThreadsSpawner::new(1)?);
    /// requests.run(async {});
    /// thumbnails.run(async { /* on a thread of its own */ });
    /// assert_eq!(requests.shutdown().await.completed, 2);
    /// # Ok(())
    /// # })
    /// # }
    /// # #[cfg(not(all(feature = "smol", feature = "async-executor")))]
    /// # fn main() {}
    /// ```
    pub fn with_spawner<T>(&self, spawner: T) -> Registry<T> {
        Registry { handle: self.handle.clone(), spawner }
    }

    /// Returns the spawner.
    pub fn spawner(&self) -> &S {
        &self.spawner
    }

    /// Says what the work that is started next is called: a kind of work, such as `"welcome-mail"`, not a single piece of it.
    ///
    /// Names are for [observers](crate::RegistryBuilder::observer) and for [`tasks`](Self::tasks): without either they cost next to nothing and say nothing. With them
    /// each pair of a name and a call site has slots of its own, for good, so do not make names up without end.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")] {
    /// # use background_tasks::{Registry, SmolSpawner};
    /// # let registry = Registry::new(SmolSpawner);
    /// registry.named("welcome-mail").run(async { /* send it */ });
    /// # }
    /// ```
    pub fn named(&self, name: &'static str) -> TaskBuilder<'_, S> {
        self.task().named(name)
    }

    /// Marks the work that is started next as such that the host should not go on without: its panic or its failure begins the shutdown.
    ///
    /// That it is aborted, abandoned or rejected begins nothing, nor does an `Err` of what is [tracked](Self::track), whose output is its
    /// owner's. [`RegistryBuilder::shutdown_on_panic`] and [`RegistryBuilder::shutdown_on_failure`] mark all.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// # use background_tasks::{Registry, SmolSpawner};
    /// # let registry = Registry::new(SmolSpawner);
    /// registry.critical().run(async { Err("the leader's lease is lost") });
    /// registry.signal().await; // resolves: the shutdown has begun
    /// # });
    /// ```
    pub fn critical(&self) -> TaskBuilder<'_, S> {
        self.task().critical()
    }

    /// Counts a future that somebody else polls (a `JoinSet`, a `select!`, a server) as in flight until it has finished or is dropped.
    ///
    /// Any output counts as completed, a panic as panicked before it goes on, and dropping it unfinished as abandoned.
    ///
    /// # Errors
    ///
    /// [`Rejected`] gives the future back when the registry has drained (or is [full](crate::RejectReason::Full)).
    #[track_caller]
    pub fn track<F: Future>(&self, future: F) -> Result<Tracked<F>, Rejected<F>> {
        self.task().track(future)
    }

    /// Counts something that is no future (a request, a thread, a lock that is held) as in flight until the guard is dropped.
    ///
    /// # Errors
    ///
    /// [`Rejected`] when the registry has drained (or is [full](crate::RejectReason::Full)).
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
        self.task().guard()
    }

    /// Returns a future that resolves once the shutdown has begun.
    pub fn signal(&self) -> ShutdownSignal {
        ShutdownSignal::new(self.state())
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
        self.state().start_shutdown();
        Shutdown::new(self.handle.state_ref())
    }

    /// Returns a guard that begins the shutdown when it is dropped, for a `main` that can return early.
    ///
    /// It does not wait. It can be disarmed.
    pub fn shutdown_on_drop(&self) -> ShutdownGuard {
        ShutdownGuard::new(self.handle.state_ref())
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
        WaitIdle::new(self.handle.state_ref())
    }

    /// Returns what is in flight now, oldest first; empty unless the registry is [inspected](crate::RegistryBuilder::inspect).
    ///
    /// What comes or goes meanwhile may be in it or not.
    pub fn tasks(&self) -> Vec<TaskInfo> {
        self.state().tasks()
    }

    /// Ends every task of an [inspected](crate::RegistryBuilder::inspect) registry at its await point; returns how many it could tell to, and how many not.
    ///
    /// A task that waits is woken, dropped where it waits, and counted as aborted; one that is being polled ends so when that poll
    /// returns, unless it finishes in it. What has no await point (a blocking closure, a guard), what never comes to one, and what
    /// [others run](Self::track) stays in flight; so does what is started afterwards, and all of a registry that is not inspected.
    ///
    /// It begins no shutdown. [`Shutdown::or_abort`](crate::Shutdown::or_abort) does both, with a grace between.
    pub fn abort(&self) -> AbortReport {
        self.state().abort()
    }

    /// Ends one task of an [inspected](crate::RegistryBuilder::inspect) registry, as [`abort`](Self::abort) does all; looks through all slots for it.
    ///
    /// # Errors
    ///
    /// [`AbortError`] says whether it is not there (any more) or cannot be aborted.
    pub fn abort_task(&self, id: TaskId) -> Result<(), AbortError> {
        self.state().abort_task(id)
    }

    /// Returns how the work that has ended did so; exact once drained.
    pub fn summary(&self) -> Summary {
        self.state().summary()
    }

    /// Returns how many are in flight: exact while nothing comes or goes, so a figure to show, not one to wait for.
    pub fn in_flight(&self) -> usize {
        self.state().in_flight()
    }

    /// Returns whether the shutdown has begun.
    pub fn is_shutting_down(&self) -> bool {
        self.state().is_shutting_down()
    }

    /// Returns whose loss began the shutdown: [critical](Self::critical) work, or any where the [builder](crate::RegistryBuilder::shutdown_on_panic) says so.
    ///
    /// `None` if it has not begun, or somebody called [`shutdown`](Self::shutdown). For a host whose exit code is to tell the one from the
    /// other; the loss itself is [told](crate::Observer) as any other is.
    pub fn shutdown_cause(&self) -> Option<TaskInfo> {
        self.state().shutdown_cause()
    }

    /// Returns whether the shutdown has begun and nothing is in flight, nor ever will be.
    pub fn is_drained(&self) -> bool {
        self.state().is_drained()
    }

    /// Starts a task in the background.
    ///
    /// Its output says whether it failed, see [`TaskOutput`]; a panic is caught and counted (with `std`). When the registry has drained, or
    /// is full, the future is dropped and counted as rejected; [`try_run`](Self::try_run) gives it back instead.
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
        self.task().run(future);
    }

    /// Starts a task in the background, as [`run`](Self::run) does.
    ///
    /// # Errors
    ///
    /// [`Rejected`] gives the future back when the registry has drained (or is [full](crate::RejectReason::Full)).
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
        self.task().try_run(future)
    }

    /// Starts a task as soon as there is a place for it: at once, unless the registry [has a limit](crate::RegistryBuilder::max_in_flight) and is full.
    ///
    /// Whoever waits is served in turn, and nobody overtakes: meanwhile `run` and its like find the registry full.
    ///
    /// # Errors
    ///
    /// [`Rejected`] gives the future back when the registry has drained; and, if it has to wait, as soon as the
    /// shutdown begins.
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives the place in the queue up and drops the future, which was not started and counts as nothing.
    ///
    /// # Deadlocks
    ///
    /// A task of a full registry that awaits this waits for itself, among others; if all do, for ever. A place that has come free is taken
    /// when this is polled next: keep polling it, or drop it (and do not `mem::forget` it).
    ///
    /// # Panics
    ///
    /// If the spawner does; and when it is polled after it has resolved.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, SmolSpawner};
    ///
    /// let registry = Registry::builder(SmolSpawner).max_in_flight(8).build();
    /// for page in 0..100 {
    ///     // Never more than eight at a time.
    ///     registry.run_when_ready(async move { drop(page) }).await.unwrap();
    /// }
    /// assert_eq!(registry.shutdown().await.completed, 100);
    /// # });
    /// ```
    #[track_caller]
    pub fn run_when_ready<F>(&self, future: F) -> RunWhenReady<'_, S, F>
    where
        S: Spawner,
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.task().run_when_ready(future)
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
        self.task().run_local(future);
    }

    /// Starts a task that is not `Send`, on this thread.
    ///
    /// # Errors
    ///
    /// [`Rejected`] gives the future back when the registry has drained (or is [full](crate::RejectReason::Full)).
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
        self.task().try_run_local(future)
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
        self.task().run_blocking(work);
    }

    /// Starts a closure that blocks, on a thread that is for that.
    ///
    /// # Errors
    ///
    /// [`Rejected`] gives the closure back when the registry has drained (or is [full](crate::RejectReason::Full)).
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
        self.task().try_run_blocking(work)
    }
}

#[cfg(loom)]
impl<S> Registry<S> {
    /// For the models: the looks by which [`wait_idle`](Self::wait_idle) decides, without its asking and listening.
    #[doc(hidden)]
    pub fn is_idle(&self) -> bool {
        self.state().is_idle()
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
