use super::{ASYNC_SHUTDOWN, CANCELLATION, GRACEFUL, REGISTRY, SWANSONG, headers, tokens};
use crate::goals::Goal;
use crate::measure::{Contender, Load, Pace, measure, threaded};
use crate::report::Table;
use async_shutdown::ShutdownManager;
use background_tasks::Registry;
use std::future::pending;
use std::pin::pin;
use std::task::Context;
use swansong::Swansong;
use tokio_util::sync::CancellationToken;

pub const GROUP: &str = "signal";

const THREADS: [u32; 4] = [1, 2, 4, 8];
const SIGNALS: u32 = 500_000;

pub fn run(pace: Pace) -> Vec<Table> {
    let table = |title, contenders: &[_]| {
        let rows = measure(pace.rounds(11), &Load::each(&THREADS, pace.count(SIGNALS)), contenders);
        Table::new(title, "ns", REGISTRY, headers(&THREADS), rows)
            .ratio(0..1, CANCELLATION, REGISTRY, Goal::at_least(1.5))
            .ratio(1..THREADS.len(), CANCELLATION, REGISTRY, Goal::at_least(5.0))
            .ratio(0..THREADS.len(), SWANSONG, REGISTRY, Goal::at_least(1.0).stretch(1.3))
    };
    vec![
        table("Clone, poll once and drop a signal", &contenders()),
        table("Poll once and drop a future that runs until shutdown", &combinators()),
    ]
}

/// Returns the contenders. Swansong has no bare signal, so its contender uses a signal that interrupts a future.
pub fn contenders() -> Vec<Contender<Load>> {
    vec![
        threaded(REGISTRY, kept(Registry::new(())), |(_, signal), cx| poll(signal.clone(), cx)),
        threaded(CANCELLATION, CancellationToken::new(), |token, cx| poll(token.clone().cancelled_owned(), cx)),
        threaded(SWANSONG, Swansong::new(), |swansong, cx| poll(swansong.interrupt(pending::<()>()), cx)),
        threaded(ASYNC_SHUTDOWN, ShutdownManager::<()>::new(), |manager, cx| poll(manager.wait_shutdown_triggered(), cx)),
        threaded(GRACEFUL, tokens::graceful(), |guard, cx| poll(guard.clone_weak().into_cancelled(), cx)),
    ]
}

fn combinators() -> Vec<Contender<Load>> {
    vec![
        threaded(REGISTRY, kept(Registry::new(())), |(_, signal), cx| poll(signal.run_until_shutdown(pending::<()>()), cx)),
        threaded(CANCELLATION, CancellationToken::new(), |token, cx| poll(token.run_until_cancelled(pending::<()>()), cx)),
        threaded("CancellationToken, owned", CancellationToken::new(), |token, cx| {
            poll(token.clone().run_until_cancelled_owned(pending::<()>()), cx);
        }),
        threaded(SWANSONG, Swansong::new(), |swansong, cx| poll(swansong.interrupt(pending::<()>()), cx)),
        threaded(ASYNC_SHUTDOWN, ShutdownManager::<()>::new(), |manager, cx| poll(manager.wrap_cancel(pending::<()>()), cx)),
    ]
}

/// Returns the registry together with its signal, because the drop of the last registry handle would start the shutdown.
fn kept(registry: Registry<()>) -> (Registry<()>, background_tasks::ShutdownSignal) {
    let signal = registry.signal();
    (registry, signal)
}

fn poll(future: impl Future, cx: &mut Context<'_>) {
    assert!(pin!(future).poll(cx).is_pending());
}
