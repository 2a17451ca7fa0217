//! Shows the progress bar of a drain, if stderr is a terminal.

#[cfg(feature = "bar")]
mod imp {
    use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
    use std::io::{self, Write};
    use std::sync::LazyLock;
    use std::time::Duration;

    /// The progress bar, which is hidden until a drain starts.
    static BAR: LazyLock<ProgressBar> = LazyLock::new(ProgressBar::hidden);
    const TEMPLATE: &str = "draining [{bar:30}] {pos}/{len} after {elapsed} of {prefix}\n{wide_msg}";

    /// Returns whether stderr is a terminal that can show the bar.
    pub(crate) fn is_available() -> bool {
        !ProgressDrawTarget::stderr().is_hidden()
    }

    /// Shows the bar. `elapsed` is the part of the grace period that has elapsed.
    pub(crate) fn start(grace: Duration, elapsed: Duration) {
        let style = ProgressStyle::with_template(TEMPLATE).expect("the template is valid").progress_chars("=> ");
        BAR.set_style(style);
        BAR.set_prefix(format!("{grace:?}"));
        let _ = writeln!(io::stderr()); // the terminal shows `^C` in the current line
        BAR.reset();
        drop(BAR.clone().with_elapsed(elapsed));
        BAR.set_draw_target(ProgressDrawTarget::stderr());
    }

    pub(crate) fn update(ended: u64, in_flight: usize, oldest: String) {
        BAR.set_length(ended + in_flight as u64);
        BAR.set_position(ended);
        BAR.set_message(oldest);
    }

    pub(crate) fn finish() {
        BAR.finish_and_clear();
    }

    /// Hides the bar while `write` runs, so that the text that `write` writes appears above the bar.
    pub(crate) fn suspend(write: impl FnOnce()) {
        BAR.suspend(write);
    }
}

#[cfg(not(feature = "bar"))]
mod imp {
    use std::time::Duration;

    pub(crate) fn is_available() -> bool {
        false
    }

    pub(crate) fn start(_grace: Duration, _elapsed: Duration) {}

    pub(crate) fn update(_ended: u64, _in_flight: usize, _oldest: String) {}

    pub(crate) fn finish() {}

    pub(crate) fn suspend(write: impl FnOnce()) {
        write();
    }
}

pub(crate) use imp::{finish, is_available, start, suspend, update};
