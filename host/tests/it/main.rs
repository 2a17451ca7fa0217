//! Contains the tests that need no separate process. The tests that start processes are in the test target `process`.

#[cfg(feature = "dashboard")]
mod dashboard;
#[cfg(feature = "tower")]
mod detach;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "tower")]
mod layer;
#[cfg(all(target_os = "linux", feature = "systemd"))]
mod systemd;
#[cfg(feature = "tower")]
mod until_shutdown;
