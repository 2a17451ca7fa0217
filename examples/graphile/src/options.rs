use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use std::time::Duration;

const MORE_HELP: &str = "\
DATABASE_URL is the URL of a Postgres database: postgres://user:password@host:port/database

Exit status: 0 if all mails in flight were sent or returned to the queue, 1 if some were not within two seconds after
the grace period, 2 after an error or if the connection to the database was lost, 130 after a second SIGTERM or Ctrl-C.";

/// Signs people up, and sends a mail to each of them; a crash loses no mail
#[derive(Debug, Parser)]
#[command(name = "graphile-recipe", after_help = MORE_HELP, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

pub(crate) struct Options {
    pub(crate) url: String,
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create the tables; run this command once, before the other commands
    Migrate,
    /// Sign people up
    SignUp {
        #[arg(required = true, value_name = "ADDRESS")]
        addresses: Vec<String>,
    },
    /// Send the mails until SIGTERM or Ctrl-C
    #[command(args_override_self = true)]
    Work {
        /// Give the jobs of a worker to another worker after this time without a heartbeat; at least 1
        #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = lease, allow_negative_numbers = true)]
        lease: Duration,
        /// After SIGTERM or Ctrl-C, wait this long for mails in flight
        #[arg(long, value_name = "SECONDS", default_value = "25", value_parser = seconds, allow_negative_numbers = true)]
        grace: Duration,
        /// Simulate a mail server that needs this time for each mail
        #[arg(long, value_name = "MILLISECONDS", default_value = "20", value_parser = milliseconds)]
        takes: Duration,
    },
}

impl Options {
    /// Parses the command line and reads `DATABASE_URL`. If the command line is invalid or requests the help, prints a message and exits.
    pub(crate) fn from_args() -> Self {
        let Arguments { command } = Arguments::parse();
        let no_url = |_| Arguments::command().error(ErrorKind::MissingRequiredArgument, "DATABASE_URL is not set").exit();
        Self { url: std::env::var("DATABASE_URL").unwrap_or_else(no_url), command }
    }
}

fn milliseconds(value: &str) -> Result<Duration, String> {
    value.parse().map(Duration::from_millis).map_err(|_| "expected a whole number of milliseconds".into())
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn lease(value: &str) -> Result<Duration, String> {
    // A worker sends five heartbeats within the time of a lease.
    seconds(value)
        .and_then(|lease| if lease < Duration::from_secs(1) { Err("the minimum is one second".into()) } else { Ok(lease) })
}
