//! The connection to Postgres, and errors that name the cause if there is no connection.

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection, Error as DatabaseError};
use std::error::Error;
use std::time::Duration;
use tokio::time::timeout;

/// How long the pool waits for a connection before it reports an error.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to the database of a URL. An error names the server that did not accept the connection, the cause, and what to do.
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

/// Connects once more, without the pool: the pool retries until its timeout, and does not report the cause.
async fn cause_of_timeout(options: &PgConnectOptions) -> DatabaseError {
    match timeout(Duration::from_secs(1), PgConnection::connect_with(options)).await {
        Ok(Err(cause)) => cause,
        _ => DatabaseError::PoolTimedOut,
    }
}

/// Returns the message of an error and the messages of its sources. Many messages contain the message of their source, which is not repeated.
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
