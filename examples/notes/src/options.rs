use crate::folder::MAX_NOTE;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Caches notes in a folder. Each note is written to disk after its response.
#[derive(clap::Parser)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Options {
    /// Listen on this loopback address, because the service has no login; port 0 selects a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7878", value_parser = loopback)]
    pub(crate) listen: SocketAddr,
    /// Store the notes in this folder; create the folder if it is missing
    #[arg(long, value_name = "FOLDER", default_value = "notes-cache")]
    pub(crate) dir: PathBuf,
    /// After SIGTERM or Ctrl-C, wait this long for tasks and requests
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) grace: Duration,
    /// Answer 503 if the notes that are being received, written and sent need more memory than this
    #[arg(long, value_name = "MIB", default_value = "256", value_parser = mebibytes)]
    pub(crate) memory: usize,
    /// Serve a dashboard at /background; everyone who can reach the port can abort tasks there
    #[arg(long)]
    pub(crate) dashboard: bool,
    /// Simulate a disk that hangs: if this folder has a named pipe with the name of a note, reads and writes of the note wait until a
    /// program opens the pipe for writing
    #[arg(long, value_name = "FOLDER")]
    pub(crate) stall: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Examples:
  curl -T file http://127.0.0.1:7878/notes/name    store a note of up to 1 MiB
  curl http://127.0.0.1:7878/notes/name            read the note
  curl http://127.0.0.1:7878/                      show the tasks in flight and the notes
  curl http://127.0.0.1:7878/tasks                 list the tasks in flight
  curl http://127.0.0.1:7878/readyz                readiness: 503 after shutdown has started

Exit status: 0 if all tasks have drained, 1 if the grace period expired first, 2 if the
service failed to start, 130 after a second SIGTERM or Ctrl-C.";

fn loopback(value: &str) -> Result<SocketAddr, String> {
    let address = value.parse::<SocketAddr>().map_err(|error| error.to_string())?;
    if address.ip().is_loopback() { Ok(address) } else { Err("expected a loopback address".into()) }
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn mebibytes(value: &str) -> Result<usize, String> {
    let bytes = value.parse::<usize>().map_err(|error| error.to_string())?.checked_mul(1 << 20);
    bytes.filter(|bytes| *bytes > MAX_NOTE).ok_or_else(|| "the minimum is 2".into())
}

/// Writes a line to stdout. Unlike `println!`, this function does not panic if stdout is closed.
pub(crate) fn print(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
