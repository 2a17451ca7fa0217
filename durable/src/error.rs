use background_tasks::RejectReason;
use std::{error, fmt, io};

/// The error of a call to this crate. A failed call has changed nothing, unless its documentation says otherwise.
///
/// After [`Error::Unavailable`], the call may have changed something, because the database may have become unavailable while it committed
/// the change.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The program has tried to create a [`Durable`](crate::Durable) outside a tokio runtime. The database driver needs this runtime,
    /// although jobs can run on any executor.
    NoRuntime,
    /// The address does not name a SQLite file or a Postgres database, or the name of the schema is invalid.
    Address(String),
    /// The database cannot be used at the moment. Either the database, its file or its folder does not exist, or the server does not
    /// respond, or no connection became free in time.
    Unavailable(String),
    /// Another connection held a lock of the database for longer than the time limit of this call.
    Locked(sqlx::Error),
    /// The disk is full.
    Full(sqlx::Error),
    /// The program has no permission to open or write the database.
    Denied(sqlx::Error),
    /// The tables do not belong to this version of the crate, or the file is not a SQLite database. On Postgres, this error can also mean
    /// that a connection pooler is not in session mode.
    Schema(String),
    /// The payload, result or checkpoint cannot be serialized as JSON.
    Encode(serde_json::Error),
    /// The stored value does not have the requested type.
    Decode(serde_json::Error),
    /// The registry rejected the task of a worker or a schedule.
    Refused(RejectReason),
    /// The schedule is invalid.
    Schedule(String),
    /// Ticks of a schedule were skipped, because no process enqueued their jobs in time. No call returns this error. Only the registry's
    /// observers receive it.
    MissedTicks(String),
    /// A worker could not renew its lease in time, or no longer holds a job. Another worker may already run the same job.
    LeaseLost(String),
    /// A part of this crate that runs in the background could not start, for example the heartbeats. No call returns this error. Only the
    /// registry's observers receive it.
    Engine(String),
    /// Any other error of the database.
    Database(sqlx::Error),
}

/// Describes the supported addresses, which depend on the enabled features.
const ADDRESSES: &str = match (cfg!(feature = "sqlite"), cfg!(feature = "postgres")) {
    (true, true) => "a path, sqlite://PATH or postgres://…",
    (true, false) => "a path or sqlite://PATH; for postgres://… enable the feature `postgres`",
    (false, true) => "postgres://…; for a path enable the feature `sqlite`",
    (false, false) => "a path (enable the feature `sqlite`) or postgres://… (enable the feature `postgres`)",
};

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRuntime => {
                f.write_str("no tokio runtime: the database driver needs one, so create a Durable within a tokio runtime")
            }
            Self::Address(text) => write!(f, "invalid database address: {text}; expected {ADDRESSES}"),
            Self::Unavailable(text) => f.write_str(text),
            Self::Locked(error) => write!(f, "the database is locked by another connection: {}", short(error)),
            Self::Full(error) => write!(f, "no space left for the database: {}", short(error)),
            Self::Denied(error) => write!(f, "no permission to open or write the database: {}", short(error)),
            Self::Schema(text) => write!(f, "incompatible database: {text}"),
            Self::Encode(error) => write!(f, "cannot serialize as JSON: {error}"),
            Self::Decode(error) => write!(f, "the stored value does not have the requested type: {error}"),
            Self::Refused(reason) => write!(f, "the registry rejected the task: {reason}"),
            Self::Schedule(text) => write!(f, "invalid schedule: {text}"),
            Self::MissedTicks(text) => write!(f, "missed ticks: {text}"),
            Self::LeaseLost(text) => write!(f, "lease lost: {text}"),
            Self::Engine(text) => write!(f, "the engine does not run: {text}"),
            Self::Database(error) => write!(f, "database error: {}", short(error)),
        }
    }
}

/// Returns the message of the database, without the text that the driver adds.
fn short(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(cause) => cause.message().to_owned(),
        sqlx::Error::Io(cause) => cause.to_string(),
        other => other.to_string(),
    }
}

fn pooler(message: &str) -> String {
    format!("{message}: a pooler must be in session mode")
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

/// Converts an error of the database driver according to its code. In a result code of SQLite, the lowest byte is the kind of the error
/// (<https://sqlite.org/rescode.html>). Postgres groups its SQLSTATE codes into classes
/// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            // If the server refuses connections or is still starting, the pool retries until its time limit expires, and then returns this
            // error.
            sqlx::Error::PoolTimedOut => {
                let text = "timed out waiting for a database connection: the database is unavailable or locked, or all connections are in use";
                Self::Unavailable(text.to_owned())
            }
            sqlx::Error::Io(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Self::Unavailable(format!("the database server is unavailable: {cause}"))
            }
            sqlx::Error::Database(cause) => {
                let code = cause.code().unwrap_or_default().into_owned();
                match code.parse::<u32>().map(|code| code & 0xff) {
                    Ok(5 | 6) if code.len() < 5 => return Self::Locked(error),
                    Ok(13) if code.len() < 5 => return Self::Full(error),
                    Ok(3 | 8 | 23) if code.len() < 5 => return Self::Denied(error),
                    Ok(14) if code.len() < 5 => return Self::Unavailable(format!("cannot open the database: {}", cause.message())),
                    Ok(11 | 26) if code.len() < 5 => return Self::Schema(cause.message().to_owned()),
                    Ok(1) if cause.message().starts_with("no such ") => return Self::Schema(cause.message().to_owned()),
                    _ => {}
                }
                match code.as_str() {
                    "55P03" => Self::Locked(error),
                    "53100" => Self::Full(error),
                    // The database does not exist, or the server has closed the connection or is still starting.
                    "3D000" | "57P01" | "57P02" | "57P03" | "57P05" => Self::Unavailable(cause.message().to_owned()),
                    "25006" | "42501" => Self::Denied(error),
                    // If a pooler is not in session mode, each call can use another connection to the server. On this connection, the
                    // prepared statement of the call is missing, or another process has prepared a statement with the same name.
                    "26000" | "42P05" => Self::Schema(pooler(cause.message())),
                    "08P01" if cause.message().contains("prepared statement") => Self::Schema(pooler(cause.message())),
                    code if code.starts_with("28") => Self::Denied(error),
                    "42P01" | "42703" | "42883" | "3F000" => Self::Schema(cause.message().to_owned()),
                    _ => Self::Database(error),
                }
            }
            _ => Self::Database(error),
        }
    }
}
