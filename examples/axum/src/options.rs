use lexopt::prelude::*;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "\
Signs people up, and sends each of them a mail after the response.

Usage: signups [options]

  --address ADDRESS  listen on this address [default: 127.0.0.1:3000]
  --dir FOLDER       write the mails to the file `outbox` in this folder, and create it if it is missing [default: signups]
  --grace SECONDS    after SIGTERM or Ctrl-C, wait this long for tasks and requests [default: 25]
  --linger SECONDS   accept connections for this part of the grace period, so that load balancers see /readyz fail [default: 0]
  --dashboard        serve a dashboard at /background, where tasks can be aborted
  --help             print this help

  curl -d ada@example.com http://127.0.0.1:3000/signups    sign up
  curl http://127.0.0.1:3000/healthz                       liveness
  curl http://127.0.0.1:3000/readyz                        readiness: 503 once shutdown has started
  curl http://127.0.0.1:3000/metrics                       metrics for Prometheus

Exit status: 0 if all tasks have drained, 1 if the grace period expired first, 2 if the service failed to start
or to serve, 130 after a second SIGTERM or Ctrl-C.
";

pub(crate) struct Options {
    pub(crate) address: SocketAddr,
    pub(crate) dir: PathBuf,
    pub(crate) grace: Duration,
    pub(crate) linger: Duration,
    pub(crate) dashboard: bool,
}

impl Options {
    /// Returns an exit code if the process must exit, after printing the help or the error.
    pub(crate) fn from_args() -> Result<Self, ExitCode> {
        match parse(lexopt::Parser::from_env()) {
            Ok(Some(options)) => Ok(options),
            Ok(None) => {
                // Fails if stdout is closed.
                let _ = std::io::stdout().write_all(HELP.as_bytes());
                Err(ExitCode::SUCCESS)
            }
            Err(error) => {
                let _ = writeln!(background_tasks_host::stderr(), "signups: {error} (try --help)");
                Err(ExitCode::from(2))
            }
        }
    }
}

/// Returns `None` if the arguments ask for the help.
fn parse(mut args: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options {
        address: ([127, 0, 0, 1], 3000).into(),
        dir: "signups".into(),
        grace: Duration::from_secs(25),
        linger: Duration::ZERO,
        dashboard: false,
    };
    while let Some(arg) = args.next()? {
        match arg {
            Long("address") => options.address = args.value()?.parse()?,
            Long("dir") => options.dir = args.value()?.into(),
            Long("grace") => options.grace = args.value()?.parse_with(seconds)?,
            Long("linger") => options.linger = args.value()?.parse_with(seconds)?,
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
