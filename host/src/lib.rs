//! Runs a program whose background tasks belong to a [`background_tasks`] registry. The crate handles termination signals, drains the
//! registries, and returns an exit code.
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
//!     while let Some(request) = signal.run_until_shutdown(async { /* accept */ }).await {
//!         registry.run(async move { /* work that outlives the response */ });
//!     }
//! }
//! ```
//!
//! [`Host`] runs a program from start to exit in one call, on any runtime. If you need only the signal, call [`shutdown_signal`].
//!
//! - [`recipes`] contains programs for axum, tonic, actix-web, warp, poem, streams of events and AWS Lambda.
//! - [`deployment`] contains the settings for Kubernetes, containers, systemd, Windows, Azure, AWS Lambda and Cloudflare Workers.
//!
//! # Features
//!
//! | feature | provides |
//! | --- | --- |
//! | `bar` (default) | a progress bar for the drain, on a terminal |
//! | `dashboard` | `Dashboard`, a web page that shows the tasks and aborts them |
//! | `http` | `HttpServer`, an HTTP/1 server, for every runtime, with limits for the connections, the memory and the time that clients use |
//! | `systemd` | `notify_ready`, and a `Host` that notifies systemd; Linux |
//! | `tower` | `RequestLayer`, which counts a request as in flight until the server drops the response body, for axum, tonic and hyper. `DetachLayer`, whose handlers continue if the client disconnects. `UntilShutdown`, which ends streams and upgraded connections. `SettleLayer`, for AWS Lambda |
//! | `tracing` | a `Host` that reports the drain as tracing events |
//! | `windows-service` | a `Host` that is a Win32 service, and `notify_ready`; Windows |
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(feature = "dashboard", feature = "http"))]
mod authority;
mod bar;
#[cfg(feature = "dashboard")]
mod dashboard;
mod deadline;
#[cfg(feature = "tower")]
mod detach;
mod drain;
mod exit;
mod host;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "tower")]
mod layer;
mod liveness;
mod observer;
mod output_thread;
mod phases;
mod program;
mod progress;
mod readiness;
#[cfg(feature = "tower")]
mod settle;
mod signals;
mod status;
mod sync;
mod systemd;
mod terminal;
#[cfg(feature = "tower")]
mod until_shutdown;
mod webjobs;
mod windows_service;

#[cfg(feature = "dashboard")]
pub use self::dashboard::{Dashboard, DashboardBody};
#[cfg(feature = "tower")]
pub use self::detach::{DetachFuture, DetachLayer, DetachService};
pub use self::host::Host;
#[cfg(feature = "http")]
pub use self::http::{HttpServer, TimedBody};
#[cfg(feature = "tower")]
pub use self::layer::{RequestBody, RequestFuture, RequestLayer, RequestService};
pub use self::liveness::Liveness;
pub use self::observer::StderrObserver;
pub use self::readiness::Readiness;
#[cfg(feature = "tower")]
pub use self::settle::{SettleFuture, SettleLayer, SettleService};
pub use self::signals::{request_stop, shutdown_signal};
#[cfg(feature = "systemd")]
pub use self::systemd::notify_ready;
// Each cfg names one feature, so that the compiler can name the missing feature in an error.
#[cfg(all(not(feature = "systemd"), feature = "windows-service"))]
pub use self::systemd::notify_ready;
pub use self::terminal::{Stderr, stderr};
#[cfg(feature = "tower")]
pub use self::until_shutdown::UntilShutdown;

#[cfg(doc)] // also set for doctests, which need the feature
#[cfg_attr(any(not(doctest), feature = "tower"), doc = include_str!("recipes.md"))]
#[cfg_attr(not(doctest), doc = include_str!("frameworks.md"))] // its doctests are in runtimes/, with the frameworks as dependencies
pub mod recipes {}

#[cfg(doc)]
#[doc = include_str!("deployment.md")]
pub mod deployment {}

#[cfg(all(doctest, feature = "http", feature = "systemd", feature = "tower"))]
#[doc = include_str!("../README.md")]
struct Readme;
