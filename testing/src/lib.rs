//! Helpers that the tests of several packages share.
//!
//! `webdriver.mjs` in this folder has the helpers of the tests that run in Chromium.
#![cfg(unix)]

mod http;
mod notify_socket;
mod process;
mod skip;
mod tmpfs;

pub use http::{Client, Response};
pub use notify_socket::NotifySocket;
pub use process::{
    Ended, Line, PATIENCE, Process, Signal, only_child, poll_until, poll_until_ok, poll_until_some, prefixed, with_open_files,
};
pub use skip::{run_or_skip, skip};
pub use tmpfs::Tmpfs;
