use super::TaskInfo;
use alloc::string::String;
use core::fmt;

/// Describes one service. [`Registry::services`](crate::Registry::services) returns this type.
///
/// The `Display` text describes the service and its state, for example `outbox at src/main.rs:20:14 waits to run again, 3 restarts,
/// last loss: failed: connection refused`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ServiceInfo {
    /// The task of the service, with its name and call site. In an [inspected](crate::RegistryBuilder::inspect) registry, the ID of
    /// this task is the one that [`Registry::tasks`](crate::Registry::tasks) returns, and the age is the time since the service was
    /// started.
    pub task: TaskInfo,
    /// Whether the work of the service is running. Otherwise the service waits to run again.
    pub is_running: bool,
    /// How often the work has started again after its first start.
    pub restarts: u64,
    /// How the last lost run was lost, for example `failed: connection refused`. `None` if no run was lost.
    pub last_loss: Option<String>,
}

impl fmt::Display for ServiceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_running { "runs" } else { "waits to run again" };
        write!(f, "{} {state}, {} restarts", self.task, self.restarts)?;
        self.last_loss.as_ref().map_or(Ok(()), |loss| write!(f, ", last loss: {loss}"))
    }
}
