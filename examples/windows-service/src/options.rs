use clap::{Args, Parser, Subcommand};
use std::env;
use std::ffi::OsString;
use std::io;
use std::path::{self, PathBuf};
use std::time::Duration;

/// A day. Windows stores the time for the stop of a service as milliseconds in 32 bits.
const MAX_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

const MORE_HELP: &str = "\
Exit status: 0 if the command succeeded or all invoices in flight were sent, 1 if the grace period expired
first, 2 after an error, 130 after a second Ctrl-C. The service reports its exit status to Windows.";

/// Sends invoices as a Win32 service
#[derive(Debug, Parser)]
#[command(name = "invoices", after_help = MORE_HELP, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Install the service, as an administrator; the service runs with these options
    Install(Options),
    /// Stop and uninstall the service, as an administrator
    Uninstall,
    /// Run in this console until Ctrl-C
    Console(Options),
    /// Run as the service; only Windows uses this command
    Service(Options),
}

#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub(crate) struct Options {
    /// Write the file `invoices.log` in this folder [default: the folder for temporary files]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// After a request to stop, wait this long for invoices in flight
    #[arg(long, value_name = "SECONDS", default_value = "8", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) grace: Duration,
}

impl Command {
    /// Reads the arguments. Exits after printing the help or an error.
    pub(crate) fn from_args() -> Self {
        Arguments::parse().command
    }
}

impl Options {
    /// Returns the path of the log.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(env::temp_dir).join("invoices.log")
    }

    /// Returns the arguments with which Windows starts the service.
    pub(crate) fn service_arguments(&self) -> io::Result<Vec<OsString>> {
        let mut arguments = vec!["service".into(), "--grace".into(), self.grace.as_secs_f64().to_string().into()];
        if let Some(dir) = &self.dir {
            // Windows starts a service in another working folder, so the path must be absolute.
            arguments.extend(["--dir".into(), path::absolute(dir)?.into()]);
        }
        Ok(arguments)
    }
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.parse::<f64>().map_err(|error| error.to_string())?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if time > MAX_GRACE { Err(format!("the maximum is {} seconds", MAX_GRACE.as_secs())) } else { Ok(time) }
}
