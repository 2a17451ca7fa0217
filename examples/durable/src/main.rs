//! Sign-ups over HTTP whose mails are sent by a worker, a process of its own: neither loses one, however it ends.

mod board;
mod mail;
mod options;
mod page;
mod server;
mod signups;
mod together;
mod worker;

use crate::options::{Options, Role};
use crate::server::Server;
use crate::signups::Signups;
use background_tasks::{Registry, TokioSpawner, TracingObserver};
use background_tasks_durable::Durable;
use background_tasks_host::Host;
use std::process::ExitCode;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

type Tasks = Registry<TokioSpawner>;

fn main() -> ExitCode {
    let options = match Options::from_env() {
        Ok(options) => options,
        Err(exit) => return exit,
    };
    tracing_subscriber::fmt().with_writer(background_tasks_host::stderr).init();
    let tasks = Registry::builder(TokioSpawner).observer(TracingObserver).inspect().build();
    // Before the runtime's threads: from here on no signal is lost.
    let host = Host::new(&tasks).grace(options.grace);
    Runtime::new().expect("threads and a poller").block_on(host.run(run(tasks, options)))
}

/// Runs until the shutdown has begun and what is its own is done.
async fn run(tasks: Tasks, options: Options) -> Result<(), String> {
    let jobs = Durable::connect(&options.database).await.map_err(|error| error.to_string())?;
    if options.role == Role::Worker {
        return worker::run(tasks, jobs, &options).await;
    }
    let server =
        Server::bind(tasks, Signups::new(jobs).await.map_err(|error| error.to_string())?, options.listen, options.board).await?;
    if options.role == Role::Server {
        return server.run().await;
    }
    // In this order: the worker may send what the last requests have committed.
    let (tell, end) = oneshot::channel();
    let serve = async {
        server.run().await?;
        drop(tell);
        Ok(())
    };
    tokio::try_join!(serve, together::keep_a_worker(&options, end)).map(drop)
}
