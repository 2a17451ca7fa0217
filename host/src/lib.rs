//! Runs a program that starts its background tasks in a [`background_tasks`] registry. At a termination signal, the crate shuts the
//! registry down, waits until its tasks have ended, and returns an exit code.
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
//! | `http` | `HttpServer`, an HTTP/1 server that works on every runtime, and limits how many connections, how much memory and how much time its clients use |
//! | `systemd` | `notify_ready`, which reports to systemd that the program is ready, and a `Host` that notifies systemd; only on Linux |
//! | `tower` | `RequestLayer`, which counts a request as in flight until the server drops the response body, for axum, tonic and hyper. `DetachLayer`, whose handlers continue if the client disconnects. `UntilShutdown`, which ends streams and upgraded connections. `SettleLayer`, for AWS Lambda |
//! | `tracing` | a `Host` that reports the drain as tracing events |
//! | `windows-service` | `Host::windows_service`, which makes the program a Win32 service, and `notify_ready`; only on Windows |
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
// There is one export for each feature. If the feature is missing, the compiler's error then names this feature.
#[cfg(all(not(feature = "systemd"), feature = "windows-service"))]
pub use self::systemd::notify_ready;
pub use self::terminal::{Stderr, stderr};
#[cfg(feature = "tower")]
pub use self::until_shutdown::UntilShutdown;

#[cfg(doc)] // `doc` is also set for doctests, and the doctests of the recipes need `tower`
#[cfg_attr(any(not(doctest), feature = "tower"), doc = include_str!("recipes.md"))]
#[cfg_attr(not(doctest), doc = include_str!("frameworks.md"))] // runtimes/ depends on the frameworks, and runs these doctests
pub mod recipes {}

#[cfg(doc)]
#[doc = include_str!("deployment.md")]
pub mod deployment {}

#[cfg(all(doctest, feature = "http", feature = "systemd", feature = "tower"))]
#[doc = include_str!("../README.md")]
struct Readme;
