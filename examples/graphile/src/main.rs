//! A program that signs people up and sends their mails with `graphile_worker` on Postgres. The mails survive a crash. No
//! crate of this project integrates `graphile_worker`, so the program itself connects the engine to the registry.

mod database;
mod options;
mod signups;
mod tasks;
mod worker;

use crate::database::{chain, connect};
use crate::options::{Command, Options};
use crate::signups::{migrate, sign_up};
use crate::worker::{RELEASE_TIMEOUT, Service, work};
use background_tasks::{Registry, TokioSpawner, TracingObserver};
use background_tasks_host::Host;
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;
use tracing::{Level, info};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

fn main() -> ExitCode {
    let Options { url, command } = Options::from_args();
    // Shows only warnings and errors of the engine, because it logs the payload of each finished job.
    let levels = Targets::new().with_default(Level::INFO).with_target("graphile_worker", Level::WARN);
    tracing_subscriber::registry()
        .with(tracing_subscriber::fmt::layer().with_writer(background_tasks_host::stderr))
        .with(levels)
        .init();

    let tasks = Registry::builder(TokioSpawner).observer(TracingObserver).inspect().build();
    let grace = if let Command::Work { grace, .. } = command { grace } else { Duration::ZERO };
    // Creates the host before the runtime starts threads, so that no signal is lost.
    let host = Host::new(&tasks).grace(grace + 2 * RELEASE_TIMEOUT);
    Runtime::new().expect("the runtime starts").block_on(host.run(run(tasks, url, command)))
}

async fn run(tasks: Registry<TokioSpawner>, url: String, command: Command) -> Result<(), String> {
    let pool = connect(&url).await?;
    match command {
        Command::Migrate => migrate(&pool).await.map_err(|error| format!("cannot create the tables: {}", chain(&*error))),
        Command::SignUp { addresses } => {
            for address in addresses {
                let signed =
                    sign_up(&pool, &address).await.map_err(|error| format!("cannot sign up {address}: {}", chain(&*error)))?;
                if let Some(signup) = signed {
                    info!("sign-up {signup}: {address}");
                } else {
                    info!("{address} has already signed up");
                }
            }
            Ok(())
        }
        Command::Work { lease, grace, takes } => work(Service { tasks, pool, takes }, lease, grace).await,
    }
}
