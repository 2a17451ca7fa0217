use crate::panics::discard;
use crate::token::{Call, Token};
use crate::tracked::{Guard, Task, Tracked};
use crate::{BlockingSpawner, LocalSpawner, Registry, Rejected, Spawner, TaskKind, TaskOutput};
use core::fmt;
use core::future::Future;
use core::panic::Location;
use futures_util::future::lazy;

#[cfg(feature = "std")]
use {
    crate::intake::Ticket,
    core::pin::Pin,
    core::task::{Context, Poll},
};

/// Starts a task with a name, a call site or a critical mark; see [`Registry::named`] and [`Registry::critical`].
///
/// The methods that start a task correspond to the methods of [`Registry`] with the same name.
#[must_use = "it starts nothing by itself"]
pub struct TaskBuilder<'a, S> {
    registry: &'a Registry<S>,
    name: Option<&'static str>,
    site: Option<&'static Location<'static>>,
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
    pub(crate) fn new(registry: &'a Registry<S>) -> Self {
        Self { registry, name: None, site: None, critical: false }
    }

    /// Names the task; see [`Registry::named`].
    pub fn named(self, name: &'static str) -> Self {
        Self { name: Some(name), ..self }
    }

    /// Overrides the call site that is reported for the task. Default: the location of the call that starts it.
    ///
    /// A library that starts tasks for its caller passes the caller's location, which it obtains with `#[track_caller]`.
    pub fn location(self, site: &'static Location<'static>) -> Self {
        Self { site: Some(site), ..self }
    }

    /// Marks the task as critical; see [`Registry::critical`].
    #[cfg(feature = "std")]
    pub fn critical(self) -> Self {
        Self { critical: true, ..self }
    }

    #[track_caller]
    #[inline]
    fn call(self, kind: TaskKind) -> Call {
        #[cfg(not(feature = "std"))]
        let _ = (kind, self.critical);
        Call {
            site: self.site.unwrap_or(Location::caller()),
            #[cfg(feature = "std")]
            name: self.name,
            #[cfg(feature = "std")]
            kind,
            #[cfg(feature = "std")]
            critical: self.critical,
        }
    }

    /// Counts some work (S1) and gives it back with its token, or as rejected.
    #[track_caller]
    #[expect(clippy::inline_always, reason = "so that a call without a name compares none: measured at a third of a token")]
    #[inline(always)]
    fn admit<W>(self, kind: TaskKind, work: W) -> Result<(W, Token), Rejected<W>> {
        let core = self.registry.core();
        // What else is known of the call is put together only for those who ask.
        let plain = if self.name.is_none() && !self.critical { core.enter(Location::caller()) } else { None };
        let entered = match plain {
            Some(token) => Ok(token),
            None => core.enter_otherwise(self.call(kind)),
        };
        match entered {
            Ok(token) => Ok((work, token)),
            Err(reason) => Err(Rejected::new(work, reason)),
        }
    }

    /// Counts a future as in flight until it finishes or is dropped; see [`Registry::track`].
    #[track_caller]
    #[inline]
    pub fn track<F: Future>(self, future: F) -> Result<Tracked<F>, Rejected<F>> {
        let (future, token) = self.admit(TaskKind::Tracked, future)?;
        Ok(Tracked::new(future, token))
    }

    /// Counts work as in flight until the guard is dropped; see [`Registry::guard`].
    #[track_caller]
    #[inline]
    pub fn guard(self) -> Result<Guard, Rejected<()>> {
        let ((), token) = self.admit(TaskKind::Guard, ())?;
        Ok(Guard::new(token))
    }

    /// Starts the task; see [`Registry::run`].
    #[track_caller]
    #[inline]
    pub fn run<F>(self, future: F)
    where
        S: Spawner,
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.try_run(future).unwrap_or_else(discard);
    }

    /// Starts the task, or returns the future if it is rejected; see [`Registry::try_run`].
    #[track_caller]
    #[inline]
    pub fn try_run<F>(self, future: F) -> Result<(), Rejected<F>>
    where
        S: Spawner,
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        let (future, token) = self.admit(TaskKind::Future, future)?;
        self.registry.spawner().spawn(Task::new(future, token));
        Ok(())
    }

    /// Starts the task as soon as the limit permits it; see [`Registry::run_when_ready`].
    #[cfg(feature = "std")]
    #[track_caller]
    pub fn run_when_ready<F>(self, future: F) -> RunWhenReady<'a, S, F>
    where
        S: Spawner,
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        RunWhenReady { registry: self.registry, call: self.call(TaskKind::Future), future: Some(future), ticket: None }
    }

    /// Starts a task that need not be `Send`; see [`Registry::run_local`].
    #[track_caller]
    #[inline]
    pub fn run_local<F>(self, future: F)
    where
        S: LocalSpawner,
        F: Future<Output: TaskOutput> + 'static,
    {
        self.try_run_local(future).unwrap_or_else(discard);
    }

    /// Starts a task that need not be `Send`, or returns the future if it is rejected; see [`Registry::try_run_local`].
    #[track_caller]
    #[inline]
    pub fn try_run_local<F>(self, future: F) -> Result<(), Rejected<F>>
    where
        S: LocalSpawner,
        F: Future<Output: TaskOutput> + 'static,
    {
        let (future, token) = self.admit(TaskKind::Local, future)?;
        self.registry.spawner().spawn_local(Task::new(future, token));
        Ok(())
    }

    /// Starts a closure that blocks; see [`Registry::run_blocking`].
    #[track_caller]
    #[inline]
    pub fn run_blocking<F, T>(self, work: F)
    where
        S: BlockingSpawner,
        F: FnOnce() -> T + Send + 'static,
        T: TaskOutput,
    {
        self.try_run_blocking(work).unwrap_or_else(discard);
    }

    /// Starts a closure that blocks, or returns the closure if it is rejected; see [`Registry::try_run_blocking`].
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
        self.registry.spawner().spawn_blocking(move || task.run());
        Ok(())
    }
}

impl<S> fmt::Debug for TaskBuilder<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskBuilder").field("name", &self.name).field("critical", &self.critical).finish_non_exhaustive()
    }
}

/// Starts a task as soon as the limit permits it; see [`Registry::run_when_ready`].
#[cfg(feature = "std")]
#[must_use = "futures do nothing unless polled"]
pub struct RunWhenReady<'a, S, F> {
    registry: &'a Registry<S>,
    call: Call,
    future: Option<F>,
    ticket: Option<Ticket>,
}

#[cfg(feature = "std")]
impl<S, F> Unpin for RunWhenReady<'_, S, F> {}

#[cfg(feature = "std")]
impl<S, F> Future for RunWhenReady<'_, S, F>
where
    S: Spawner,
    F: Future<Output: TaskOutput> + Send + 'static,
{
    type Output = Result<(), Rejected<F>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { registry, call, future, ticket } = &mut *self;
        assert!(future.is_some(), "polled after it had resolved");
        let core = registry.core();
        core.poll_enter(*call, ticket, cx.waker()).map(|entered| {
            *ticket = None;
            let future = future.take().expect("asserted above");
            match entered {
                Ok(token) => {
                    registry.spawner().spawn(Task::new(future, token));
                    Ok(())
                }
                Err(reason) => Err(Rejected::new(future, core.refuse(*call, reason))),
            }
        })
    }
}

#[cfg(feature = "std")]
impl<S, F> Drop for RunWhenReady<'_, S, F> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.registry.core().leave_queue(ticket);
        }
    }
}

#[cfg(feature = "std")]
impl<S, F> fmt::Debug for RunWhenReady<'_, S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunWhenReady").field("is_waiting", &self.ticket.is_some()).finish_non_exhaustive()
    }
}
