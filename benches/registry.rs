//! Measures single operations of a registry, and compares them with the last run on the same machine.
//!
//!     cargo bench --features async-executor
//!
//! `benches/peers` compares a registry with other crates.

#![expect(missing_docs, reason = "criterion declares a public function")]

use async_executor::Executor;
use background_tasks::{Observer, Registry};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_lite::future::block_on;
use std::future::{Future, pending};
use std::hint::black_box;
use std::pin::pin;
use std::sync::{Arc, Barrier};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

struct Nobody;

impl Observer for Nobody {}

impl Wake for Nobody {
    fn wake(self: Arc<Self>) {}
}

/// Starts `threads` threads, each of which calls `operation` `times` times. Returns the time from the start of the first thread until the
/// end of the last thread.
fn on_threads(threads: usize, times: u64, operation: impl Fn() + Sync) -> Duration {
    let barrier = Barrier::new(threads);
    let run = || {
        barrier.wait();
        let start = Instant::now();
        (0..times).for_each(|_| operation());
        (start, Instant::now())
    };
    let times: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let start = times.iter().map(|time| time.0).min().unwrap();
    times.iter().map(|time| time.1).max().unwrap() - start
}

fn tokens(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("token");
    let plain = Registry::new(());
    for threads in [1, 2] {
        group.bench_function(BenchmarkId::new("threads", threads), |bencher| {
            bencher.iter_custom(|times| on_threads(threads, times, || drop(black_box(plain.guard()))));
        });
    }
    let observed = Registry::builder(()).observer(Nobody).build();
    group.bench_function("observed, with a name", |bencher| bencher.iter(|| observed.named("name").guard()));
    let inspected = Registry::builder(()).inspect().build();
    group.bench_function("inspected", |bencher| bencher.iter(|| inspected.guard()));
    let limited = Registry::builder(()).max_in_flight(1).build();
    group.bench_function("with a limit", |bencher| bencher.iter(|| limited.guard()));
    let drained = Registry::new(());
    drained.start_shutdown();
    group.bench_function("refused", |bencher| bencher.iter(|| drained.guard()));
}

fn signals(criterion: &mut Criterion) {
    fn poll(waker: &Waker, future: impl Future) {
        assert!(pin!(future).poll(&mut Context::from_waker(waker)).is_pending());
    }

    let mut group = criterion.benchmark_group("signal");
    let waker = Waker::from(Arc::new(Nobody));
    let registry = Registry::new(());
    let signal = registry.signal();
    group.bench_function("cloned, polled, dropped", |bencher| bencher.iter(|| poll(&waker, signal.clone())));
    group.bench_function("run_until_shutdown", |bencher| {
        bencher.iter(|| poll(&waker, signal.run_until_shutdown(pending::<()>())));
    });
    group.bench_function("is_triggered", |bencher| bencher.iter(|| black_box(&signal).is_triggered()));
}

fn tasks(criterion: &mut Criterion) {
    static EXECUTOR: Executor<'static> = Executor::new();
    let mut group = criterion.benchmark_group("task on async-executor");
    let registry = Registry::new(&EXECUTOR);
    let inspected = Registry::builder(&EXECUTOR).inspect().build();
    group.bench_function("bare", |bencher| {
        bencher.iter(|| {
            EXECUTOR.spawn(async {}).detach();
            EXECUTOR.try_tick()
        });
    });
    group.bench_function("run", |bencher| {
        bencher.iter(|| {
            registry.run(async {});
            EXECUTOR.try_tick()
        });
    });
    // The next two benchmarks await a task: with the handle of the executor, and with the handle of a registry.
    group.bench_function("bare, awaited", |bencher| bencher.iter(|| block_on(EXECUTOR.run(EXECUTOR.spawn(async { 1 })))));
    group.bench_function("spawn, awaited", |bencher| bencher.iter(|| block_on(EXECUTOR.run(registry.spawn(async { 1 })))));
    group.bench_function("run, inspected", |bencher| {
        bencher.iter(|| {
            inspected.run(async {});
            EXECUTOR.try_tick()
        });
    });
    group.bench_function("a registry's life", |bencher| {
        bencher.iter(|| {
            let registry = Registry::new(&EXECUTOR);
            registry.run(async {});
            EXECUTOR.try_tick();
            registry.shutdown().wait()
        });
    });
}

criterion_group!(benches, tokens, signals, tasks);
criterion_main!(benches);
