//! The registries of a host.

use background_tasks::{Registry, ShutdownSignal, Stragglers, Summary, TaskInfo};
use std::time::{Duration, Instant};

/// The registries of a host, in the order in which they drain.
#[derive(Clone)]
pub(crate) struct Phases(Vec<Registry<()>>);

impl Phases {
    pub(crate) fn new(first: Registry<()>) -> Self {
        Self(vec![first])
    }

    pub(crate) fn push(&mut self, registry: Registry<()>) {
        self.0.push(registry);
    }

    pub(crate) fn insert_first(&mut self, registry: Registry<()>) {
        self.0.insert(0, registry);
    }

    pub(crate) fn first(&self) -> &Registry<()> {
        &self.0[0]
    }

    pub(crate) fn registries(&self) -> &[Registry<()>] {
        &self.0
    }

    pub(crate) fn signals(&self) -> impl Iterator<Item = ShutdownSignal> {
        self.0.iter().map(Registry::signal)
    }

    /// Returns the number of tasks in flight in all registries.
    pub(crate) fn in_flight(&self) -> usize {
        self.0.iter().map(Registry::in_flight).sum()
    }

    /// Returns the outcomes of all registries together.
    pub(crate) fn summary(&self) -> Summary {
        let mut total = Summary::default();
        for Summary { completed, failed, panicked, abandoned, aborted, rejected, .. } in self.0.iter().map(Registry::summary) {
            total.completed += completed;
            total.failed += failed;
            total.panicked += panicked;
            total.abandoned += abandoned;
            total.aborted += aborted;
            total.rejected += rejected;
        }
        total
    }

    /// Returns how many tasks were in flight and have ended.
    pub(crate) fn ended(&self) -> u64 {
        let summary = self.summary();
        summary.completed + summary.failed + summary.panicked + summary.abandoned + summary.aborted
    }

    /// Returns the critical task whose loss started the shutdown of a registry, if there is one.
    pub(crate) fn lost_critical_task(&self) -> Option<TaskInfo> {
        self.0.iter().find_map(Registry::shutdown_cause)
    }

    /// Aborts all tasks, and each task that starts later.
    pub(crate) fn abort(&self) {
        for registry in &self.0 {
            _ = registry.shutdown().wait_or_abort(Duration::ZERO, Duration::ZERO);
        }
    }

    /// Shuts all registries down and waits for them together, at most this long. Returns the stragglers of each registry that has not drained.
    pub(crate) fn shutdown_within(&self, time: Duration) -> Vec<Stragglers> {
        let deadline = Instant::now() + time;
        // All shutdowns start before the first wait.
        let shutdowns: Vec<_> = self.0.iter().map(Registry::shutdown).collect();
        let wait =
            |shutdown: background_tasks::Shutdown| shutdown.wait_timeout(deadline.saturating_duration_since(Instant::now())).err();
        shutdowns.into_iter().filter_map(wait).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use background_tasks::SmolSpawner;
    use std::future::pending;

    #[test]
    fn task_that_starts_after_the_last_abort_is_aborted() {
        let registry = Registry::builder(SmolSpawner).inspect().build();
        let held = registry.guard().unwrap();
        Phases::new(registry.with_spawner(())).abort();
        registry.run(pending::<()>());
        drop(held);
        let summary = registry.shutdown().wait_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!((summary.completed, summary.aborted), (1, 1));
    }
}
