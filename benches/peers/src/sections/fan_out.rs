use super::{ASYNC_SHUTDOWN, REGISTRY, SWANSONG};
use crate::goals::Goal;
use crate::measure::{Contender, Pace};
use crate::report::Table;
use crate::waiting::{Waiting, contender, counted, table, two_workers};
use async_shutdown::ShutdownManager;
use background_tasks::{Registry, TokioSpawner};
use std::future::pending;
use swansong::Swansong;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const TASKS: u32 = 100_000;
const PAIR: &str = "CancellationToken + TaskTracker";

pub fn run(pace: Pace) -> Vec<Table> {
    let title = "From the start of shutdown to the end of the drain";
    let runtime = two_workers();
    let waiting = Waiting { runtime: &runtime, tasks: pace.count(TASKS) };
    let table = table(title, waiting, pace.rounds(11), &contenders());
    vec![table.ratio(0..1, REGISTRY, PAIR, Goal::at_most(1.0).stretch(0.8))]
}

fn contenders<'a>() -> Vec<Contender<Waiting<'a>>> {
    vec![
        contender(
            REGISTRY,
            || Registry::new(TokioSpawner),
            |registry| registry.run(counted(registry.signal())),
            async |registry| {
                registry.shutdown().await;
            },
        ),
        contender(
            "registry, run_until_shutdown",
            || Registry::new(TokioSpawner),
            |registry| {
                let waits = registry.signal().run_until_shutdown(pending::<()>());
                registry.run(counted(waits));
            },
            async |registry| {
                registry.shutdown().await;
            },
        ),
        contender(
            PAIR,
            || (CancellationToken::new(), TaskTracker::new()),
            |(token, tracker)| drop(tracker.spawn(counted(token.clone().cancelled_owned()))),
            async |(token, tracker)| {
                token.cancel();
                tracker.close();
                tracker.wait().await;
            },
        ),
        contender(
            SWANSONG,
            Swansong::new,
            |swansong| drop(tokio::spawn(counted(swansong.interrupt(pending::<()>()).guarded()))),
            async |swansong| swansong.shut_down().await,
        ),
        contender(
            ASYNC_SHUTDOWN,
            ShutdownManager::<()>::new,
            |manager| {
                let waits = manager.wrap_delay_shutdown(counted(manager.wait_shutdown_triggered()));
                drop(tokio::spawn(waits.expect("no shutdown has completed")));
            },
            async |manager| {
                manager.trigger_shutdown(()).expect("no shutdown has started");
                manager.wait_shutdown_complete().await;
            },
        ),
    ]
}
