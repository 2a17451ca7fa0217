use lexopt::prelude::*;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "\
Signs people up, and sends each a mail that survives a crash.

Usage: graphile-recipe migrate                    create the tables; run it once, before the others
       graphile-recipe sign-up ADDRESS...         sign people up
       graphile-recipe work [options]             send the mails until SIGTERM or Ctrl-C

DATABASE_URL is the URL of a Postgres database: postgres://user:password@host:port/database

  --lease SECONDS       how long a worker counts as alive after its last heartbeat [30]
  --grace SECONDS       how long to wait for mails in flight after SIGTERM or Ctrl-C [25]
  --takes MILLISECONDS  how long the simulated mail server takes [20]
  --help                print this help

Exit status: 0 if all mails in flight were sent or returned to the queue, 1 if the grace period expired
first, 2 after an error or if the database was lost, 130 after a second SIGTERM or Ctrl-C.
";

pub(crate) struct Options {
    pub(crate) url: String,
    pub(crate) command: Command,
}

pub(crate) enum Command {
    Migrate,
    SignUp { addresses: Vec<String> },
    Work { lease: Duration, grace: Duration, takes: Duration },
}

impl Options {
    /// Reads the options. Prints help or an error, and returns the exit code, if there is nothing to run.
    pub(crate) fn from_args() -> Result<Self, ExitCode> {
        match parse(lexopt::Parser::from_env()) {
            Ok(Some(command)) => match std::env::var("DATABASE_URL") {
                Ok(url) => Ok(Self { url, command }),
                Err(_) => Err(refuse("DATABASE_URL is not set")),
            },
            Ok(None) => {
                // The reader may have closed the pipe.
                let _ = std::io::stdout().write_all(HELP.as_bytes());
                Err(ExitCode::SUCCESS)
            }
            Err(error) => Err(refuse(&error.to_string())),
        }
    }
}

fn refuse(error: &str) -> ExitCode {
    let _ = writeln!(background_tasks_host::stderr(), "graphile-recipe: {error} (try --help)");
    ExitCode::from(2)
}

/// Returns `None` if `--help` was given.
fn parse(mut args: lexopt::Parser) -> Result<Option<Command>, lexopt::Error> {
    let mut words = Vec::new();
    let [mut lease, mut grace] = [30, 25].map(Duration::from_secs);
    let mut takes = Duration::from_millis(20);
    while let Some(arg) = args.next()? {
        match arg {
            Long("lease") => lease = args.value()?.parse_with(|value| seconds(value).and_then(long_enough))?,
            Long("grace") => grace = args.value()?.parse_with(seconds)?,
            Long("takes") => takes = Duration::from_millis(args.value()?.parse()?),
            Long("help") | Short('h') => return Ok(None),
            Value(word) => words.push(word.string()?),
            other @ (Long(_) | Short(_)) => return Err(other.unexpected()),
        }
    }
    let addresses = words.split_off(words.len().min(1));
    match words.first().map(String::as_str) {
        Some("migrate") if addresses.is_empty() => Ok(Some(Command::Migrate)),
        Some("sign-up") if !addresses.is_empty() => Ok(Some(Command::SignUp { addresses })),
        Some("work") if addresses.is_empty() => Ok(Some(Command::Work { lease, grace, takes })),
        _ => Err("expected migrate, sign-up with addresses, or work".into()),
    }
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn long_enough(lease: Duration) -> Result<Duration, String> {
    // A lease has five heartbeats.
    if lease < Duration::from_secs(1) { Err("the minimum is one second".into()) } else { Ok(lease) }
}
