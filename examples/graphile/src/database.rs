//! Connects to Postgres. If the connection fails, the error names the cause.

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection, Error as DatabaseError};
use std::error::Error;
use std::time::Duration;
use tokio::time::timeout;

/// The time that the pool waits for a connection before it returns an error.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to the database at `url`. If the connection fails, the error names the server, the cause, and a remedy.
pub(crate) async fn connect(url: &str) -> Result<PgPool, String> {
    let expected = "set DATABASE_URL to postgres://user:password@host:port/database";
    let options: PgConnectOptions =
        url.parse().map_err(|error: DatabaseError| format!("invalid DATABASE_URL: {}; {expected}", chain(&error)))?;
    match PgPoolOptions::new().acquire_timeout(ACQUIRE_TIMEOUT).connect_with(options.clone()).await {
        Ok(pool) => Ok(pool),
        Err(error) => {
            let cause = if let DatabaseError::PoolTimedOut = error { cause_of_timeout(&options).await } else { error };
            let (host, port) = (options.get_host(), options.get_port());
            Err(format!("cannot connect to Postgres at {host}:{port}: {}; start the server, or {expected}", chain(&cause)))
        }
    }
}

/// Tries to connect once without the pool, to find the cause. The pool retries until its timeout, and does not report the cause.
async fn cause_of_timeout(options: &PgConnectOptions) -> DatabaseError {
    match timeout(Duration::from_secs(1), PgConnection::connect_with(options)).await {
        Ok(Err(cause)) => cause,
        _ => DatabaseError::PoolTimedOut,
    }
}

/// Returns the message of an error and the messages of its sources, separated by colons. If a message already contains the message of its
/// source, the source is not repeated.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let message = source.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        next = source.source();
    }
    text
}
