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

/// Starts a task that has a name or a chosen call site, is critical, takes no permit, or is a follow-up. See
/// [`Registry::named`](crate::Registry::named), [`Registry::critical`](crate::Registry::critical),
/// [`Registry::without_permit`](crate::Registry::without_permit) and [`Registry::follow_up`](crate::Registry::follow_up).
///
/// Each method that starts a task corresponds to the method of [`Registry`](crate::Registry) with the same name.
#[must_use = "a task builder starts nothing until one of its `run` or `spawn` methods is called"]
pub struct TaskBuilder<'a, S> {
    state: &'static RegistryState,
    spawner: &'a S,
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

    /// Overrides the call site that is reported for the task. By default, the call site is the location of the call that starts the
    /// task.
    ///
    /// A library that starts tasks for its caller can pass the caller's location. To obtain this location, the library marks its
    /// function with `#[track_caller]` and calls [`Location::caller`].
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

    /// Marks the task as a follow-up, which may wait for a permit while the registry drains; see
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

    pub(crate) fn spawner(&self) -> &'a S {
        self.spawner
    }

    /// Returns the handle of a new child registry.
    #[track_caller]
    pub(crate) fn make_child(self, limit: Option<usize>) -> RegistryHandle {
        let info = Self { critical: false, without_permit: true, ..self }.spawn_info(TaskKind::Child);
        RegistryHandle::child(self.state, &info, limit)
    }

    /// Counts a piece of work as in flight (S1). Returns the work with its token. If the registry rejects the work, returns the
    /// work in the error.
    #[track_caller]
    #[expect(clippy::inline_always, reason = "so that a call without a name compares none: measured at a third of a token")]
    #[inline(always)]
    fn admit<W>(self, info: &SpawnInfo, work: W) -> Result<(W, Token), Rejected<W>> {
        let is_plain = info.name.is_none() && !info.critical && info.panicking_at_start.is_none();
        let plain = if is_plain { Token::enter_plain(self.state, info.location) } else { None };
        let entered = match plain {
            Some(token) => Ok(token),
            None => Token::enter(self.state, info),
        };
        match entered {
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

    /// Starts the task; see [`Registry::run`](crate::Registry::run).
    #[track_caller]
    #[inline]
    pub fn run<F: Future<Output: TaskOutput> + Send + 'static>(self, future: F)
    where
        S: Spawner,
    {
        self.try_run(future).unwrap_or_else(drop_quietly);
    }

    /// Starts the task, or returns the future if the task is rejected; see [`Registry::try_run`](crate::Registry::try_run).
    #[track_caller]
    #[inline]
    pub fn try_run<F: Future<Output: TaskOutput> + Send + 'static>(self, future: F) -> Result<(), Rejected<F>>
    where
        S: Spawner,
    {
        let info = self.spawn_info(TaskKind::Future);
        let (future, token) = self.admit(&info, future)?;
        self.spawner.spawn_with_info(Task::new(future, token, NoReceiver), &info);
        Ok(())
    }

    /// Starts the task as soon as the limit permits it; see [`Registry::run_when_ready`](crate::Registry::run_when_ready).
    #[track_caller]
    pub fn run_when_ready<F: Future<Output: TaskOutput> + Send + 'static>(self, future: F) -> RunWhenReady<'a, S, F>
    where
        S: Spawner,
    {
        RunWhenReady(PermitWait::new(self, self.spawn_info(TaskKind::Future), future))
    }

    /// Starts a task that need not be `Send`; see [`Registry::run_local`](crate::Registry::run_local).
    #[track_caller]
    #[inline]
    pub fn run_local<F: Future<Output: TaskOutput> + 'static>(self, future: F)
    where
        S: LocalSpawner,
    {
        self.try_run_local(future).unwrap_or_else(drop_quietly);
    }

    /// Starts a task that need not be `Send`, or returns the future if the task is rejected; see
    /// [`Registry::try_run_local`](crate::Registry::try_run_local).
    #[track_caller]
    #[inline]
    pub fn try_run_local<F: Future<Output: TaskOutput> + 'static>(self, future: F) -> Result<(), Rejected<F>>
    where
        S: LocalSpawner,
    {
        let info = self.spawn_info(TaskKind::Local);
        let (future, token) = self.admit(&info, future)?;
        self.spawner.spawn_local_with_info(Task::new(future, token, NoReceiver), &info);
        Ok(())
    }

    /// Starts a closure that blocks; see [`Registry::run_blocking`](crate::Registry::run_blocking).
    #[track_caller]
    #[inline]
    pub fn run_blocking<F: FnOnce() -> T + Send + 'static, T: TaskOutput>(self, work: F)
    where
        S: BlockingSpawner,
    {
        self.try_run_blocking(work).unwrap_or_else(drop_quietly);
    }

    /// Starts a closure that blocks, or returns the closure if the closure is rejected; see
    /// [`Registry::try_run_blocking`](crate::Registry::try_run_blocking).
    #[track_caller]
    #[inline]
    pub fn try_run_blocking<F: FnOnce() -> T + Send + 'static, T: TaskOutput>(self, work: F) -> Result<(), Rejected<F>>
    where
        S: BlockingSpawner,
    {
        let info = self.spawn_info(TaskKind::Blocking);
        let (work, token) = self.admit(&info, work)?;
        let task = Task::new(lazy(|_| work()), token, NoReceiver);
        self.spawner.spawn_blocking_with_info(move || task.run(), &info);
        Ok(())
    }

    /// Starts the task and returns its handle; see [`Registry::spawn`](crate::Registry::spawn).
    #[track_caller]
    #[inline]
    pub fn spawn<F: Future<Output: Send> + Send + 'static>(self, future: F) -> JoinHandle<F::Output>
    where
        S: Spawner,
    {
        let info = self.spawn_info(TaskKind::Future);
        self.start(&info, future).unwrap_or_else(|rejected| JoinHandle::rejected(&info, rejected))
    }

    /// Starts the task and returns its handle, or returns the future if the task is rejected; see
    /// [`Registry::try_spawn`](crate::Registry::try_spawn).
    #[track_caller]
    #[inline]
    pub fn try_spawn<F: Future<Output: Send> + Send + 'static>(self, future: F) -> Result<JoinHandle<F::Output>, Rejected<F>>
    where
        S: Spawner,
    {
        self.start(&self.spawn_info(TaskKind::Future), future)
    }

    #[track_caller]
    #[inline]
    fn start<F: Future<Output: Send> + Send + 'static>(
        self,
        info: &SpawnInfo,
        future: F,
    ) -> Result<JoinHandle<F::Output>, Rejected<F>>
    where
        S: Spawner,
    {
        let (future, token) = self.admit(info, future)?;
        let (handle, sender) = JoinHandle::new(info, token);
        self.spawner.spawn_with_info(Task::new(future, token, sender), info);
        Ok(handle)
    }

    /// Starts the task as soon as the limit permits it, and returns its handle; see
    /// [`Registry::spawn_when_ready`](crate::Registry::spawn_when_ready).
    #[track_caller]
    pub fn spawn_when_ready<F: Future<Output: Send> + Send + 'static>(self, future: F) -> SpawnWhenReady<'a, S, F>
    where
        S: Spawner,
    {
        SpawnWhenReady(PermitWait::new(self, self.spawn_info(TaskKind::Future), future))
    }

    /// Starts a task that need not be `Send`, and returns its handle; see [`Registry::spawn_local`](crate::Registry::spawn_local).
    #[track_caller]
    #[inline]
    pub fn spawn_local<F: Future + 'static>(self, future: F) -> JoinHandle<F::Output>
    where
        S: LocalSpawner,
    {
        let info = self.spawn_info(TaskKind::Local);
        self.start_local(&info, future).unwrap_or_else(|rejected| JoinHandle::rejected(&info, rejected))
    }

    /// Starts a task that need not be `Send`, and returns its handle, or returns the future if the task is rejected; see
    /// [`Registry::try_spawn_local`](crate::Registry::try_spawn_local).
    #[track_caller]
    #[inline]
    pub fn try_spawn_local<F: Future + 'static>(self, future: F) -> Result<JoinHandle<F::Output>, Rejected<F>>
    where
        S: LocalSpawner,
    {
        self.start_local(&self.spawn_info(TaskKind::Local), future)
    }

    #[track_caller]
    #[inline]
    fn start_local<F: Future + 'static>(self, info: &SpawnInfo, future: F) -> Result<JoinHandle<F::Output>, Rejected<F>>
    where
        S: LocalSpawner,
    {
        let (future, token) = self.admit(info, future)?;
        let (handle, sender) = JoinHandle::new(info, token);
        self.spawner.spawn_local_with_info(Task::new(future, token, sender), info);
        Ok(handle)
    }

    /// Starts a closure that blocks, and returns its handle; see [`Registry::spawn_blocking`](crate::Registry::spawn_blocking).
    #[track_caller]
    #[inline]
    pub fn spawn_blocking<F: FnOnce() -> T + Send + 'static, T: Send + 'static>(self, work: F) -> JoinHandle<T>
    where
        S: BlockingSpawner,
    {
        let info = self.spawn_info(TaskKind::Blocking);
        self.start_blocking(&info, work).unwrap_or_else(|rejected| JoinHandle::rejected(&info, rejected))
    }

    /// Starts a closure that blocks, and returns its handle, or returns the closure if the closure is rejected; see
    /// [`Registry::try_spawn_blocking`](crate::Registry::try_spawn_blocking).
    #[track_caller]
    #[inline]
    pub fn try_spawn_blocking<F: FnOnce() -> T + Send + 'static, T: Send + 'static>(
        self,
        work: F,
    ) -> Result<JoinHandle<T>, Rejected<F>>
    where
        S: BlockingSpawner,
    {
        self.start_blocking(&self.spawn_info(TaskKind::Blocking), work)
    }

    #[track_caller]
    #[inline]
    fn start_blocking<F: FnOnce() -> T + Send + 'static, T: Send + 'static>(
        self,
        info: &SpawnInfo,
        work: F,
    ) -> Result<JoinHandle<T>, Rejected<F>>
    where
        S: BlockingSpawner,
    {
        let (work, token) = self.admit(info, work)?;
        let (handle, sender) = JoinHandle::new(info, token);
        let task = Task::new(lazy(|_| work()), token, sender);
        self.spawner.spawn_blocking_with_info(move || task.run(), info);
        Ok(handle)
    }

    /// Starts a service; see [`Registry::service`](crate::Registry::service).
    #[track_caller]
    pub fn service<M, F>(self, restart: Restart, make: M)
    where
        S: Spawner + Timer<Sleep: Send> + Clone + Send + 'static,
        M: FnMut() -> F + Send + 'static,
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.supervise(make, |service| service.restart(restart), |task, info| self.spawner.spawn_with_info(task, info));
    }

    /// Starts a service whose futures need not be `Send`; see [`Registry::service_local`](crate::Registry::service_local).
    #[track_caller]
    pub fn service_local<M, F>(self, restart: Restart, make: M)
    where
        S: LocalSpawner + Timer + Clone + 'static,
        M: FnMut() -> F + 'static,
        F: Future<Output: TaskOutput> + 'static,
    {
        self.supervise(make, |service| service.restart(restart), |task, info| self.spawner.spawn_local_with_info(task, info));
    }

    /// Starts a service that runs its work periodically; see [`Registry::every`](crate::Registry::every).
    #[track_caller]
    pub fn every<M, F>(self, period: Duration, make: M)
    where
        S: Spawner + Timer<Sleep: Send> + Clone + Send + 'static,
        M: FnMut() -> F + Send + 'static,
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.supervise(make, |service| service.every(period), |task, info| self.spawner.spawn_with_info(task, info));
    }

    /// Starts a service that runs its work periodically, and whose futures need not be `Send`; see
    /// [`Registry::every_local`](crate::Registry::every_local).
    #[track_caller]
    pub fn every_local<M, F>(self, period: Duration, make: M)
    where
        S: LocalSpawner + Timer + Clone + 'static,
        M: FnMut() -> F + 'static,
        F: Future<Output: TaskOutput> + 'static,
    {
        self.supervise(make, |service| service.every(period), |task, info| self.spawner.spawn_local_with_info(task, info));
    }

    /// Starts the supervising task of a service: the future that `supervise` returns, on the executor that `spawn` chooses.
    #[track_caller]
    fn supervise<M, F, U>(
        self,
        make: M,
        supervise: impl FnOnce(Service<M, S>) -> U,
        spawn: impl FnOnce(Task<U, NoReceiver>, &SpawnInfo),
    ) where
        S: Timer + Clone,
        M: FnMut() -> F,
        F: Future<Output: TaskOutput>,
        U: Future<Output: TaskOutput>,
    {
        let info = self.spawn_info(TaskKind::Service);
        match self.admit(&info, make) {
            Ok((make, token)) => {
                let service = Service::new(token, self.name, make, self.spawner.clone());
                spawn(Task::new(supervise(service), token, NoReceiver), &info);
            }
            Err(rejected) => drop_quietly(rejected),
        }
    }
}

impl<S> fmt::Debug for TaskBuilder<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskBuilder")
            .field("name", &self.name)
            .field("critical", &self.critical)
            .field("without_permit", &self.without_permit)
            .field("follow_up", &self.follow_up)
            .finish_non_exhaustive()
    }
}

/// Waits for a permit to start a future.
struct PermitWait<'a, S, F> {
    state: &'static RegistryState,
    spawner: &'a S,
    info: SpawnInfo,
    follow_up: bool,
    future: Option<F>,
    ticket: Option<Ticket>,
}

impl<S, F> Unpin for PermitWait<'_, S, F> {}

impl<'a, S, F> PermitWait<'a, S, F> {
    fn new(task: TaskBuilder<'a, S>, info: SpawnInfo, future: F) -> Self {
        let TaskBuilder { state, spawner, follow_up, .. } = task;
        Self { state, spawner, info, follow_up, future: Some(future), ticket: None }
    }

    /// Returns the future and its token as soon as the limit permits one more task.
    fn poll_enter(&mut self, cx: &mut Context<'_>) -> Poll<Result<(F, Token), Rejected<F>>> {
        let Self { state, info, follow_up, future, ticket, .. } = self;
        assert!(future.is_some(), "polled after it resolved");
        Token::poll_enter(state, info, *follow_up, ticket, cx.waker()).map(|entered| {
            *ticket = None;
            let future = future.take().expect("asserted above");
            match entered {
                Ok(token) => Ok((future, token)),
                Err(reason) => Err(Rejected::new(future, state.reject(info, reason))),
            }
        })
    }

    fn fmt(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name).field("is_waiting", &self.ticket.is_some()).finish_non_exhaustive()
    }
}

impl<S, F> Drop for PermitWait<'_, S, F> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.state.cancel_wait(ticket);
        }
    }
}

/// Starts a task as soon as the limit permits it; see [`Registry::run_when_ready`](crate::Registry::run_when_ready).
#[must_use = "futures do nothing unless polled"]
pub struct RunWhenReady<'a, S, F>(PermitWait<'a, S, F>);

impl<S: Spawner, F: Future<Output: TaskOutput> + Send + 'static> Future for RunWhenReady<'_, S, F> {
    type Output = Result<(), Rejected<F>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let wait = &mut self.0;
        wait.poll_enter(cx).map_ok(|(future, token)| {
            wait.spawner.spawn_with_info(Task::new(future, token, NoReceiver), &wait.info);
        })
    }
}

impl<S, F> fmt::Debug for RunWhenReady<'_, S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt("RunWhenReady", f)
    }
}

/// Starts a task as soon as the limit permits it, and resolves to the task's handle; see
/// [`Registry::spawn_when_ready`](crate::Registry::spawn_when_ready).
#[must_use = "futures do nothing unless polled"]
pub struct SpawnWhenReady<'a, S, F>(PermitWait<'a, S, F>);

impl<S: Spawner, F: Future<Output: Send> + Send + 'static> Future for SpawnWhenReady<'_, S, F> {
    type Output = Result<JoinHandle<F::Output>, Rejected<F>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let wait = &mut self.0;
        wait.poll_enter(cx).map_ok(|(future, token)| {
            let (handle, sender) = JoinHandle::new(&wait.info, token);
            wait.spawner.spawn_with_info(Task::new(future, token, sender), &wait.info);
            handle
        })
    }
}

impl<S, F> fmt::Debug for SpawnWhenReady<'_, S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt("SpawnWhenReady", f)
    }
}
