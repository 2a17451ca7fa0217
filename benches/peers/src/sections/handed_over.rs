use super::{ASYNC_SHUTDOWN, INSPECTED, REGISTRY, SWANSONG, TRACKER};
use crate::goals::Goal;
use crate::measure::{Contender, Pace, measure, nanos};
use crate::report::Table;
use async_shutdown::ShutdownManager;
use background_tasks::Registry;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;
use swansong::Swansong;
use tokio_util::task::TaskTracker;

const TOKENS: u32 = 2_000_000;
const BATCH: u32 = 1000;
const BATCHES_BETWEEN: usize = 4;

pub fn run(pace: Pace) -> Vec<Table> {
    let rows = measure(pace.rounds(11), &[pace.count(TOKENS)], &contenders());
    let columns = vec!["2 threads".to_owned()];
    let table = Table::new("Create a token on one thread and drop it on another", "ns", REGISTRY, columns, rows)
        .ratio(0..1, TRACKER, REGISTRY, Goal::at_least(2.0))
        .ratio(0..1, SWANSONG, REGISTRY, Goal::at_least(1.5));
    vec![table]
}

fn contenders() -> Vec<Contender<u32>> {
    let registry = Registry::new(());
    let inspected = Registry::builder(()).inspect().build();
    let tracker = TaskTracker::new();
    let swansong = Swansong::new();
    let manager = ShutdownManager::<()>::new();
    vec![
        contender(REGISTRY, move || registry.guard()),
        contender(INSPECTED, move || inspected.guard()),
        contender(TRACKER, move || tracker.token()),
        contender(SWANSONG, move || swansong.guard()),
        contender(ASYNC_SHUTDOWN, move || manager.delay_shutdown_token()),
    ]
}

fn contender<T: Send + 'static>(name: &'static str, token: impl Fn() -> T + Sync + 'static) -> Contender<u32> {
    Contender::new(name, move |tokens| {
        let (sender, receiver) = sync_channel::<Vec<T>>(BATCHES_BETWEEN);
        let make = || {
            let start = Instant::now();
            for _ in 0..tokens / BATCH {
                sender.send((0..BATCH).map(|_| token()).collect()).expect("the other thread receives until the sender is dropped");
            }
            drop(sender);
            start
        };
        let start = thread::scope(|scope| {
            scope.spawn(move || receiver.into_iter().for_each(drop));
            make()
        });
        Some(nanos(start.elapsed(), tokens / BATCH * BATCH))
    })
}
