use background_tasks::RejectReason;
use std::{error, fmt, io};

/// Why the store did not do what it was asked. Each says in a sentence what is wrong, and what was asked has not been done, unless
/// [`Queue::enqueue`](crate::Queue::enqueue) says otherwise.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// There is no tokio runtime here, which the database's driver needs. Jobs can run on any executor, but a [`Durable`](crate::Durable)
    /// is made within one.
    NoRuntime,
    /// This is not the address of a database that keeps what it is given.
    Address(String),
    /// The file, its folder, the database or its server is not there, or not any more; or no connection to it was to be had in time.
    Missing(String),
    /// Somebody else held the database for longer than the time-out.
    Locked(sqlx::Error),
    /// There is no space left.
    Full(sqlx::Error),
    /// The database may not be opened or written.
    Denied(sqlx::Error),
    /// The tables are not those of this version, or the file is no database.
    Schema(String),
    /// The job is not to be told in JSON.
    Encode(serde_json::Error),
    /// What the store has of the job is not what was asked for.
    Decode(serde_json::Error),
    /// The registry does not take a worker any more.
    Refused(RejectReason),
    /// The schedule is none.
    Schedule(String),
    /// The engine stopped, which it should not.
    Engine(String),
    /// The database said something else.
    Database(sqlx::Error),
}

/// With the features that the program has.
const KINDS: &str = match (cfg!(feature = "sqlite"), cfg!(feature = "postgres")) {
    (true, true) => "a path, sqlite://PATH or postgres://…",
    (true, false) => "a path or sqlite://PATH; or postgres://…, which takes the feature `postgres`",
    (false, true) => "postgres://…; or a path, which takes the feature `sqlite`",
    (false, false) => "a path, which takes the feature `sqlite`, or postgres://…, which takes the feature `postgres`",
};

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRuntime => {
                f.write_str("there is no tokio runtime here, which the database's driver needs: make a Durable within one")
            }
            Self::Address(text) => {
                write!(f, "{text} is no address of a database that keeps jobs: {KINDS}")
            }
            Self::Missing(text) => f.write_str(text),
            Self::Locked(error) => write!(f, "the database is locked by somebody else: {}", bare(error)),
            Self::Full(error) => write!(f, "there is no space left for the database: {}", bare(error)),
            Self::Denied(error) => write!(f, "the database may not be opened or written: {}", bare(error)),
            Self::Schema(text) => write!(f, "this is no database with the tables of this version: {text}"),
            Self::Encode(error) => write!(f, "the job cannot be written as JSON: {error}"),
            Self::Decode(error) => write!(f, "what is stored is not what was asked for: {error}"),
            Self::Refused(reason) => write!(f, "no worker was started: {reason}"),
            Self::Schedule(text) => write!(f, "this is no schedule: {text}"),
            Self::Engine(text) => write!(f, "the engine stopped: {text}"),
            Self::Database(error) => write!(f, "the database says: {}", bare(error)),
        }
    }
}

/// Without what the driver puts before and behind it.
fn bare(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(told) => told.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Locked(error) | Self::Full(error) | Self::Denied(error) | Self::Database(error) => Some(error),
            Self::Encode(error) | Self::Decode(error) => Some(error),
            Self::Refused(reason) => Some(reason),
            _ => None,
        }
    }
}

/// Result codes of SQLite, of which the lowest byte is the kind: <https://sqlite.org/rescode.html>; and classes of
/// SQLSTATE: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            // While a server refuses connections, or starts, the pool tries again until its time is over.
            sqlx::Error::PoolTimedOut => {
                let text = "no connection to the database was to be had in time: it is away or locked, or others have them all";
                Self::Missing(text.to_owned())
            }
            sqlx::Error::Io(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Self::Missing(format!("the server of the database is not there: {cause}"))
            }
            sqlx::Error::Database(told) => {
                let code = told.code().unwrap_or_default().into_owned();
                match code.parse::<u32>().map(|code| code & 0xff) {
                    Ok(5 | 6) if code.len() < 5 => return Self::Locked(error),
                    Ok(13) if code.len() < 5 => return Self::Full(error),
                    Ok(3 | 8 | 23) if code.len() < 5 => return Self::Denied(error),
                    Ok(14) if code.len() < 5 => return Self::Missing(format!("the database cannot be opened: {}", told.message())),
                    Ok(11 | 26) if code.len() < 5 => return Self::Schema(told.message().to_owned()),
                    Ok(1) if told.message().starts_with("no such ") => return Self::Schema(told.message().to_owned()),
                    _ => {}
                }
                match code.as_str() {
                    "55P03" => Self::Locked(error),
                    "53100" => Self::Full(error),
                    "3D000" => Self::Missing(told.message().to_owned()),
                    "25006" | "42501" => Self::Denied(error),
                    code if code.starts_with("28") => Self::Denied(error),
                    "42P01" | "42703" | "42883" | "3F000" => Self::Schema(told.message().to_owned()),
                    _ => Self::Database(error),
                }
            }
            _ => Self::Database(error),
        }
    }
}
