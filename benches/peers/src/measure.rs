//! Runs each contender one time in each round, so that other load on the machine affects all contenders.

use crate::report::{Numbers, Row};
use std::panic::resume_unwind;
use std::sync::{Arc, Barrier};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// Sets how many rounds and operations a section runs. A quick run has less of both.
#[derive(Clone, Copy)]
pub struct Pace {
    pub quick: bool,
}

impl Pace {
    pub fn rounds(self, full: u32) -> u32 {
        if self.quick { 1 } else { full }
    }

    pub fn count(self, full: u32) -> u32 {
        if self.quick { full / 50 } else { full }
    }

    /// Returns the first two contenders in a quick run, and all contenders otherwise. Some sections use this function because each
    /// contender takes seconds.
    pub fn few<T>(self, contenders: &[T]) -> &[T] {
        if self.quick { &contenders[..2] } else { contenders }
    }
}

/// A crate or a baseline that is measured. `C` describes one column of the table. `run` returns `None` if the contender does not support
/// this column.
pub struct Contender<C> {
    pub name: &'static str,
    pub run: Box<dyn Fn(C) -> Option<f64>>,
}

impl<C> Contender<C> {
    pub fn new(name: &'static str, run: impl Fn(C) -> Option<f64> + 'static) -> Self {
        Self { name, run: Box::new(run) }
    }
}

pub fn measure<C: Copy>(rounds: u32, columns: &[C], contenders: &[Contender<C>]) -> Vec<Row> {
    let mut rows: Vec<_> = contenders.iter().map(|contender| Row::new(contender.name)).collect();
    for &column in columns {
        let mut rounds_of = vec![Vec::new(); contenders.len()];
        let warm_up = u32::from(rounds > 1);
        for round in 0..warm_up + rounds {
            // The order of the contenders changes in each round, because each contender changes the heap for the next contender.
            for turn in 0..contenders.len() {
                let each = (round as usize + turn) % contenders.len();
                let number = (contenders[each].run)(column);
                rounds_of[each].extend(number.filter(|_| round >= warm_up));
            }
        }
        for (row, measured) in rows.iter_mut().zip(rounds_of) {
            row.cells.push(Numbers::of(measured));
        }
    }
    rows
}

/// The number of threads, and the sum of the operations of all threads.
#[derive(Clone, Copy)]
pub struct Load {
    pub threads: u32,
    pub operations: u32,
}

impl Load {
    pub fn each(threads: &[u32], operations: u32) -> Vec<Self> {
        threads.iter().map(|&threads| Self { threads, operations }).collect()
    }
}

/// Makes each thread call `operation` with a clone of `shared` and with a separate waker.
pub fn threaded<S, O>(name: &'static str, shared: S, operation: O) -> Contender<Load>
where
    S: Clone + Sync + 'static,
    O: Fn(&S, &mut Context<'_>) + Sync + 'static,
{
    Contender::new(name, move |load| Some(nanos_each(load, &shared, &operation)))
}

fn nanos_each<S: Clone + Sync>(load: Load, shared: &S, operation: &(impl Fn(&S, &mut Context<'_>) + Sync)) -> f64 {
    let each = load.operations / load.threads;
    let elapsed = together(load.threads, |barrier| {
        let own = shared.clone();
        let waker = Waker::from(Arc::new(NoopWaker));
        let mut cx = Context::from_waker(&waker);
        let mut start = Instant::now();
        // The first pass is a warm-up. The source has only one call to `operation`, so that the compiler inlines the call.
        for times in [1, each] {
            barrier.wait();
            start = Instant::now();
            (0..times).for_each(|_| operation(&own, &mut cx));
        }
        (start, Instant::now())
    });
    nanos(elapsed, each * load.threads)
}

/// Runs `work` on all threads. Returns the time from the earliest start to the latest end that the threads report.
fn together(threads: u32, work: impl Fn(&Barrier) -> (Instant, Instant) + Sync) -> Duration {
    let barrier = Barrier::new(threads as usize);
    let times: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(&barrier))).collect();
        running.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let start = times.iter().map(|time| time.0).min();
    let end = times.iter().map(|time| time.1).max();
    end.zip(start).map_or(Duration::ZERO, |(end, start)| end - start)
}

pub fn nanos(elapsed: Duration, operations: u32) -> f64 {
    elapsed.as_secs_f64() * 1e9 / f64::from(operations)
}

struct NoopWaker;

impl Wake for NoopWaker {
    fn wake(self: Arc<Self>) {}
}
