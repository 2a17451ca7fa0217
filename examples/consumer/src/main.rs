//! A service that accepts sign-ups over HTTP and sends a mail to each address. The server sends a message for each mail to a broker. A
//! worker in a separate process receives the message and sends the mail.

mod broker;
#[path = "../../durable/src/mail.rs"]
mod mail;
mod options;
#[path = "../../durable/src/page.rs"]
mod page;
mod server;
mod signups;
#[path = "../../durable/src/together.rs"]
mod together;
#[path = "../../durable/src/values.rs"]
mod values;
mod worker;

use crate::broker::Broker;
use crate::options::Options;
use crate::server::Server;
use crate::values::Role;
use background_tasks::{Registry, TokioSpawner, TracingObserver};
use background_tasks_consumer::MemoryQueue;
use background_tasks_host::Host;
use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
use tokio::runtime::Runtime;

type Tasks = Registry<TokioSpawner>;

fn main() -> ExitCode {
    // If the command line is invalid or requests the help, this call prints a message and exits.
    let options = Options::parse();
    tracing_subscriber::fmt().with_writer(background_tasks_host::stderr).init();
    // With inspection, the host can abort handlers when the grace period expires. The messages of aborted handlers return to the broker
    // immediately.
    let tasks = Registry::builder(TokioSpawner).observer(TracingObserver).inspect().build();
    let mails = MemoryQueue::new(options.lease);
    // The host is created before the runtime starts its threads, so that no signal is lost. The subscriber above writes to the host's
    // stderr, so that log lines do not overwrite the progress bar.
    let host = Host::new(&tasks).grace(options.grace).progress_bar(true);
    let runtime = Runtime::new().expect("the runtime starts");
    let code = runtime.block_on(host.run(run(tasks, mails.clone(), options)));
    if !mails.is_empty() {
        let _ = writeln!(background_tasks_host::stderr(), "lost mails, which were in memory only: {}", mails.len());
    }
    code
}

/// Runs the server, the worker, or both, until shutdown has started and they have finished.
async fn run(tasks: Tasks, mails: MemoryQueue, options: Options) -> Result<(), String> {
    let broker = Broker::connect(&options, mails).await?;
    if options.role == Some(Role::Worker) {
        worker::start(&tasks, &broker, &options).await?;
        return together::until_stopped(&tasks, options.until_eof).await;
    }
    let server = Server::bind(tasks.clone(), &broker, &options).await?;
    match options.role {
        Some(_) => server.run().await,
        None if broker.is_in_memory() => {
            worker::start(&tasks, &broker, &options).await?;
            server.run().await
        }
        None => together::serve(server.run(), options.grace).await,
    }
}
