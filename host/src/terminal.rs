//! Output for people: lines on stderr, above the progress bar while it is shown.

use crate::bar;
use std::fmt::Display;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Returns a writer to stderr that does not disturb the progress bar of the drain and never fails.
///
/// Use it in your own [observer](crate::StderrObserver), and with tracing:
/// `tracing_subscriber::fmt().with_writer(background_tasks_host::stderr)`.
pub fn stderr() -> Stderr {
    Stderr { text: Vec::new() }
}

/// A writer to stderr that buffers its text and writes it in one piece, above the progress bar, when it is flushed or dropped.
///
/// Writing never fails, even if stderr is closed: Ctrl-C also ends the `tee` of `service 2>&1 | tee log`, and the drain must continue then.
/// `eprintln!` would panic.
///
/// Do not use it during a write to `std::io::stderr` (in a `Display` that logs, for example): it deadlocks, because it takes the lock of stderr.
#[derive(Debug)]
pub struct Stderr {
    text: Vec<u8>,
}

impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let text = std::mem::take(&mut self.text);
        if !text.is_empty() {
            bar::suspend(|| drop(io::stderr().lock().write_all(&text)));
        }
        Ok(())
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

/// The severity of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Info,
    Warn,
    Error,
}

/// Logs a line: as a tracing event if this thread has a subscriber (which is then set for all threads), otherwise on stderr.
///
/// Ignores a panic of the subscriber, which the panic hook has already reported.
pub(crate) fn log(level: Level, line: impl Display) {
    let _ = catch_unwind(AssertUnwindSafe(|| write_line(level, line)));
}

fn write_line(level: Level, line: impl Display) {
    #[cfg(feature = "tracing")]
    if tracing::dispatcher::get_default(|dispatch| !dispatch.is::<tracing::subscriber::NoSubscriber>()) {
        return match level {
            Level::Info => tracing::info!(target: "background_tasks_host", "{line}"),
            Level::Warn => tracing::warn!(target: "background_tasks_host", "{line}"),
            Level::Error => tracing::error!(target: "background_tasks_host", "{line}"),
        };
    }
    let _ = level;
    let _ = writeln!(stderr(), "{line}");
}
