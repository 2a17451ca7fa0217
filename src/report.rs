//! Defines the data types that a registry returns to its callers or passes to its observers. Values of these types contain no
//! reference to the registry.

mod abort;
mod join_error;
mod loss;
mod output;
mod summary;
mod task_info;

pub use abort::{AbortError, AbortReport};
pub use join_error::JoinError;
pub(crate) use join_error::JoinLoss;
pub use loss::{Loss, RejectReason, Rejected};
pub use output::TaskOutput;
pub use summary::{Stragglers, Summary};
pub use task_info::{ParseTaskIdError, ServiceInfo, SpawnInfo, TaskId, TaskInfo, TaskKind};
