use super::{ASYNC_SHUTDOWN, BARE, GRACEFUL, INSPECTED, NoopObserver, REGISTRY, SWANSONG, TRACKER, headers};
use crate::goals::Goal;
use crate::measure::{Contender, Load, Pace, measure, threaded};
use crate::report::Table;
use async_shutdown::ShutdownManager;
use background_tasks::Registry;
use std::future::pending;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use swansong::Swansong;
use tokio_graceful::{Shutdown, ShutdownGuard};
use tokio_util::task::TaskTracker;

pub const GROUP: &str = "token";

const THREADS: [u32; 5] = [1, 2, 4, 8, 64];
const TOKENS: u32 = 2_000_000;
const REPORTING: &str = "swansong, guard report";

pub fn run(pace: Pace) -> Vec<Table> {
    let rows = measure(pace.rounds(11), &Load::each(&THREADS, pace.count(TOKENS)), &contenders());
    let all = 0..THREADS.len();
    let table = Table::new("Create and drop a token", "ns", REGISTRY, headers(&THREADS), rows)
        .ratio(0..1, BARE, REGISTRY, Goal::at_least(0.7).stretch(0.95))
        .ratio(0..1, TRACKER, REGISTRY, Goal::at_least(1.6).stretch(2.0))
        .ratio(1..THREADS.len(), TRACKER, REGISTRY, Goal::at_least(8.0).stretch(15.0))
        .ratio(all.clone(), SWANSONG, REGISTRY, Goal::at_least(2.0).stretch(3.0))
        .ratio(all, REPORTING, INSPECTED, Goal::at_least(2.0));
    vec![table]
}

pub fn contenders() -> Vec<Contender<Load>> {
    vec![
        threaded(BARE, Own::default(), |own, _| {
            let count = &black_box(own).0;
            count.fetch_add(1, Ordering::Relaxed);
            count.fetch_sub(1, Ordering::Release);
        }),
        threaded(REGISTRY, Registry::new(()), |registry, _| drop(registry.guard())),
        threaded(INSPECTED, Registry::builder(()).inspect().build(), |registry, _| drop(registry.guard())),
        threaded("named, with an observer", Registry::builder(()).observer(NoopObserver).build(), |registry, _| {
            drop(registry.named("name").guard());
        }),
        threaded("with a limit", Registry::builder(()).max_in_flight(1000).build(), |registry, _| drop(registry.guard())),
        threaded(TRACKER, TaskTracker::new(), |tracker, _| drop(tracker.token())),
        threaded(SWANSONG, Swansong::new(), |swansong, _| drop(swansong.guard())),
        threaded(REPORTING, Swansong::with_guard_report(), |swansong, _| drop(swansong.guard())),
        threaded(ASYNC_SHUTDOWN, ShutdownManager::<()>::new(), |manager, _| drop(manager.delay_shutdown_token())),
        threaded(GRACEFUL, graceful(), |guard, _| drop(guard.clone())),
        threaded("(one timestamp)", (), |(), _| _ = black_box(Instant::now())),
    ]
}

/// A counter for one thread. The counters of different threads do not share cache lines.
#[derive(Default)]
#[repr(align(128))]
struct Own(AtomicUsize);

impl Clone for Own {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// Returns a guard whose shutdown never starts. To create the guard, this function needs a runtime. The guard itself works without a
/// runtime.
pub fn graceful() -> ShutdownGuard {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("tokio starts");
    let _entered = runtime.enter();
    Shutdown::new(pending::<()>()).guard()
}
