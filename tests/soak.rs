//! S5 at length: tasks of all fates on two threads, whose sums must come out exact. Ten million of them take
//! `SOAK=10000000 cargo test --release --all-features --test soak`; without `SOAK` there are fewer.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

mod common;

use background_tasks::{Guard, Observer, Registry, RejectReason, Spawner, Summary, TaskInfo, Tracked};
use common::{BoxFuture, Counts, HANG, Outcome, counts, panic_quietly, poll_once};
use fastrand::Rng;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

/// How many pieces of work a plain run of the tests has.
const FEW: u64 = 200_000;
const THREADS: u64 = 2;
/// One in so many panics, as that takes long.
const PANICS: u64 = 2_000;
const LIMIT: usize = 16;

thread_local! {
    /// What the spawner was given on this thread.
    static STARTED: RefCell<Vec<BoxFuture>> = const { RefCell::new(Vec::new()) };
    /// How the future that this thread polled last came to its end; an aborted one does not.
    static CAME_TO: Cell<Option<Outcome>> = const { Cell::new(None) };
}

/// Leaves a task to the thread that started it.
#[derive(Clone)]
struct Here;

impl Spawner for Here {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        STARTED.with_borrow_mut(|started| started.push(Box::pin(task)));
    }
}

/// Is pending so often, then comes to its end and says so.
struct Work {
    pending: u8,
    end: Outcome,
}

impl Future for Work {
    type Output = Result<(), &'static str>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if self.pending > 0 {
            self.pending -= 1;
            return Poll::Pending;
        }
        CAME_TO.set(Some(self.end));
        match self.end {
            Outcome::Failed => Poll::Ready(Err("a failure, as planned")),
            Outcome::Panicked => panic_quietly("a panic, as planned"),
            _ => Poll::Ready(Ok(())),
        }
    }
}

/// Counts what it is told.
#[derive(Default)]
struct Told {
    losses: [AtomicU64; 6],
    begun: AtomicU64,
    drained: Mutex<Vec<Counts>>,
}

impl Told {
    fn count(&self, fate: Outcome) {
        self.losses[fate as usize].fetch_add(1, Ordering::Relaxed);
    }
}

impl Observer for Told {
    fn failed(&self, _: &TaskInfo, _: &str) {
        self.count(Outcome::Failed);
    }

    fn panicked(&self, _: &TaskInfo, _: &str) {
        self.count(Outcome::Panicked);
    }

    fn abandoned(&self, _: &TaskInfo) {
        self.count(Outcome::Abandoned);
    }

    fn aborted(&self, _: &TaskInfo) {
        self.count(Outcome::Aborted);
    }

    fn rejected(&self, _: &TaskInfo, _: RejectReason) {
        self.count(Outcome::Rejected);
    }

    fn shutdown_started(&self, _: usize) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    fn drained(&self, summary: &Summary, _: Duration) {
        self.drained.lock().unwrap().push(counts(*summary));
    }
}

/// Some work in flight.
enum Piece {
    Task(BoxFuture),
    Tracked(Tracked<Work>),
    Guard(Guard),
}

impl Piece {
    /// Polls it until it has come to its end, drops it before, or drops a guard; says how it ended.
    fn end(self, rng: &mut Rng) -> Outcome {
        let drop_it = rng.u8(..8) == 0;
        match self {
            Self::Guard(guard) if rng.u64(..PANICS) == 0 => {
                let panicked = catch_unwind(AssertUnwindSafe(|| {
                    let _guard = guard;
                    panic_quietly("a panic, as planned")
                }));
                panicked.unwrap_err();
                Outcome::Panicked
            }
            Self::Guard(guard) => {
                drop(guard);
                Outcome::Completed
            }
            Self::Task(_) | Self::Tracked(_) if drop_it => Outcome::Abandoned,
            Self::Task(mut task) => {
                while poll_once(&mut task).is_pending() {}
                CAME_TO.take().unwrap_or(Outcome::Aborted)
            }
            Self::Tracked(mut tracked) => match catch_unwind(AssertUnwindSafe(|| while poll_once(&mut tracked).is_pending() {})) {
                Ok(()) => {
                    CAME_TO.take().expect("nobody aborts what others run");
                    Outcome::Completed
                }
                Err(_) => CAME_TO.take().expect("it says so before it panics"),
            },
        }
    }
}

/// What the threads share: a registry, who is told of it, and the work that one of them started and any will end.
struct Plot {
    registry: Registry<Here>,
    told: Option<Arc<Told>>,
    inspected: bool,
    limit: usize,
    open: Mutex<VecDeque<Piece>>,
}

impl Plot {
    fn new(observed: bool, inspected: bool, limit: Option<usize>) -> Self {
        let told = observed.then(Arc::<Told>::default);
        let mut builder = Registry::builder(Here);
        if inspected {
            builder = builder.inspect();
        }
        if let Some(limit) = limit {
            builder = builder.max_in_flight(limit);
        }
        if let Some(told) = &told {
            builder = builder.observer(told.clone());
        }
        Self { registry: builder.build(), told, inspected, limit: limit.unwrap_or(usize::MAX), open: Mutex::default() }
    }

    /// Asks for one more piece of work to be let in. `None` says that it would have had to wait, and did not.
    fn start(&self, rng: &mut Rng) -> Option<Result<Piece, RejectReason>> {
        let registry = &self.registry;
        let end = match rng.u64(..PANICS) {
            0 => Outcome::Panicked,
            n if n % 5 == 0 => Outcome::Failed,
            _ => Outcome::Completed,
        };
        let work = Work { pending: rng.u8(..3), end };
        let accepted = match rng.u8(..8) {
            0 => registry.track(work).map(Piece::Tracked).map_err(|back| back.reason()),
            1 => registry.guard().map(Piece::Guard).map_err(|back| back.reason()),
            2 => {
                return match poll_once(&mut registry.named("patient").run_when_ready(work)) {
                    Poll::Ready(ready) => Some(ready.map(|()| started()).map_err(|back| back.reason())),
                    Poll::Pending => None,
                };
            }
            3 | 4 => registry.named("mail").try_run(work).map(|()| started()).map_err(|back| back.reason()),
            _ => registry.try_run(work).map(|()| started()).map_err(|back| back.reason()),
        };
        Some(accepted)
    }

    /// One thread's part: so many pieces of work that are accepted or rejected, and as many that it ends. Returns how each ended.
    fn live(&self, pieces: u64, rng: &mut Rng) -> Counts {
        let mut ended = [0; 6];
        let mut asked = 0;
        while asked < pieces {
            match self.start(rng) {
                None => {}
                Some(Err(_)) => {
                    asked += 1;
                    ended[Outcome::Rejected as usize] += 1;
                }
                Some(Ok(mut piece)) => {
                    asked += 1;
                    assert!(self.registry.in_flight() <= self.limit);
                    if let (Piece::Task(task), true) = (&mut piece, rng.bool()) {
                        // Half of them have been polled when an abort comes.
                        if poll_once(task).is_ready() {
                            ended[CAME_TO.take().unwrap_or(Outcome::Aborted) as usize] += 1;
                            continue;
                        }
                    }
                    self.open.lock().unwrap().push_back(piece);
                }
            }
            match rng.u16(..) {
                0..50 => drop(self.registry.abort()),
                50..100 => {
                    if let Some(task) = self.registry.tasks().last() {
                        // It may have ended meanwhile, or be such that cannot be aborted.
                        let _ = self.registry.abort_task(task.id().expect("listed, so inspected"));
                    }
                }
                _ => {}
            }
            let surplus = {
                let mut open = self.open.lock().unwrap();
                // About as many open as there are places.
                if open.len() > rng.usize(..2 * LIMIT) { open.pop_front() } else { None }
            };
            if let Some(piece) = surplus {
                ended[piece.end(rng) as usize] += 1;
            }
        }
        ended
    }

    /// Ends what is open, and has it drain: what the registry and its observer counted is what the threads did.
    fn close(self, by_thread: &[Counts], rng: &mut Rng) -> Counts {
        let mut all = [0; 6];
        for ended in by_thread {
            all.iter_mut().zip(ended).for_each(|(all, ended)| *all += ended);
        }
        let open = self.open.into_inner().unwrap();
        assert_eq!(self.registry.in_flight(), open.len());
        let listed = if self.inspected { open.len() } else { 0 };
        assert_eq!(self.registry.tasks().len(), listed, "each has a slot to itself");
        let shutdown = self.registry.shutdown();
        for piece in open {
            all[piece.end(rng) as usize] += 1;
        }
        assert_eq!(counts(shutdown.wait_timeout(HANG).unwrap()), all);
        assert_eq!(self.registry.in_flight(), 0);
        if let Some(told) = self.told {
            let [_, losses @ ..] = &told.losses;
            assert_eq!(losses.each_ref().map(|count| count.load(Ordering::Relaxed)), all[1..]);
            assert_eq!(told.begun.load(Ordering::Relaxed), 1);
            assert_eq!(*told.drained.lock().unwrap(), [all]);
        }
        assert_eq!(
            self.registry.try_run(Work { pending: 0, end: Outcome::Completed }).unwrap_err().reason(),
            RejectReason::Drained
        );
        all
    }
}

fn started() -> Piece {
    Piece::Task(STARTED.with_borrow_mut(Vec::pop).expect("the spawner was given it"))
}

#[test]
fn millions_of_tasks_of_all_fates_on_two_threads_are_accounted_for_exactly() {
    let total = std::env::var("SOAK").map_or(FEW, |number| number.parse().expect("SOAK is a number of tasks"));
    let plots = [
        Plot::new(false, false, None),
        Plot::new(true, false, None),
        Plot::new(true, true, None),
        Plot::new(false, false, Some(LIMIT)),
        Plot::new(true, true, Some(LIMIT)),
    ];
    let each = total / (plots.len() as u64 * THREADS);
    let by_thread: Vec<Vec<Counts>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|seed| {
                let plots = &plots;
                scope.spawn(move || {
                    let mut rng = Rng::with_seed(seed);
                    plots.iter().map(|plot| plot.live(each, &mut rng)).collect()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });

    let mut all = [0; 6];
    for (n, plot) in plots.into_iter().enumerate() {
        let by_thread: Vec<_> = by_thread.iter().map(|of_thread| of_thread[n]).collect();
        let counted = plot.close(&by_thread, &mut Rng::with_seed(7));
        assert_eq!(counted.iter().sum::<u64>(), each * THREADS);
        all.iter_mut().zip(counted).for_each(|(all, counted)| *all += counted);
    }
    assert!(all.iter().all(|count| *count >= total / PANICS / 4), "each fate is met often: {all:?}");
}
