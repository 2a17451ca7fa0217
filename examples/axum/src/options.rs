use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, value_parser};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const MORE_HELP: &str = "\
Try:
  curl -d ada@example.com http://127.0.0.1:3000/signups    sign up
  curl http://127.0.0.1:3000/healthz                       liveness
  curl http://127.0.0.1:3000/readyz                        readiness: 503 during --delay
  curl http://127.0.0.1:3000/metrics                       metrics for Prometheus

Exit status: 0 if all tasks have drained, 1 if the grace period expired first, 2 if the service failed to start,
130 after a second SIGTERM or Ctrl-C.";

/// Signs people up, and sends each of them a mail after the response
#[derive(Debug, Parser)]
#[command(name = "signups", args_override_self = true, after_help = MORE_HELP)]
pub(crate) struct Options {
    /// Listen on this address, unless systemd passes a listener
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    pub(crate) listen: SocketAddr,
    /// Accept requests to this host name too, not only to localhost and IP addresses; can be repeated
    #[arg(long = "host", value_name = "NAME")]
    pub(crate) hosts: Vec<String>,
    /// Write the mails to the file `outbox` in this folder; create the folder if it is missing
    #[arg(long, value_name = "FOLDER", default_value = "signups")]
    pub(crate) dir: PathBuf,
    /// Answer 503 to a sign-up while this many mails are being sent
    #[arg(long, value_name = "MAILS", default_value = "4096", value_parser = value_parser!(u16).range(1..))]
    pub(crate) max_in_flight: u16,
    /// Simulate a mail server that needs this time for each mail
    #[arg(long, value_name = "MILLISECONDS", default_value = "20", value_parser = milliseconds)]
    pub(crate) takes: Duration,
    /// After SIGTERM or Ctrl-C, wait this long for tasks and requests
    #[arg(long, value_name = "SECONDS", default_value = "25", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) grace: Duration,
    /// After SIGTERM or Ctrl-C, accept requests for this time while /readyz answers 503; the time is part of the grace period
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) delay: Duration,
    /// Serve a dashboard at /background, where everyone who can connect can abort tasks; needs a loopback address
    #[arg(long)]
    pub(crate) dashboard: bool,
    /// Serve the dashboard on any address; add this option only if a proxy restricts access to it
    #[arg(long)]
    pub(crate) public_dashboard: bool,
}

impl Options {
    /// Parses the command line. If it requests the help or is invalid, prints the help or the error and exits.
    pub(crate) fn from_args() -> Self {
        let mut options = Self::parse();
        options.dashboard |= options.public_dashboard;
        if let Err(why) = options.check(options.listen) {
            Self::command().error(ErrorKind::ArgumentConflict, why).exit();
        }
        options
    }

    /// Checks that the dashboard may be served at `address`, the address of the listener.
    pub(crate) fn check(&self, address: SocketAddr) -> Result<(), &'static str> {
        if self.dashboard && !self.public_dashboard && !address.ip().is_loopback() {
            return Err(
                "the dashboard has no login: use a loopback address, or --public-dashboard if a proxy restricts access to it",
            );
        }
        Ok(())
    }
}

fn milliseconds(value: &str) -> Result<Duration, String> {
    value.parse().map(Duration::from_millis).map_err(|_| "expected a whole number of milliseconds".into())
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
