//! Parses values of the command line.

use clap::ValueEnum;
use std::env;
use std::ffi::OsString;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    Server,
    Worker,
}

/// The address of a mail server.
#[derive(Clone, Debug)]
pub(crate) struct Relay {
    pub(crate) host: String,
    pub(crate) port: u16,
}

pub(crate) fn relay(value: &str) -> Result<Relay, String> {
    let parts = value.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match parts {
        Some((host, port)) if !host.is_empty() => Ok(Relay { host: host.to_owned(), port }),
        _ => Err("expected HOST:PORT".into()),
    }
}

pub(crate) fn lease(value: &str) -> Result<Duration, String> {
    let lease = Duration::from_secs(value.parse().map_err(|_| "expected a whole number of seconds")?);
    if lease >= Duration::from_secs(3) { Ok(lease) } else { Err("the minimum is 3 seconds".into()) }
}

pub(crate) fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Returns the arguments of a child worker: the arguments of this process, but with half of the grace period. The worker drains
/// after the server, and both must end within the grace period of this process.
pub(crate) fn worker_args(grace: Duration) -> Vec<OsString> {
    let mut args = vec!["worker".into()];
    args.extend(env::args_os().skip(1));
    args.extend(["--until-eof".into(), "--grace".into(), (grace / 2).as_secs_f64().to_string().into()]);
    args
}
