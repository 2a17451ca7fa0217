use super::{ASYNC_SHUTDOWN, CANCELLATION, REGISTRY, SWANSONG, headers};
use crate::goals::Goal;
use crate::measure::{Contender, Load, Pace, measure, threaded};
use crate::report::Table;
use async_shutdown::ShutdownManager;
use background_tasks::Registry;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use swansong::Swansong;
use tokio_util::sync::CancellationToken;

const THREADS: [u32; 2] = [1, 2];
const CHECKS: u32 = 10_000_000;
const RELAXED: &str = "relaxed load";

pub fn run(pace: Pace) -> Vec<Table> {
    let rows = measure(pace.rounds(11), &Load::each(&THREADS, pace.count(CHECKS)), &contenders());
    let table = Table::new("Check whether shutdown has started", "ns", REGISTRY, headers(&THREADS), rows).ratio(
        0..THREADS.len(),
        RELAXED,
        REGISTRY,
        Goal::at_least(0.9),
    );
    vec![table]
}

fn contenders() -> Vec<Contender<Load>> {
    static PLAIN: AtomicUsize = AtomicUsize::new(0);
    let registry = Registry::new(());
    let signal = registry.signal();
    vec![
        checks(RELAXED, &PLAIN, |plain| plain.load(Ordering::Relaxed) != 0),
        checks(REGISTRY, (signal, registry), |(signal, _)| signal.is_triggered()),
        checks(CANCELLATION, CancellationToken::new(), CancellationToken::is_cancelled),
        checks(SWANSONG, Swansong::new(), |swansong| swansong.state().is_shutting_down()),
        checks(ASYNC_SHUTDOWN, ShutdownManager::<()>::new(), ShutdownManager::is_shutdown_triggered),
    ]
}

fn checks<S: Clone + Sync + 'static>(
    name: &'static str,
    shared: S,
    is_triggered: impl Fn(&S) -> bool + Sync + 'static,
) -> Contender<Load> {
    threaded(name, shared, move |shared, _| {
        black_box(is_triggered(black_box(shared)));
    })
}
