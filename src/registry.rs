use crate::join::JoinHandle;
use crate::report::{AbortError, AbortReport, Rejected, ServiceInfo, Stragglers, Summary, TaskId, TaskInfo, TaskOutput};
use crate::service::Restart;
use crate::shutdown::{Shutdown, ShutdownGuard, WaitIdle};
use crate::signal::ShutdownSignal;
use crate::spawner::{BlockingSpawner, LocalSpawner, Spawner, Timer};
use crate::state::{RegistryHandle, RegistryState};
use crate::task::{Guard, Tracked};
use crate::task_builder::{StartWhenReady, TaskBuilder};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;
use futures_util::future::OptionFuture;

/// Starts background tasks and counts them. At shutdown, signals the tasks to stop, and waits until they have ended.
///
/// A registry has three states:
///
/// - *Open*: the registry accepts tasks. This state lasts until the shutdown starts, for example because
///   [`shutdown`](Self::shutdown) is called or the last handle is dropped.
/// - *Draining*: the [shutdown signal](Self::signal) is triggered. The registry still accepts tasks while any task is in flight. A
///   task, or the holder of a [`Guard`], can therefore still start other tasks.
/// - *Drained*: after the shutdown started, the number of tasks in flight has reached zero. From now on, the registry rejects
///   all tasks.
///
/// New tasks prolong a drain. To make sure that the drain ends, stop accepting requests when the shutdown signal resolves. A
/// task can also hang. Therefore set a deadline for the drain, for example with [`shutdown_within`](Self::shutdown_within).
///
/// A value of this type is a handle. A clone is another handle of the same registry. The shutdown starts when the last handle
/// is dropped. If a task owns a handle of its registry, this handle therefore keeps the registry open.
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

    /// Returns a handle of the registry whose state is `state`. This function is `const`, so a `static` can contain the handle,
    /// even in a program without `std`.
    ///
    /// All handles made from the same `state` belong to the same registry. The drop of such a handle never starts the shutdown. The
    /// docs of [`RegistryState`] contain an example.
    pub const fn in_static(state: &'static RegistryState, spawner: S) -> Self {
        Self { handle: RegistryHandle::in_static(state), spawner }
    }

    #[inline]
    fn state(&self) -> &'static RegistryState {
        self.handle.state()
    }

    /// Returns a builder for a task.
    ///
    /// A [`TaskBuilder`] has a method for each way to start a task. `Registry` also has the most common of these methods. For
    /// example, `registry.run(future)` is short for `registry.task().run(future)`.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")] {
    /// use background_tasks::{Registry, SmolSpawner};
    ///
    /// let registry = Registry::new(SmolSpawner);
    /// registry.task().critical().run(async { /* work */ });
    /// registry.start_shutdown();
    /// # }
    /// ```
    #[inline]
    pub fn task(&self) -> TaskBuilder<'_, S> {
        TaskBuilder::new(self.state(), &self.spawner)
    }

    /// Returns another handle of this registry. The returned handle starts its tasks with `spawner`.
    ///
    /// With handles that have different spawners, one registry can run its tasks on several executors. A program can also use a
    /// [wrapping spawner](Spawner#wrapping-each-task) for only some of its tasks.
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

    /// Returns a builder that starts a task with the name `name`. Use one name for all tasks of the same kind, such as
    /// `"welcome-mail"`.
    ///
    /// The name appears in [`tasks`](Self::tasks), [`services`](Self::services), [`Stragglers`],
    /// [`shutdown_cause`](Self::shutdown_cause) and [`JoinError`](crate::JoinError). [Observers](crate::RegistryBuilder::observer)
    /// and the [spawner](Spawner::spawn_with_info) also receive the name.
    ///
    /// A named task occupies a slot (a table entry with information about the task) if the registry has observers. The same applies
    /// if the option [`shutdown_on_panic`](crate::RegistryBuilder::shutdown_on_panic) or
    /// [`shutdown_on_failure`](crate::RegistryBuilder::shutdown_on_failure) is set. [`inspect`](crate::RegistryBuilder::inspect)
    /// describes the cost of slots. In other registries, a name costs almost nothing.
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

    /// Returns a builder that starts a critical task. If a critical task is lost, the shutdown starts.
    ///
    /// A task is lost if it fails, panics, or is abandoned, aborted or rejected. If a [tracked](Self::track) future or a task with
    /// a [handle](Self::spawn) returns `Err`, it is not lost: it counts as completed, because the caller receives the error.
    ///
    /// If a critical task completes, no shutdown starts. If work must not end before the shutdown, start a [service](Self::service)
    /// with [`Restart::always`](crate::Restart::always), which starts the work again after each run.
    /// [`shutdown_cause`](Self::shutdown_cause) returns the task whose loss started the shutdown. In a [child](Self::child), the
    /// loss of a critical task starts only the shutdown of the child.
    ///
    /// To start the shutdown after a panic or a failure of any task, set the option
    /// [`shutdown_on_panic`](crate::RegistryBuilder::shutdown_on_panic) or
    /// [`shutdown_on_failure`](crate::RegistryBuilder::shutdown_on_failure) of the registry's builder.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// # use background_tasks::{Registry, SmolSpawner};
    /// # let registry = Registry::new(SmolSpawner);
    /// registry.critical().run(async { Err::<(), _>("the leader's lease is lost") });
    /// registry.signal().await; // resolves: the shutdown has started
    /// # });
    /// ```
    pub fn critical(&self) -> TaskBuilder<'_, S> {
        self.task().critical()
    }

    /// Returns a builder that starts a task without a permit. The task counts as in flight, but does not count towards the
    /// registry's [limit](crate::RegistryBuilder::max_in_flight).
    ///
    /// The registry accepts the task even if no permit is free. In all other respects, the task is like any other task: the drain
    /// waits for it, and the registry counts, lists, reports and aborts it. All methods of the builder that start work use this
    /// setting, for example [`run`](TaskBuilder::run) and [`guard`](TaskBuilder::guard). With this setting,
    /// [`run_when_ready`](TaskBuilder::run_when_ready) does not wait for a permit.
    ///
    /// Use this setting for work that itself starts tasks, so that this work does not take the permits that the started tasks need.
    /// Examples are a request, a connection, and a task that starts a [follow-up](Self::follow_up) for each item of a list.
    ///
    /// If no limit applies to the registry, this setting has no effect. If the registry has a limit, the task occupies a slot: a
    /// table entry with information about the task. [`inspect`](crate::RegistryBuilder::inspect) describes the cost of slots. At
    /// most 4,194,303 tasks without a permit can be in flight simultaneously (1,023 on 32-bit targets). The registry rejects each
    /// further task without a permit as [full](crate::RejectReason::Full).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")] {
    /// use background_tasks::{Registry, SmolSpawner};
    ///
    /// let registry = Registry::builder(SmolSpawner).max_in_flight(1).build();
    /// let request = registry.without_permit().guard().unwrap();
    /// assert!(registry.try_run(async { /* takes the only permit */ }).is_ok());
    /// drop(request);
    /// assert_eq!(registry.shutdown().wait().completed, 2);
    /// # }
    /// ```
    pub fn without_permit(&self) -> TaskBuilder<'_, S> {
        self.task().without_permit()
    }

    /// Returns a builder that starts a follow-up: a task that continues the work of a task in flight. For example, a task can start
    /// a follow-up for each item of a list.
    ///
    /// For a follow-up, [`run_when_ready`](TaskBuilder::run_when_ready) waits for a permit even while the registry drains. The
    /// returned future resolves to an error only if the registry has drained. Without `follow_up`, `run_when_ready` stops waiting
    /// when the shutdown starts, and the registry rejects the new task.
    ///
    /// Use `follow_up` in tasks, and in code that holds a [`Guard`]. Do not use `follow_up` in code that accepts new work, such as
    /// a server's loop, because new work prolongs the drain.
    ///
    /// A task that awaits `run_when_ready` is itself in flight. The registry cannot drain while this task waits, and therefore
    /// never rejects the follow-up of this task.
    ///
    /// `follow_up` has no effect on methods that do not wait, such as `run` and `try_run`. With or without `follow_up`, these
    /// methods start work while the registry drains, and reject work while the registry is full.
    ///
    /// # Deadlocks
    ///
    /// While a task waits for the permit of its follow-up, the task keeps its own permit. If such tasks together hold all permits,
    /// they wait forever. To avoid this deadlock, start these tasks [without a permit](Self::without_permit). Alternatively, make
    /// sure that their number is below the limit.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, SmolSpawner};
    ///
    /// let registry = Registry::builder(SmolSpawner).max_in_flight(2).build();
    /// let tasks = registry.clone();
    /// registry.without_permit().run(async move {
    ///     for page in 0..20 {
    ///         // At most two pages are in flight simultaneously. No page is rejected, although the registry drains.
    ///         tasks.follow_up().run_when_ready(async move { drop(page) }).await.unwrap();
    ///     }
    /// });
    /// assert_eq!(registry.shutdown().await.completed, 21);
    /// # });
    /// ```
    pub fn follow_up(&self) -> TaskBuilder<'_, S> {
        self.task().follow_up()
    }

    /// Counts a future as in flight until the future finishes or is dropped. No spawner runs the returned future: you poll it
    /// yourself, for example in a `JoinSet` or a `select!`.
    ///
    /// If the future finishes, it counts as completed, even if it returns `Err`. If the future panics, it counts as panicked, and
    /// the panic reaches the code that polls the returned future. If the future is dropped before it has finished, it counts as
    /// abandoned.
    ///
    /// # Errors
    ///
    /// Returns [`Rejected`], which contains the future, if the registry has drained or is [full](crate::RejectReason::Full).
    #[track_caller]
    pub fn track<F: Future>(&self, future: F) -> Result<Tracked<F>, Rejected<F>> {
        self.task().track(future)
    }

    /// Returns a guard for work that is not a future, such as a request, a thread or a held lock. The work counts as in flight
    /// until the guard is dropped.
    ///
    /// When the guard is dropped, the work counts as completed, even if the work was not finished. To count unfinished work as
    /// abandoned instead, call [`Guard::require_completion`]. The returned guard counts as completed only if you call its method
    /// `complete`. If a guard is dropped because its thread panics, the work counts as panicked; the docs of [`Guard`] explain this
    /// rule.
    ///
    /// # Errors
    ///
    /// Returns [`Rejected`] if the registry has drained or is [full](crate::RejectReason::Full).
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

    /// Starts a service: a task that repeats its work. When a run of the work has ended, the policy `restart` decides whether the
    /// work runs again.
    ///
    /// For each run, the closure `make` creates a future. One task supervises all runs of the service. This task is in flight until
    /// the service ends, so the drain waits for the service. The service ends in one of these cases:
    ///
    /// - A run ends, and the policy `restart` allows no further run. With [`Restart::on_failure`], the service ends when a run
    ///   completes. If the last run is lost, the service is lost with the same outcome.
    /// - The shutdown starts. If the service waits between two runs, it ends immediately. If a run is in progress, the registry
    ///   does not interrupt the run, and the service ends after this run. The future of a run should therefore end soon after the
    ///   [signal](Self::signal) resolves. After the shutdown has started, no run starts.
    /// - The service is [aborted](Self::abort), or its executor drops it.
    ///
    /// # Accounting
    ///
    /// Each run counts as one task in the [`Summary`]. The registry reports each lost run to the observers. A panic in `make`, in
    /// the future of a run or in the destructor of this future ends only this run. The settings [`critical`](Self::critical),
    /// [`shutdown_on_panic`](crate::RegistryBuilder::shutdown_on_panic) and
    /// [`shutdown_on_failure`](crate::RegistryBuilder::shutdown_on_failure) apply only if the whole service is lost. If another run
    /// follows, the loss of a run does not start the shutdown.
    ///
    /// After a lost run, the registry counts the next run immediately, although this run starts only after a delay. If the service
    /// ends during the delay, this next run counts with the outcome of the service: completed, aborted or abandoned.
    ///
    /// [`services`](Self::services) lists the services and their numbers of restarts. [`wait_idle`](Self::wait_idle) does not wait
    /// for services. In a registry with a limit, a service holds one permit, unless it is started [without a
    /// permit](Self::without_permit). If the registry rejects the service, the registry drops `make`, and counts and reports the
    /// rejection.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics. In this case the service counts as abandoned. The supervising task, and not this method, calls
    /// the [`Timer`]. If the timer panics, the service counts as panicked.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, Restart, SmolSpawner};
    /// use std::time::Duration;
    ///
    /// # async fn next_message() -> Result<(), std::io::Error> { std::future::pending().await }
    /// let registry = Registry::new(SmolSpawner);
    /// let signal = registry.signal();
    /// registry.named("outbox").critical().service(Restart::on_failure(), move || {
    ///     let signal = signal.clone();
    ///     async move {
    ///         while let Some(message) = signal.run_until_shutdown(next_message()).await {
    ///             message?; // An error ends the run, and the next run starts after a delay.
    ///         }
    ///         Ok::<(), std::io::Error>(())
    ///     }
    /// });
    /// assert!(registry.shutdown_within(Duration::from_secs(10)).await.unwrap().is_clean());
    /// # });
    /// ```
    #[track_caller]
    pub fn service<F>(&self, restart: Restart, make: impl FnMut() -> F + Send + 'static)
    where
        S: Spawner + Timer<Sleep: Send> + Clone + Send + 'static,
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.task().service(restart, make);
    }

    /// Starts a service that runs its work immediately, and again each time that `period` has elapsed, until the shutdown starts.
    ///
    /// The end of each period is called a tick. Runs never overlap: if a tick happens during a run, the service skips that tick.
    /// The next run starts at the first tick after the end of the run. Minimum of `period`: 1 millisecond. Shorter periods are
    /// raised to the minimum.
    ///
    /// If a run fails or panics, the registry counts and reports the loss, and the service continues. In all other respects, the
    /// docs of [`service`](Self::service) apply.
    ///
    /// The schedule exists only in memory, so it restarts when the process restarts. While the process does not run, the work does
    /// not run. If the program runs in several processes, each process has its own schedule, and runs the work. If a run must not
    /// be lost, or if only one process must run the work, use a durable job, which a database stores. The crate
    /// `background-tasks-durable` runs durable jobs, also on a cron schedule.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics, as [`service`](Self::service) does.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, SmolSpawner};
    /// use std::time::Duration;
    ///
    /// let registry = Registry::new(SmolSpawner);
    /// registry.named("sweep").every(Duration::from_secs(60), || async { /* remove expired sessions */ });
    /// assert!(registry.shutdown_within(Duration::from_secs(10)).await.unwrap().is_clean());
    /// # });
    /// ```
    #[track_caller]
    pub fn every<F>(&self, period: Duration, make: impl FnMut() -> F + Send + 'static)
    where
        S: Spawner + Timer<Sleep: Send> + Clone + Send + 'static,
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.task().every(period, make);
    }

    /// Returns the [services](Self::service) in flight. For each service, the list contains the number of restarts, the state and
    /// the last loss. The services of this registry come first, in the order in which they were started. The services of its
    /// [descendants](Self::child) follow. The registry need not be inspected.
    pub fn services(&self) -> Vec<ServiceInfo> {
        self.state().services()
    }

    /// Returns the shutdown signal: a future that resolves as soon as the shutdown has started.
    pub fn signal(&self) -> ShutdownSignal {
        ShutdownSignal::new(self.state())
    }

    /// Starts the shutdown immediately, and returns a future that resolves to the [`Summary`] when the registry has drained.
    ///
    /// The call itself starts the shutdown, even if the returned future is never polled. All shutdown signals of the registry are
    /// triggered when this method returns. If the returned future is dropped, the shutdown continues. A second call to `shutdown`
    /// returns another future that waits for the same drain.
    ///
    /// To wait with a time limit, call [`shutdown_within`](Self::shutdown_within). The type [`Shutdown`] has methods that accept
    /// any future as a deadline, and methods that block the thread.
    ///
    /// Await the returned future: if no code waits for the drain, the tasks in flight are lost when `main` returns. If other code
    /// already waits for the drain, call [`start_shutdown`](Self::start_shutdown) instead of `shutdown`.
    ///
    /// # In `select!`
    ///
    /// A `select!` evaluates the expressions of all branches before it waits. Therefore a branch with the expression
    /// `registry.shutdown()` starts the shutdown even if another branch is ready first. In `tokio::select!`, the branch starts the
    /// shutdown even if its precondition (`, if …`) is false.
    ///
    /// To react to a shutdown that other code starts, select on [`signal`](Self::signal). To start the shutdown when the branch is
    /// first polled, select on `async { registry.shutdown().await }`.
    ///
    /// # Deadlocks
    ///
    /// A task must not await the shutdown of its own registry: the drain waits for the task, so the task would wait for itself.
    /// Code that holds a guard must not await the shutdown either. To start the shutdown inside a task, call
    /// [`start_shutdown`](Self::start_shutdown).
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
    ///     own.start_shutdown(); // A task cannot wait for its own end.
    /// });
    /// registry.signal().await;
    /// assert_eq!(registry.shutdown().await.completed, 1);
    /// # });
    /// ```
    pub fn shutdown(&self) -> Shutdown {
        self.start_shutdown();
        Shutdown::new(self.handle.state_ref())
    }

    /// Starts the shutdown immediately, and returns a future that waits until the registry has drained, but at most for `grace`.
    ///
    /// This method is short for [`shutdown`](Self::shutdown) followed by [`until`](Shutdown::until). The spawner of this handle
    /// measures the time, with its [`Timer`]. The time starts at the call, not at the first poll. To abort the tasks that are still
    /// in flight after `grace`, call [`shutdown_or_abort`](Self::shutdown_or_abort) instead.
    ///
    /// If `grace` is [`Duration::ZERO`], the future does not wait. It only checks whether the registry has drained. If `grace` is
    /// [`Duration::MAX`], the future waits until the registry has drained.
    ///
    /// # Errors
    ///
    /// Returns [`Stragglers`] if tasks are still in flight after `grace`. These tasks continue to run.
    ///
    /// # Panics
    ///
    /// Panics if the timer is not available to the calling thread; see [`Timer::sleep`]. In this case, the shutdown does not start.
    ///
    /// # Cancel safety
    ///
    /// Dropping the returned future ends the wait, but not the shutdown.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, SmolSpawner};
    /// use std::time::Duration;
    ///
    /// let registry = Registry::new(SmolSpawner);
    /// registry.run(std::future::pending::<()>());
    /// let stragglers = registry.shutdown_within(Duration::from_millis(10)).await.unwrap_err();
    /// assert_eq!(stragglers.len(), 1);
    /// # });
    /// ```
    #[must_use = "the shutdown has started, but nothing waits for the drain: await it, or call `start_shutdown` instead"]
    #[track_caller]
    pub fn shutdown_within(&self, grace: Duration) -> impl Future<Output = Result<Summary, Stragglers>> + use<S>
    where
        S: Timer,
    {
        let deadline = self.sleep(grace);
        self.shutdown().until(deadline)
    }

    /// Starts the shutdown immediately, and returns a future that waits until the registry has drained, but at most for `grace`.
    /// After `grace`, the future aborts the remaining tasks, and waits for them, but at most for `abort_timeout`.
    ///
    /// This method is short for [`shutdown`](Self::shutdown) followed by [`or_abort`](Shutdown::or_abort). The docs of `or_abort`
    /// contain the details. Only an [inspected](crate::RegistryBuilder::inspect) registry can abort its tasks. The spawner of this
    /// handle measures both times, with its [`Timer`]. The time `grace` starts at the call. The time `abort_timeout` starts after
    /// the future has aborted the tasks.
    ///
    /// If `grace` is [`Duration::ZERO`], the first poll of the future aborts the tasks. If `grace` is [`Duration::MAX`], the future
    /// never aborts a task. If `abort_timeout` is [`Duration::ZERO`], the future does not wait for the aborted tasks. If
    /// `abort_timeout` is [`Duration::MAX`], the future waits until all tasks have ended.
    ///
    /// # Errors
    ///
    /// Returns [`Stragglers`] if tasks are still in flight after `abort_timeout`. These tasks continue to run.
    ///
    /// # Panics
    ///
    /// Panics if the timer is not available to the calling thread; see [`Timer::sleep`]. In this case, the shutdown does not start.
    /// The poll that aborts the tasks also calls the timer, for `abort_timeout`. This poll panics if the timer is not available to
    /// the polling thread.
    ///
    /// # Cancel safety
    ///
    /// Dropping the returned future ends the wait, but not the shutdown. If the future is dropped before `grace` has elapsed, no
    /// task is aborted. If the future is dropped after it has aborted the tasks, an inspected registry still aborts each task that
    /// starts later, until the registry has drained.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, SmolSpawner};
    /// use std::time::Duration;
    ///
    /// let registry = Registry::builder(SmolSpawner).inspect().build();
    /// registry.run(std::future::pending::<()>());
    /// let summary = registry.shutdown_or_abort(Duration::from_millis(10), Duration::from_secs(5)).await.unwrap();
    /// assert_eq!(summary.aborted, 1);
    /// # });
    /// ```
    #[must_use = "the shutdown has started, but nothing waits for the drain: await it, or call `start_shutdown` instead"]
    #[track_caller]
    pub fn shutdown_or_abort(
        &self,
        grace: Duration,
        abort_timeout: Duration,
    ) -> impl Future<Output = Result<Summary, Stragglers>> + use<'_, S>
    where
        S: Timer,
    {
        let grace = self.sleep(grace);
        self.shutdown().or_abort(grace, move || self.sleep(abort_timeout))
    }

    /// Returns a future that resolves after `duration`. If the duration is zero, the returned future is ready at its first poll,
    /// because it does not use the timer. The future of a timer is not always ready at its first poll.
    #[track_caller]
    fn sleep(&self, duration: Duration) -> OptionFuture<S::Sleep>
    where
        S: Timer,
    {
        let sleep = if duration.is_zero() { None } else { Some(self.spawner.sleep(duration)) };
        sleep.into()
    }

    /// Starts the shutdown and returns immediately. To wait for the drain as well, call [`shutdown`](Self::shutdown) instead.
    ///
    /// All shutdown signals of the registry are triggered when this method returns. A second call has no effect.
    ///
    /// Call `start_shutdown` in code that must not wait for the drain. Examples are a task that waits for a signal of the operating
    /// system, and an HTTP handler that lets administrators stop the program. Do not call `start_shutdown` in a signal handler that
    /// `sigaction` installs, because the method is not async-signal-safe.
    ///
    /// Other code, usually the end of `main`, must call [`shutdown`](Self::shutdown) and await the drain. Otherwise the tasks in
    /// flight are lost when the process exits.
    ///
    /// # Examples
    ///
    /// The compiler warns if code ignores the future that `shutdown` returns. A call to `start_shutdown` causes no warning.
    ///
    /// ```compile_fail
    /// #![deny(unused_must_use)]
    /// # use background_tasks::Registry;
    /// fn end<S>(registry: &Registry<S>) {
    ///     registry.shutdown(); // error: unused `Shutdown` that must be used
    /// }
    /// ```
    ///
    /// ```
    /// #![deny(unused_must_use)]
    /// # use background_tasks::Registry;
    /// fn end<S>(registry: &Registry<S>) {
    ///     registry.start_shutdown();
    /// }
    /// ```
    pub fn start_shutdown(&self) {
        self.state().start_shutdown();
    }

    /// Returns a guard that starts the shutdown when the guard is dropped. Use the guard in a `main` that can return early, for
    /// example at an operator `?`.
    ///
    /// Dropping the guard does not wait for the drain. [`ShutdownGuard::disarm`] drops the guard without starting the shutdown.
    pub fn shutdown_on_drop(&self) -> ShutdownGuard {
        ShutdownGuard::new(self.handle.state_ref())
    }

    /// Returns a future that waits until no task is in flight. This method does not start the shutdown. The future does not wait
    /// for [services](Self::service), even while they run. A [child](Self::child) counts as a task in flight until the child has
    /// drained.
    ///
    /// In tests, use `wait_idle` to wait for the background tasks of the tested code, and for the tasks that these tasks start.
    ///
    /// The returned future resolves when one of its polls finds no task in flight except services. After this poll, new tasks can
    /// start before the caller continues. When the last task ends, the registry wakes the future. If a new task starts before the
    /// executor polls the future, the future also waits for the new task. If new tasks start all the time, the future may therefore
    /// never resolve.
    ///
    /// # Deadlocks
    ///
    /// A task must not await `wait_idle` of its own registry: the task is in flight, so it would wait for itself. Code that holds a
    /// guard must not await `wait_idle` either, because the guard counts as in flight.
    ///
    /// # Cancel safety
    ///
    /// The returned future can be dropped at any time.
    pub fn wait_idle(&self) -> WaitIdle {
        WaitIdle::new(self.handle.state_ref())
    }

    /// Returns the tasks in flight, oldest first. In a program without a clock, the order is arbitrary. If the registry is not
    /// [inspected](crate::RegistryBuilder::inspect), the list is empty.
    ///
    /// If a task starts or ends during the call, the list may or may not contain this task. `tasks` reads all slots (table entries
    /// for tasks) of the registry, so its cost grows with the number of slots.
    pub fn tasks(&self) -> Vec<TaskInfo> {
        self.state().tasks()
    }

    /// Returns whether the registry is [inspected](crate::RegistryBuilder::inspect). An inspected registry lists its tasks, and
    /// can abort them.
    pub fn is_inspected(&self) -> bool {
        self.state().is_inspected()
    }

    /// Aborts all tasks of an [inspected](crate::RegistryBuilder::inspect) registry at their next await point. Returns the number
    /// of tasks that can be aborted, and the number of tasks that cannot be aborted.
    ///
    /// In this documentation, an await point is an `.await` that waits: the poll of the task returns `Pending`. An abort has these
    /// effects:
    ///
    /// - A waiting task is woken, dropped at its await point, and counted as aborted.
    /// - A task that is being polled is dropped at its next await point, unless it finishes first.
    /// - A task that has not been polled yet is dropped before its first poll.
    /// - A blocking closure that has not started never starts, and counts as aborted. The closure stays in flight until its
    ///   executor tries to start the closure or drops it.
    ///
    /// The following tasks are not aborted and stay in flight:
    ///
    /// - blocking closures that have started, guards and [tracked](Self::track) futures
    /// - tasks that never reach an await point
    /// - tasks that start after `abort` was called
    /// - all tasks of a registry that is not inspected
    ///
    /// If an aborted task has itself started work that the registry does not count, this work continues. Examples are a closure in
    /// `tokio::task::spawn_blocking`, an operation of `tokio::fs`, and a [child process](crate::guide::child_processes). To count
    /// such work, start it with [`run_blocking`](Self::run_blocking) or [`run`](Self::run), or move a [guard](Self::guard) into it.
    ///
    /// This method does not start the shutdown. [`Shutdown::or_abort`](crate::Shutdown::or_abort) waits for a grace period, and then
    /// aborts the tasks that are still in flight and all tasks that start later.
    pub fn abort(&self) -> AbortReport {
        self.state().abort()
    }

    /// Aborts one task of an [inspected](crate::RegistryBuilder::inspect) registry at its next await point, as
    /// [`abort`](Self::abort) does.
    ///
    /// `abort_task` searches all slots (table entries for tasks) of the registry, so its cost grows with the number of slots.
    ///
    /// # Errors
    ///
    /// - [`AbortError::NotInFlight`] if no task with this ID is in flight.
    /// - [`AbortError::NotAbortable`] if the task is a guard, a tracked future, a child registry or a blocking closure that has
    ///   started.
    pub fn abort_task(&self, id: TaskId) -> Result<(), AbortError> {
        self.state().abort_task(id)
    }

    /// Returns how many tasks ended with each outcome. After the registry has drained, the numbers are exact.
    pub fn summary(&self) -> Summary {
        self.state().summary()
    }

    /// Returns the number of tasks in flight. The number is exact if no task starts or ends while `in_flight` runs.
    ///
    /// Use the number for logs and metrics. To wait until no task is in flight, use [`wait_idle`](Self::wait_idle).
    pub fn in_flight(&self) -> usize {
        self.state().in_flight()
    }

    /// Returns whether the shutdown has started, which means that the [signal](Self::signal) is triggered. Also returns true for a
    /// [child](Self::child) that was created while its parent was draining, although such a child stays open.
    pub fn is_shutting_down(&self) -> bool {
        self.state().is_shutting_down()
    }

    /// Returns the task whose loss started the shutdown. A program can use this value to choose its exit code.
    ///
    /// A loss starts the shutdown if the task is [critical](Self::critical). With the option
    /// [`shutdown_on_panic`](crate::RegistryBuilder::shutdown_on_panic) or
    /// [`shutdown_on_failure`](crate::RegistryBuilder::shutdown_on_failure), the panic or the failure of any task starts the
    /// shutdown. The registry also reports this loss to its [observers](crate::Observer).
    ///
    /// Returns `None` if the shutdown has not started, or if something else started it, for example a call to
    /// [`shutdown`](Self::shutdown).
    pub fn shutdown_cause(&self) -> Option<TaskInfo> {
        self.state().shutdown_cause()
    }

    /// Returns whether an observer of this registry [logs](crate::Observer::logs_shutdown) the start of the shutdown and the end of
    /// the drain. In this case, other code need not log these events. For a [child](Self::child), this method returns false,
    /// because the registry calls no observer when the shutdown of a child starts or its drain ends.
    pub fn is_shutdown_logged(&self) -> bool {
        self.state().is_shutdown_logged()
    }

    /// Returns whether the registry has drained: the drain has ended, and the registry rejects all tasks.
    pub fn is_drained(&self) -> bool {
        self.state().is_drained()
    }

    /// Starts a task in the background and returns immediately.
    ///
    /// If a task returns `Err`, it counts as failed; see [`TaskOutput`]. With `std`, a panic of the task is caught and counted. The
    /// panic hook still runs, so by default the panic is also printed to stderr.
    ///
    /// If the registry has drained or is [full](crate::RejectReason::Full), `run` drops the future and counts a rejected task. To
    /// get a rejected future back, call [`try_run`](Self::try_run) instead.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics. In this case the task counts as abandoned. For example, `TokioSpawner` panics if the calling
    /// thread is not in a tokio runtime.
    #[track_caller]
    pub fn run<F: Future<Output: TaskOutput> + Send + 'static>(&self, future: F)
    where
        S: Spawner,
    {
        self.task().run(future);
    }

    /// Starts a task in the background, as [`run`](Self::run) does. Returns the future if the registry rejects the task.
    ///
    /// # Errors
    ///
    /// Returns [`Rejected`], which contains the future, if the registry has drained or is [full](crate::RejectReason::Full).
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics. In this case the task counts as abandoned.
    #[track_caller]
    pub fn try_run<F: Future<Output: TaskOutput> + Send + 'static>(&self, future: F) -> Result<(), Rejected<F>>
    where
        S: Spawner,
    {
        self.task().try_run(future)
    }

    /// Starts a task as soon as a permit is free. The number of permits is the [limit](crate::RegistryBuilder::max_in_flight) of
    /// the registry.
    ///
    /// The returned future waits for a permit while the registry is full. If several futures wait, they get permits in the order of
    /// their first polls.
    ///
    /// Methods that do not wait, such as `run`, do not overtake the waiting futures. If `n` futures wait, the first `n` free permits
    /// are reserved for them. Such a method then starts a task only if one more permit is free. Otherwise it rejects the task as
    /// full.
    ///
    /// # Errors
    ///
    /// Resolves to [`Rejected`], which contains the task's future, if the registry has drained. Also resolves to [`Rejected`] if
    /// the shutdown has started and no permit is free. To wait for a permit during the drain, a task in flight can call
    /// [`follow_up`](Self::follow_up) first.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics, or if the returned future is polled after it has resolved.
    ///
    /// # Cancel safety
    ///
    /// Dropping the returned future also drops the task's future. In this case, the registry does not start or count the task,
    /// and the returned future loses its position in the wait queue.
    ///
    /// # Deadlocks
    ///
    /// If a task awaits `run_when_ready` of its own registry, the task keeps its own permit while it waits. If such tasks together
    /// hold all permits, they wait forever. To avoid this deadlock, start each task that awaits `run_when_ready` [without a
    /// permit](Self::without_permit).
    ///
    /// The registry reserves a released permit for the first waiting future until that future is polled or dropped. If this future
    /// is never polled again, all later futures in the queue wait forever. Therefore do not keep a waiting future without polling
    /// it, and do not pass it to `mem::forget`.
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
    pub fn run_when_ready<F: Future<Output: TaskOutput> + Send + 'static>(&self, future: F) -> StartWhenReady<'_, S, F>
    where
        S: Spawner,
    {
        self.task().run_when_ready(future)
    }

    /// Starts a task and returns a [`JoinHandle`], which resolves to the task's output and can abort the task.
    ///
    /// The output can be of any type. If the task returns `Err`, it counts as completed, because the owner of the handle receives
    /// the error. If no code awaits the handle, the error is not reported. In this case, start the task with [`run`](Self::run)
    /// instead, so that an `Err` counts as a failure. If the task panics, the task counts as panicked, and the handle resolves to a
    /// [`JoinError`](crate::JoinError) that contains the panic's payload.
    ///
    /// If the handle is dropped, the task continues. For the handle, `spawn` makes one allocation, in addition to the executor's
    /// allocation. `run` does not make this allocation.
    ///
    /// If the registry has drained or is [full](crate::RejectReason::Full), `spawn` drops the future and counts a rejected task.
    /// The handle then resolves to an error that contains the reason. To get a rejected future back, call
    /// [`try_spawn`](Self::try_spawn) instead.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics. In this case the task counts as abandoned.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, SmolSpawner};
    ///
    /// let registry = Registry::new(SmolSpawner);
    /// let answer = registry.spawn(async { 6 * 7 });
    /// assert_eq!(answer.await.unwrap(), 42);
    /// # });
    /// ```
    #[track_caller]
    pub fn spawn<F: Future<Output: Send> + Send + 'static>(&self, future: F) -> JoinHandle<F::Output>
    where
        S: Spawner,
    {
        self.task().spawn(future)
    }

    /// Starts a task and returns its handle, as [`spawn`](Self::spawn) does. Returns the future if the registry rejects the task.
    ///
    /// # Errors
    ///
    /// Returns [`Rejected`], which contains the future, if the registry has drained or is [full](crate::RejectReason::Full).
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics. In this case the task counts as abandoned.
    #[track_caller]
    pub fn try_spawn<F: Future<Output: Send> + Send + 'static>(&self, future: F) -> Result<JoinHandle<F::Output>, Rejected<F>>
    where
        S: Spawner,
    {
        self.task().try_spawn(future)
    }

    /// Starts a task on the calling thread. The task's future need not be `Send`. In all other respects, this method behaves like
    /// [`run`](Self::run).
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics. In this case the task counts as abandoned.
    #[track_caller]
    pub fn run_local<F: Future<Output: TaskOutput> + 'static>(&self, future: F)
    where
        S: LocalSpawner,
    {
        self.task().run_local(future);
    }

    /// Starts a task on the calling thread and returns its handle. The task's future and output need not be `Send`. In all other
    /// respects, this method behaves like [`spawn`](Self::spawn).
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics. In this case the task counts as abandoned.
    #[track_caller]
    pub fn spawn_local<F: Future + 'static>(&self, future: F) -> JoinHandle<F::Output>
    where
        S: LocalSpawner,
    {
        self.task().spawn_local(future)
    }

    /// Starts a closure on a thread that is allowed to block. In all other respects, this method behaves like [`run`](Self::run).
    ///
    /// An [abort](Self::abort) has an effect only if the closure has not started.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics. In this case the closure counts as abandoned.
    #[track_caller]
    pub fn run_blocking<F: FnOnce() -> T + Send + 'static, T: TaskOutput>(&self, work: F)
    where
        S: BlockingSpawner,
    {
        self.task().run_blocking(work);
    }

    /// Starts a closure on a thread that is allowed to block, and returns the closure's handle. In all other respects, this method
    /// behaves like [`spawn`](Self::spawn).
    ///
    /// An [abort](JoinHandle::abort) has an effect only if the closure has not started.
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics. In this case the closure counts as abandoned.
    #[track_caller]
    pub fn spawn_blocking<F: FnOnce() -> T + Send + 'static, T: Send + 'static>(&self, work: F) -> JoinHandle<T>
    where
        S: BlockingSpawner,
    {
        self.task().spawn_blocking(work)
    }
}

#[cfg(loom)]
impl<S> Registry<S> {
    /// Returns whether [`wait_idle`](Self::wait_idle) would resolve now. The loom models use this method, because `wait_idle` would
    /// also request a notification.
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
