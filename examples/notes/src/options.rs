use background_tasks_host::stderr;
use lexopt::prelude::*;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "\
Caches notes in a folder. Each note is written to disk after its response.

Usage: notes [options]

  --port PORT      listen on this port of 127.0.0.1; 0 selects a free port [default: 7878]
  --dir FOLDER     store the notes in this folder, and create it if it is missing [default: notes-cache]
  --grace SECONDS  after SIGTERM or Ctrl-C, wait this long for tasks and requests [default: 10]
  --dashboard      serve a dashboard at /background; everyone who can reach the port can abort tasks there
  --help           print this help

  curl -T file http://127.0.0.1:7878/notes/name    store a note of up to 1 MiB
  curl http://127.0.0.1:7878/notes/name            read the note
  curl http://127.0.0.1:7878/                      show what is in flight and what was written
  curl http://127.0.0.1:7878/tasks                 list what is in flight
  curl http://127.0.0.1:7878/readyz                readiness: 503 once shutdown has started

Exit status: 0 if all tasks have drained, 1 if the grace period expired first, 2 if the
service failed to start, 130 after a second SIGTERM or Ctrl-C.";

pub(crate) struct Options {
    pub(crate) port: u16,
    pub(crate) dir: PathBuf,
    pub(crate) grace: Duration,
    pub(crate) dashboard: bool,
}

impl Options {
    /// Returns an exit code if the process must exit, after printing the help or the error.
    pub(crate) fn from_args() -> Result<Self, ExitCode> {
        match parse(lexopt::Parser::from_env()) {
            Ok(Some(options)) => Ok(options),
            Ok(None) => {
                print(HELP);
                Err(ExitCode::SUCCESS)
            }
            Err(error) => {
                let _ = writeln!(stderr(), "notes: {error} (try --help)");
                Err(2.into())
            }
        }
    }
}

/// Returns `None` if the arguments ask for the help.
fn parse(mut args: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options { port: 7878, dir: "notes-cache".into(), grace: Duration::from_secs(10), dashboard: false };
    while let Some(arg) = args.next()? {
        match arg {
            Long("port") => options.port = args.value()?.parse()?,
            Long("dir") => options.dir = args.value()?.into(),
            Long("grace") => options.grace = args.value()?.parse_with(seconds)?,
            Long("dashboard") => options.dashboard = true,
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

/// Writes a line to stdout. Unlike `println!`, it does not panic if stdout is closed.
pub(crate) fn print(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
