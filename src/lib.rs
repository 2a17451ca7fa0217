#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
//! Fire and forget that forgets nothing.

extern crate alloc;

mod bell;
mod gate;
mod output;
mod panics;
#[cfg(feature = "std")]
mod pool;
mod registry;
mod rejected;
mod shards;
mod shutdown;
mod signal;
mod spawner;
mod summary;
mod sync;
mod tracked;
mod wakers;

pub use output::TaskOutput;
pub use registry::Registry;
pub use rejected::{Reason, Rejected};
pub use shards::Core;
pub use shutdown::{Shutdown, ShutdownGuard, WaitIdle};
pub use signal::{RunUntilShutdown, ShutdownSignal};
pub use spawner::*;
pub use summary::{Stragglers, Summary};
pub use tracked::{Guard, Tracked};

#[cfg(loom)]
#[doc(hidden)]
pub use shards::threads as model;
