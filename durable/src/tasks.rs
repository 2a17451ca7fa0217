//! Starts the tasks that this crate itself runs in a registry: `QUEUE worker` and `QUEUE cron`. These tasks take no permits of the
//! registry, so the registry's limit of tasks in flight applies only to the jobs. The tasks that report errors take no permits either. This
//! crate can therefore report an outage even if the registry is full.

use crate::error::Error;
use background_tasks::{Registry, RejectReason, SpawnInfo, Spawner, Tracked};
use std::panic::Location;
use std::sync::Arc;

/// The registry, the queue and the call site for the tasks of one worker or schedule.
pub(crate) struct TaskNames<S> {
    registry: Registry<S>,
    queue: &'static str,
    location: &'static Location<'static>,
}

impl<S: Spawner + Clone + Send + Sync + 'static> TaskNames<S> {
    pub(crate) fn new(registry: &Registry<S>, queue: &'static str, location: &'static Location<'static>) -> Self {
        Self { registry: registry.clone(), queue, location }
    }

    /// Returns the name of a task, and leaks it. The leak is small: a worker needs only a few names, and usually runs as long as its
    /// process.
    pub(crate) fn leak(&self, role: &str) -> &'static str {
        Box::leak(format!("{} {role}", self.queue).into_boxed_str())
    }

    /// Fails if the registry is shutting down and is not drained yet. The registry itself still accepts tasks during this time. A drained
    /// registry rejects the task in `track`.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        if self.registry.is_shutting_down() && !self.registry.is_drained() {
            return Err(Error::Refused(RejectReason::ShuttingDown));
        }
        Ok(())
    }

    /// Counts a task as in flight. `Registry::abort` has no effect on this task. A program can abort its jobs without a shutdown, and its
    /// workers and schedules must continue.
    pub(crate) fn track<F: Future>(&self, name: &'static str, task: F) -> Result<Tracked<F>, Error> {
        let task = self.registry.named(name).location(self.location).without_permit().track(task);
        task.map_err(|rejected| Error::Refused(rejected.reason()))
    }

    /// Starts a task that `track` has returned.
    pub(crate) fn start<F: Future<Output = ()> + Send + 'static>(&self, name: &'static str, task: Tracked<F>) {
        self.registry.spawner().spawn_with_info(task, &SpawnInfo::new(Some(name), self.location));
    }

    /// Returns a function that reports an error as a failed task with this name.
    pub(crate) fn report(&self, name: &'static str) -> Box<dyn Fn(Arc<str>) + Send + Sync> {
        let (registry, location) = (self.registry.clone(), self.location);
        Box::new(move |text| registry.named(name).location(location).without_permit().run(async move { Err::<(), _>(text) }))
    }

    /// Returns a function that reports a panic of user code as a panicked task with this name.
    #[cfg(feature = "cron")]
    pub(crate) fn report_panic(&self, name: &'static str) -> impl Fn(String) + Send + Sync + use<S> {
        let (registry, location) = (self.registry.clone(), self.location);
        move |text| {
            let unwind: fn(String) = |text| std::panic::resume_unwind(Box::new(text));
            registry.named(name).location(location).without_permit().run(async move { unwind(text) });
        }
    }
}
