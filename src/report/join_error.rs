use super::{Loss, RejectReason, TaskInfo};
use crate::platform::{Mutex, Payload, panic_message};
use alloc::{boxed::Box, string::String};
use core::any::Any;
use core::fmt;

/// Reports why a task has no output: the task panicked, or was abandoned, aborted or rejected. In this case, the task's
/// [`JoinHandle`](crate::JoinHandle) resolves to this error.
///
/// The `Display` text names the task and says how the task was lost, for example `thumbnail at src/main.rs:20:14 was
/// aborted`. The operator `?` converts a `JoinError` to `Box<dyn Error + Send + Sync>`, and to the errors of `anyhow` and
/// `eyre`.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "smol")]
/// # smol::block_on(async {
/// use background_tasks::{Loss, Registry, SmolSpawner};
///
/// let registry = Registry::new(SmolSpawner);
/// let error = registry.named("parse").spawn(async { "x".parse::<u32>().unwrap() }).await.unwrap_err();
/// assert!(matches!(error.loss(), Loss::Panicked(_)));
/// assert_eq!(error.task().name(), Some("parse"));
/// # });
/// ```
pub struct JoinError(Box<LostTask>);

struct LostTask {
    task: TaskInfo,
    loss: JoinLoss,
}

/// Says how the task of a handle was lost.
pub(crate) enum JoinLoss {
    Panicked(Box<Panic>),
    Abandoned,
    Aborted,
    Rejected(RejectReason),
}

/// The message and the payload of a task's panic. The mutex makes the error `Sync`. The message is not inside the mutex,
/// because `Display` passes the message to a formatter. A formatter is user code, and no user code must run under a lock
/// (invariant S7).
pub(crate) struct Panic {
    message: String,
    payload: Mutex<Payload>,
}

impl JoinLoss {
    pub(crate) fn panicked(payload: Payload) -> Self {
        Self::Panicked(Box::new(Panic { message: panic_message(&payload).into(), payload: Mutex::new(payload) }))
    }
}

impl JoinError {
    pub(crate) fn new(task: TaskInfo, loss: JoinLoss) -> Self {
        Self(Box::new(LostTask { task, loss }))
    }

    /// Returns the name and the call site of the task. The task's ID is present if the registry is
    /// [inspected](crate::RegistryBuilder::inspect). The kind and the age are never present.
    pub fn task(&self) -> &TaskInfo {
        &self.0.task
    }

    /// Returns how the task was lost. The result is never [`Loss::Failed`]: if a task returns `Err`, its handle resolves to this
    /// `Err`, as to any other output.
    pub fn loss(&self) -> Loss<'_> {
        match &self.0.loss {
            JoinLoss::Panicked(panic) => Loss::Panicked(&panic.message),
            JoinLoss::Abandoned => Loss::Abandoned,
            JoinLoss::Aborted => Loss::Aborted,
            JoinLoss::Rejected(reason) => Loss::Rejected(*reason),
        }
    }

    /// Returns whether the task panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self.0.loss, JoinLoss::Panicked(_))
    }

    /// Returns the payload of the task's panic. Pass the payload to `std::panic::resume_unwind` to continue the panic.
    ///
    /// # Panics
    ///
    /// Panics if the task did not panic. In this case, [`try_into_panic`](Self::try_into_panic) returns an error instead.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// # use background_tasks::{Registry, SmolSpawner};
    /// # let registry = Registry::new(SmolSpawner);
    /// match registry.spawn(async { 6 * 7 }).await {
    ///     Ok(value) => assert_eq!(value, 42),
    ///     Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
    ///     Err(error) => eprintln!("{error}"),
    /// }
    /// # });
    /// ```
    #[track_caller]
    pub fn into_panic(self) -> Box<dyn Any + Send> {
        self.try_into_panic().unwrap_or_else(|error| panic!("the task did not panic: {error}"))
    }

    /// Returns the payload of the task's panic.
    ///
    /// # Errors
    ///
    /// Returns the error itself if the task did not panic.
    pub fn try_into_panic(self) -> Result<Box<dyn Any + Send>, Self> {
        match self.0.loss {
            JoinLoss::Panicked(panic) => Ok(panic.payload.into_inner()),
            _ => Err(self),
        }
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinError").field("task", &format_args!("{}", self.task())).field("loss", &self.loss()).finish()
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.task(), self.loss())
    }
}

impl core::error::Error for JoinError {}
