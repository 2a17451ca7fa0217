use super::TaskInfo;
use alloc::string::String;
use core::fmt;

/// Describes one service. [`Registry::services`](crate::Registry::services) returns this type.
///
/// The `Display` text describes the service and its state, for example `outbox at src/main.rs:20:14 waits to run again, 3 restarts,
/// last loss: failed: connection refused`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ServiceInfo {
    pub(crate) task: TaskInfo,
    pub(crate) is_running: bool,
    pub(crate) restarts: u64,
    pub(crate) last_loss: Option<String>,
}

impl ServiceInfo {
    /// Returns the task of the service, with its name and call site. In an [inspected](crate::RegistryBuilder::inspect) registry, the
    /// ID of this task is the one that [`Registry::tasks`](crate::Registry::tasks) returns, and the age is the time since the service
    /// was started.
    pub fn task(&self) -> &TaskInfo {
        &self.task
    }

    /// Returns whether the work of the service is running. Otherwise the service waits to run again.
    pub fn is_running(&self) -> bool {
        self.is_running
    }

    /// Returns how often the work has started again after its first start.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Returns how the last lost run was lost, for example `failed: connection refused`. Returns `None` if no run was lost.
    pub fn last_loss(&self) -> Option<&str> {
        self.last_loss.as_deref()
    }
}

impl fmt::Display for ServiceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_running { "runs" } else { "waits to run again" };
        write!(f, "{} {state}, {} restarts", self.task, self.restarts)?;
        self.last_loss.as_ref().map_or(Ok(()), |loss| write!(f, ", last loss: {loss}"))
    }
}
