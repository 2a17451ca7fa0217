//! The host of [`background_tasks`]: the process, which is told to stop.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "tower")]
mod layer;
#[cfg(feature = "page")]
mod page;

#[cfg(feature = "tower")]
pub use layer::{RequestBody, RequestFuture, RequestLayer, RequestService};
