//! The suite where there are threads: each promise is checked on one of its own, for a limited time.

use super::{Checked, local, sent};
use crate::platform::{catch as contain, panic_message as message};
use crate::{BlockingSpawner, BoxLocalTask, LocalSpawner, Registry, Spawner};
use std::any::type_name;
use std::boxed::Box;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

/// Checks a [`Spawner`], from a thread that is none of its executor's.
///
/// What dropping the executor does is not checked, see [`executor`].
///
/// # Panics
///
/// If a promise is broken.
#[track_caller]
pub fn spawner<S>(make: impl Fn() -> S + Send + Sync + 'static)
where
    S: Spawner + Send + Sync + 'static,
{
    Suite::default().spawner(move || (make(), ()));
}

/// Checks a [`Spawner`] with an executor that can be dropped: `make` returns both.
///
/// To what [`spawner`] checks it adds that everything is let go of once both have been dropped, the executor first.
///
/// # Panics
///
/// If a promise is broken.
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
    let own = make.clone();
    suite.spawner(move || own());
    suite.executor(move || make());
}

/// Checks a [`LocalSpawner`]: `make` returns it with a closure that runs a future and what it spawns, on the thread that calls, until the future
/// has ended.
///
/// The executor must be gone when the closure is, and the spawner: it is dropped with tasks in flight, which it must let go of.
///
/// # Panics
///
/// If a promise is broken.
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

/// Checks a [`BlockingSpawner`], from a thread that is none of its own.
///
/// # Panics
///
/// If a promise is broken.
#[track_caller]
pub fn blocking_spawner<S>(make: impl Fn() -> S + Send + Sync + 'static)
where
    S: BlockingSpawner + Send + Sync + 'static,
{
    Suite::default().blocking_spawner(make);
}

pub(super) const LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Suite {
    /// How long a promise may take.
    pub(super) limit: Box<dyn Fn(&str) -> Duration + Send>,
}

impl Default for Suite {
    fn default() -> Self {
        Self { limit: Box::new(|_| LIMIT) }
    }
}

impl Suite {
    #[track_caller]
    pub(super) fn spawner<S: Spawner + Send + Sync + 'static, E>(&self, make: impl Fn() -> (S, E) + Send + Sync + 'static) {
        let make = Arc::new(make);
        for (promise, check) in sent::tasks() {
            let make = make.clone();
            self.demand::<S>(promise, move || {
                let (spawner, executor) = make();
                let checked = check(&Registry::new(Arc::new(spawner)));
                drop(executor);
                checked
            });
        }
    }

    #[track_caller]
    pub(super) fn executor<S: Spawner + 'static, E>(&self, make: impl Fn() -> (S, E) + Send + 'static) {
        self.demand::<S>(sent::LETS_GO, move || {
            let (spawner, executor) = make();
            sent::lets_go(Registry::new(spawner), executor)
        });
    }

    #[track_caller]
    pub(super) fn local_spawner<S, D>(&self, make: impl Fn() -> (S, D) + Send + Sync + 'static)
    where
        S: LocalSpawner + 'static,
        D: FnOnce(BoxLocalTask),
    {
        let make = Arc::new(make);
        for (promise, check) in local::tasks() {
            let make = make.clone();
            self.demand::<S>(promise, move || {
                let (spawner, drive) = make();
                local::driven(drive, check(Registry::new(Rc::new(spawner))))
            });
        }
        self.demand::<S>(sent::LETS_GO, move || {
            let (spawner, drive) = make();
            local::lets_go(Registry::new(spawner), drive)
        });
    }

    #[track_caller]
    pub(super) fn blocking_spawner<S: BlockingSpawner + Send + Sync + 'static>(
        &self,
        make: impl Fn() -> S + Send + Sync + 'static,
    ) {
        let make = Arc::new(make);
        for (promise, check) in sent::blocking() {
            let make = make.clone();
            self.demand::<S>(promise, move || check(&Registry::new(Arc::new(make()))));
        }
    }

    #[track_caller]
    fn demand<S>(&self, promise: &str, check: impl FnOnce() -> Checked + Send + 'static) {
        let (tell, told) = channel();
        let checking = move || tell.send(contain(check)).unwrap_or(());
        thread::Builder::new().name("conformance".into()).spawn(checking).expect("a thread can be started");
        let limit = (self.limit)(promise);
        let seen = match told.recv_timeout(limit) {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(seen))) => seen,
            Ok(Err(panic)) => format!("it panicked: {}", message(&panic)),
            Err(_) => format!("it hangs, for {limit:?} now"),
        };
        panic!("{} breaks a promise: {promise}. But {seen}", type_name::<S>());
    }
}
