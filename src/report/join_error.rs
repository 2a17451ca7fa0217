use super::{Loss, RejectReason, TaskInfo};
use crate::platform::{Mutex, Payload, panic_message};
use alloc::{boxed::Box, string::String};
use core::any::Any;
use core::fmt;

/// Reports that a task has no output, because the task panicked, or was abandoned, aborted or rejected. A
/// [`JoinHandle`](crate::JoinHandle) resolves to this error.
///
/// The `Display` text names the task and says how the task was lost, for example `thumbnail at src/main.rs:20:14 was aborted`. The
/// operator `?` converts a `JoinError` to `Box<dyn Error + Send + Sync>`, and to the errors of `anyhow` and `eyre`.
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
    cause: Cause,
}

/// How a task that has a handle was lost.
pub(crate) enum JoinLoss {
    Panicked(Payload),
    Abandoned,
    Aborted,
    Rejected(RejectReason),
}

enum Cause {
    /// The mutex makes the error `Sync`. The text is stored in addition to the payload, because a formatter is user code, which
    /// must not run under a lock (S7).
    Panicked(String, Mutex<Payload>),
    Abandoned,
    Aborted,
    Rejected(RejectReason),
}

impl JoinError {
    pub(crate) fn new(task: TaskInfo, loss: JoinLoss) -> Self {
        let cause = match loss {
            JoinLoss::Panicked(payload) => Cause::Panicked(panic_message(&payload).into(), Mutex::new(payload)),
            JoinLoss::Abandoned => Cause::Abandoned,
            JoinLoss::Aborted => Cause::Aborted,
            JoinLoss::Rejected(reason) => Cause::Rejected(reason),
        };
        Self(Box::new(LostTask { task, cause }))
    }

    /// Returns the task: its name, its call site, and its ID if the registry is [inspected](crate::RegistryBuilder::inspect). The
    /// kind and the age are not present.
    pub fn task(&self) -> &TaskInfo {
        &self.0.task
    }

    /// Returns how the task was lost. The result is never [`Loss::Failed`], because an `Err` is an output.
    pub fn loss(&self) -> Loss<'_> {
        match &self.0.cause {
            Cause::Panicked(message, _) => Loss::Panicked(message),
            Cause::Abandoned => Loss::Abandoned,
            Cause::Aborted => Loss::Aborted,
            Cause::Rejected(reason) => Loss::Rejected(*reason),
        }
    }

    /// Returns whether the task panicked.
    pub fn is_panic(&self) -> bool {
        matches!(self.0.cause, Cause::Panicked(..))
    }

    /// Returns the payload of the task's panic, for example for `std::panic::resume_unwind`.
    ///
    /// # Panics
    ///
    /// Panics if the task did not panic. [`try_into_panic`](Self::try_into_panic) does not panic.
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
        let LostTask { task, cause } = *self.0;
        match cause {
            Cause::Panicked(_, payload) => Ok(payload.into_inner()),
            cause => Err(Self(Box::new(LostTask { task, cause }))),
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
