//! Tests the conformance suite. For each requirement, a test uses a spawner that violates the requirement, and the suite must report this
//! violation. For each trait, the suite must also accept a correct implementation.

use super::catch;
use super::suite::{Suite, TIME_LIMIT};
use crate::{BlockingSpawner, BoxLocalTask, LocalSpawner, Spawner, Timer};
use futures_lite::future::block_on;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::mem::{forget, take};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, Once};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread, ThreadId};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Flaw {
    None,
    PollsInsideSpawn,
    PollsInsideSpawnInTasks,
    WaitsInsideSpawn,
    PollsOnce,
    AcceptsOneThread,
    RejectsTasksOfTasks,
    StopsAfterPanic,
    IgnoresWakesByOtherThreads,
    HasSmallQueue,
    RunsOneAfterTheOther,
    LeaksTasks,
    LeavesTasksToWakers,
}

thread_local!(static HAS_PANICKED: Cell<bool> = const { Cell::new(false) });

/// Installs a panic hook. When a thread panics, the hook sets the variable `HAS_PANICKED` of this thread. Some flawed executors stop after
/// a panic of a task. They read this variable, because the registry catches the panic itself.
fn record_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            HAS_PANICKED.set(true);
            hook(panic);
        }));
    });
}

/// An executor with one thread. When the executor is dropped, it drops all its tasks.
struct ThreadExecutor {
    flaw: Flaw,
    creator: ThreadId,
    worker: ThreadId,
    queue: Sender<Option<Arc<Job>>>,
    jobs: Mutex<Vec<Arc<Job>>>,
}

struct Job {
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    flaw: Flaw,
    worker: ThreadId,
    queue: Sender<Option<Arc<Job>>>,
}

impl ThreadExecutor {
    fn new(flaw: Flaw) -> Arc<Self> {
        record_panics();
        let (queue, jobs) = channel::<Option<Arc<Job>>>();
        let work = move || {
            for job in jobs.iter().map_while(|job| job) {
                job.poll();
                if flaw == Flaw::StopsAfterPanic && HAS_PANICKED.get() {
                    return;
                }
            }
        };
        let worker = thread::spawn(work).thread().id();
        Arc::new(Self { flaw, creator: thread::current().id(), worker, queue, jobs: Mutex::default() })
    }
}

impl Spawner for ThreadExecutor {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        let mut task = Box::pin(task);
        let polls_inside = match self.flaw {
            Flaw::PollsInsideSpawn => true,
            Flaw::PollsInsideSpawnInTasks => thread::current().id() == self.worker,
            _ => false,
        };
        if polls_inside && task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        match self.flaw {
            Flaw::WaitsInsideSpawn => return thread::spawn(|| block_on(task)).join().unwrap(),
            Flaw::AcceptsOneThread => assert_eq!(thread::current().id(), self.creator, "no runtime on this thread"),
            Flaw::HasSmallQueue => assert!(self.jobs.lock().unwrap().len() < 500, "the queue is full"),
            _ => (),
        }
        let Self { flaw, worker, ref queue, .. } = *self;
        let job = Arc::new(Job { future: Mutex::new(Some(task)), flaw, worker, queue: queue.clone() });
        self.jobs.lock().unwrap().push(job.clone());
        queue.send(Some(job)).unwrap_or(());
    }
}

impl Job {
    fn poll(self: Arc<Self>) {
        let mut future = self.future.lock().unwrap();
        let Some(task) = &mut *future else { return };
        let waker = Waker::from(self.clone());
        let ended = if self.flaw == Flaw::RunsOneAfterTheOther {
            block_on(task);
            true
        } else {
            let polled = task.as_mut().poll(&mut Context::from_waker(&waker));
            polled.is_ready() || self.flaw == Flaw::PollsOnce
        };
        if ended {
            *future = None;
        }
    }
}

impl Wake for Job {
    fn wake(self: Arc<Self>) {
        if self.flaw != Flaw::IgnoresWakesByOtherThreads || thread::current().id() == self.worker {
            self.queue.clone().send(Some(self)).unwrap_or(());
        }
    }
}

impl Drop for ThreadExecutor {
    fn drop(&mut self) {
        self.queue.send(None).unwrap_or(());
        let jobs = take(self.jobs.get_mut().unwrap());
        match self.flaw {
            Flaw::LeaksTasks => return forget(jobs),
            Flaw::LeavesTasksToWakers => return,
            _ => (),
        }
        for job in jobs {
            let task = job.future.lock().unwrap().take();
            drop(task);
        }
    }
}

/// An executor that runs on the thread of its caller. When one of its tasks has been woken, the executor polls all its tasks.
struct LocalExecutor {
    flaw: Flaw,
    tasks: RefCell<Vec<BoxLocalTask>>,
    waker: Arc<ThreadWaker>,
}

struct ThreadWaker {
    flaw: Flaw,
    thread: Thread,
    woken: AtomicBool,
}

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        if self.flaw != Flaw::IgnoresWakesByOtherThreads || thread::current().id() == self.thread.id() {
            self.woken.store(true, Ordering::SeqCst);
            self.thread.unpark();
        }
    }
}

impl LocalExecutor {
    fn new(flaw: Flaw) -> (Rc<Self>, impl FnOnce(BoxLocalTask)) {
        record_panics();
        HAS_PANICKED.set(false);
        let waker = Arc::new(ThreadWaker { flaw, thread: thread::current(), woken: AtomicBool::new(false) });
        let executor = Rc::new(Self { flaw, tasks: RefCell::default(), waker });
        (executor.clone(), move |main| executor.run(main))
    }

    fn run(&self, mut main: BoxLocalTask) {
        let waker = Waker::from(self.waker.clone());
        let cx = &mut Context::from_waker(&waker);
        while main.as_mut().poll(cx).is_pending() {
            if self.flaw == Flaw::RunsOneAfterTheOther {
                for task in self.tasks.take() {
                    block_on(task);
                }
                continue;
            }
            let mut queue = self.tasks.borrow_mut();
            let mut tasks = take(&mut *queue);
            let borrowed = (self.flaw == Flaw::RejectsTasksOfTasks).then_some(queue);
            tasks.retain_mut(|task| {
                let ends = self.flaw == Flaw::PollsOnce || self.flaw == Flaw::StopsAfterPanic && HAS_PANICKED.get();
                task.as_mut().poll(cx).is_pending() && !ends
            });
            drop(borrowed);
            self.tasks.borrow_mut().extend(tasks);
            while !self.waker.woken.swap(false, Ordering::SeqCst) {
                thread::park();
            }
        }
    }
}

impl LocalSpawner for LocalExecutor {
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        let mut task: BoxLocalTask = Box::pin(task);
        if self.flaw == Flaw::PollsInsideSpawn && task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        let mut tasks = self.tasks.borrow_mut();
        assert!(self.flaw != Flaw::HasSmallQueue || tasks.len() < 500, "the queue is full");
        tasks.push(task);
        self.waker.clone().wake();
    }
}

impl Drop for LocalExecutor {
    fn drop(&mut self) {
        if self.flaw == Flaw::LeaksTasks {
            forget(self.tasks.take());
        }
    }
}

/// Calls each blocking closure on a new thread. With some [`Flaw`]s, one thread calls all blocking closures.
struct BlockingThreads {
    flaw: Flaw,
    creator: ThreadId,
    queue: Sender<Box<dyn FnOnce() + Send>>,
    taken: AtomicUsize,
}

impl BlockingThreads {
    fn new(flaw: Flaw) -> Self {
        record_panics();
        let (queue, jobs) = channel::<Box<dyn FnOnce() + Send>>();
        let continues = move || flaw != Flaw::StopsAfterPanic || !HAS_PANICKED.get();
        thread::spawn(move || jobs.iter().take_while(|_| continues()).for_each(|job| job()));
        Self { flaw, creator: thread::current().id(), queue, taken: AtomicUsize::new(0) }
    }
}

impl BlockingSpawner for BlockingThreads {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        match self.flaw {
            Flaw::PollsInsideSpawn => work(),
            Flaw::WaitsInsideSpawn => thread::spawn(work).join().unwrap(),
            Flaw::PollsOnce if self.taken.fetch_add(1, Ordering::SeqCst) == 10 => drop(work),
            Flaw::AcceptsOneThread if thread::current().id() != self.creator => panic!("no runtime on this thread"),
            Flaw::StopsAfterPanic | Flaw::RunsOneAfterTheOther => self.queue.send(Box::new(work)).unwrap_or(()),
            _ => drop(thread::spawn(work)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum TimerFlaw {
    None,
    BlocksInSleep,
    BlocksInPoll,
    NeverWakes,
    ResolvesEarly,
    ResolvesOneAfterTheOther,
    IgnoresZero,
    OverflowsAndPanics,
    OverflowsAndResolves,
    StartsAtFirstPoll,
    KeepsFirstWaker,
    WakesInsidePoll,
    WakesTwice,
    WakesAfterDrop,
}

/// A timer that starts a thread for each future. The thread sleeps until the deadline.
struct ThreadTimer {
    flaw: TimerFlaw,
    /// The latest deadline of all futures. With [`TimerFlaw::ResolvesOneAfterTheOther`], a new future does not resolve before this
    /// deadline.
    latest: Mutex<Option<Instant>>,
}

struct ThreadSleep {
    flaw: TimerFlaw,
    duration: Duration,
    /// The value is `None` if the deadline is too late for an `Instant`.
    deadline: Option<Instant>,
    /// The value is `None` until the first poll.
    waker: Option<Arc<Mutex<Waker>>>,
}

impl ThreadTimer {
    fn new(flaw: TimerFlaw) -> Self {
        Self { flaw, latest: Mutex::default() }
    }
}

impl Timer for ThreadTimer {
    type Sleep = ThreadSleep;

    fn sleep(&self, duration: Duration) -> ThreadSleep {
        let flaw = self.flaw;
        let deadline = match flaw {
            TimerFlaw::BlocksInSleep => {
                thread::sleep(duration);
                Some(Instant::now())
            }
            TimerFlaw::OverflowsAndPanics => Some(Instant::now() + duration),
            TimerFlaw::OverflowsAndResolves => Instant::now().checked_add(duration).or(Some(Instant::now())),
            // With this flaw, the future resolves at its first poll. If it waited for a part of the duration, a slow machine could hide the
            // flaw.
            TimerFlaw::ResolvesEarly if duration < Duration::from_secs(1) => Some(Instant::now()),
            TimerFlaw::ResolvesOneAfterTheOther => {
                let mut latest = self.latest.lock().unwrap();
                *latest = latest.max(Instant::now().checked_add(duration));
                *latest
            }
            _ => Instant::now().checked_add(duration),
        };
        ThreadSleep { flaw, duration, deadline, waker: None }
    }
}

impl Future for ThreadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.flaw == TimerFlaw::StartsAtFirstPoll && self.waker.is_none() {
            self.deadline = Instant::now().checked_add(self.duration);
        }
        if self.flaw == TimerFlaw::BlocksInPoll {
            thread::sleep(self.duration);
        }
        let may_resolve = self.flaw != TimerFlaw::IgnoresZero || !self.duration.is_zero();
        if may_resolve && self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Poll::Ready(());
        }
        if self.flaw == TimerFlaw::WakesInsidePoll {
            cx.waker().wake_by_ref();
        }
        if let Some(waker) = &self.waker {
            if self.flaw != TimerFlaw::KeepsFirstWaker {
                waker.lock().unwrap().clone_from(cx.waker());
            }
            return Poll::Pending;
        }
        let waker = Arc::new(Mutex::new(cx.waker().clone()));
        self.waker = Some(waker.clone());
        if let Some(deadline) = self.deadline.filter(|_| may_resolve && self.flaw != TimerFlaw::NeverWakes) {
            let flaw = self.flaw;
            thread::spawn(move || {
                thread::sleep(deadline.saturating_duration_since(Instant::now()));
                let waker = waker.lock().unwrap().clone();
                waker.wake_by_ref();
                if flaw == TimerFlaw::WakesTwice {
                    waker.wake();
                }
            });
        }
        Poll::Pending
    }
}

impl Drop for ThreadSleep {
    fn drop(&mut self) {
        if let Some(waker) = self.waker.take().filter(|_| self.flaw != TimerFlaw::WakesAfterDrop) {
            waker.lock().unwrap().clone_from(Waker::noop());
        }
    }
}

/// Checks that the suite fails for each flawed spawner or timer, and that the panic message names the expected requirement. These checks
/// run in parallel, because some flawed spawners hang.
fn expect_reports<F: fmt::Debug + Copy + Send + Sync>(
    check: impl Fn(Suite, F) + Send + Copy,
    expected: &[(F, &'static str, &'static str)],
) {
    thread::scope(|scope| {
        for &(flaw, requirement, observed) in expected {
            scope.spawn(move || {
                // If a check is expected to hang, its time limit is short.
                let hangs = move |checked: &str| observed == HANGS && checked.contains(requirement);
                let time_limit = move |checked: &str| if hangs(checked) { Duration::from_secs(5) } else { TIME_LIMIT };
                // A pause of the machine can hide a flaw, so the suite runs up to three times.
                let runs = if requirement == NO_REPORT { 1 } else { 3 };
                let mut report = String::new();
                let is_expected = (0..runs).any(|_| {
                    let result = catch(|| check(Suite { time_limit: Box::new(time_limit) }, flaw));
                    report = result.err().unwrap_or_else(|| NO_REPORT.into());
                    report.contains(requirement) && report.contains(observed)
                });
                assert!(is_expected, "{flaw:?} is reported as: {report}");
            });
        }
    });
}

const NO_REPORT: &str = "no report";
const HANGS: &str = "Observed: the check did not finish within 5s";

#[test]
fn broken_spawner_is_reported_with_violated_requirement() {
    let check = |suite: Suite, flaw| {
        suite.spawner(move || (ThreadExecutor::new(flaw), ()));
        suite.executor(move || (ThreadExecutor::new(flaw), ()));
    };
    let returns = "`spawn` returns without polling the task on the caller's stack, and before the task has finished";
    expect_reports(
        check,
        &[
            (Flaw::None, NO_REPORT, ""),
            (Flaw::PollsInsideSpawn, returns, "ThreadExecutor> violates its contract. Required: "),
            (Flaw::PollsInsideSpawnInTasks, "from tasks, and polls no task", "Observed: a task was polled inside `spawn`"),
            (Flaw::WaitsInsideSpawn, returns, HANGS),
            (Flaw::PollsOnce, "a task is polled again after it has woken itself", ""),
            (Flaw::AcceptsOneThread, "`spawn` can be called from any thread", "Observed: a call on another thread panicked: "),
            (Flaw::StopsAfterPanic, "a panicking task affects no other task", HANGS),
            (Flaw::IgnoresWakesByOtherThreads, "a task is polled again after another thread has woken it", HANGS),
            (Flaw::RunsOneAfterTheOther, "other tasks run while a task waits", HANGS),
            (Flaw::HasSmallQueue, "10,000 tasks can be in flight", "Observed: the check panicked: the queue is full"),
            (Flaw::LeaksTasks, "an executor that is dropped drops its tasks", HANGS),
            (Flaw::LeavesTasksToWakers, "an executor that is dropped drops its tasks, even if their wakers are kept", HANGS),
        ],
    );
}

#[test]
fn broken_local_spawner_is_reported_with_violated_requirement() {
    expect_reports(
        |suite, flaw| suite.local_spawner(move || LocalExecutor::new(flaw)),
        &[
            (Flaw::None, NO_REPORT, ""),
            (
                Flaw::PollsInsideSpawn,
                "`spawn_local` returns without polling the task",
                "LocalExecutor> violates its contract. Required: ",
            ),
            (Flaw::PollsOnce, "a task is polled again after it has woken itself", ""),
            (Flaw::RejectsTasksOfTasks, "`spawn_local` can be called from tasks", ""),
            (Flaw::StopsAfterPanic, "a panicking task affects no other task", ""),
            (Flaw::IgnoresWakesByOtherThreads, "a task is polled again after another thread has woken it", HANGS),
            (Flaw::RunsOneAfterTheOther, "other tasks run while a task waits", HANGS),
            (Flaw::HasSmallQueue, "10,000 tasks can be in flight", "Observed: the check panicked: the queue is full"),
            (Flaw::LeaksTasks, "an executor that is dropped drops its tasks", HANGS),
        ],
    );
}

#[test]
fn broken_blocking_spawner_is_reported_with_violated_requirement() {
    let returns = "`spawn_blocking` returns before the closure has finished, and calls it on another thread";
    expect_reports(
        |suite, flaw| suite.blocking_spawner(move || BlockingThreads::new(flaw)),
        &[
            (Flaw::None, NO_REPORT, ""),
            (Flaw::PollsInsideSpawn, returns, "BlockingThreads violates its contract. Required: "),
            (Flaw::WaitsInsideSpawn, returns, HANGS),
            (Flaw::PollsOnce, "each closure is called", ""),
            (Flaw::AcceptsOneThread, "`spawn_blocking` can be called from any thread", ""),
            (Flaw::StopsAfterPanic, "a panicking closure affects no other closure", ""),
            (Flaw::RunsOneAfterTheOther, "four closures can block simultaneously", HANGS),
        ],
    );
}

#[test]
fn broken_timer_is_reported_with_violated_requirement() {
    let in_time = "a future resolves when its duration has elapsed, and not earlier";
    let long = "with a duration up to `Duration::MAX`";
    let wakes_once = "a future wakes its task once";
    expect_reports(
        |suite, flaw| suite.timer(move || (ThreadTimer::new(flaw), |main| block_on(main))),
        &[
            (TimerFlaw::None, NO_REPORT, ""),
            (TimerFlaw::BlocksInSleep, "`sleep` and each poll of its future return immediately", HANGS),
            (TimerFlaw::BlocksInPoll, "`sleep` and each poll of its future return immediately", HANGS),
            (TimerFlaw::NeverWakes, in_time, HANGS),
            (TimerFlaw::ResolvesEarly, in_time, "ThreadTimer violates its contract. Required: "),
            (TimerFlaw::ResolvesOneAfterTheOther, "futures of the same timer do not delay each other", HANGS),
            (TimerFlaw::IgnoresZero, "with `Duration::ZERO`, the future resolves", HANGS),
            (TimerFlaw::OverflowsAndPanics, long, "Observed: the check panicked: overflow"),
            (TimerFlaw::OverflowsAndResolves, long, "resolved within"),
            (TimerFlaw::StartsAtFirstPoll, "the duration starts at the call of `sleep`", "waited for its duration again"),
            (TimerFlaw::KeepsFirstWaker, "a future wakes the task that polled it last", HANGS),
            (TimerFlaw::WakesInsidePoll, wakes_once, "woke its task within a few milliseconds"),
            (TimerFlaw::WakesTwice, wakes_once, "a future woke its task 2 times"),
            (TimerFlaw::WakesAfterDrop, wakes_once, "a dropped future woke a task"),
        ],
    );
}
