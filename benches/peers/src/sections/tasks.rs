use super::{BARE, REGISTRY, SWANSONG, TRACKER};
use crate::goals::Goal;
use crate::measure::{Contender, Pace, measure, nanos};
use crate::report::Table;
use async_executor::Executor;
use background_tasks::{Registry, TokioSpawner};
use futures_lite::future::block_on;
use std::thread;
use std::time::Instant;
use swansong::Swansong;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

pub const GROUP: &str = "task";

const TASKS: u32 = 100_000;
const BATCH: u32 = 100;

pub static EXECUTOR: Executor<'static> = Executor::new();

#[derive(Clone, Copy)]
pub enum Runtime {
    CurrentThread,
    TwoWorkers,
    /// The static [`EXECUTOR`] with this number of threads.
    Executor(u32),
}

#[derive(Clone, Copy)]
pub struct On {
    pub runtime: Runtime,
    pub tasks: u32,
}

pub fn run(pace: Pace) -> Vec<Table> {
    let runtimes = [
        ("tokio, current thread", Runtime::CurrentThread),
        ("tokio, 2 workers", Runtime::TwoWorkers),
        ("async-executor, 1 thread", Runtime::Executor(1)),
        ("async-executor, 2 threads", Runtime::Executor(2)),
    ];
    let columns = runtimes.map(|(_, runtime)| On { runtime, tasks: pace.count(TASKS) });
    let headers = runtimes.map(|(name, _)| name.to_owned()).into();
    let rows = measure(pace.rounds(21), &columns, &contenders());
    let table = Table::new("Run a task that is ready when first polled", "ns", REGISTRY, headers, rows).ratio(
        0..columns.len(),
        REGISTRY,
        BARE,
        Goal::at_most(1.05).stretch(1.02),
    );
    vec![table]
}

pub fn contenders() -> Vec<Contender<On>> {
    let (tokio, executor) = (Registry::new(TokioSpawner), Registry::new(&EXECUTOR));
    let tracker = TaskTracker::new();
    let [tracking, tracking_too] = [tracker.clone(), tracker.clone()];
    let swansong = Swansong::new();
    let swansong_too = swansong.clone();
    vec![
        contender(BARE, || drop(tokio::spawn(async {})), || EXECUTOR.spawn(async {}).detach()),
        contender(REGISTRY, move || tokio.run(async {}), move || executor.run(async {})),
        Contender::new(TRACKER, move |on| {
            let tracker = tracker.clone();
            on_tokio(on, move || drop(tracker.spawn(async {})))
        }),
        contender(
            "bare, track_future",
            move || drop(tokio::spawn(tracking.track_future(async {}))),
            move || EXECUTOR.spawn(tracking_too.track_future(async {})).detach(),
        ),
        contender(
            SWANSONG,
            move || drop(tokio::spawn(swansong.guarded(async {}))),
            move || EXECUTOR.spawn(swansong_too.guarded(async {})).detach(),
        ),
    ]
}

trait Spawn: Fn() + Clone + Send + Sync + 'static {}

impl<F: Fn() + Clone + Send + Sync + 'static> Spawn for F {}

fn contender(name: &'static str, tokio: impl Spawn, executor: impl Spawn) -> Contender<On> {
    Contender::new(name, move |on: On| match on.runtime {
        Runtime::Executor(threads) => Some(on_executor(threads, on.tasks, &executor)),
        Runtime::CurrentThread | Runtime::TwoWorkers => on_tokio(on, tokio.clone()),
    })
}

fn on_tokio(on: On, spawn: impl Spawn) -> Option<f64> {
    let runtime = match on.runtime {
        Runtime::CurrentThread => Builder::new_current_thread().build(),
        Runtime::TwoWorkers => Builder::new_multi_thread().worker_threads(2).build(),
        Runtime::Executor(_) => return None,
    }
    .expect("tokio starts");
    let spawner = runtime.spawn(async move {
        let metrics = Handle::current().metrics();
        // The number 1 is this task, which counts as alive too.
        batches(on.tasks, spawn, || metrics.num_alive_tasks() == 1, tokio::task::yield_now).await
    });
    Some(runtime.block_on(spawner).expect("no task panics"))
}

fn on_executor(threads: u32, tasks: u32, spawn: &impl Spawn) -> f64 {
    let stops: Vec<_> = (1..threads).map(|_| oneshot::channel::<()>()).collect();
    thread::scope(|scope| {
        let running: Vec<_> = stops
            .into_iter()
            .map(|(stop, stopped)| {
                scope.spawn(|| drop(block_on(EXECUTOR.run(stopped))));
                stop
            })
            .collect();
        let elapsed = block_on(EXECUTOR.run(batches(tasks, spawn, || EXECUTOR.is_empty(), futures_lite::future::yield_now)));
        drop(running);
        elapsed
    })
}

/// Measures all batches except the first, because the queues grow during the first batch.
async fn batches<T: Future>(tasks: u32, spawn: impl Fn(), is_done: impl Fn() -> bool, turn: impl Fn() -> T) -> f64 {
    let batch = async |size| {
        (0..size).for_each(|_| spawn());
        while !is_done() {
            turn().await;
        }
    };
    batch(BATCH).await;
    let start = Instant::now();
    let mut left = tasks;
    while left > 0 {
        let size = left.min(BATCH);
        batch(size).await;
        left -= size;
    }
    nanos(start.elapsed(), tasks)
}
