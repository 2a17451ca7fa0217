//! Makes and drops tokens on one thread and on two, those of each contender in turn and all of them again in each round, and prints the
//! median of the rounds: nanoseconds for a token of each thread, and their ratio to a plain registry's.

use background_tasks::{Observer, Registry};
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};
use swansong::Swansong;
use tokio_util::task::TaskTracker;

const ROUNDS: usize = 11;
const TOKENS: u32 = 1_000_000;

struct Nobody;

impl Observer for Nobody {}

type Contender = (&'static str, Box<dyn Fn(usize) -> Duration>);

fn contender<F: Fn() + Sync + 'static>(name: &'static str, token: F) -> Contender {
    (name, Box::new(move |threads| time(threads, &token)))
}

/// From the first start to the last end.
fn time(threads: usize, token: &(impl Fn() + Sync)) -> Duration {
    let barrier = Barrier::new(threads);
    let run = || {
        token();
        barrier.wait();
        let start = Instant::now();
        (0..TOKENS).for_each(|_| token());
        (start, Instant::now())
    };
    let times: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let start = times.iter().map(|time| time.0).min().unwrap();
    let end = times.iter().map(|time| time.1).max().unwrap();
    end - start
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e9 / f64::from(TOKENS)
}

fn main() {
    let plain = Registry::new(());
    let observed = Registry::builder(()).observer(Nobody).build();
    let named = observed.clone();
    let inspected = Registry::builder(()).inspect().build();
    let limited = Registry::builder(()).max_in_flight(1000).build();
    let tracker = TaskTracker::new();
    let swansong = Swansong::new();
    let reporting = Swansong::with_guard_report();
    let contenders = [
        contender("a registry", move || drop(plain.guard())),
        contender("observed", move || drop(observed.guard())),
        contender("observed, with a name", move || drop(named.named("name").guard())),
        contender("inspected", move || drop(inspected.guard())),
        contender("with a limit", move || drop(limited.guard())),
        contender("TaskTracker", move || drop(tracker.token())),
        contender("swansong", move || drop(swansong.guard())),
        contender("swansong with its report", move || drop(reporting.guard())),
        contender("(a look at the clock)", || _ = black_box(Instant::now())),
    ];
    for threads in [1, 2] {
        let mut times = vec![Vec::new(); contenders.len()];
        for _ in 0..ROUNDS {
            for ((_, run), times) in contenders.iter().zip(&mut times) {
                times.push(run(threads));
            }
        }
        let medians: Vec<_> = times.into_iter().map(median).collect();
        println!("{threads} thread{}", if threads == 1 { "" } else { "s" });
        for ((name, _), median) in contenders.iter().zip(&medians) {
            println!("  {name:<26} {median:>6.1} ns  {:>5.2}", median / medians[0]);
        }
    }
}
