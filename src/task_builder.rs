use crate::join::JoinHandle;
use crate::platform::{drop_quietly, panicking_thread};
use crate::report::{Rejected, SpawnInfo, TaskKind, TaskOutput};
use crate::service::{Restart, Service};
use crate::spawner::{BlockingSpawner, LocalSpawner, Spawner, Timer};
use crate::state::{RegistryHandle, RegistryState, Token};
use crate::sync::wait_queue::Ticket;
use crate::task::{Guard, NoReceiver, Task, Tracked};
use core::task::{Context, Poll};
use core::{fmt, panic::Location, pin::Pin, time::Duration};
use futures_util::future::lazy;

/// Sets the name, the call site and other options of a task, and starts the task.
///
/// [`Registry::task`](crate::Registry::task) returns this type. [`Registry::named`](crate::Registry::named),
/// [`Registry::critical`](crate::Registry::critical), [`Registry::without_permit`](crate::Registry::without_permit) and
/// [`Registry::follow_up`](crate::Registry::follow_up) return a builder on which one option is already set.
///
/// For the most common ways to start a task, [`Registry`](crate::Registry) has methods with the same names as the methods of
/// this type.
#[must_use = "a task builder starts nothing until one of its `run` or `spawn` methods is called"]
pub struct TaskBuilder<'a, S> {
    state: &'static RegistryState,
    pub(crate) spawner: &'a S,
    name: Option<&'static str>,
    location: Option<&'static Location<'static>>,
    critical: bool,
    without_permit: bool,
    follow_up: bool,
}

impl<S> Clone for TaskBuilder<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for TaskBuilder<'_, S> {}

impl<'a, S> TaskBuilder<'a, S> {
    #[inline]
    pub(crate) fn new(state: &'static RegistryState, spawner: &'a S) -> Self {
        Self { state, spawner, name: None, location: None, critical: false, without_permit: false, follow_up: false }
    }

    /// Names the task; see [`Registry::named`](crate::Registry::named).
    pub fn named(self, name: &'static str) -> Self {
        Self { name: Some(name), ..self }
    }

    /// Sets the call site that is reported for the task. Default: the location of the call that starts the task.
    ///
    /// A library that starts tasks for its callers usually does not need this method. If its function has the attribute
    /// `#[track_caller]`, the reported call site is the caller of this function. Use `location` if the function starts the task in
    /// a closure or in an async function, where `#[track_caller]` has no effect. In this case, the function calls
    /// [`Location::caller`] first, and passes the result to `location`.
    pub fn location(self, location: &'static Location<'static>) -> Self {
        Self { location: Some(location), ..self }
    }

    /// Marks the task as critical; see [`Registry::critical`](crate::Registry::critical).
    pub fn critical(self) -> Self {
        Self { critical: true, ..self }
    }

    /// Starts the task without a permit; see [`Registry::without_permit`](crate::Registry::without_permit).
    pub fn without_permit(self) -> Self {
        Self { without_permit: true, ..self }
    }

    /// Marks the task as a follow-up, so that it can wait for a permit while the registry drains; see
    /// [`Registry::follow_up`](crate::Registry::follow_up).
    pub fn follow_up(self) -> Self {
        Self { follow_up: true, ..self }
    }

    #[track_caller]
    #[inline]
    fn spawn_info(self, kind: TaskKind) -> SpawnInfo {
        let Self { name, critical, without_permit, .. } = self;
        let location = self.location.unwrap_or(Location::caller());
        let panicking_at_start = if kind == TaskKind::Guard { panicking_thread() } else { None };
        SpawnInfo { location, name, kind, critical, without_permit, panicking_at_start }
    }

    /// Returns the handle of a new child registry.
    #[track_caller]
    pub(crate) fn make_child(self, limit: Option<usize>) -> RegistryHandle {
        let info = Self { critical: false, without_permit: true, ..self }.spawn_info(TaskKind::Child);
        RegistryHandle::child(self.state, &info, limit)
    }

    /// Counts a piece of work as in flight (invariant S1), and returns the work together with its token: the proof that the work is
    /// counted. If the registry rejects the work, the error contains the work.
    #[track_caller]
    #[expect(clippy::inline_always, reason = "measured: without a name, the inlined checks save a third of the cost of a token")]
    #[inline(always)]
    fn admit<W>(self, info: &SpawnInfo, work: W) -> Result<(W, Token), Rejected<W>> {
        let is_plain = info.name.is_none() && !info.critical && info.panicking_at_start.is_none();
        let plain = if is_plain { Token::enter_plain(self.state, info.location) } else { None };
        match plain.map_or_else(|| Token::enter(self.state, info), Ok) {
            Ok(token) => Ok((work, token)),
            Err(reason) => Err(Rejected::new(work, reason)),
        }
    }

    /// Counts a future as in flight until the future finishes or is dropped; see [`Registry::track`](crate::Registry::track).
    #[track_caller]
    #[inline]
    pub fn track<F: Future>(self, future: F) -> Result<Tracked<F>, Rejected<F>> {
        let (future, token) = self.admit(&self.spawn_info(TaskKind::Tracked), future)?;
        Ok(Tracked::new(future, token))
    }

    /// Counts a piece of work as in flight until the returned guard is dropped; see [`Registry::guard`](crate::Registry::guard).
    #[track_caller]
    #[expect(clippy::inline_always, reason = "measured: a guard with a limit takes 12 ns instead of 31")]
    #[inline(always)]
    pub fn guard(self) -> Result<Guard, Rejected<()>> {
        let ((), token) = self.admit(&self.spawn_info(TaskKind::Guard), ())?;
        Ok(Guard::new(token))
    }

    /// Starts the supervising task of a service. The closure `supervise` must return the future of this task, and the closure
    /// `spawn` must pass the task to an executor.
    #[track_caller]
    fn supervise<M, U: Future<Output: TaskOutput>>(
        self,
        make: M,
        supervise: impl FnOnce(Service<M, S>) -> U,
        spawn: impl FnOnce(&S, Task<U, NoReceiver>, &SpawnInfo),
    ) where
        S: Clone,
    {
        let info = self.spawn_info(TaskKind::Service);
        let spawner = self.spawner.clone(); // before the service is counted, because `clone` can panic
        let Ok((make, token)) = self.admit(&info, make).map_err(drop_quietly) else { return };
        let service = Service::new(token, self.name, make, spawner);
        spawn(self.spawner, Task::new(supervise(service), token, NoReceiver), &info);
    }
}

impl<'a, S: Spawner> TaskBuilder<'a, S> {
    /// Starts the task; see [`Registry::run`](crate::Registry::run).
    #[track_caller]
    #[inline]
    pub fn run<F: Future<Output: TaskOutput> + Send + 'static>(self, future: F) {
        self.try_run(future).unwrap_or_else(drop_quietly);
    }

    /// Starts the task, or returns the future if the registry rejects the task; see
    /// [`Registry::try_run`](crate::Registry::try_run).
    #[track_caller]
    #[inline]
    pub fn try_run<F: Future<Output: TaskOutput> + Send + 'static>(self, future: F) -> Result<(), Rejected<F>> {
        let info = self.spawn_info(TaskKind::Future);
        let (future, token) = self.admit(&info, future)?;
        self.spawner.spawn_with_info(Task::new(future, token, NoReceiver), &info);
        Ok(())
    }

    /// Starts the task as soon as a permit is free; see [`Registry::run_when_ready`](crate::Registry::run_when_ready).
    #[track_caller]
    pub fn run_when_ready<F: Future<Output: TaskOutput> + Send + 'static>(self, future: F) -> StartWhenReady<'a, S, F> {
        self.when_ready(future, |spawner, future, token, info| {
            spawner.spawn_with_info(Task::new(future, token, NoReceiver), info);
        })
    }

    /// Starts the task and returns its handle; see [`Registry::spawn`](crate::Registry::spawn).
    #[track_caller]
    #[inline]
    pub fn spawn<F: Future<Output: Send> + Send + 'static>(self, future: F) -> JoinHandle<F::Output> {
        let info = self.spawn_info(TaskKind::Future);
        self.try_spawn(future).unwrap_or_else(|rejected| JoinHandle::rejected(&info, rejected))
    }

    /// Starts the task and returns its handle, or returns the future if the registry rejects the task; see
    /// [`Registry::try_spawn`](crate::Registry::try_spawn).
    #[track_caller]
    #[inline]
    pub fn try_spawn<F: Future<Output: Send> + Send + 'static>(self, future: F) -> Result<JoinHandle<F::Output>, Rejected<F>> {
        let info = self.spawn_info(TaskKind::Future);
        let (future, token) = self.admit(&info, future)?;
        let (handle, sender) = JoinHandle::new(&info, token);
        self.spawner.spawn_with_info(Task::new(future, token, sender), &info);
        Ok(handle)
    }

    /// Starts a task as soon as the [limit](crate::RegistryBuilder::max_in_flight) allows one more task. The returned future
    /// resolves to the task's handle.
    ///
    /// In all other respects, this method is the same as [`run_when_ready`](crate::Registry::run_when_ready). For its panics, its
    /// cancel safety and its deadlocks, see the docs of `run_when_ready`.
    ///
    /// # Errors
    ///
    /// Resolves to [`Rejected`] in the same cases as [`run_when_ready`](crate::Registry::run_when_ready).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, SmolSpawner};
    ///
    /// let registry = Registry::builder(SmolSpawner).max_in_flight(2).build();
    /// let mut handles = Vec::new();
    /// for page in 0..10 {
    ///     handles.push(registry.task().spawn_when_ready(async move { page * 2 }).await.unwrap());
    /// }
    /// for (page, handle) in handles.into_iter().enumerate() {
    ///     assert_eq!(handle.await.unwrap(), page * 2);
    /// }
    /// # });
    /// ```
    #[track_caller]
    pub fn spawn_when_ready<F>(self, future: F) -> StartWhenReady<'a, S, F, JoinHandle<F::Output>>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.when_ready(future, |spawner, future, token, info| {
            let (handle, sender) = JoinHandle::new(info, token);
            spawner.spawn_with_info(Task::new(future, token, sender), info);
            handle
        })
    }

    #[track_caller]
    fn when_ready<F, H>(self, future: F, start: fn(&S, F, Token, &SpawnInfo) -> H) -> StartWhenReady<'a, S, F, H> {
        let info = self.spawn_info(TaskKind::Future);
        StartWhenReady { task: self, info, future: Some(future), ticket: None, start }
    }
}

impl<S: LocalSpawner> TaskBuilder<'_, S> {
    /// Starts a task whose future need not be `Send`; see [`Registry::run_local`](crate::Registry::run_local).
    #[track_caller]
    pub fn run_local<F: Future<Output: TaskOutput> + 'static>(self, future: F) {
        self.try_run_local(future).unwrap_or_else(drop_quietly);
    }

    /// Starts a task on the calling thread, as [`run_local`](Self::run_local) does. Returns the future if the registry rejects the
    /// task.
    ///
    /// # Errors
    ///
    /// Returns [`Rejected`], which contains the future, if the registry has drained or is [full](crate::RejectReason::Full).
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics. In this case the task counts as abandoned.
    #[track_caller]
    pub fn try_run_local<F: Future<Output: TaskOutput> + 'static>(self, future: F) -> Result<(), Rejected<F>> {
        let info = self.spawn_info(TaskKind::Local);
        let (future, token) = self.admit(&info, future)?;
        self.spawner.spawn_local_with_info(Task::new(future, token, NoReceiver), &info);
        Ok(())
    }

    /// Starts a task whose future need not be `Send`, and returns the task's handle; see
    /// [`Registry::spawn_local`](crate::Registry::spawn_local).
    #[track_caller]
    pub fn spawn_local<F: Future + 'static>(self, future: F) -> JoinHandle<F::Output> {
        let info = self.spawn_info(TaskKind::Local);
        self.try_spawn_local(future).unwrap_or_else(|rejected| JoinHandle::rejected(&info, rejected))
    }

    /// Starts a task and returns its handle, as [`spawn_local`](Self::spawn_local) does. Returns the future if the registry rejects
    /// the task.
    ///
    /// # Errors
    ///
    /// Returns [`Rejected`], which contains the future, if the registry has drained or is [full](crate::RejectReason::Full).
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics. In this case the task counts as abandoned.
    #[track_caller]
    pub fn try_spawn_local<F: Future + 'static>(self, future: F) -> Result<JoinHandle<F::Output>, Rejected<F>> {
        let info = self.spawn_info(TaskKind::Local);
        let (future, token) = self.admit(&info, future)?;
        let (handle, sender) = JoinHandle::new(&info, token);
        self.spawner.spawn_local_with_info(Task::new(future, token, sender), &info);
        Ok(handle)
    }
}

impl<S: BlockingSpawner> TaskBuilder<'_, S> {
    /// Starts a closure that blocks; see [`Registry::run_blocking`](crate::Registry::run_blocking).
    #[track_caller]
    pub fn run_blocking<F: FnOnce() -> T + Send + 'static, T: TaskOutput>(self, work: F) {
        self.try_run_blocking(work).unwrap_or_else(drop_quietly);
    }

    /// Starts a closure, as [`run_blocking`](Self::run_blocking) does. Returns the closure if the registry rejects the closure.
    ///
    /// # Errors
    ///
    /// Returns [`Rejected`], which contains the closure, if the registry has drained or is [full](crate::RejectReason::Full).
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics. In this case the closure counts as abandoned.
    #[track_caller]
    pub fn try_run_blocking<F: FnOnce() -> T + Send + 'static, T: TaskOutput>(self, work: F) -> Result<(), Rejected<F>> {
        let info = self.spawn_info(TaskKind::Blocking);
        let (work, token) = self.admit(&info, work)?;
        let task = Task::new(lazy(|_| work()), token, NoReceiver);
        self.spawner.spawn_blocking_with_info(move || task.run(), &info);
        Ok(())
    }

    /// Starts a closure that blocks, and returns its handle; see [`Registry::spawn_blocking`](crate::Registry::spawn_blocking).
    #[track_caller]
    pub fn spawn_blocking<F: FnOnce() -> T + Send + 'static, T: Send + 'static>(self, work: F) -> JoinHandle<T> {
        let info = self.spawn_info(TaskKind::Blocking);
        self.try_spawn_blocking(work).unwrap_or_else(|rejected| JoinHandle::rejected(&info, rejected))
    }

    /// Starts a closure and returns its handle, as [`spawn_blocking`](Self::spawn_blocking) does. Returns the closure if the
    /// registry rejects the closure.
    ///
    /// # Errors
    ///
    /// Returns [`Rejected`], which contains the closure, if the registry has drained or is [full](crate::RejectReason::Full).
    ///
    /// # Panics
    ///
    /// Panics if the spawner panics. In this case the closure counts as abandoned.
    #[track_caller]
    pub fn try_spawn_blocking<F, T: Send + 'static>(self, work: F) -> Result<JoinHandle<T>, Rejected<F>>
    where
        F: FnOnce() -> T + Send + 'static,
    {
        let info = self.spawn_info(TaskKind::Blocking);
        let (work, token) = self.admit(&info, work)?;
        let (handle, sender) = JoinHandle::new(&info, token);
        let task = Task::new(lazy(|_| work()), token, sender);
        self.spawner.spawn_blocking_with_info(move || task.run(), &info);
        Ok(handle)
    }
}

impl<S: Spawner + Timer<Sleep: Send> + Clone + Send + 'static> TaskBuilder<'_, S> {
    /// Starts a service; see [`Registry::service`](crate::Registry::service).
    #[track_caller]
    pub fn service<F>(self, restart: Restart, make: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.supervise(make, |service| service.restart(restart), S::spawn_with_info);
    }

    /// Starts a service that runs its work periodically; see [`Registry::every`](crate::Registry::every).
    #[track_caller]
    pub fn every<F>(self, period: Duration, make: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.supervise(make, |service| service.every(period), S::spawn_with_info);
    }
}

impl<S: LocalSpawner + Timer + Clone + 'static> TaskBuilder<'_, S> {
    /// Starts a [service](crate::Registry::service) on the calling thread. The futures of the service need not be `Send`.
    #[track_caller]
    pub fn service_local<F: Future<Output: TaskOutput> + 'static>(self, restart: Restart, make: impl FnMut() -> F + 'static) {
        self.supervise(make, |service| service.restart(restart), S::spawn_local_with_info);
    }

    /// Starts a service that runs its work [periodically](crate::Registry::every), on the calling thread. The futures of the
    /// service need not be `Send`.
    #[track_caller]
    pub fn every_local<F: Future<Output: TaskOutput> + 'static>(self, period: Duration, make: impl FnMut() -> F + 'static) {
        self.supervise(make, |service| service.every(period), S::spawn_local_with_info);
    }
}

impl<S> fmt::Debug for TaskBuilder<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskBuilder").field("name", &self.name).field("critical", &self.critical).finish_non_exhaustive()
    }
}

/// Waits for a permit, and then starts a task. [`Registry::run_when_ready`](crate::Registry::run_when_ready) and
/// [`TaskBuilder::spawn_when_ready`] return this future. On success, it resolves to `()` or to the task's [`JoinHandle`].
#[must_use = "futures do nothing unless polled"]
pub struct StartWhenReady<'a, S, F, H = ()> {
    task: TaskBuilder<'a, S>,
    info: SpawnInfo,
    /// The task's future. `None` after the registry has accepted or rejected the task.
    future: Option<F>,
    ticket: Option<Ticket>,
    start: fn(&S, F, Token, &SpawnInfo) -> H,
}

impl<S, F, H> Unpin for StartWhenReady<'_, S, F, H> {}

impl<S, F, H> Future for StartWhenReady<'_, S, F, H> {
    type Output = Result<H, Rejected<F>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { task, info, future, ticket, start } = &mut *self;
        assert!(future.is_some(), "polled after it resolved");
        Token::poll_enter(task.state, info, task.follow_up, ticket, cx.waker()).map(|entered| {
            *ticket = None;
            let future = future.take().expect("asserted above");
            match entered {
                Ok(token) => Ok(start(task.spawner, future, token, info)),
                Err(reason) => Err(Rejected::new(future, task.state.reject(info, reason))),
            }
        })
    }
}

impl<S, F, H> Drop for StartWhenReady<'_, S, F, H> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.task.state.cancel_wait(ticket);
        }
    }
}

impl<S, F, H> fmt::Debug for StartWhenReady<'_, S, F, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartWhenReady").field("is_waiting", &self.ticket.is_some()).finish_non_exhaustive()
    }
}
