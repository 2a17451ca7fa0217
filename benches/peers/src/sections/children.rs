use super::{REGISTRY, headers};
use crate::bars::Goal;
use crate::measure::{Contender, Load, Pace, measure, threaded};
use crate::report::Table;
use background_tasks::Registry;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub const GROUP: &str = "child";

const PAIR: &str = "child token + TaskTracker";
const THREADS: [u32; 2] = [1, 2];
const LIVES: u32 = 200_000;
const CHILDREN: u32 = 10_000;
/// The tokens that each child makes: a connection with four requests.
const TOKENS: [(); 4] = [(); 4];

pub fn run(pace: Pace) -> Vec<Table> {
    let lives = measure(pace.rounds(11), &Load::each(&THREADS, pace.count(LIVES)), &lives());
    let fan_out = measure(pace.rounds(11), &[pace.count(CHILDREN)], &fan_outs());
    vec![
        Table::new(
            "A child made, used for four tokens, shut down and drained, ns (ratio to a registry)",
            "ns",
            REGISTRY,
            headers(&THREADS),
            lives,
        )
        .ratio(0..1, REGISTRY, PAIR, Goal::at_most(1.1))
        .ratio(1..2, REGISTRY, PAIR, Goal::at_most(0.7)),
        Table::new(
            "Open children without tasks, from the shutdown of their parent to drained, ms (ratio to a registry)",
            "ms",
            REGISTRY,
            vec!["10,000 children".into()],
            fan_out,
        )
        .ratio(0..1, REGISTRY, PAIR, Goal::at_most(2.0)),
    ]
}

pub fn lives() -> Vec<Contender<Load>> {
    vec![
        threaded(REGISTRY, Registry::new(()), |registry, cx| {
            let child = registry.child();
            drop(TOKENS.map(|()| child.guard()));
            poll(child.shutdown(), cx);
        }),
        threaded(PAIR, CancellationToken::new(), |token, cx| {
            let (child, tracker) = (token.child_token(), TaskTracker::new());
            drop(TOKENS.map(|()| tracker.token()));
            child.cancel();
            tracker.close();
            poll(tracker.wait(), cx);
        }),
    ]
}

fn fan_outs() -> Vec<Contender<u32>> {
    vec![
        Contender::new(REGISTRY, |count| {
            let registry = Registry::new(());
            let children: Vec<_> = (0..count).map(|_| registry.child()).collect();
            let start = Instant::now();
            let shutdown = registry.shutdown();
            poll(shutdown, &mut Context::from_waker(Waker::noop()));
            let elapsed = start.elapsed();
            drop(children);
            Some(elapsed.as_secs_f64() * 1e3)
        }),
        Contender::new(PAIR, |count| {
            let token = CancellationToken::new();
            let children: Vec<_> = (0..count).map(|_| (token.child_token(), TaskTracker::new())).collect();
            let start = Instant::now();
            token.cancel();
            for (_, tracker) in &children {
                tracker.close();
                poll(tracker.wait(), &mut Context::from_waker(Waker::noop()));
            }
            let elapsed = start.elapsed();
            drop(children);
            Some(elapsed.as_secs_f64() * 1e3)
        }),
    ]
}

fn poll(drained: impl Future, cx: &mut Context<'_>) {
    assert!(pin!(drained).poll(cx).is_ready());
}
