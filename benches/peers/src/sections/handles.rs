use super::tasks::{EXECUTOR, On, Runtime};
use super::{BARE, REGISTRY};
use crate::goals::Goal;
use crate::measure::{Contender, Pace, measure, nanos};
use crate::report::Table;
use background_tasks::{Registry, TokioSpawner};
use futures_lite::future::block_on;
use std::time::Instant;
use tokio::runtime::Builder;

const TASKS: u32 = 100_000;

/// The number of tasks that are started before the first task of them is awaited.
const BATCH: u32 = 100;

#[derive(Clone, Copy)]
struct Batches {
    on: On,
    size: u32,
}

pub fn run(pace: Pace) -> Vec<Table> {
    let tasks = pace.count(TASKS);
    let runtimes = [
        ("tokio, current thread", Runtime::CurrentThread),
        ("tokio, 2 workers", Runtime::TwoWorkers),
        ("async-executor", Runtime::Executor(1)),
    ];
    let each = runtimes.map(|(name, runtime)| {
        let column = |size| Batches { on: On { runtime, tasks }, size };
        [(format!("{name}, one by one"), column(1)), (format!("{name}, {BATCH} together"), column(BATCH))]
    });
    let (headers, columns): (Vec<_>, Vec<_>) = each.into_iter().flatten().unzip();
    let rows = measure(pace.rounds(21), &columns, &contenders());
    let table = Table::new("Start a task and await its output", "ns", REGISTRY, headers, rows)
        .ratio(0..4, REGISTRY, BARE, Goal::at_most(1.25))
        .ratio(4..6, REGISTRY, BARE, Goal::at_most(1.5));
    vec![table]
}

fn contenders() -> Vec<Contender<Batches>> {
    let (tokio, executor) = (Registry::new(TokioSpawner), Registry::new(&EXECUTOR));
    vec![
        contender(BARE, || tokio::spawn(async { 1 }), || EXECUTOR.spawn(async { 1 })),
        contender(REGISTRY, move || tokio.spawn(async { 1 }), move || executor.spawn(async { 1 })),
    ]
}

fn contender<T: Future + Send + 'static, E: Future>(
    name: &'static str,
    tokio: impl Fn() -> T + Clone + Send + Sync + 'static,
    executor: impl Fn() -> E + 'static,
) -> Contender<Batches> {
    Contender::new(name, move |Batches { on, size }| {
        let runtime = match on.runtime {
            Runtime::Executor(_) => return Some(block_on(EXECUTOR.run(batches(on.tasks, size, &executor)))),
            Runtime::CurrentThread => Builder::new_current_thread().build(),
            Runtime::TwoWorkers => Builder::new_multi_thread().worker_threads(2).build(),
        }
        .expect("tokio starts");
        let spawn = tokio.clone();
        let spawner = runtime.spawn(async move { batches(on.tasks, size, &spawn).await });
        Some(runtime.block_on(spawner).expect("no task panics"))
    })
}

/// Measures all batches except the first, because the queues grow during the first batch.
async fn batches<H: Future>(tasks: u32, size: u32, spawn: &impl Fn() -> H) -> f64 {
    let mut handles = Vec::new();
    let mut start = Instant::now();
    for batch in 0..=tasks / size {
        handles.extend((0..size).map(|_| spawn()));
        for handle in handles.drain(..) {
            handle.await;
        }
        if batch == 0 {
            start = Instant::now();
        }
    }
    nanos(start.elapsed(), tasks)
}
