//! Rounds that run every contender once, in turn, so that what disturbs the machine disturbs all of them.

use crate::report::{Figures, Row};
use std::panic::resume_unwind;
use std::sync::{Arc, Barrier};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

/// How many rounds and operations are made of what a section asks for.
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

    /// Where a figure takes seconds, two contenders will do to see that it runs.
    pub fn few<T>(self, contenders: &[T]) -> &[T] {
        if self.quick { &contenders[..2] } else { contenders }
    }
}

/// `C` says what is asked of it, and differs from column to column; no figure says that it cannot do that.
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
            // Each is the first in turn, as whoever comes after another finds the heap as that one left it.
            for place in 0..contenders.len() {
                let each = (round as usize + place) % contenders.len();
                let figure = (contenders[each].run)(column);
                rounds_of[each].extend(figure.filter(|_| round >= warm_up));
            }
        }
        for (row, measured) in rows.iter_mut().zip(rounds_of) {
            row.cells.push(Figures::of(measured));
        }
    }
    rows
}

/// So many operations, made by so many threads together.
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

/// Has each thread do `operation` on a clone of `shared`, with a waker of its own.
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
        let waker = Waker::from(Arc::new(Nobody));
        let mut cx = Context::from_waker(&waker);
        let mut start = Instant::now();
        // The first time is a warm-up. One call alone, so that it is inlined, however long it is.
        for times in [1, each] {
            barrier.wait();
            start = Instant::now();
            (0..times).for_each(|_| operation(&own, &mut cx));
        }
        (start, Instant::now())
    });
    nanos(elapsed, each * load.threads)
}

/// From the first start to the last end of what each thread says about itself.
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

struct Nobody;

impl Wake for Nobody {
    fn wake(self: Arc<Self>) {}
}
