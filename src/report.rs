//! What a registry reports: plain data that knows no registry.

mod abort;
mod output;
mod rejected;
mod summary;
mod task_info;

pub use abort::{AbortError, AbortReport};
pub use output::TaskOutput;
pub use rejected::{RejectReason, Rejected};
pub use summary::{Stragglers, Summary};
pub(crate) use task_info::SpawnInfo;
pub use task_info::{ParseTaskIdError, TaskId, TaskInfo, TaskKind};
