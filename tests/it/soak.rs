//! Checks invariant S5 with many tasks. Two threads end tasks with all possible outcomes, and the counts must be exact.
//!
//! `SOAK=10000000 cargo test --release --all-features --test it soak::` runs ten million tasks. Default: 200,000.
use crate::common::{BoxFuture, Counts, HANG, Outcome, counts, panic_quietly, poll_once};
use background_tasks::{
    Guard, JoinHandle, Loss, Observer, Registry, RejectReason, Restart, Spawner, Summary, TaskInfo, TaskKind, Timer, Tracked,
};
use fastrand::Rng;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, Ready, ready};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

const DEFAULT_TASKS: u64 = 200_000;
const THREADS: u64 = 2;
/// The number of tasks for each task that panics. Panics are rare in this test, because they are slow.
const TASKS_PER_PANIC: u64 = 2_000;
const LIMIT: usize = 16;

thread_local! {
    /// The tasks that the spawner received on this thread.
    static SPAWNED: RefCell<Vec<BoxFuture>> = const { RefCell::new(Vec::new()) };
    /// The outcome of the future that this thread polled last. It is `None` if the future was aborted.
    static LAST_OUTCOME: Cell<Option<Outcome>> = const { Cell::new(None) };
}

/// A spawner that stores each task for the thread that started the task.
#[derive(Clone)]
struct CallerSpawner;

impl Spawner for CallerSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        SPAWNED.with_borrow_mut(|spawned| spawned.push(Box::pin(task)));
    }
}

/// A timer without a delay, so that services restart immediately.
impl Timer for CallerSpawner {
    type Sleep = Ready<()>;

    fn sleep(&self, _: Duration) -> Ready<()> {
        ready(())
    }
}

/// A future that is pending for some polls, and then ends with the given outcome. It stores this outcome in `LAST_OUTCOME`.
struct Work {
    pending_polls: u8,
    outcome: Outcome,
}

/// One run of a service. A failed run increments the counter, because the service may run again.
struct Run(Work, Arc<AtomicU64>);

impl Future for Run {
    type Output = Result<(), &'static str>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = Pin::new(&mut self.0).poll(cx);
        match polled {
            // Removes the outcome that an earlier run may have stored during the same poll of the service.
            Poll::Pending => LAST_OUTCOME.set(None),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => _ = self.1.fetch_add(1, Ordering::Relaxed),
        }
        polled
    }
}

impl Future for Work {
    type Output = Result<(), &'static str>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if self.pending_polls > 0 {
            self.pending_polls -= 1;
            return Poll::Pending;
        }
        LAST_OUTCOME.set(Some(self.outcome));
        match self.outcome {
            Outcome::Failed => Poll::Ready(Err("intentional failure")),
            Outcome::Panicked => panic_quietly("intentional panic"),
            _ => Poll::Ready(Ok(())),
        }
    }
}

/// An observer that counts the events of the registry.
#[derive(Default)]
struct CountingObserver {
    losses: [AtomicU64; 6],
    shutdowns_started: AtomicU64,
    drained: Mutex<Vec<Counts>>,
}

impl Observer for CountingObserver {
    fn lost(&self, _: &TaskInfo, loss: &Loss<'_>) {
        let outcome = match loss {
            Loss::Failed(_) => Outcome::Failed,
            Loss::Panicked(_) => Outcome::Panicked,
            Loss::Abandoned => Outcome::Abandoned,
            Loss::Aborted => Outcome::Aborted,
            Loss::Rejected(_) => Outcome::Rejected,
            _ => panic!("unknown loss: {loss}"),
        };
        self.losses[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn shutdown_started(&self, _: usize) {
        self.shutdowns_started.fetch_add(1, Ordering::Relaxed);
    }

    fn drained(&self, summary: &Summary, _: Duration) {
        self.drained.lock().unwrap().push(counts(*summary));
    }
}

/// A task, tracked future or guard that is in flight.
enum InFlight {
    Task(BoxFuture),
    Joined(BoxFuture, JoinHandle<Result<(), &'static str>>),
    /// A service that has been polled at least one time, and the number of failed runs.
    Service(BoxFuture, Arc<AtomicU64>),
    Tracked(Tracked<Work>),
    Guard(Guard),
    Ended(Outcome),
}

impl InFlight {
    /// Polls the task, future or guard until it finishes, or drops it. Returns the outcome.
    fn end(self, rng: &mut Rng) -> Outcome {
        let drop_unfinished = rng.u8(..8) == 0;
        match self {
            Self::Ended(outcome) => outcome,
            Self::Guard(guard) if rng.u64(..TASKS_PER_PANIC) == 0 => {
                let panicked = catch_unwind(AssertUnwindSafe(|| {
                    let _guard = guard;
                    panic_quietly("intentional panic")
                }));
                panicked.unwrap_err();
                Outcome::Panicked
            }
            Self::Guard(guard) => {
                drop(guard);
                Outcome::Completed
            }
            Self::Joined(task, mut handle) if drop_unfinished => {
                drop(task);
                assert!(matches!(poll_once(&mut handle), Poll::Ready(Err(error)) if error.loss() == Loss::Abandoned));
                Outcome::Abandoned
            }
            Self::Joined(mut task, mut handle) => {
                if rng.u8(..8) == 0 {
                    handle.abort();
                }
                while poll_once(&mut task).is_pending() {}
                let outcome = match LAST_OUTCOME.take().unwrap_or(Outcome::Aborted) {
                    Outcome::Failed => Outcome::Completed,
                    outcome => outcome,
                };
                let Poll::Ready(output) = poll_once(&mut handle) else { panic!("the handle of a task that has ended is ready") };
                assert_eq!(output.is_ok(), outcome == Outcome::Completed);
                outcome
            }
            Self::Task(_) | Self::Tracked(_) | Self::Service(..) if drop_unfinished => Outcome::Abandoned,
            Self::Service(mut task, failures) => {
                while poll_once(&mut task).is_pending() {}
                let outcome = LAST_OUTCOME.take().unwrap_or(Outcome::Aborted);
                if outcome == Outcome::Failed {
                    // After the shutdown has started, no run follows a failed run. The failure then counts as the outcome of the service,
                    // not as a run that was followed by another run.
                    failures.fetch_sub(1, Ordering::Relaxed);
                }
                outcome
            }
            Self::Task(mut task) => {
                while poll_once(&mut task).is_pending() {}
                LAST_OUTCOME.take().unwrap_or(Outcome::Aborted)
            }
            Self::Tracked(mut tracked) => match catch_unwind(AssertUnwindSafe(|| while poll_once(&mut tracked).is_pending() {})) {
                Ok(()) => {
                    LAST_OUTCOME.take().expect("a tracked future cannot be aborted");
                    Outcome::Completed
                }
                Err(_) => LAST_OUTCOME.take().expect("`Work` stores its outcome before it panics"),
            },
        }
    }
}

/// A registry under test, which the threads share. A thread may end a task that another thread has started.
struct Scenario {
    registry: Registry<CallerSpawner>,
    /// The descendants of the registry. The threads replace them again and again. In some scenarios, this list is empty.
    children: Vec<Mutex<Registry<CallerSpawner>>>,
    /// The number of failed runs that were followed by another run.
    failed_runs: Arc<AtomicU64>,
    observer: Option<Arc<CountingObserver>>,
    is_inspected: bool,
    limit: usize,
    in_flight: Mutex<VecDeque<InFlight>>,
}

impl Scenario {
    fn with_children(mut self) -> Self {
        self.children = (0..4).map(|_| Mutex::new(self.registry.child())).collect();
        self
    }

    fn new(is_observed: bool, is_inspected: bool, limit: Option<usize>) -> Self {
        let observer = is_observed.then(Arc::<CountingObserver>::default);
        let mut builder = Registry::builder(CallerSpawner);
        if is_inspected {
            builder = builder.inspect();
        }
        if let Some(limit) = limit {
            builder = builder.max_in_flight(limit);
        }
        if let Some(observer) = &observer {
            builder = builder.observer(observer.clone());
        }
        let limit = limit.unwrap_or(usize::MAX);
        let (children, failed_runs) = (Vec::new(), Arc::default());
        Self { registry: builder.build(), children, failed_runs, observer, is_inspected, limit, in_flight: Mutex::default() }
    }

    /// Returns the registry or one of its descendants. In some calls, first replaces a descendant by a new registry.
    fn any_registry(&self, rng: &mut Rng) -> Registry<CallerSpawner> {
        let descendant =
            |index: usize| self.children.get(index).map_or(self.registry.clone(), |child| child.lock().unwrap().clone());
        if !self.children.is_empty() && rng.u8(..32) == 0 {
            // The first two descendants are children, and all others are grandchildren. The parent is open, because `parent` is one of
            // its handles.
            let index = rng.usize(..self.children.len());
            let parent = index.checked_sub(2).map_or(self.registry.clone(), descendant);
            let replaced = mem::replace(&mut *self.children[index].lock().unwrap(), parent.child());
            // This also shuts down the descendants of the replaced child, so these descendants may reject tasks.
            drop(replaced);
        }
        descendant(rng.usize(..=self.children.len()))
    }

    /// Tries to start a task, future, guard or service. Returns `None` if it would have to wait for a permit.
    fn start(&self, rng: &mut Rng) -> Option<Result<InFlight, RejectReason>> {
        let registry = &self.any_registry(rng);
        let outcome = match rng.u64(..TASKS_PER_PANIC) {
            0 => Outcome::Panicked,
            n if n % 5 == 0 => Outcome::Failed,
            _ => Outcome::Completed,
        };
        let work = Work { pending_polls: rng.u8(..3), outcome };
        let started = match rng.u8(..10) {
            0 => registry.track(work).map(InFlight::Tracked).map_err(|rejected| rejected.reason()),
            1 => registry.guard().map(InFlight::Guard).map_err(|rejected| rejected.reason()),
            2 => {
                return match poll_once(&mut registry.named("patient").run_when_ready(work)) {
                    Poll::Ready(ready) => Some(ready.map(|()| spawned_task()).map_err(|rejected| rejected.reason())),
                    Poll::Pending => None,
                };
            }
            3 => {
                let spawned = registry.try_spawn(work).map_err(|rejected| rejected.reason());
                spawned.map(|handle| InFlight::Joined(spawned_future(), handle))
            }
            4 => self.start_service(rng),
            5 | 6 => registry.named("mail").try_run(work).map(|()| spawned_task()).map_err(|rejected| rejected.reason()),
            _ => registry.try_run(work).map(|()| spawned_task()).map_err(|rejected| rejected.reason()),
        };
        Some(started)
    }

    /// Starts a service of the root registry. The root starts its shutdown after the threads have ended. Each run completes or fails, but
    /// not before its second poll.
    fn start_service(&self, rng: &mut Rng) -> Result<InFlight, RejectReason> {
        let (failed_runs, mut rng) = (self.failed_runs.clone(), rng.fork());
        self.registry.service(Restart::on_failure().unlimited(), move || {
            let outcome = if rng.bool() { Outcome::Completed } else { Outcome::Failed };
            Run(Work { pending_polls: rng.u8(1..3), outcome }, failed_runs.clone())
        });
        // There is no `try_` method for services. If the registry has no limit, it does not reject the service.
        let mut service = SPAWNED.with_borrow_mut(Vec::pop).ok_or(RejectReason::Full)?;
        Ok(match poll_once(&mut service) {
            Poll::Pending => InFlight::Service(service, self.failed_runs.clone()),
            Poll::Ready(()) => InFlight::Ended(Outcome::Aborted),
        })
    }

    /// Runs the work of one thread. Starts tasks until `tasks` of them have been accepted or rejected, and ends about the same number.
    /// Returns the outcomes.
    fn run_thread(&self, tasks: u64, rng: &mut Rng) -> Counts {
        let mut outcomes = [0; 6];
        let mut started = 0;
        while started < tasks {
            match self.start(rng) {
                None => {}
                Some(Err(_)) => {
                    started += 1;
                    outcomes[Outcome::Rejected as usize] += 1;
                }
                Some(Ok(mut work)) => {
                    started += 1;
                    // A child counts as a task in flight, but holds no permit.
                    assert!(!self.children.is_empty() || self.registry.in_flight() <= self.limit);
                    // Half of the tasks are polled here, so that the test aborts polled tasks and unpolled tasks.
                    if let (InFlight::Task(task), true) = (&mut work, rng.bool()) {
                        if poll_once(task).is_ready() {
                            outcomes[LAST_OUTCOME.take().unwrap_or(Outcome::Aborted) as usize] += 1;
                            continue;
                        }
                    }
                    self.in_flight.lock().unwrap().push_back(work);
                }
            }
            match rng.u16(..) {
                0..50 => drop(self.registry.abort()),
                50..100 => {
                    if let Some(task) = self.registry.tasks().last() {
                        // An error is allowed: the task may have ended after the call to `tasks`, or it cannot be aborted.
                        let _ = self.registry.abort_task(task.id().expect("a listed task has an ID"));
                    }
                }
                _ => {}
            }
            let oldest = {
                let mut in_flight = self.in_flight.lock().unwrap();
                // Keeps about as many tasks in flight as the limit allows, so that the registry is often full.
                if in_flight.len() > rng.usize(..2 * LIMIT) { in_flight.pop_front() } else { None }
            };
            if let Some(work) = oldest {
                outcomes[work.end(rng) as usize] += 1;
            }
        }
        outcomes
    }

    /// Ends the remaining tasks and drains the registry. Asserts that the counts of the registry and of its observer are equal to the
    /// counts of the threads. Returns the outcomes, without failed runs that were followed by another run.
    fn drain_and_compare(self, outcomes_by_thread: &[Counts], rng: &mut Rng) -> Counts {
        let mut total = [0; 6];
        for outcomes in outcomes_by_thread {
            total.iter_mut().zip(outcomes).for_each(|(total, count)| *total += count);
        }
        let is_ended = |work: &&InFlight| matches!(work, InFlight::Ended(_));
        let in_flight = self.in_flight.into_inner().unwrap();
        let len = in_flight.len() - in_flight.iter().filter(is_ended).count();
        let has_children = !self.children.is_empty();
        drop(self.children);
        assert!(has_children || self.registry.in_flight() == len);
        let tasks = self.registry.tasks().into_iter().filter(|task| task.kind() != Some(TaskKind::Child)).count();
        assert_eq!(tasks, if self.is_inspected { len } else { 0 }, "an inspected registry lists each task once");
        let shutdown = self.registry.shutdown();
        for work in in_flight {
            total[work.end(rng) as usize] += 1;
        }
        let failed_runs = self.failed_runs.load(Ordering::Relaxed);
        total[Outcome::Failed as usize] += failed_runs;
        assert_eq!(counts(shutdown.wait_timeout(HANG).unwrap()), total);
        assert_eq!(self.registry.in_flight(), 0);
        if let Some(observer) = self.observer {
            let [_, losses @ ..] = &observer.losses;
            assert_eq!(losses.each_ref().map(|count| count.load(Ordering::Relaxed)), total[1..]);
            assert_eq!(observer.shutdowns_started.load(Ordering::Relaxed), 1);
            assert_eq!(*observer.drained.lock().unwrap(), [total]);
        }
        let late = Work { pending_polls: 0, outcome: Outcome::Completed };
        assert_eq!(self.registry.try_run(late).unwrap_err().reason(), RejectReason::Drained);
        total[Outcome::Failed as usize] -= failed_runs;
        total
    }
}

/// Removes the task that this thread started last from the spawner, and returns the task.
fn spawned_future() -> BoxFuture {
    SPAWNED.with_borrow_mut(Vec::pop).expect("the spawner received the task")
}

fn spawned_task() -> InFlight {
    InFlight::Task(spawned_future())
}

#[test]
fn outcomes_of_many_tasks_on_two_threads_are_counted_exactly() {
    let tasks = std::env::var("SOAK").map_or(DEFAULT_TASKS, |number| number.parse().expect("SOAK must be a number of tasks"));
    let scenarios = [
        Scenario::new(false, false, None),
        Scenario::new(true, false, None),
        Scenario::new(true, true, None),
        Scenario::new(false, false, Some(LIMIT)),
        Scenario::new(true, true, Some(LIMIT)),
        Scenario::new(false, false, None).with_children(),
        Scenario::new(true, true, Some(LIMIT)).with_children(),
    ];
    let per_thread = tasks / (scenarios.len() as u64 * THREADS);
    let outcomes_by_thread: Vec<Vec<Counts>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|seed| {
                let scenarios = &scenarios;
                scope.spawn(move || {
                    let mut rng = Rng::with_seed(seed);
                    scenarios.iter().map(|scenario| scenario.run_thread(per_thread, &mut rng)).collect()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });

    let mut total = [0; 6];
    for (n, scenario) in scenarios.into_iter().enumerate() {
        let of_scenario: Vec<_> = outcomes_by_thread.iter().map(|of_thread| of_thread[n]).collect();
        let outcomes = scenario.drain_and_compare(&of_scenario, &mut Rng::with_seed(7));
        assert_eq!(outcomes.iter().sum::<u64>(), per_thread * THREADS);
        total.iter_mut().zip(outcomes).for_each(|(total, count)| *total += count);
    }
    assert!(total.iter().all(|count| *count >= tasks / TASKS_PER_PANIC / 4), "every outcome occurs often enough: {total:?}");
}
