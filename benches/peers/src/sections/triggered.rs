use super::{ASYNC_SHUTDOWN, CANCELLATION, REGISTRY, SWANSONG, headers};
use crate::bars::Goal;
use crate::measure::{Contender, Load, Pace, measure, threaded};
use crate::report::Table;
use async_shutdown::ShutdownManager;
use background_tasks::Registry;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use swansong::Swansong;
use tokio_util::sync::CancellationToken;

const THREADS: [u32; 2] = [1, 2];
const LOOKS: u32 = 10_000_000;
const RELAXED: &str = "a relaxed load";

pub fn run(pace: Pace) -> Vec<Table> {
    let rows = measure(pace.rounds(11), &Load::each(&THREADS, pace.count(LOOKS)), &contenders());
    let table =
        Table::new("A look whether the shutdown has begun, ns (ratio to a registry's)", "ns", REGISTRY, headers(&THREADS), rows)
            .ratio(0..THREADS.len(), RELAXED, REGISTRY, Goal::at_least(0.9));
    vec![table]
}

fn contenders() -> Vec<Contender<Load>> {
    static PLAIN: AtomicUsize = AtomicUsize::new(0);
    let registry = Registry::new(());
    let signal = registry.signal();
    vec![
        looks(RELAXED, &PLAIN, |plain| plain.load(Ordering::Relaxed) != 0),
        looks(REGISTRY, (signal, registry), |(signal, _)| signal.is_triggered()),
        looks(CANCELLATION, CancellationToken::new(), CancellationToken::is_cancelled),
        looks(SWANSONG, Swansong::new(), |swansong| swansong.state().is_shutting_down()),
        looks(ASYNC_SHUTDOWN, ShutdownManager::<()>::new(), ShutdownManager::is_shutdown_triggered),
    ]
}

fn looks<S: Clone + Sync + 'static>(name: &'static str, shared: S, look: impl Fn(&S) -> bool + Sync + 'static) -> Contender<Load> {
    threaded(name, shared, move |shared, _| {
        black_box(look(black_box(shared)));
    })
}
