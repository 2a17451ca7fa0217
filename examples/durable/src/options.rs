use crate::values::{Relay, Role, lease, relay, seconds};
use clap::Parser;
use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const MORE_HELP: &str = "\
DATABASE_URL is the path of a SQLite file, or postgres://USER:PASSWORD@HOST:PORT/NAME [default: signups.db]

Try:
  curl -d email=ada@example.com http://127.0.0.1:8080/signups    sign up
  curl http://127.0.0.1:8080/signups/ID                          show the status of the mail
  curl -N http://127.0.0.1:8080/signups/ID/events                stream the status of the mail

Exit status: 0 if drained, 1 if the grace period expired, 2 after an error or if the child worker has
not drained, 130 after a second SIGTERM or Ctrl-C.";

/// Signs people up. Each mail is a job in a database, and a worker sends it
#[derive(Debug, Parser)]
#[command(name = "durable-signups", args_override_self = true, after_help = MORE_HELP)]
pub(crate) struct Options {
    /// `server` serves HTTP, and `worker` sends mails; start any number of workers, on any number of machines [default: serve HTTP, and
    /// start a worker as a child process]
    pub(crate) role: Option<Role>,
    /// Listen for HTTP requests on this address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Accept requests to this host name too, not only to localhost and IP addresses; can be repeated
    #[arg(long = "host", value_name = "NAME")]
    pub(crate) hosts: Vec<String>,
    /// Serve the board, a page for operators, on this loopback address; `none` disables it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081", value_parser = board)]
    pub(crate) board: Board,
    /// Write each mail to a file in this folder; create the folder if it is missing
    #[arg(long, value_name = "FOLDER", default_value = "outbox")]
    pub(crate) outbox: PathBuf,
    /// Send the mails to this mail server without encryption, instead of writing them to files
    #[arg(long, value_name = "HOST:PORT", value_parser = relay)]
    pub(crate) smtp: Option<Relay>,
    /// Give the jobs of a worker to another worker after this time without a heartbeat; at least 3
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = lease)]
    pub(crate) lease: Duration,
    /// After SIGTERM or Ctrl-C, wait this long for the drain; a child worker drains after the server, and has half of this time
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) grace: Duration,
    /// For a worker: also stop when the standard input ends
    #[arg(long)]
    pub(crate) until_eof: bool,
}

/// The address of the board, or `None` if the board is disabled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Board(pub(crate) Option<SocketAddr>);

/// Returns the value of `DATABASE_URL`, or `signups.db` if the variable is not set.
pub(crate) fn database() -> String {
    env::var("DATABASE_URL").unwrap_or_else(|_| "signups.db".into())
}

/// Parses the address of the board. Accepts only loopback addresses, because the board has no login and shows mail addresses.
fn board(value: &str) -> Result<Board, String> {
    if value == "none" {
        return Ok(Board(None));
    }
    let address: SocketAddr = value.parse().map_err(|_| "expected an address with a port, or none")?;
    if address.ip().is_loopback() {
        Ok(Board(Some(address)))
    } else {
        Err("the board has no login, so it needs a loopback address".into())
    }
}
