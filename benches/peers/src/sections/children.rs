use super::{REGISTRY, headers};
use crate::goals::Goal;
use crate::measure::{Contender, Load, Pace, measure, threaded};
use crate::report::Table;
use background_tasks::Registry;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub const PAIR: &str = "child token + TaskTracker";
const THREADS: [u32; 2] = [1, 2];
const LIVES: u32 = 200_000;
const CHILDREN: u32 = 10_000;
/// Each child creates four tokens, like a connection with four requests.
const TOKENS: [(); 4] = [(); 4];

pub fn run(pace: Pace) -> Vec<Table> {
    let lives = measure(pace.rounds(11), &Load::each(&THREADS, pace.count(LIVES)), &lives());
    let fan_out = measure(pace.rounds(11), &[pace.count(CHILDREN)], &fan_outs());
    vec![
        Table::new(
            "Create a child, create and drop four tokens in it, shut it down and drain it",
            "ns",
            REGISTRY,
            headers(&THREADS),
            lives,
        )
        .ratio(0..1, REGISTRY, PAIR, Goal::at_most(1.1))
        .ratio(1..2, REGISTRY, PAIR, Goal::at_most(0.7)),
        Table::new(
            "Shut down and drain a parent whose children are open and have no tasks",
            "ms",
            REGISTRY,
            vec![format!("{} children", pace.count(CHILDREN))],
            fan_out,
        )
        .ratio(0..1, REGISTRY, PAIR, Goal::at_most(2.0)),
    ]
}

fn lives() -> Vec<Contender<Load>> {
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

/// Returns contenders that create the given number of children and keep these children open. The contenders measure no time.
pub fn open() -> Vec<Contender<u32>> {
    fn keep<T>(count: u32, child: impl Fn() -> T) -> Option<f64> {
        let mut children = Vec::with_capacity(count as usize);
        children.extend((0..count).map(|_| child()));
        Some(0.0)
    }
    vec![
        Contender::new(REGISTRY, |count| {
            let registry = Registry::new(());
            keep(count, || registry.child())
        }),
        Contender::new(PAIR, |count| {
            let token = CancellationToken::new();
            keep(count, || (token.child_token(), TaskTracker::new()))
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
