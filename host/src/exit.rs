//! Ends the process, even if output is blocked.

use crate::{bar, windows_service};
use std::process;
use std::thread;
use std::time::Duration;

/// Exits the process after `last_output` has run and stdout has been flushed. If a write blocks, exits when the timeout has expired.
pub(crate) fn exit_within(timeout: Duration, code: u8, last_output: impl FnOnce() + Send + 'static) -> ! {
    let exit = move || {
        bar::finish();
        last_output();
        windows_service::report_stopped(code);
        process::exit(code.into());
    };
    if thread::Builder::new().spawn(exit).is_ok() {
        thread::sleep(timeout);
    }
    // If the output is blocked, Windows must still receive the exit code. Otherwise, it would report a crash.
    windows_service::report_stopped(code);
    exit_now(code);
}

/// Exits the process immediately. Does not flush output or run destructors, so nothing can block the exit.
pub(crate) fn exit_now(code: u8) -> ! {
    // This function calls C's `_exit`, also on Windows.
    signal_hook::low_level::exit(code.into())
}
