use background_tasks_host::stderr;
use lexopt::prelude::*;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "\
A cache of notes in a folder, written after the response.

Usage: notes [options]

  --port PORT      listen on this port of 127.0.0.1, 0 for any that is free [7878]
  --dir FOLDER     keep the notes there; it is created if missing [notes-cache]
  --grace SECONDS  after SIGTERM or Ctrl-C, wait this long for what is in flight [10]
  --page           show the tasks at /background, where whoever reaches the port can abort them
  --help           say this

  curl -T file http://127.0.0.1:7878/notes/name    keep a note of up to 1 MiB
  curl http://127.0.0.1:7878/notes/name            read it back
  curl http://127.0.0.1:7878/                      how many are in flight, what was written
  curl http://127.0.0.1:7878/tasks                 what is in flight
  curl http://127.0.0.1:7878/readyz                whether it accepts more: 503 once it stops

Exit status: 0 when drained, 1 when the grace was over first, 2 when it could not start,
130 after a second SIGTERM or Ctrl-C.";

pub(crate) struct Options {
    pub(crate) port: u16,
    pub(crate) dir: PathBuf,
    pub(crate) grace: Duration,
    pub(crate) page: bool,
}

impl Options {
    /// Returns the process's exit code if that is all, which has been said then.
    pub(crate) fn from_args() -> Result<Self, ExitCode> {
        match parse(lexopt::Parser::from_env()) {
            Ok(Some(options)) => Ok(options),
            Ok(None) => {
                tell(HELP);
                Err(ExitCode::SUCCESS)
            }
            Err(error) => {
                let _ = writeln!(stderr(), "notes: {error} (try --help)");
                Err(2.into())
            }
        }
    }
}

/// Returns `None` if help was asked for.
fn parse(mut args: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options { port: 7878, dir: "notes-cache".into(), grace: Duration::from_secs(10), page: false };
    while let Some(arg) = args.next()? {
        match arg {
            Long("port") => options.port = args.value()?.parse()?,
            Long("dir") => options.dir = args.value()?.into(),
            Long("grace") => options.grace = args.value()?.parse_with(seconds)?,
            Long("page") => options.page = true,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(options))
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Writes a line to stdout. Nobody may be there to read it, which is no reason to panic: `println!` would.
pub(crate) fn tell(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
