//! Measures how long it takes until many waiting tasks have ended.

use crate::measure::{Contender, measure};
use crate::report::Table;
use crate::sections::REGISTRY;
use std::future::poll_fn;
use std::mem::take;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

#[derive(Clone, Copy)]
pub struct Waiting<'a> {
    pub runtime: &'a Runtime,
    pub tasks: u32,
}

/// The number of tasks of the current contender that wait after their first poll.
static PARKED: AtomicU32 = AtomicU32::new(0);

/// Returns a contender that starts each task with `start`. When all tasks wait, the contender measures how many milliseconds `drain`
/// takes.
pub fn contender<'a, T>(
    name: &'static str,
    new: impl Fn() -> T + 'static,
    start: impl Fn(&T) + 'static,
    drain: impl AsyncFn(&T) + 'static,
) -> Contender<Waiting<'a>> {
    Contender::new(name, move |Waiting { runtime, tasks }: Waiting<'a>| {
        let metrics = runtime.metrics();
        PARKED.store(0, Ordering::Relaxed);
        let host = new();
        runtime.block_on(async {
            while metrics.num_alive_tasks() > 0 {
                yield_now().await; // tasks of the previous contender are still alive
            }
            (0..tasks).for_each(|_| start(&host));
            while PARKED.load(Ordering::Relaxed) < tasks {
                yield_now().await;
            }
            let start = Instant::now();
            drain(&host).await;
            Some(start.elapsed().as_secs_f64() * 1e3)
        })
    })
}

/// Polls the future, and counts it in [`PARKED`] after its first poll.
pub async fn counted<F: Future>(future: F) {
    let mut future = pin!(future);
    let mut is_first = true;
    poll_fn(|cx| {
        let poll = future.as_mut().poll(cx);
        if take(&mut is_first) {
            assert!(poll.is_pending());
            PARKED.fetch_add(1, Ordering::Relaxed);
        }
        poll.map(drop)
    })
    .await;
}

pub fn two_workers() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).build().expect("tokio starts")
}

/// Measures the contenders on a runtime with two workers, and returns the table.
pub fn table<'a>(title: &'static str, waiting: Waiting<'a>, rounds: u32, contenders: &[Contender<Waiting<'a>>]) -> Table {
    let columns = vec![format!("{} tasks on 2 workers", waiting.tasks)];
    Table::new(title, "ms", REGISTRY, columns, measure(rounds, &[waiting], contenders))
}
