use lexopt::prelude::*;
use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "\
Signs people up. The mail that each of them gets is a job in a database, which a worker sends.

Usage: durable-signups [server | worker] [options]

  server  answer HTTP
  worker  send mails: any number of them, on any number of machines
  without either: the server and, as a process of its own, a worker

  --listen ADDRESS  answer there [127.0.0.1:8080]
  --board ADDRESS   show the engine's board there, on a loopback address, or nowhere: none [127.0.0.1:8081]
  --outbox FOLDER   write each mail into a file there; it is created if missing [outbox]
  --smtp HOST:PORT  hand the mails to this mail server instead, without encryption
  --lease SECONDS   a worker that was not seen for so long is dead, and others get its mails; at least 3 [10]
  --grace SECONDS   after SIGTERM or Ctrl-C, wait this long for what is in flight; a worker that this process has
                    started has half of it, as its turn is last [20]
  --until-eof       worker: stop at the end of the standard input, too
  --help            say this

DATABASE_URL in the environment is a SQLite file, or postgres://USER:PASSWORD@HOST:PORT/NAME [signups.db]

  curl -d email=ada@example.com http://127.0.0.1:8080/signups    sign up
  curl http://127.0.0.1:8080/signups/ID                          what became of the mail
  curl -N http://127.0.0.1:8080/signups/ID/events                the same, as it happens

Exit status: 0 when drained, 1 when the grace was over first, 2 when it could not start or work, or
its worker has not drained, 130 after a second SIGTERM or Ctrl-C.
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
    /// Returns the exit code if there is nothing to do, having said why.
    pub(crate) fn from_env() -> Result<Self, ExitCode> {
        let database = env::var("DATABASE_URL").unwrap_or_else(|_| "signups.db".into());
        match parse(lexopt::Parser::from_env(), database) {
            Ok(Some(options)) => Ok(options),
            Ok(None) => {
                // Nobody may be there to read it.
                let _ = std::io::stdout().write_all(HELP.as_bytes());
                Err(ExitCode::SUCCESS)
            }
            Err(error) => {
                let _ = writeln!(background_tasks_host::stderr(), "durable-signups: {error} (try --help)");
                Err(ExitCode::from(2))
            }
        }
    }

    /// What a worker that this process starts is told: the same, and half of the grace, as its turn is last.
    pub(crate) fn of_worker(&self) -> Vec<OsString> {
        let mut args = vec!["worker".into()];
        args.extend(env::args_os().skip(1));
        args.extend(["--until-eof".into(), "--grace".into(), (self.grace / 2).as_secs_f64().to_string().into()]);
        args
    }
}

/// Returns `None` if help was asked for.
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
        _ => Err("it is either server or worker".into()),
    }
}

/// It has no login, and it shows addresses.
fn board(value: &str) -> Result<Option<SocketAddr>, String> {
    if value == "none" {
        return Ok(None);
    }
    let address: SocketAddr = value.parse().map_err(|_| "it is an address and a port, or none")?;
    if address.ip().is_loopback() {
        Ok(Some(address))
    } else {
        Err("the board has no login, so it is shown on a loopback address alone".into())
    }
}

fn relay(value: &str) -> Result<Relay, String> {
    let parts = value.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match parts {
        Some((host, port)) if !host.is_empty() => Ok(Relay { host: host.to_owned(), port }),
        _ => Err("a mail server is HOST:PORT".into()),
    }
}

fn lease(value: &str) -> Result<Duration, String> {
    let lease = Duration::from_secs(value.parse().map_err(|_| "it is a whole number of seconds")?);
    if lease >= Duration::from_secs(3) { Ok(lease) } else { Err("less than 3 seconds would take the living for dead".into()) }
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
