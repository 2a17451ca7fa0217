//! Provides helpers for the tests of all packages in this workspace.
//!
//! The file `webdriver.mjs` in this folder contains helpers for the tests that run in Chromium.

#[cfg(windows)]
mod console;
mod http;
#[cfg(unix)]
mod notify_socket;
mod port;
mod process;
#[cfg(unix)]
mod skip;
#[cfg(unix)]
mod systemd;
#[cfg(unix)]
mod tmpfs;

#[cfg(windows)]
pub use console::{Signal, raise_ctrl_c, raise_ctrl_c_on_request};
pub use http::{Client, Response};
#[cfg(unix)]
pub use notify_socket::NotifySocket;
pub use port::free_port;
pub use process::{Ended, Line, PATIENCE, Process, poll_until, poll_until_ok, poll_until_some};
#[cfg(unix)]
pub use process::{Signal, only_child, prefixed, with_open_files};
#[cfg(unix)]
pub use skip::{are_installed, run_or_skip, skip};
#[cfg(unix)]
pub use systemd::Systemd;
#[cfg(unix)]
pub use tmpfs::Tmpfs;
