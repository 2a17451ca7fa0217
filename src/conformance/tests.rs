//! A broken spawner for each promise, which the suite must name; and one that is right.

use super::threaded::{LIMIT, Suite};
use crate::platform::{catch as contain, panic_message as message};
use crate::{BlockingSpawner, BoxLocalTask, LocalSpawner, Spawner};
use futures_lite::future::block_on;
use std::cell::{Cell, RefCell};
use std::mem::{forget, take};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, Once};
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread, ThreadId};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Flaw {
    None,
    WorksInside,
    WorksInsideTasks,
    Joins,
    PollsOnce,
    KnowsOneThread,
    TakesNoneFromTasks,
    EndsAfterAPanic,
    IsDeafToOtherThreads,
    HasASmallQueue,
    OneAfterTheOther,
    Keeps,
    LeavesThemToWakers,
}

thread_local!(static HAS_PANICKED: Cell<bool> = const { Cell::new(false) });

fn notice_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            HAS_PANICKED.set(true);
            hook(panic);
        }));
    });
}

/// An executor on one thread, which lets go of all tasks when it is dropped.
struct Toy {
    flaw: Flaw,
    home: ThreadId,
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

impl Toy {
    fn new(flaw: Flaw) -> Arc<Self> {
        notice_panics();
        let (queue, jobs) = channel::<Option<Arc<Job>>>();
        let work = move || {
            for job in jobs.iter().map_while(|job| job) {
                job.poll();
                if flaw == Flaw::EndsAfterAPanic && HAS_PANICKED.get() {
                    return;
                }
            }
        };
        let worker = thread::spawn(work).thread().id();
        Arc::new(Self { flaw, home: thread::current().id(), worker, queue, jobs: Mutex::default() })
    }
}

impl Spawner for Toy {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        let mut task = Box::pin(task);
        let works_inside = match self.flaw {
            Flaw::WorksInside => true,
            Flaw::WorksInsideTasks => thread::current().id() == self.worker,
            _ => false,
        };
        if works_inside && task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        match self.flaw {
            Flaw::Joins => return thread::spawn(|| block_on(task)).join().unwrap(),
            Flaw::KnowsOneThread => assert_eq!(thread::current().id(), self.home, "no runtime on this thread"),
            Flaw::HasASmallQueue => assert!(self.jobs.lock().unwrap().len() < 500, "the queue is full"),
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
        let ended = if self.flaw == Flaw::OneAfterTheOther {
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
        if self.flaw != Flaw::IsDeafToOtherThreads || thread::current().id() == self.worker {
            self.queue.clone().send(Some(self)).unwrap_or(());
        }
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.queue.send(None).unwrap_or(());
        let jobs = take(self.jobs.get_mut().unwrap());
        match self.flaw {
            Flaw::Keeps => return forget(jobs),
            Flaw::LeavesThemToWakers => return,
            _ => (),
        }
        for job in jobs {
            let task = job.future.lock().unwrap().take();
            drop(task);
        }
    }
}

/// An executor on its caller's thread, which polls all tasks when one has been woken.
struct LocalToy {
    flaw: Flaw,
    tasks: RefCell<Vec<BoxLocalTask>>,
    bell: Arc<Bell>,
}

struct Bell {
    flaw: Flaw,
    thread: Thread,
    rung: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        if self.flaw != Flaw::IsDeafToOtherThreads || thread::current().id() == self.thread.id() {
            self.rung.store(true, Ordering::SeqCst);
            self.thread.unpark();
        }
    }
}

impl LocalToy {
    fn new(flaw: Flaw) -> (Rc<Self>, impl FnOnce(BoxLocalTask)) {
        notice_panics();
        HAS_PANICKED.set(false);
        let bell = Arc::new(Bell { flaw, thread: thread::current(), rung: AtomicBool::new(false) });
        let toy = Rc::new(Self { flaw, tasks: RefCell::default(), bell });
        (toy.clone(), move |main| toy.run(main))
    }

    fn run(&self, mut main: BoxLocalTask) {
        let waker = Waker::from(self.bell.clone());
        let cx = &mut Context::from_waker(&waker);
        while main.as_mut().poll(cx).is_pending() {
            if self.flaw == Flaw::OneAfterTheOther {
                for task in self.tasks.take() {
                    block_on(task);
                }
                continue;
            }
            let mut own = self.tasks.borrow_mut();
            let mut tasks = take(&mut *own);
            let held = (self.flaw == Flaw::TakesNoneFromTasks).then_some(own);
            tasks.retain_mut(|task| {
                let ends = self.flaw == Flaw::PollsOnce || self.flaw == Flaw::EndsAfterAPanic && HAS_PANICKED.get();
                task.as_mut().poll(cx).is_pending() && !ends
            });
            drop(held);
            self.tasks.borrow_mut().extend(tasks);
            while !self.bell.rung.swap(false, Ordering::SeqCst) {
                thread::park();
            }
        }
    }
}

impl LocalSpawner for LocalToy {
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        let mut task: BoxLocalTask = Box::pin(task);
        if self.flaw == Flaw::WorksInside && task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        let mut tasks = self.tasks.borrow_mut();
        assert!(self.flaw != Flaw::HasASmallQueue || tasks.len() < 500, "the queue is full");
        tasks.push(task);
        self.bell.clone().wake();
    }
}

impl Drop for LocalToy {
    fn drop(&mut self) {
        if self.flaw == Flaw::Keeps {
            forget(self.tasks.take());
        }
    }
}

/// A thread for each closure, or one for all.
struct BlockingToy {
    flaw: Flaw,
    home: ThreadId,
    queue: Sender<Box<dyn FnOnce() + Send>>,
    taken: AtomicUsize,
}

impl BlockingToy {
    fn new(flaw: Flaw) -> Self {
        notice_panics();
        let (queue, jobs) = channel::<Box<dyn FnOnce() + Send>>();
        let goes_on = move || flaw != Flaw::EndsAfterAPanic || !HAS_PANICKED.get();
        thread::spawn(move || jobs.iter().take_while(|_| goes_on()).for_each(|job| job()));
        Self { flaw, home: thread::current().id(), queue, taken: AtomicUsize::new(0) }
    }
}

impl BlockingSpawner for BlockingToy {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        match self.flaw {
            Flaw::WorksInside => work(),
            Flaw::Joins => thread::spawn(work).join().unwrap(),
            Flaw::PollsOnce if self.taken.fetch_add(1, Ordering::SeqCst) == 10 => drop(work),
            Flaw::KnowsOneThread if thread::current().id() != self.home => panic!("no runtime on this thread"),
            Flaw::EndsAfterAPanic | Flaw::OneAfterTheOther => self.queue.send(Box::new(work)).unwrap_or(()),
            _ => drop(thread::spawn(work)),
        }
    }
}

/// What the suite says of each flaw's spawner, beside each other as some hang.
fn says(check: impl Fn(Suite, Flaw) + Send + Copy, expected: &[(Flaw, &'static str, &'static str)]) {
    thread::scope(|scope| {
        for &(flaw, promise, seen) in expected {
            scope.spawn(move || {
                // There is nothing to wait for where it is to hang.
                let limit =
                    move |asked: &str| if seen == HANGS && asked.contains(promise) { Duration::from_secs(5) } else { LIMIT };
                let broken = contain(|| check(Suite { limit: Box::new(limit) }, flaw)).err();
                let said = broken.as_ref().map_or("nothing", message);
                assert!(said.contains(promise) && said.contains(seen), "of {flaw:?} it says: {said}");
            });
        }
    });
}

const HANGS: &str = "But it hangs, for 5s now";

#[test]
fn a_broken_spawner_is_told_which_promise_it_breaks() {
    let check = |suite: Suite, flaw| {
        suite.spawner(move || (Toy::new(flaw), ()));
        suite.executor(move || (Toy::new(flaw), ()));
    };
    let at_once = "`spawn` returns before its caller's thread polls the task, and does not wait for it";
    says(
        check,
        &[
            (Flaw::None, "nothing", ""),
            (Flaw::WorksInside, at_once, "Toy> breaks a promise: "),
            (Flaw::WorksInsideTasks, "from tasks, and polls none there", "inside `spawn`"),
            (Flaw::Joins, at_once, HANGS),
            (Flaw::PollsOnce, "a task is polled again when it has woken itself", ""),
            (Flaw::KnowsOneThread, "`spawn` takes tasks from any thread, and from tasks", "But on another thread it panicked: "),
            (Flaw::EndsAfterAPanic, "a panic harms nobody", HANGS),
            (Flaw::IsDeafToOtherThreads, "a task is polled again when another thread has woken it", HANGS),
            (Flaw::OneAfterTheOther, "the others go on while a task waits", HANGS),
            (Flaw::HasASmallQueue, "10,000 tasks are in flight at once", "But it panicked: the queue is full"),
            (Flaw::Keeps, "an executor that is dropped drops its tasks", HANGS),
            (Flaw::LeavesThemToWakers, "an executor that is dropped drops its tasks, whoever holds their wakers", HANGS),
        ],
    );
}

#[test]
fn a_broken_local_spawner_is_told_which_promise_it_breaks() {
    says(
        |suite, flaw| suite.local_spawner(move || LocalToy::new(flaw)),
        &[
            (Flaw::None, "nothing", ""),
            (Flaw::WorksInside, "`spawn_local` returns before it polls the task", "LocalToy> breaks a promise: "),
            (Flaw::PollsOnce, "a task is polled again when it has woken itself", ""),
            (Flaw::TakesNoneFromTasks, "`spawn_local` takes tasks from tasks", ""),
            (Flaw::EndsAfterAPanic, "a panic harms nobody", ""),
            (Flaw::IsDeafToOtherThreads, "a task is polled again when another thread has woken it", HANGS),
            (Flaw::OneAfterTheOther, "the others go on while a task waits", HANGS),
            (Flaw::HasASmallQueue, "10,000 tasks are in flight at once", "But it panicked: the queue is full"),
            (Flaw::Keeps, "an executor that is dropped drops its tasks", HANGS),
        ],
    );
}

#[test]
fn a_broken_blocking_spawner_is_told_which_promise_it_breaks() {
    let at_once = "`spawn_blocking` returns before the work has ended, and does it on another thread";
    says(
        |suite, flaw| suite.blocking_spawner(move || BlockingToy::new(flaw)),
        &[
            (Flaw::None, "nothing", ""),
            (Flaw::WorksInside, at_once, "BlockingToy breaks a promise: "),
            (Flaw::Joins, at_once, HANGS),
            (Flaw::PollsOnce, "the work is done", ""),
            (Flaw::KnowsOneThread, "`spawn_blocking` takes work from any thread", ""),
            (Flaw::EndsAfterAPanic, "a panic harms nobody", ""),
            (Flaw::OneAfterTheOther, "four closures block at once", HANGS),
        ],
    );
}
