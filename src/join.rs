//! Defines the handles of a task: `JoinHandle`, which resolves to the task's output, and `AbortHandle`.

use crate::platform::{Arc, Payload, drop_quietly, wake};
use crate::report::{JoinError, JoinLoss, RejectReason, Rejected, SpawnInfo, TaskId, TaskInfo, TaskKind};
use crate::state::{InspectedTask, Token, UnreportedLoss, finish_departure};
use crate::sync::join_cell::JoinCell;
use crate::task::OutputReceiver;
use core::future::Future;
use core::mem::replace;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use core::{fmt, panic::Location};

type Cell<T> = JoinCell<Result<T, JoinLoss>>;

/// Passes the output of a task to the task's [`JoinHandle`].
pub(crate) struct JoinSender<T> {
    /// The cell, until the task has ended.
    cell: Option<Arc<Cell<T>>>,
    is_closure: bool,
    has_waker: bool,
}

impl<T> OutputReceiver<T> for JoinSender<T> {
    type End = Result<T, JoinLoss>;

    /// The owner of the handle receives the output, so an `Err` counts as completed, as that of a tracked future does.
    #[inline]
    fn completed(_: Token, output: T) -> (Option<UnreportedLoss>, Self::End) {
        (None, Ok(output))
    }

    fn lost(loss: &UnreportedLoss, payload: Option<Payload>) -> Self::End {
        Err(match (payload, loss) {
            (Some(payload), _) => JoinLoss::panicked(payload),
            (None, UnreportedLoss::Aborted) => JoinLoss::Aborted,
            (None, _) => JoinLoss::Abandoned,
        })
    }

    /// Reports the loss, drops all wakers of the task, and then stores the end and releases the count as one step (S2, S8, S11).
    #[inline]
    fn release(&mut self, token: Token, loss: Option<UnreportedLoss>, end: Self::End) {
        let Some(cell) = self.cell.take() else { return };
        if let Some(loss) = &loss {
            token.report(loss);
        }
        token.prepare_departure(loss.is_none());
        if self.has_waker {
            cell.drop_waker();
        }
        match cell.end(end, || token.depart()) {
            Ok((left, joiner)) => {
                // The handle takes the output without a lock if this reference has been dropped.
                drop(cell);
                if joiner.is_some() {
                    wake(joiner);
                }
                finish_departure(left);
            }
            Err(end) => {
                drop_quietly(end);
                finish_departure(token.depart());
            }
        }
    }

    #[inline]
    fn is_aborted(&self) -> bool {
        self.cell.as_ref().is_some_and(|cell| cell.is_aborted())
    }

    #[inline]
    fn store_waker(&mut self, waker: &Waker) {
        if let Some(cell) = &self.cell {
            cell.store_waker(waker, !replace(&mut self.has_waker, true));
        }
    }

    fn dropped(&self, token: &Token) -> UnreportedLoss {
        // A blocking closure that was aborted counts as aborted, because its abort has already ended it (L3).
        if self.is_closure && self.is_aborted() { UnreportedLoss::Aborted } else { token.dropped() }
    }
}

/// Resolves to the output of a task, and can abort the task; see [`Registry::spawn`](crate::Registry::spawn).
///
/// The handle resolves to a [`JoinError`] if the task panicked, or was abandoned, aborted or rejected. A task that returns `Err`
/// counts as completed, and the handle resolves to `Ok(Err(_))`: the error belongs to the owner of the handle. If no code reads the
/// error, start the task with [`run`](crate::Registry::run), so that it counts as failed.
///
/// When the handle resolves, the future of the task has been dropped, and the count of the task released. In a registry with a
/// [limit](crate::RegistryBuilder::max_in_flight), the task's permit is free. When the registry has drained, all handles are ready.
///
/// Dropping the handle detaches the task: the task continues, and the registry still waits for the task at shutdown. The output of
/// a detached task is dropped before the task stops counting as in flight. To abort the task instead, call
/// [`abort_on_drop`](Self::abort_on_drop).
///
/// A task must not await its own handle.
///
/// # Panics
///
/// Polling a handle that has resolved panics.
///
/// # Cancel safety
///
/// Awaiting `&mut handle` is cancel safe: the output is not lost if a `select!` completes another branch first.
///
/// # Examples
///
/// Await the outputs of many tasks in the order in which the tasks end. `FuturesUnordered` is a type of the crate `futures`:
///
/// ```
/// # #[cfg(feature = "smol")]
/// # smol::block_on(async {
/// use background_tasks::{JoinError, Registry, SmolSpawner};
/// use futures_util::stream::{FuturesUnordered, StreamExt};
///
/// let registry = Registry::new(SmolSpawner);
/// // If this function returns early, the remaining tasks are aborted.
/// let start = |page: u32| registry.spawn(async move { page * 2 }).abort_on_drop();
/// let mut handles: FuturesUnordered<_> = (0..10).map(start).collect();
/// let mut sum = 0;
/// while let Some(output) = handles.next().await {
///     sum += output?;
/// }
/// assert_eq!(sum, 90);
/// # Ok::<(), JoinError>(())
/// # }).unwrap();
/// ```
#[must_use = "dropping the handle detaches the task; `run` starts a task without a handle"]
pub struct JoinHandle<T> {
    state: HandleState<T>,
    location: &'static Location<'static>,
    name: Option<&'static str>,
    inspected: Option<InspectedTask>,
    has_registered: bool,
    aborts_on_drop: bool,
}

enum HandleState<T> {
    Live(Arc<Cell<T>>),
    Rejected(RejectReason),
    Resolved,
}

impl<T> JoinHandle<T> {
    /// Returns the handle of an accepted task, and the sender of the task's output.
    pub(crate) fn new(info: &SpawnInfo, token: Token) -> (Self, JoinSender<T>) {
        let cell = Arc::new(JoinCell::new());
        let is_closure = info.kind == TaskKind::Blocking;
        let sender = JoinSender { cell: Some(cell.clone()), is_closure, has_waker: false };
        (Self::with_state(info, HandleState::Live(cell), token.inspected()), sender)
    }

    /// Drops rejected work, and returns a handle that resolves to the reason.
    #[cold]
    pub(crate) fn rejected<W>(info: &SpawnInfo, rejected: Rejected<W>) -> Self {
        let reason = rejected.reason();
        drop_quietly(rejected);
        Self::with_state(info, HandleState::Rejected(reason), None)
    }

    #[inline]
    fn with_state(info: &SpawnInfo, state: HandleState<T>, inspected: Option<InspectedTask>) -> Self {
        let SpawnInfo { location, name, .. } = *info;
        Self { state, location, name, inspected, has_registered: false, aborts_on_drop: false }
    }

    fn cell(&self) -> Option<&Arc<Cell<T>>> {
        match &self.state {
            HandleState::Live(cell) => Some(cell),
            HandleState::Rejected(_) | HandleState::Resolved => None,
        }
    }

    /// Aborts the task at its next await point, or before its first poll. The registry need not be
    /// [inspected](crate::RegistryBuilder::inspect).
    ///
    /// The task's executor drops the task's future. The task then counts as aborted, and the handle resolves to an error. If the
    /// task has ended or finishes in its current poll, `abort` has no effect, so the handle may still resolve to an output. A
    /// blocking closure is aborted only if it has not started. A second call has no effect.
    ///
    /// `abort` returns immediately. To wait until the future has been dropped, await the handle. In an inspected registry, this
    /// method does the same as [`Registry::abort_task`](crate::Registry::abort_task).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Loss, Registry, SmolSpawner};
    ///
    /// let registry = Registry::new(SmolSpawner);
    /// let handle = registry.spawn(std::future::pending::<()>());
    /// handle.abort();
    /// assert_eq!(handle.await.unwrap_err().loss(), Loss::Aborted);
    /// # });
    /// ```
    pub fn abort(&self) {
        match (self.inspected, self.cell()) {
            (Some(task), Some(_)) => task.abort(),
            (None, Some(cell)) => cell.abort(),
            (_, None) => {}
        }
    }

    /// Returns another handle, which can abort the task but does not resolve to its output.
    ///
    /// The task continues if the abort handle is dropped. The memory of the task's output stays allocated while an abort handle
    /// exists. Not available if the output of the task is not `Send`.
    pub fn abort_handle(&self) -> AbortHandle
    where
        T: Send + 'static,
    {
        let aborter = match (self.inspected, self.cell()) {
            (Some(task), Some(_)) => Aborter::Inspected(task),
            (None, Some(cell)) => Aborter::Cell(cell.clone().into()),
            (_, None) => Aborter::Ended,
        };
        AbortHandle { aborter, id: self.id() }
    }

    /// Makes the drop of the handle abort the task. Default: the drop of the handle detaches the task.
    pub fn abort_on_drop(mut self) -> Self {
        self.aborts_on_drop = true;
        self
    }

    /// Returns whether the task has ended and its count has been released. The next poll of the handle then returns `Ready`.
    pub fn is_finished(&self) -> bool {
        self.cell().is_none_or(|cell| cell.is_finished())
    }

    /// Returns the ID of the task, or `None` if the registry is not [inspected](crate::RegistryBuilder::inspect) or has rejected
    /// the task.
    pub fn id(&self) -> Option<TaskId> {
        self.inspected.map(|task| task.id)
    }

    fn error(&self, loss: JoinLoss) -> JoinError {
        JoinError::new(TaskInfo { id: self.id(), ..TaskInfo::new(self.location, self.name) }, loss)
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let HandleState::Live(cell) = &self.state {
            if !cell.has_ended() && cell.register(cx.waker(), !self.has_registered) {
                self.has_registered = true;
                return Poll::Pending;
            }
        }
        let output = match replace(&mut self.state, HandleState::Resolved) {
            HandleState::Live(cell) => JoinCell::into_output(cell),
            HandleState::Rejected(reason) => Err(JoinLoss::Rejected(reason)),
            HandleState::Resolved => panic!("polled after it resolved"),
        };
        Poll::Ready(output.map_err(|loss| self.error(loss)))
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if self.aborts_on_drop {
            self.abort();
        }
        if let HandleState::Live(cell) = &self.state {
            cell.detach();
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let task = TaskInfo::new(self.location, self.name);
        f.debug_struct("JoinHandle")
            .field("task", &format_args!("{task}"))
            .field("is_finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

/// Aborts a task; see [`JoinHandle::abort_handle`].
#[derive(Clone)]
pub struct AbortHandle {
    aborter: Aborter,
    id: Option<TaskId>,
}

#[derive(Clone)]
enum Aborter {
    Inspected(InspectedTask),
    /// The waker of a [`JoinCell`]: to wake means to abort.
    Cell(Waker),
    Ended,
}

impl AbortHandle {
    /// Aborts the task; see [`JoinHandle::abort`].
    pub fn abort(&self) {
        match &self.aborter {
            Aborter::Inspected(task) => task.abort(),
            Aborter::Cell(waker) => waker.wake_by_ref(),
            Aborter::Ended => {}
        }
    }

    /// Returns the ID of the task; see [`JoinHandle::id`].
    pub fn id(&self) -> Option<TaskId> {
        self.id
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle").field("id", &self.id).finish_non_exhaustive()
    }
}
