use crate::platform::drop_quietly;
use crate::report::{Rejected, SpawnInfo, TaskKind, TaskOutput};
use crate::spawner::{BlockingSpawner, LocalSpawner, Spawner};
use crate::state::{RegistryState, Token};
use crate::sync::wait_queue::Ticket;
use crate::task::{Guard, Task, Tracked};
use core::fmt;
use core::future::Future;
use core::panic::Location;
use core::pin::Pin;
use core::task::{Context, Poll};
use futures_util::future::lazy;

/// Starts work of a registry that has a name, or is critical; see [`Registry::named`] and [`Registry::critical`].
///
/// Each method is that of [`Registry`] of the same name.
#[must_use = "it starts nothing by itself"]
pub struct TaskBuilder<'a, S> {
    state: &'static RegistryState,
    spawner: &'a S,
    name: Option<&'static str>,
    location: Option<&'static Location<'static>>,
    critical: bool,
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
        Self { state, spawner, name: None, location: None, critical: false }
    }

    /// Gives the work a name; see [`Registry::named`].
    pub fn named(self, name: &'static str) -> Self {
        Self { name: Some(name), ..self }
    }

    /// Has the work told as started at this place, not at the call that starts it: for a library that starts it for its own caller, and knows
    /// that one's place by `#[track_caller]`.
    pub fn location(self, location: &'static Location<'static>) -> Self {
        Self { location: Some(location), ..self }
    }

    /// Marks the work as critical; see [`Registry::critical`].
    pub fn critical(self) -> Self {
        Self { critical: true, ..self }
    }

    #[track_caller]
    #[inline]
    fn spawn_info(self, kind: TaskKind) -> SpawnInfo {
        let Self { name, critical, .. } = self;
        SpawnInfo { location: self.location.unwrap_or(Location::caller()), name, kind, critical }
    }

    /// Counts some work (S1). Returns it with its token, or as rejected.
    #[track_caller]
    #[expect(clippy::inline_always, reason = "so that a call without a name compares none: measured at a third of a token")]
    #[inline(always)]
    fn admit<W>(self, kind: TaskKind, work: W) -> Result<(W, Token), Rejected<W>> {
        let is_plain = self.name.is_none() && !self.critical;
        let plain = if is_plain { Token::enter_plain(self.state, self.location.unwrap_or(Location::caller())) } else { None };
        let entered = match plain {
            Some(token) => Ok(token),
            None => Token::enter(self.state, self.spawn_info(kind)),
        };
        match entered {
            Ok(token) => Ok((work, token)),
            Err(reason) => Err(Rejected::new(work, reason)),
        }
    }

    /// See [`Registry::track`].
    #[track_caller]
    #[inline]
    pub fn track<F: Future>(self, future: F) -> Result<Tracked<F>, Rejected<F>> {
        let (future, token) = self.admit(TaskKind::Tracked, future)?;
        Ok(Tracked::new(future, token))
    }

    /// See [`Registry::guard`].
    #[track_caller]
    #[inline]
    pub fn guard(self) -> Result<Guard, Rejected<()>> {
        let ((), token) = self.admit(TaskKind::Guard, ())?;
        Ok(Guard::new(token))
    }

    /// See [`Registry::run`].
    #[track_caller]
    #[inline]
    pub fn run<F>(self, future: F)
    where
        S: Spawner,
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.try_run(future).unwrap_or_else(drop_quietly);
    }

    /// See [`Registry::try_run`].
    #[track_caller]
    #[inline]
    pub fn try_run<F>(self, future: F) -> Result<(), Rejected<F>>
    where
        S: Spawner,
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        let (future, token) = self.admit(TaskKind::Future, future)?;
        self.spawner.spawn(Task::new(future, token));
        Ok(())
    }

    /// See [`Registry::run_when_ready`].
    #[track_caller]
    pub fn run_when_ready<F>(self, future: F) -> RunWhenReady<'a, S, F>
    where
        S: Spawner,
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        let Self { state, spawner, .. } = self;
        RunWhenReady { state, spawner, info: self.spawn_info(TaskKind::Future), future: Some(future), ticket: None }
    }

    /// See [`Registry::run_local`].
    #[track_caller]
    #[inline]
    pub fn run_local<F>(self, future: F)
    where
        S: LocalSpawner,
        F: Future<Output: TaskOutput> + 'static,
    {
        self.try_run_local(future).unwrap_or_else(drop_quietly);
    }

    /// See [`Registry::try_run_local`].
    #[track_caller]
    #[inline]
    pub fn try_run_local<F>(self, future: F) -> Result<(), Rejected<F>>
    where
        S: LocalSpawner,
        F: Future<Output: TaskOutput> + 'static,
    {
        let (future, token) = self.admit(TaskKind::Local, future)?;
        self.spawner.spawn_local(Task::new(future, token));
        Ok(())
    }

    /// See [`Registry::run_blocking`].
    #[track_caller]
    #[inline]
    pub fn run_blocking<F, T>(self, work: F)
    where
        S: BlockingSpawner,
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.try_run_blocking(work).unwrap_or_else(drop_quietly);
    }

    /// See [`Registry::try_run_blocking`].
    #[track_caller]
    #[inline]
    pub fn try_run_blocking<F, T>(self, work: F) -> Result<(), Rejected<F>>
    where
        S: BlockingSpawner,
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        let (work, token) = self.admit(TaskKind::Blocking, work)?;
        let task = Task::new(lazy(|_| work()), token);
        self.spawner.spawn_blocking(move || task.run());
        Ok(())
    }
}

impl<S> fmt::Debug for TaskBuilder<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskBuilder").field("name", &self.name).field("critical", &self.critical).finish_non_exhaustive()
    }
}

/// Starts a task when there is a place for it; see [`Registry::run_when_ready`].
#[must_use = "futures do nothing unless polled"]
pub struct RunWhenReady<'a, S, F> {
    state: &'static RegistryState,
    spawner: &'a S,
    info: SpawnInfo,
    future: Option<F>,
    ticket: Option<Ticket>,
}

impl<S, F> Unpin for RunWhenReady<'_, S, F> {}

impl<S, F> Future for RunWhenReady<'_, S, F>
where
    S: Spawner,
    F: Future<Output: TaskOutput> + Send + 'static,
{
    type Output = Result<(), Rejected<F>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { state, spawner, info, future, ticket } = &mut *self;
        assert!(future.is_some(), "polled after it had resolved");
        Token::poll_enter(state, *info, ticket, cx.waker()).map(|entered| {
            *ticket = None;
            let future = future.take().expect("asserted above");
            match entered {
                Ok(token) => {
                    spawner.spawn(Task::new(future, token));
                    Ok(())
                }
                Err(reason) => Err(Rejected::new(future, state.reject(*info, reason))),
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
