use lexopt::prelude::*;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "\
Signs people up, and sends them a mail after the response.

Usage: signups [options]

  --address ADDRESS  listen there [127.0.0.1:3000]
  --dir FOLDER       write the mails to the file `outbox` in it; it is created if missing [signups]
  --grace SECONDS    after SIGTERM or Ctrl-C, wait this long for what is in flight [25]
  --linger SECONDS   of these, accept connections this long, for who has to see first that /readyz has turned false [0]
  --page             show the tasks at /background, where they can be aborted
  --help             say this

  curl -d ada@example.com http://127.0.0.1:3000/signups    sign up
  curl http://127.0.0.1:3000/healthz                       whether it lives
  curl http://127.0.0.1:3000/readyz                        whether it wants requests
  curl http://127.0.0.1:3000/metrics                       for Prometheus

Exit status: 0 when drained, 1 when the grace was over first, 2 when it could not start or serve,
130 after a second SIGTERM or Ctrl-C.
";

pub(crate) struct Options {
    pub(crate) address: SocketAddr,
    pub(crate) dir: PathBuf,
    pub(crate) grace: Duration,
    pub(crate) linger: Duration,
    pub(crate) page: bool,
}

impl Options {
    /// Returns the exit code if there is nothing to do, having said why.
    pub(crate) fn from_args() -> Result<Self, ExitCode> {
        match parse(lexopt::Parser::from_env()) {
            Ok(Some(options)) => Ok(options),
            Ok(None) => {
                // Nobody may be there to read it.
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

/// Returns `None` if help was asked for.
fn parse(mut args: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options {
        address: ([127, 0, 0, 1], 3000).into(),
        dir: "signups".into(),
        grace: Duration::from_secs(25),
        linger: Duration::ZERO,
        page: false,
    };
    while let Some(arg) = args.next()? {
        match arg {
            Long("address") => options.address = args.value()?.parse()?,
            Long("dir") => options.dir = args.value()?.into(),
            Long("grace") => options.grace = args.value()?.parse_with(seconds)?,
            Long("linger") => options.linger = args.value()?.parse_with(seconds)?,
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
