//! Runs each check on a new thread, with a time limit.

use super::{CheckResult, blocking, catch, local, send, sleep, violation};
use crate::{BlockingSpawner, BoxLocalTask, LocalSpawner, Registry, Spawner, Timer};
use std::boxed::Box;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

/// Checks a [`Spawner`]. The checks call `spawn` on threads that do not belong to the executor.
///
/// This function does not drop the executor while tasks are in flight. To check this case too, use [`executor`].
///
/// # Panics
///
/// Panics if the spawner violates its contract.
#[track_caller]
pub fn spawner<S>(make: impl Fn() -> S + Send + Sync + 'static)
where
    S: Spawner + Send + Sync + 'static,
{
    Suite::default().spawner(move || (make(), ()));
}

/// Checks a [`Spawner`] whose executor can be dropped. The closure `make` must return the spawner and the executor.
///
/// This function runs all checks of the function [`spawner`]. In addition, it drops an executor while tasks are in flight, and then drops
/// the spawner. It then checks whether all tasks have been dropped.
///
/// # Panics
///
/// Panics if the spawner violates its contract.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "tokio")] {
/// use background_tasks::conformance;
///
/// conformance::executor(|| {
///     let runtime = tokio::runtime::Runtime::new().unwrap();
///     (runtime.handle().clone(), runtime)
/// });
/// # }
/// ```
#[track_caller]
pub fn executor<S, E>(make: impl Fn() -> (S, E) + Send + Sync + 'static)
where
    S: Spawner + Send + Sync + 'static,
{
    let suite = Suite::default();
    let make = Arc::new(make);
    let make_again = make.clone();
    suite.spawner(move || make());
    suite.executor(move || make_again());
}

/// Checks a [`LocalSpawner`]. The closure `make` must return the spawner and a second closure, which runs the executor.
///
/// The second closure receives a main future. The closure must run the main future and all spawned tasks on the calling thread, and must
/// return when the main future has finished.
///
/// Only the spawner and the second closure are allowed to own the executor. If both have been dropped, the executor and all tasks in flight
/// must therefore also have been dropped.
///
/// # Panics
///
/// Panics if the spawner violates its contract.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "tokio")] {
/// use background_tasks::{TokioSpawner, conformance};
///
/// conformance::local_spawner(|| {
///     let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
///     (TokioSpawner, move |main| tokio::task::LocalSet::new().block_on(&runtime, main))
/// });
/// # }
/// ```
#[track_caller]
pub fn local_spawner<S, D>(make: impl Fn() -> (S, D) + Send + Sync + 'static)
where
    S: LocalSpawner + 'static,
    D: FnOnce(BoxLocalTask),
{
    Suite::default().local_spawner(make);
}

/// Checks a [`BlockingSpawner`]. The checks call `spawn_blocking` on threads that do not belong to the spawner's thread pool.
///
/// # Panics
///
/// Panics if the spawner violates its contract.
#[track_caller]
pub fn blocking_spawner<S>(make: impl Fn() -> S + Send + Sync + 'static)
where
    S: BlockingSpawner + Send + Sync + 'static,
{
    Suite::default().blocking_spawner(make);
}

/// Checks a [`Timer`]. The closure `make` must return the timer and a second closure.
///
/// The second closure receives a future. It must run this future on a thread on which the timer can be used, for example inside the
/// timer's runtime. It must return when the future has finished. The test suite uses the timer only inside this future.
///
/// # Panics
///
/// Panics if the timer violates its contract.
///
/// # Examples
///
/// ```
/// # #[cfg(all(feature = "async-executor", feature = "smol"))] {
/// use background_tasks::{ThreadsSpawner, WithTimer, conformance};
///
/// conformance::timer(|| {
///     let timer = WithTimer(ThreadsSpawner::new(1).unwrap(), smol::Timer::after);
///     (timer, |main| smol::block_on(main))
/// });
/// # }
/// ```
#[track_caller]
pub fn timer<T, D>(make: impl Fn() -> (T, D) + Send + Sync + 'static)
where
    T: Timer + 'static,
    D: FnOnce(BoxLocalTask),
{
    Suite::default().timer(make);
}

pub(super) const TIME_LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Suite {
    /// Returns the time limit for the check of a requirement.
    pub(super) time_limit: Box<dyn Fn(&str) -> Duration + Send>,
}

impl Default for Suite {
    fn default() -> Self {
        Self { time_limit: Box::new(|_| TIME_LIMIT) }
    }
}

impl Suite {
    #[track_caller]
    pub(super) fn spawner<S: Spawner + Send + Sync + 'static, E>(&self, make: impl Fn() -> (S, E) + Send + Sync + 'static) {
        let make = Arc::new(make);
        for (requirement, check) in send::checks() {
            let make = make.clone();
            self.run::<S>(requirement, move || {
                let (spawner, executor) = make();
                let result = check(&Registry::new(Arc::new(spawner)));
                drop(executor);
                result
            });
        }
    }

    #[track_caller]
    pub(super) fn executor<S: Spawner + 'static, E>(&self, make: impl Fn() -> (S, E) + Send + 'static) {
        self.run::<S>(send::DROPS_TASKS, move || {
            let (spawner, executor) = make();
            send::drops_tasks(Registry::new(spawner), executor)
        });
    }

    #[track_caller]
    pub(super) fn local_spawner<S, D>(&self, make: impl Fn() -> (S, D) + Send + Sync + 'static)
    where
        S: LocalSpawner + 'static,
        D: FnOnce(BoxLocalTask),
    {
        let make = Arc::new(make);
        for (requirement, check) in local::checks() {
            let make = make.clone();
            self.run::<S>(requirement, move || {
                let (spawner, run) = make();
                local::run_check(run, check(Registry::new(Rc::new(spawner))))
            });
        }
        self.run::<S>(send::DROPS_TASKS, move || {
            let (spawner, run) = make();
            local::drops_tasks(Registry::new(spawner), run)
        });
    }

    #[track_caller]
    pub(super) fn blocking_spawner<S: BlockingSpawner + Send + Sync + 'static>(
        &self,
        make: impl Fn() -> S + Send + Sync + 'static,
    ) {
        let make = Arc::new(make);
        for (requirement, check) in blocking::checks() {
            let make = make.clone();
            self.run::<S>(requirement, move || check(&Registry::new(Arc::new(make()))));
        }
    }

    #[track_caller]
    pub(super) fn timer<T, D>(&self, make: impl Fn() -> (T, D) + Send + Sync + 'static)
    where
        T: Timer + 'static,
        D: FnOnce(BoxLocalTask),
    {
        let make = Arc::new(make);
        for (requirement, check) in sleep::checks() {
            let make = make.clone();
            self.run::<T>(requirement, move || {
                let (timer, run) = make();
                local::run_check(run, check(Rc::new(timer)))
            });
        }
    }

    #[track_caller]
    fn run<S>(&self, requirement: &str, check: impl FnOnce() -> CheckResult + Send + 'static) {
        let (sender, results) = channel();
        let run_check = move || sender.send(catch(check)).unwrap_or(());
        thread::Builder::new().name("conformance".into()).spawn(run_check).expect("failed to start a thread for the check");
        let time_limit = (self.time_limit)(requirement);
        let observed = match results.recv_timeout(time_limit) {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(observed))) => observed,
            Ok(Err(message)) => format!("the check panicked: {message}"),
            Err(_) => format!("the check did not finish within {time_limit:?}"),
        };
        panic!("{}", violation::<S>(requirement, &observed));
    }
}
