use crate::report::{AbortError, AbortReport, Rejected, Summary, TaskId, TaskInfo, TaskOutput};
use crate::shutdown::{Shutdown, ShutdownGuard, WaitIdle};
use crate::signal::ShutdownSignal;
use crate::spawner::{BlockingSpawner, LocalSpawner, Spawner};
use crate::state::{RegistryHandle, RegistryState};
use crate::task::{Guard, Tracked};
use crate::task_builder::{RunWhenReady, TaskBuilder};
use alloc::vec::Vec;
use core::fmt;

/// Starts the background tasks of one program, counts them, signals shutdown to them, and waits for them.
///
/// A registry has three states:
///
/// - *Open*: it accepts tasks until [`shutdown`](Self::shutdown) is called or the last handle is dropped.
/// - *Draining*: the [shutdown signal](Self::signal) is triggered. The registry still accepts tasks while any task is in flight, so that a
///   task, or the holder of a [`Guard`], can start follow-up work.
/// - *Drained*: nothing is in flight. The registry never accepts a task again.
///
/// So stop external requests first, and give the drain a deadline. A listener, for example, can wait for the signal and close.
///
/// A clone is another handle of the same registry. A task that owns a handle keeps its registry open: dropping all other handles then does
/// not start the shutdown.
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

    /// Returns a handle of the registry whose state is `state`, for a `static` and for programs without `std`.
    ///
    /// All handles made with one `state` belong to the same registry. Dropping such a handle never starts the shutdown. See
    /// [`RegistryState`] for an example.
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
    /// One drain then covers tasks on several executors, or tasks that are [wrapped](Spawner#wrapping-each-task) differently.
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
    /// thumbnails.run(async { /* on its own thread */ });
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

    /// Returns the spawner of this handle.
    pub fn spawner(&self) -> &S {
        &self.spawner
    }

    /// Returns a builder that starts a task with this name. A name stands for a kind of task, such as `"welcome-mail"`, not for a single
    /// task.
    ///
    /// [Observers](crate::RegistryBuilder::observer), [`tasks`](Self::tasks) and [`Stragglers`](crate::Stragglers) show the name. In a registry
    /// with observers, a named task needs a slot, as an [inspected](crate::RegistryBuilder::inspect) task does. In a registry without observers
    /// and inspection the name has no effect and costs almost nothing.
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

    /// Returns a builder that starts a critical task: if the task panics or fails, the shutdown starts.
    ///
    /// A critical task that is aborted, abandoned or rejected does not start the shutdown. Neither does a [tracked](Self::track) future
    /// that returns `Err`, because its output belongs to its owner. [`shutdown_cause`](Self::shutdown_cause) returns the task that started
    /// the shutdown.
    ///
    /// [`RegistryBuilder::shutdown_on_panic`](crate::RegistryBuilder::shutdown_on_panic) and [`RegistryBuilder::shutdown_on_failure`](crate::RegistryBuilder::shutdown_on_failure) apply this to every task.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// # use background_tasks::{Registry, SmolSpawner};
    /// # let registry = Registry::new(SmolSpawner);
    /// registry.critical().run(async { Err("the leader's lease is lost") });
    /// registry.signal().await; // resolves: the shutdown has started
    /// # });
    /// ```
    pub fn critical(&self) -> TaskBuilder<'_, S> {
        self.task().critical()
    }

    /// Counts a future as in flight until it finishes or is dropped. Its owner polls it, for example in a `JoinSet`, a `select!` or a
    /// server.
    ///
    /// Any output counts as completed. A panic counts as panicked and then continues in the caller. A future that is dropped before it
    /// finished counts as abandoned.
    ///
    /// # Errors
    ///
    /// [`Rejected`] returns the future if the registry has drained or is [full](crate::RejectReason::Full).
    #[track_caller]
    pub fn track<F: Future>(&self, future: F) -> Result<Tracked<F>, Rejected<F>> {
        self.task().track(future)
    }

    /// Counts work that is not a future (a request, a thread, a held lock) as in flight until the guard is dropped.
    ///
    /// # Errors
    ///
    /// [`Rejected`] if the registry has drained or is [full](crate::RejectReason::Full).
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

    /// Returns the shutdown signal: a future that resolves once the shutdown has started.
    pub fn signal(&self) -> ShutdownSignal {
        ShutdownSignal::new(self.state())
    }

    /// Starts the shutdown immediately, and returns a future that resolves to the [`Summary`] once the registry has drained.
    ///
    /// All shutdown signals are triggered when this method returns. The shutdown continues if the future is dropped. Calling the method
    /// again returns another future for the same drain. [`Shutdown`] also has waits with a deadline, and waits that block the thread.
    ///
    /// # Deadlocks
    ///
    /// A task, or the holder of a guard, that awaits the returned future waits for itself. Inside a task, call this method and drop the
    /// future.
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

    /// Returns a guard that starts the shutdown when it is dropped, for a `main` that can return early.
    ///
    /// Dropping the guard does not wait for the drain. [`ShutdownGuard::disarm`] releases it without starting the shutdown.
    pub fn shutdown_on_drop(&self) -> ShutdownGuard {
        ShutdownGuard::new(self.handle.state_ref())
    }

    /// Waits until nothing is in flight, without starting the shutdown.
    ///
    /// Use it in tests of code that starts background tasks: tasks that are started by tasks are waited for too. The future resolves after
    /// a moment at which nothing was in flight; new tasks may be in flight by then.
    ///
    /// # Deadlocks
    ///
    /// A task, or the holder of a guard, that awaits the returned future waits for itself.
    ///
    /// # Cancel safety
    ///
    /// The future can be dropped at any time.
    pub fn wait_idle(&self) -> WaitIdle {
        WaitIdle::new(self.handle.state_ref())
    }

    /// Returns the tasks in flight, oldest first. Empty unless the registry is [inspected](crate::RegistryBuilder::inspect).
    ///
    /// Tasks that start or end during the call may be missing or included. The cost grows with the number of slots.
    pub fn tasks(&self) -> Vec<TaskInfo> {
        self.state().tasks()
    }

    /// Aborts all tasks of an [inspected](crate::RegistryBuilder::inspect) registry at their next await point. Returns how many can and cannot be
    /// aborted.
    ///
    /// A waiting task is woken, dropped at its await point, and counted as aborted. A task that is being polled ends when that poll
    /// returns, unless it finishes in that poll.
    ///
    /// These stay in flight: tasks without an await point (blocking closures, guards), tasks that never reach one, [tracked](Self::track)
    /// futures, tasks that are started later, and all tasks of a registry that is not inspected.
    ///
    /// This method does not start the shutdown. [`Shutdown::or_abort`](crate::Shutdown::or_abort) waits for a grace period, then aborts.
    pub fn abort(&self) -> AbortReport {
        self.state().abort()
    }

    /// Aborts one task of an [inspected](crate::RegistryBuilder::inspect) registry at its next await point, as [`abort`](Self::abort) does.
    ///
    /// The task is searched in all slots of the registry.
    ///
    /// # Errors
    ///
    /// - [`AbortError::NotInFlight`] if no task with this ID is in flight.
    /// - [`AbortError::NotAbortable`] if the task is a blocking closure, a guard or a tracked future.
    pub fn abort_task(&self, id: TaskId) -> Result<(), AbortError> {
        self.state().abort_task(id)
    }

    /// Returns the number of ended tasks by outcome. Exact once the registry has drained; see [`Summary`].
    pub fn summary(&self) -> Summary {
        self.state().summary()
    }

    /// Returns the number of tasks in flight. Exact while no task starts or ends.
    ///
    /// Use it to show or record the number, and [`wait_idle`](Self::wait_idle) to wait until it is 0.
    pub fn in_flight(&self) -> usize {
        self.state().in_flight()
    }

    /// Returns whether the shutdown has started.
    pub fn is_shutting_down(&self) -> bool {
        self.state().is_shutting_down()
    }

    /// Returns the task whose loss started the shutdown: a [critical](Self::critical) task, or any task if the
    /// [builder](crate::RegistryBuilder::shutdown_on_panic) says so.
    ///
    /// `None` if the shutdown has not started, or was not started by a loss. A program can choose its exit code by this value. The loss
    /// itself is reported to [observers](crate::Observer).
    pub fn shutdown_cause(&self) -> Option<TaskInfo> {
        self.state().shutdown_cause()
    }

    /// Returns whether the registry has drained: the shutdown has started, nothing is in flight, and no task will be accepted again.
    pub fn is_drained(&self) -> bool {
        self.state().is_drained()
    }

    /// Starts a task in the background and returns immediately.
    ///
    /// The task's output decides whether it failed; see [`TaskOutput`]. With `std`, a panic of the task is caught and counted. If the
    /// registry has drained or is [full](crate::RejectReason::Full), the future is dropped and counted as rejected;
    /// [`try_run`](Self::try_run) returns it instead.
    ///
    /// # Panics
    ///
    /// If the spawner panics, as `TokioSpawner` does outside a tokio runtime. The task then counts as abandoned.
    #[track_caller]
    pub fn run<F: Future<Output: TaskOutput> + Send + 'static>(&self, future: F)
    where
        S: Spawner,
    {
        self.task().run(future);
    }

    /// Starts a task in the background, as [`run`](Self::run) does, or returns the future if it is rejected.
    ///
    /// # Errors
    ///
    /// [`Rejected`] returns the future if the registry has drained or is [full](crate::RejectReason::Full).
    ///
    /// # Panics
    ///
    /// If the spawner panics. The task then counts as abandoned.
    #[track_caller]
    pub fn try_run<F: Future<Output: TaskOutput> + Send + 'static>(&self, future: F) -> Result<(), Rejected<F>>
    where
        S: Spawner,
    {
        self.task().try_run(future)
    }

    /// Starts a task as soon as the [limit](crate::RegistryBuilder::max_in_flight) permits it: immediately, unless the registry is full.
    ///
    /// Waiting callers are served in the order in which they were first polled. Meanwhile the methods that do not wait, such as `run`, find
    /// the registry full, so they cannot overtake.
    ///
    /// # Errors
    ///
    /// [`Rejected`] returns the future if the registry has drained. A caller that waits for a permit is rejected as soon as the shutdown
    /// starts.
    ///
    /// # Panics
    ///
    /// If the spawner panics, or if the returned future is polled after it resolved.
    ///
    /// # Cancel safety
    ///
    /// Dropping the returned future leaves the wait queue and drops the task's future. The task was not started and is not counted.
    ///
    /// # Deadlocks
    ///
    /// A task of a full registry that awaits this future waits for tasks like itself. If all tasks do so, none of them can continue.
    ///
    /// A free permit is taken when the first waiting future is polled again, so the permit is unused until then. Poll the future or drop
    /// it; do not `mem::forget` it.
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
    ///     // At most eight tasks are in flight simultaneously.
    ///     registry.run_when_ready(async move { drop(page) }).await.unwrap();
    /// }
    /// assert_eq!(registry.shutdown().await.completed, 100);
    /// # });
    /// ```
    #[track_caller]
    pub fn run_when_ready<F: Future<Output: TaskOutput> + Send + 'static>(&self, future: F) -> RunWhenReady<'_, S, F>
    where
        S: Spawner,
    {
        self.task().run_when_ready(future)
    }

    /// Starts a task that need not be `Send` on the calling thread; otherwise like [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// If the spawner panics. The task then counts as abandoned.
    #[track_caller]
    pub fn run_local<F: Future<Output: TaskOutput> + 'static>(&self, future: F)
    where
        S: LocalSpawner,
    {
        self.task().run_local(future);
    }

    /// Starts a task that need not be `Send` on the calling thread, or returns the future if it is rejected.
    ///
    /// # Errors
    ///
    /// [`Rejected`] returns the future if the registry has drained or is [full](crate::RejectReason::Full).
    ///
    /// # Panics
    ///
    /// If the spawner panics. The task then counts as abandoned.
    #[track_caller]
    pub fn try_run_local<F: Future<Output: TaskOutput> + 'static>(&self, future: F) -> Result<(), Rejected<F>>
    where
        S: LocalSpawner,
    {
        self.task().try_run_local(future)
    }

    /// Starts a blocking closure on a thread that may block; otherwise like [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// If the spawner panics. The closure then counts as abandoned.
    #[track_caller]
    pub fn run_blocking<F: FnOnce() -> T + Send + 'static, T: TaskOutput>(&self, work: F)
    where
        S: BlockingSpawner,
    {
        self.task().run_blocking(work);
    }

    /// Starts a blocking closure on a thread that may block, or returns the closure if it is rejected.
    ///
    /// # Errors
    ///
    /// [`Rejected`] returns the closure if the registry has drained or is [full](crate::RejectReason::Full).
    ///
    /// # Panics
    ///
    /// If the spawner panics. The closure then counts as abandoned.
    #[track_caller]
    pub fn try_run_blocking<F: FnOnce() -> T + Send + 'static, T: TaskOutput>(&self, work: F) -> Result<(), Rejected<F>>
    where
        S: BlockingSpawner,
    {
        self.task().try_run_blocking(work)
    }
}

#[cfg(loom)]
impl<S> Registry<S> {
    /// For the models: evaluates the condition that [`wait_idle`](Self::wait_idle) waits for, without asking to be notified.
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
