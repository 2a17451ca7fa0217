use std::fmt::Display;
use std::io::{self, Write};
use std::process;

/// Why the process ends, if not because all is done.
#[derive(Debug)]
pub enum Exit {
    /// It was asked to say this.
    Told(&'static str),
    /// It cannot start.
    Unusable(String),
    /// The grace was over first: some work was aborted, or is still in flight.
    LeftBehind,
}

impl Exit {
    pub(crate) fn unusable(what: impl Display, error: impl Display) -> Self {
        Self::Unusable(format!("{what}: {error}"))
    }
}

/// Ends the process: 0 when all is done, 1 when work was left behind, 2 when it could not start.
///
/// It does not return to `main`, where dropping a runtime may wait for a write that hangs.
pub fn leave(ended: Result<(), Exit>) -> ! {
    process::exit(match ended {
        Ok(()) => 0,
        Err(Exit::Told(text)) => {
            tell(text);
            0
        }
        Err(Exit::LeftBehind) => 1,
        Err(Exit::Unusable(why)) => {
            log(format_args!("notes: {why}"));
            2
        }
    })
}

/// Writes a line to stdout. Nobody may be there to read it, which is no reason to panic: `println!` would.
pub(crate) fn tell(line: impl Display) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Writes a line to stderr, likewise: Ctrl-C ends the `tee` of `notes 2>&1 | tee log` as well, and the drain must go on.
pub(crate) fn log(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
