//! A service that accepts sign-ups over HTTP. A worker in a separate process sends the mails. No mail is lost if a process crashes.

mod board;
mod mail;
mod options;
mod page;
mod server;
mod signups;
mod together;
mod values;
mod worker;

use crate::options::{Options, database};
use crate::server::Server;
use crate::signups::Signups;
use crate::values::Role;
use background_tasks::{Registry, TokioSpawner, TracingObserver};
use background_tasks_durable::Durable;
use background_tasks_host::Host;
use clap::Parser;
use std::process::ExitCode;
use tokio::runtime::Runtime;

type Tasks = Registry<TokioSpawner>;

fn main() -> ExitCode {
    // If the command line is invalid or requests the help, this call prints a message and exits.
    let options = Options::parse();
    tracing_subscriber::fmt().with_writer(background_tasks_host::stderr).init();
    let tasks = Registry::builder(TokioSpawner).observer(TracingObserver).inspect().build();
    // Creates the host before the runtime starts threads, so that no signal is lost. The log is written to
    // `background_tasks_host::stderr`, so its lines appear above the progress bar.
    let host = Host::new(&tasks).grace(options.grace).progress_bar(true);
    Runtime::new().expect("the runtime starts").block_on(host.run(run(tasks, options)))
}

/// Runs the server, the worker, or both, until shutdown has started and they have finished.
async fn run(tasks: Tasks, options: Options) -> Result<(), String> {
    let jobs = Durable::connect(&database()).await.map_err(|error| error.to_string())?;
    if options.role == Some(Role::Worker) {
        return worker::run(tasks, jobs, &options).await;
    }
    let signups = Signups::new(jobs).await.map_err(|error| error.to_string())?;
    let server = Server::bind(tasks, signups, &options).await?;
    if options.role == Some(Role::Server) {
        return server.run().await;
    }
    together::serve(server.run(), options.grace).await
}
