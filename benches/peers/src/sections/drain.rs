use super::{REGISTRY, TRACKER};
use crate::goals::Goal;
use crate::measure::{Contender, Pace};
use crate::report::Table;
use crate::waiting::{Waiting, contender, counted, table, two_workers};
use background_tasks::{Registry, TokioSpawner};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

const TASKS: u32 = 1_000_000;

/// The notification that all tasks wait for.
static GATE: Notify = Notify::const_new();

static IN_FLIGHT: AtomicU32 = AtomicU32::new(0);
static DRAINED: Notify = Notify::const_new();

pub fn run(pace: Pace) -> Vec<Table> {
    let title = "From the wake-up of all tasks to the end of the drain";
    let runtime = two_workers();
    let waiting = Waiting { runtime: &runtime, tasks: pace.count(TASKS) };
    let table = table(title, waiting, pace.rounds(7), &contenders());
    vec![table.ratio(0..1, REGISTRY, TRACKER, Goal::at_most(1.0))]
}

fn contenders<'a>() -> Vec<Contender<Waiting<'a>>> {
    vec![
        contender(
            "bare, one counter",
            || (),
            |()| {
                IN_FLIGHT.fetch_add(1, Ordering::Relaxed);
                drop(tokio::spawn(async {
                    counted(GATE.notified()).await;
                    if IN_FLIGHT.fetch_sub(1, Ordering::AcqRel) == 1 {
                        DRAINED.notify_one();
                    }
                }));
            },
            async |()| {
                GATE.notify_waiters();
                DRAINED.notified().await;
            },
        ),
        contender(
            REGISTRY,
            || Registry::new(TokioSpawner),
            |registry| registry.run(counted(GATE.notified())),
            async |registry| {
                GATE.notify_waiters();
                registry.shutdown().await;
            },
        ),
        contender(
            TRACKER,
            TaskTracker::new,
            |tracker| drop(tracker.spawn(counted(GATE.notified()))),
            async |tracker| {
                GATE.notify_waiters();
                tracker.close();
                tracker.wait().await;
            },
        ),
    ]
}
