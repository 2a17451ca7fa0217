//! Ends the process, even if output is blocked.

use crate::{bar, windows_service};
use std::process;
use std::thread;
use std::time::Duration;

/// If `last_output` blocks, stdout must be flushed within this time.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(50);

/// Exits the process after `last_output` has run and stdout has been flushed. If a write blocks, exits soon after the timeout has expired.
pub(crate) fn exit_within(timeout: Duration, code: u8, last_output: impl FnOnce() + Send + 'static) -> ! {
    let exit = move || {
        windows_service::report_stopped(code);
        process::exit(code.into());
    };
    let write_and_exit = move || {
        bar::finish();
        last_output();
        exit();
    };
    run_within(timeout, write_and_exit);
    // Stderr is blocked, but it may be possible to flush stdout.
    run_within(FLUSH_TIMEOUT, exit);
    // If the output is blocked, Windows must still receive the exit code. Otherwise, it would report a crash.
    windows_service::report_stopped(code);
    exit_now(code);
}

/// Runs a function that ends the process, on another thread. Returns when the timeout has expired, or if the system refuses the thread.
fn run_within(timeout: Duration, exit: impl FnOnce() + Send + 'static) {
    if thread::Builder::new().spawn(exit).is_ok() {
        thread::sleep(timeout);
    }
}

/// Exits the process immediately. Does not flush output or run destructors, so nothing can block the exit.
pub(crate) fn exit_now(code: u8) -> ! {
    // This function calls C's `_exit`, also on Windows.
    signal_hook::low_level::exit(code.into())
}
