//! Contains the tests that need no program with its own `main` function. The test binary `process` contains the other tests.

#[cfg(feature = "dashboard")]
mod dashboard;
#[cfg(feature = "tower")]
mod detach;
mod host;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "tower")]
mod layer;
#[cfg(all(target_os = "linux", feature = "systemd"))]
mod systemd;
#[cfg(feature = "tower")]
mod until_shutdown;
