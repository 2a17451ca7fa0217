use crate::values::{Relay, Role, lease, relay, seconds};
use clap::Parser;
use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const MORE_HELP: &str = "\
QUEUE_URL is the broker [default: memory]
  memory                                          the memory of this process: the mails are lost when it exits
  nats://HOST:4222                                NATS JetStream
  amqp://USER:PASSWORD@HOST:5672/%2f              RabbitMQ
  http://HOST:10001/devstoreaccount1?SAS          azurite, with a shared access signature of the account
  sqs+https://sqs.REGION.amazonaws.com/ACCOUNT    Amazon SQS, with the variables or files of the AWS CLI

Try:
  curl -d email=ada@example.com http://127.0.0.1:8080/signups    sign up
  curl http://127.0.0.1:8080/signups/ID                          show the status of the mail
  curl -N http://127.0.0.1:8080/signups/ID/events                stream the status of the mail

Exit status: 0 if drained, 1 if the grace period expired, 2 after an error or if the child worker has
not drained, 130 after a second SIGTERM or Ctrl-C.";

/// Signs people up. Each mail is a message in the queue of a broker, and a worker sends it
#[derive(Debug, Parser)]
#[command(name = "broker-signups", args_override_self = true, after_help = MORE_HELP)]
pub(crate) struct Options {
    /// `server` serves HTTP, and `worker` sends mails; start any number of workers, on any number of machines [default: serve HTTP, and
    /// send mails in a child process or, without a broker, in this process]
    pub(crate) role: Option<Role>,
    /// Listen for HTTP requests on this address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Write each mail to a file in this folder; create the folder if it is missing
    #[arg(long, value_name = "FOLDER", default_value = "outbox")]
    pub(crate) outbox: PathBuf,
    /// Send the mails to this mail server without encryption, instead of writing them to files
    #[arg(long, value_name = "HOST:PORT", value_parser = relay)]
    pub(crate) smtp: Option<Relay>,
    /// Deliver a message to another worker if its worker has not extended the lease for this time; at least 3; with NATS, the first process
    /// sets this time; RabbitMQ ignores it
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = lease)]
    pub(crate) lease: Duration,
    /// After SIGTERM or Ctrl-C, wait this long for the drain; a child worker drains after the server, and has half of this time
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) grace: Duration,
    /// For a worker: also stop when the standard input ends
    #[arg(long)]
    pub(crate) until_eof: bool,
}

/// Returns the value of `QUEUE_URL`, or `memory` if the variable is not set.
pub(crate) fn queue_url() -> String {
    env::var("QUEUE_URL").unwrap_or_else(|_| "memory".into())
}
