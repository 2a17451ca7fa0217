//! Defines the handles of a task. A `JoinHandle` resolves to the task's output, and an `AbortHandle` can only abort the task.

use crate::platform::{Arc, Payload, drop_quietly, wake, wake_with};
use crate::report::{JoinError, JoinLoss, RejectReason, Rejected, SpawnInfo, TaskId, TaskInfo, TaskKind};
use crate::state::{InspectedTask, Token, UnreportedLoss, finish_departure};
use crate::sync::join_cell::JoinCell;
use crate::task::OutputReceiver;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use core::{fmt, panic::Location};

/// Contains the data that a task and its handle share.
struct Joined<T> {
    cell: JoinCell<Result<T, JoinLoss>>,
    location: &'static Location<'static>,
    name: Option<&'static str>,
    inspected: Option<InspectedTask>,
    is_closure: bool,
}

impl<T> Joined<T> {
    /// Aborts the task. If the task is inspected, the registry performs the abort, so the registry's list of tasks shows the abort.
    fn abort(&self) {
        match self.inspected {
            Some(task) => task.abort(),
            None => self.cell.abort(),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "the signature of `Wake::wake`")]
    fn wake_to_abort(this: Arc<Self>) {
        this.abort();
    }
}

// An abort handle stores a `Waker` that aborts the task. A waker hides the type of the task's output, and this waker reuses the
// allocation of the `Joined`.
wake_with!([T: Send + 'static] Joined<T>, Joined::wake_to_abort);

/// Passes the output of a task to the task's [`JoinHandle`]. The field is `None` after the task has ended.
pub(crate) struct JoinSender<T>(Option<Arc<Joined<T>>>);

impl<T> OutputReceiver<T> for JoinSender<T> {
    type End = Result<T, JoinLoss>;

    /// A task that returns `Err` also counts as completed, because the owner of its handle receives the error.
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

    /// Reports the loss, and drops all wakers of the task. Then stores the result and stops counting the task as in flight, both
    /// under one lock (invariants S2, S8 and S11).
    #[inline]
    fn release(&mut self, token: Token, loss: Option<UnreportedLoss>, end: Self::End) {
        let Some(joined) = self.0.take() else { return };
        if let Some(loss) = &loss {
            token.report(loss);
        }
        token.prepare_departure(loss.is_none());
        joined.cell.drop_waker();
        match joined.cell.end(end, || token.depart()) {
            Ok((left, waker)) => {
                wake(waker);
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
        self.0.as_ref().is_some_and(|joined| joined.cell.is_aborted())
    }

    #[inline]
    fn store_waker(&mut self, waker: &Waker) {
        if let Some(joined) = &self.0 {
            joined.cell.store_waker(waker);
        }
    }

    fn dropped(&self, token: &Token) -> UnreportedLoss {
        // If a blocking closure is dropped after an abort, it counts as aborted, because the abort has prevented its start
        // (invariant L3).
        let is_aborted = self.0.as_ref().is_some_and(|joined| joined.is_closure && joined.cell.is_aborted());
        if is_aborted { UnreportedLoss::Aborted } else { token.dropped() }
    }
}

/// Resolves to the output of a task, and can abort the task; see [`Registry::spawn`](crate::Registry::spawn).
///
/// The handle resolves to a [`JoinError`] if the task panicked, or was abandoned, aborted or rejected. If the task returns `Err`,
/// the task counts as completed, and the handle resolves to `Ok(Err(_))`. If such a task must count as failed, and its error must
/// be reported to the observers, start the task with [`run`](crate::Registry::run) instead of `spawn`.
///
/// When the handle resolves, the task's future has been dropped, and the task is no longer in flight. In a registry with a
/// [limit](crate::RegistryBuilder::max_in_flight), the task has released its permit. When the registry has drained, the handles of
/// all its tasks are ready.
///
/// Dropping the handle detaches the task: the task continues, and the registry still waits for the task at shutdown. The output
/// of a detached task is dropped before the task stops counting as in flight. To abort the task instead, call
/// [`abort_on_drop`](Self::abort_on_drop).
///
/// A task must not await its own handle: neither the task nor the handle would ever finish.
///
/// # Panics
///
/// Panics if the handle is polled after it has resolved.
///
/// # Cancel safety
///
/// Awaiting `&mut handle` is cancel safe: if a `select!` completes another branch first, the output is not lost.
///
/// # Examples
///
/// This example awaits the outputs of many tasks in the order in which the tasks end. `FuturesUnordered` is a type of the crate
/// `futures`:
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
pub struct JoinHandle<T>(HandleState<T>);

enum HandleState<T> {
    Accepted(Arc<Joined<T>>),
    /// The reason is `None` after the handle has resolved.
    Rejected(Option<RejectReason>, &'static Location<'static>, Option<&'static str>),
}

impl<T> JoinHandle<T> {
    /// Returns the handle of an accepted task, and the sender that passes the task's output to the handle.
    #[inline]
    pub(crate) fn new(info: &SpawnInfo, token: Token) -> (Self, JoinSender<T>) {
        let SpawnInfo { location, name, kind, .. } = *info;
        let (inspected, is_closure) = (token.inspected(), kind == TaskKind::Blocking);
        let joined = Arc::new(Joined { cell: JoinCell::new(), location, name, inspected, is_closure });
        (Self(HandleState::Accepted(joined.clone())), JoinSender(Some(joined)))
    }

    /// Drops rejected work, and returns a handle that resolves to the reason of the rejection.
    #[cold]
    pub(crate) fn rejected<W>(info: &SpawnInfo, rejected: Rejected<W>) -> Self {
        let reason = rejected.reason();
        drop_quietly(rejected);
        Self(HandleState::Rejected(Some(reason), info.location, info.name))
    }

    fn joined(&self) -> Option<&Arc<Joined<T>>> {
        if let HandleState::Accepted(joined) = &self.0 { Some(joined) } else { None }
    }

    fn task(&self) -> TaskInfo {
        match &self.0 {
            HandleState::Accepted(joined) => TaskInfo { id: self.id(), ..TaskInfo::new(joined.location, joined.name) },
            HandleState::Rejected(_, location, name) => TaskInfo::new(location, *name),
        }
    }

    /// Aborts the task at its next await point, or before its first poll. This also works if the registry is not
    /// [inspected](crate::RegistryBuilder::inspect).
    ///
    /// If the executor is polling the task when `abort` is called, the task's future is dropped at the end of this poll. Otherwise,
    /// the future is dropped in the next poll. The task then counts as aborted, and the handle resolves to an error. If the task
    /// has already ended, or finishes in its current poll, `abort` has no effect, and the handle can still resolve to an output. A
    /// blocking closure is aborted only if it has not started. A second call to `abort` has no effect.
    ///
    /// `abort` returns immediately. To wait until the future has been dropped, await the handle. In an inspected registry, this
    /// method does the same as [`Registry::abort_task`](crate::Registry::abort_task), so the list of tasks shows the abort.
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
        if let Some(joined) = self.joined() {
            joined.abort();
        }
    }

    /// Returns another handle, which can abort the task but does not resolve to the task's output.
    ///
    /// If the abort handle is dropped, the task continues. While an abort handle exists, the memory for the task's output stays
    /// allocated. This method is available only if the output of the task is `Send`.
    pub fn abort_handle(&self) -> AbortHandle
    where
        T: Send + 'static,
    {
        AbortHandle { aborter: self.joined().map_or_else(|| Waker::noop().clone(), |joined| joined.clone().into()), id: self.id() }
    }

    /// Makes the handle abort its task when the handle is dropped. Default: when the handle is dropped, the task continues.
    pub fn abort_on_drop(self) -> Self {
        if let Some(joined) = self.joined() {
            joined.cell.abort_on_drop();
        }
        self
    }

    /// Returns whether the task has ended or was rejected. A task that has ended is no longer in flight. If this method returns
    /// true, the next poll of the handle returns `Ready`. (If the handle has already resolved, the poll panics.)
    pub fn is_finished(&self) -> bool {
        self.joined().is_none_or(|joined| joined.cell.is_finished())
    }

    /// Returns the ID of the task, or `None` if the registry is not [inspected](crate::RegistryBuilder::inspect) or has rejected
    /// the task.
    pub fn id(&self) -> Option<TaskId> {
        self.joined()?.inspected.map(|task| task.id)
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let output = match &mut self.0 {
            HandleState::Accepted(joined) => {
                if !joined.cell.has_ended() && joined.cell.register(cx.waker()) {
                    return Poll::Pending;
                }
                joined.cell.take()
            }
            HandleState::Rejected(reason, ..) => reason.take().map(|reason| Err(JoinLoss::Rejected(reason))),
        };
        Poll::Ready(output.expect("polled after it resolved").map_err(|loss| JoinError::new(self.task(), loss)))
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(joined) = self.joined() {
            joined.cell.drop_handle(|| joined.abort());
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let task = TaskInfo { id: None, ..self.task() };
        f.debug_struct("JoinHandle")
            .field("task", &format_args!("{task}"))
            .field("is_finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

/// Aborts a task; see [`JoinHandle::abort_handle`].
#[derive(Clone)]
pub struct AbortHandle {
    /// A waker that refers to the task's [`Joined`]. A call to this waker aborts the task.
    aborter: Waker,
    id: Option<TaskId>,
}

impl AbortHandle {
    /// Aborts the task; see [`JoinHandle::abort`].
    pub fn abort(&self) {
        self.aborter.wake_by_ref();
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
