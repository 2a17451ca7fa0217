use crate::platform::{drop_quietly, panicking_thread};
use crate::report::{Rejected, SpawnInfo, TaskKind, TaskOutput};
use crate::spawner::{BlockingSpawner, LocalSpawner, Spawner};
use crate::state::{RegistryHandle, RegistryState, Token};
use crate::sync::wait_queue::Ticket;
use crate::task::{Guard, Task, Tracked};
use core::task::{Context, Poll};
use core::{fmt, panic::Location, pin::Pin};
use futures_util::future::lazy;

/// Starts a task that has a name or a chosen call site, is critical, takes no permit, or is a follow-up. See
/// [`Registry::named`](crate::Registry::named), [`Registry::critical`](crate::Registry::critical),
/// [`Registry::without_permit`](crate::Registry::without_permit) and [`Registry::follow_up`](crate::Registry::follow_up).
///
/// Each method that starts a task corresponds to the method of [`Registry`](crate::Registry) with the same name.
#[must_use = "a task builder starts nothing until one of its `run` methods is called"]
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
        self.spawner.spawn_with_info(Task::new(future, token), &info);
        Ok(())
    }

    /// Starts the task as soon as the limit permits it; see [`Registry::run_when_ready`](crate::Registry::run_when_ready).
    #[track_caller]
    pub fn run_when_ready<F: Future<Output: TaskOutput> + Send + 'static>(self, future: F) -> RunWhenReady<'a, S, F>
    where
        S: Spawner,
    {
        let Self { state, spawner, follow_up, .. } = self;
        RunWhenReady { state, spawner, info: self.spawn_info(TaskKind::Future), follow_up, future: Some(future), ticket: None }
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
        self.spawner.spawn_local_with_info(Task::new(future, token), &info);
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
        let task = Task::new(lazy(|_| work()), token);
        self.spawner.spawn_blocking_with_info(move || task.run(), &info);
        Ok(())
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

/// Starts a task as soon as the limit permits it; see [`Registry::run_when_ready`](crate::Registry::run_when_ready).
#[must_use = "futures do nothing unless polled"]
pub struct RunWhenReady<'a, S, F> {
    state: &'static RegistryState,
    spawner: &'a S,
    info: SpawnInfo,
    follow_up: bool,
    future: Option<F>,
    ticket: Option<Ticket>,
}

impl<S, F> Unpin for RunWhenReady<'_, S, F> {}

impl<S: Spawner, F: Future<Output: TaskOutput> + Send + 'static> Future for RunWhenReady<'_, S, F> {
    type Output = Result<(), Rejected<F>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { state, spawner, info, follow_up, future, ticket } = &mut *self;
        assert!(future.is_some(), "polled after it resolved");
        Token::poll_enter(state, info, *follow_up, ticket, cx.waker()).map(|entered| {
            *ticket = None;
            let future = future.take().expect("asserted above");
            match entered {
                Ok(token) => {
                    spawner.spawn_with_info(Task::new(future, token), info);
                    Ok(())
                }
                Err(reason) => Err(Rejected::new(future, state.reject(info, reason))),
            }
        })
    }
}

impl<S, F> Drop for RunWhenReady<'_, S, F> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.state.cancel_wait(ticket);
        }
    }
}

impl<S, F> fmt::Debug for RunWhenReady<'_, S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunWhenReady").field("is_waiting", &self.ticket.is_some()).finish_non_exhaustive()
    }
}
