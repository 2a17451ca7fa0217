//! The host of [`background_tasks`]: the process, which is asked to stop by a signal, a supervisor or an orchestrator.
//!
//! ```no_run
//! use background_tasks::{Registry, TokioSpawner};
//! use background_tasks_host::Host;
//! use std::{process::ExitCode, time::Duration};
//!
//! #[tokio::main]
//! async fn main() -> ExitCode {
//!     let registry = Registry::new(TokioSpawner);
//!     Host::new(&registry).grace(Duration::from_secs(25)).run(serve(registry.clone())).await
//! }
//!
//! async fn serve(registry: Registry<TokioSpawner>) {
//!     let signal = registry.signal();
//!     while let Some(caller) = signal.run_until_shutdown(async { /* accept */ }).await {
//!         registry.run(async move { /* what is owed to the caller */ });
//!     }
//! }
//! ```
//!
//! [`Host`] is the whole life of a program in one call, on any runtime. [`terminated`] is its signal alone.
//!
//! # Features
//!
//! | feature | gives |
//! | --- | --- |
//! | `bar` (default) | the drain's progress bar, on a terminal |
//! | `page` | `Page`, on which a person watches the tasks and aborts them |
//! | `systemd` | `ready`, and a `Host` that tells systemd how it goes; on Linux |
//! | `tower` | `RequestLayer`, which has each request in flight until its response has been sent: for axum, tonic and hyper |
//! | `tracing` | a `Host` tells its drain as events |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod drain;
mod host;
#[cfg(feature = "tower")]
mod layer;
mod observer;
#[cfg(feature = "page")]
mod page;
mod signals;
mod systemd;
mod terminal;
mod voice;

pub use self::host::Host;
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use self::layer::{RequestBody, RequestFuture, RequestLayer, RequestService};
pub use self::observer::StderrObserver;
#[cfg(feature = "page")]
#[cfg_attr(docsrs, doc(cfg(feature = "page")))]
pub use self::page::{Page, PageBody};
pub use self::signals::terminated;
#[cfg(feature = "systemd")]
#[cfg_attr(docsrs, doc(cfg(feature = "systemd")))]
pub use self::systemd::ready;
pub use self::terminal::{Stderr, stderr};

#[cfg(all(doctest, feature = "systemd", feature = "tower"))]
#[doc = include_str!("../README.md")]
struct Readme;
