//! What is written for people, above the drain's bar while that is shown.

use std::fmt::Display;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Returns a writer to stderr that keeps out of the drain's bar, and does not mind that nobody reads.
///
/// For an [observer](crate::StderrObserver) of one's own, and for `tracing_subscriber::fmt().with_writer(background_tasks_host::stderr)`.
pub fn stderr() -> Stderr {
    Stderr { text: Vec::new() }
}

/// Writes to stderr, in one piece and above the drain's bar, what was written to it, when it is flushed or dropped.
///
/// Do not use it within a write to `std::io::stderr` (a `Display` that logs, say): it waits for that one's lock.
///
/// It never fails: that stderr is closed (Ctrl-C ends the `tee` of `service 2>&1 | tee log` as well) is no reason for a
/// drain to stop, where `eprintln!` would panic.
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
            bar::above(|| drop(io::stderr().lock().write_all(&text)));
        }
        Ok(())
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Info,
    Warn,
    Error,
}

/// Tells a line: as an event where this thread has a subscriber, which is one for all threads, on stderr otherwise. A subscriber's panic is its
/// hook's to tell.
pub(crate) fn tell(level: Level, line: impl Display) {
    let _ = catch_unwind(AssertUnwindSafe(|| tell_unshielded(level, line)));
}

fn tell_unshielded(level: Level, line: impl Display) {
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

/// The drain's bar, which is shown on a terminal alone.
#[cfg(feature = "bar")]
pub(crate) mod bar {
    use background_tasks::{Stragglers, TaskInfo};
    use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
    use std::io::{self, Write};
    use std::sync::LazyLock;
    use std::time::Duration;

    /// Hidden until a drain begins.
    static BAR: LazyLock<ProgressBar> = LazyLock::new(ProgressBar::hidden);
    const STYLE: &str = "draining [{bar:30}] {pos}/{len} after {elapsed} of {prefix}\n{wide_msg}";

    pub(crate) fn begin(grace: Duration) {
        let style = ProgressStyle::with_template(STYLE).expect("it is one").progress_chars("=> ");
        BAR.set_style(style);
        BAR.set_prefix(format!("{grace:?}"));
        let _ = writeln!(io::stderr()); // the terminal has just shown `^C`
        BAR.reset();
        BAR.set_draw_target(ProgressDrawTarget::stderr());
    }

    pub(crate) fn can_be_shown() -> bool {
        !ProgressDrawTarget::stderr().is_hidden()
    }

    pub(crate) fn show(ended: u64, in_flight: usize, stragglers: &Stragglers) {
        BAR.set_length(ended + in_flight as u64);
        BAR.set_position(ended);
        let groups = stragglers.groups().take(3).map(|(oldest, len)| describe(oldest, len));
        BAR.set_message(groups.collect::<Vec<_>>().join(", "));
    }

    /// Describes a group of stragglers, without the call site if they have a name.
    fn describe(oldest: &TaskInfo, len: usize) -> String {
        let task = oldest.name().map_or_else(|| oldest.to_string(), String::from);
        let age = oldest.age().map(|age| format!(" for {age:.1?}")).unwrap_or_default();
        format!("{len} × {task}{age}")
    }

    pub(crate) fn finish() {
        BAR.finish_and_clear();
    }

    pub(super) fn above(write: impl FnOnce()) {
        BAR.suspend(write);
    }
}

#[cfg(not(feature = "bar"))]
pub(crate) mod bar {
    use background_tasks::Stragglers;
    use std::time::Duration;

    pub(crate) fn begin(_grace: Duration) {}

    pub(crate) fn can_be_shown() -> bool {
        false
    }

    pub(crate) fn show(_ended: u64, _in_flight: usize, _stragglers: &Stragglers) {}

    pub(crate) fn finish() {}

    pub(super) fn above(write: impl FnOnce()) {
        write();
    }
}
