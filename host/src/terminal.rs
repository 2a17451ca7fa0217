//! Writes the messages of the host to stderr. While the progress bar is shown, the messages appear above the bar.

use crate::bar;
use background_tasks::Stragglers;
use std::fmt::Display;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Returns a writer to stderr that never fails. Its lines appear above the progress bar of the drain.
///
/// Use this writer in your own [observers](background_tasks::Observer), and with tracing:
/// `tracing_subscriber::fmt().with_writer(background_tasks_host::stderr)`.
pub fn stderr() -> Stderr {
    Stderr { text: Vec::new() }
}

/// A writer to stderr. The writer buffers the text. When you flush or drop the writer, it writes the whole text above the progress bar.
///
/// Writing never fails, even if stderr is closed. For example, in `service 2>&1 | tee log`, Ctrl-C ends `tee` too. After this, `eprintln!`
/// would panic, but the drain must continue.
///
/// Do not use this writer while a write to `std::io::stderr` runs, for example in a `Display` implementation that logs. While the progress
/// bar is shown, this can cause a deadlock. One thread holds the lock of stderr and waits for the bar, and another thread holds the lock of
/// the bar and waits for stderr.
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

/// Logs a line. With the feature `tracing` and a subscriber, the line becomes a tracing event. Otherwise the line goes to stderr.
///
/// If the subscriber panics, this function ignores the panic, because the panic hook has already reported it.
pub(crate) fn log(level: Level, line: impl Display) {
    let _ = catch_unwind(AssertUnwindSafe(|| write_line(level, line)));
}

/// Logs the tasks that are still in flight. On stderr, one message lists all tasks. With a tracing subscriber, the host emits one event
/// with the counts, and one event for each task.
pub(crate) fn log_stragglers(level: Level, headline: &str, stragglers: &Stragglers) {
    #[cfg(feature = "tracing")]
    if emits_events() {
        let _ = catch_unwind(AssertUnwindSafe(|| events::stragglers(level, headline, stragglers)));
        return;
    }
    log(level, format_args!("{headline}: {stragglers:#}"));
}

/// Returns whether the host emits tracing events, because a subscriber is set. A subscriber that is set only for one thread of the program
/// does not exist on the threads of the host.
pub(crate) fn emits_events() -> bool {
    #[cfg(feature = "tracing")]
    return tracing::dispatcher::get_default(|dispatch| !dispatch.is::<tracing::subscriber::NoSubscriber>());
    #[cfg(not(feature = "tracing"))]
    false
}

fn write_line(level: Level, line: impl Display) {
    #[cfg(feature = "tracing")]
    if emits_events() {
        return events::line(level, line);
    }
    let _ = level;
    let _ = writeln!(stderr(), "{line}");
}

/// Emits tracing events. The events have no parent span, because they describe the whole process. The current span of a thread describes
/// only a part of it.
#[cfg(feature = "tracing")]
mod events {
    use super::Level;
    use background_tasks::{Stragglers, Summary};
    use std::fmt::Display;

    /// The host emits events for at most this many stragglers. With more events, the process could exit before it has written the last
    /// lines.
    const MAX_STRAGGLERS: usize = 100;

    /// Emits an event. This is a macro because `tracing` needs the level at compile time.
    macro_rules! emit {
        ($level:expr, $fields:tt, $($message:tt)*) => {
            match $level {
                Level::Info => tracing::info!(target: "background_tasks_host", parent: None, $fields, $($message)*),
                Level::Warn => tracing::warn!(target: "background_tasks_host", parent: None, $fields, $($message)*),
                Level::Error => tracing::error!(target: "background_tasks_host", parent: None, $fields, $($message)*),
            }
        };
    }

    pub(super) fn line(level: Level, line: impl Display) {
        emit!(level, {}, "{line}");
    }

    pub(super) fn stragglers(level: Level, headline: &str, stragglers: &Stragglers) {
        let in_flight = stragglers.len();
        let Summary { completed, failed, panicked, abandoned, aborted, rejected, .. } = stragglers.summary();
        emit!(level, { in_flight, completed, failed, panicked, abandoned, aborted, rejected }, "{headline}");
        for task in stragglers.tasks().iter().take(MAX_STRAGGLERS) {
            emit!(
                level,
                {
                    task.name = task.name(),
                    task.location = %task.location(),
                    task.id = task.id().map(tracing::field::display),
                    task.kind = task.kind().map(tracing::field::display),
                    task.age_seconds = task.age().map(|age| age.as_secs_f64()),
                    task.is_abortable = task.is_abortable(),
                    task.abort_requested = task.abort_requested().then_some(true),
                },
                "background task still in flight"
            );
        }
    }
}
