//! The host of [`background_tasks`]: the process, which is told to stop.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "tower")]
mod layer;
#[cfg(feature = "page")]
mod page;

#[cfg(feature = "page")]
#[cfg_attr(docsrs, doc(cfg(feature = "page")))]
pub use page::{Page, PageBody};
