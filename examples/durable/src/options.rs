use lexopt::prelude::*;
use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "\
Signs people up. The mail to each of them is a job in a database, which a worker sends.

Usage: durable-signups [server | worker] [options]

  server  serve HTTP
  worker  send mails: any number of workers, on any number of machines
  without either: serve HTTP, and start a worker as a child process

  --listen ADDRESS  address of the HTTP server [127.0.0.1:8080]
  --board ADDRESS   loopback address of the engine's board, or none to disable it [127.0.0.1:8081]
  --outbox FOLDER   write each mail to a file in this folder, which is created if missing [outbox]
  --smtp HOST:PORT  send the mails to this mail server instead, without encryption
  --lease SECONDS   how long a worker counts as alive after its last heartbeat; at least 3 [10]
  --grace SECONDS   how long to drain after SIGTERM or Ctrl-C; a child worker drains after the
                    server, with half of this time [20]
  --until-eof       worker: also stop at the end of the standard input
  --help            print this help

DATABASE_URL is the path of a SQLite file, or postgres://USER:PASSWORD@HOST:PORT/NAME [signups.db]

  curl -d email=ada@example.com http://127.0.0.1:8080/signups    sign up
  curl http://127.0.0.1:8080/signups/ID                          show the status of the mail
  curl -N http://127.0.0.1:8080/signups/ID/events                stream the status of the mail

Exit status: 0 if drained, 1 if the grace period expired, 2 after an error or if the child worker has
not drained, 130 after a second SIGTERM or Ctrl-C.
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Together,
    Server,
    Worker,
}

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) role: Role,
    pub(crate) database: String,
    pub(crate) listen: SocketAddr,
    pub(crate) board: Option<SocketAddr>,
    pub(crate) outbox: PathBuf,
    pub(crate) smtp: Option<Relay>,
    pub(crate) lease: Duration,
    pub(crate) grace: Duration,
    pub(crate) until_eof: bool,
}

/// A mail server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Relay {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Options {
    /// Reads the options. Prints help or an error, and returns the exit code, if there is nothing to run.
    pub(crate) fn from_env() -> Result<Self, ExitCode> {
        let database = env::var("DATABASE_URL").unwrap_or_else(|_| "signups.db".into());
        match parse(lexopt::Parser::from_env(), database) {
            Ok(Some(options)) => Ok(options),
            Ok(None) => {
                // The reader may have closed the pipe.
                let _ = std::io::stdout().write_all(HELP.as_bytes());
                Err(ExitCode::SUCCESS)
            }
            Err(error) => {
                let _ = writeln!(background_tasks_host::stderr(), "durable-signups: {error} (try --help)");
                Err(ExitCode::from(2))
            }
        }
    }

    /// Returns the arguments of a child worker: the same options, but half of the grace period, because it drains last.
    pub(crate) fn worker_args(&self) -> Vec<OsString> {
        let mut args = vec!["worker".into()];
        args.extend(env::args_os().skip(1));
        args.extend(["--until-eof".into(), "--grace".into(), (self.grace / 2).as_secs_f64().to_string().into()]);
        args
    }
}

/// Returns `None` if `--help` was given.
fn parse(mut args: lexopt::Parser, database: String) -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options {
        role: Role::Together,
        database,
        listen: ([127, 0, 0, 1], 8080).into(),
        board: Some(([127, 0, 0, 1], 8081).into()),
        outbox: "outbox".into(),
        smtp: None,
        lease: Duration::from_secs(10),
        grace: Duration::from_secs(20),
        until_eof: false,
    };
    while let Some(arg) = args.next()? {
        match arg {
            Value(role) if options.role == Role::Together => options.role = role.parse_with(self::role)?,
            Long("listen") => options.listen = args.value()?.parse()?,
            Long("board") => options.board = args.value()?.parse_with(board)?,
            Long("outbox") => options.outbox = args.value()?.into(),
            Long("smtp") => options.smtp = Some(args.value()?.parse_with(relay)?),
            Long("lease") => options.lease = args.value()?.parse_with(lease)?,
            Long("grace") => options.grace = args.value()?.parse_with(seconds)?,
            Long("until-eof") => options.until_eof = true,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(options))
}

fn role(value: &str) -> Result<Role, String> {
    match value {
        "server" => Ok(Role::Server),
        "worker" => Ok(Role::Worker),
        _ => Err("expected server or worker".into()),
    }
}

/// Accepts loopback addresses only, because the board has no login and shows mail addresses.
fn board(value: &str) -> Result<Option<SocketAddr>, String> {
    if value == "none" {
        return Ok(None);
    }
    let address: SocketAddr = value.parse().map_err(|_| "expected an address with a port, or none")?;
    if address.ip().is_loopback() {
        Ok(Some(address))
    } else {
        Err("the board has no login, so it needs a loopback address".into())
    }
}

fn relay(value: &str) -> Result<Relay, String> {
    let parts = value.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match parts {
        Some((host, port)) if !host.is_empty() => Ok(Relay { host: host.to_owned(), port }),
        _ => Err("expected HOST:PORT".into()),
    }
}

fn lease(value: &str) -> Result<Duration, String> {
    let lease = Duration::from_secs(value.parse().map_err(|_| "expected a whole number of seconds")?);
    if lease >= Duration::from_secs(3) { Ok(lease) } else { Err("the minimum is 3 seconds".into()) }
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
