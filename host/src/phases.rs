//! Stores the registries of a host. Its methods read or change all registries together.

use background_tasks::{Registry, ServiceInfo, ShutdownSignal, Stragglers, Summary, TaskInfo, TaskKind};
use std::cmp::Reverse;
use std::time::{Duration, Instant};

/// A line of the progress describes at most this many groups of similar tasks.
const MAX_GROUPS: usize = 3;

/// The registries of a host, in the order in which they drain.
#[derive(Clone)]
pub(crate) struct Phases {
    registries: Vec<Registry<()>>,
    /// For each registry, the part of the grace period that is reserved for it.
    reserves: Vec<Duration>,
}

impl Phases {
    pub(crate) fn new(first: Registry<()>) -> Self {
        Self { registries: vec![first], reserves: vec![Duration::ZERO] }
    }

    pub(crate) fn push(&mut self, registry: Registry<()>, reserve: Duration) {
        self.registries.push(registry);
        self.reserves.push(reserve);
    }

    pub(crate) fn insert_first(&mut self, registry: Registry<()>) {
        self.registries.insert(0, registry);
        self.reserves.insert(0, Duration::ZERO);
    }

    pub(crate) fn first(&self) -> &Registry<()> {
        &self.registries[0]
    }

    pub(crate) fn registries(&self) -> &[Registry<()>] {
        &self.registries
    }

    /// Returns the sum of the reserves of all registries after the first `len` registries.
    pub(crate) fn reserved_after(&self, len: usize) -> Duration {
        self.reserves[len..].iter().fold(Duration::ZERO, |sum, reserve| sum.saturating_add(*reserve))
    }

    /// Returns the time that is reserved for the registry with this index.
    #[cfg(feature = "dashboard")]
    pub(crate) fn reserve(&self, index: usize) -> Duration {
        self.reserves[index]
    }

    pub(crate) fn signals(&self) -> impl Iterator<Item = ShutdownSignal> {
        self.registries.iter().map(Registry::signal)
    }

    /// Returns whether at least one registry is inspected, so that its tasks can be aborted.
    pub(crate) fn can_abort(&self) -> bool {
        self.registries.iter().any(Registry::is_inspected)
    }

    /// Returns a service that has this name.
    pub(crate) fn service(&self, name: &str) -> Option<ServiceInfo> {
        self.registries.iter().flat_map(Registry::services).find(|service| service.task.name() == Some(name))
    }

    /// Returns the oldest inspected task with this name, from the first registry that has such a task.
    pub(crate) fn task(&self, name: &str) -> Option<TaskInfo> {
        self.registries.iter().flat_map(Registry::tasks).find(|task| task.name() == Some(name))
    }

    /// Returns the number of tasks in flight in all registries.
    pub(crate) fn in_flight(&self) -> usize {
        self.registries.iter().map(Registry::in_flight).sum()
    }

    /// Describes the oldest tasks in flight. Tasks with the same name and call site form one group. Returns an empty string if no registry
    /// is inspected.
    pub(crate) fn oldest(&self) -> String {
        let mut tasks: Vec<_> = self.registries.iter().flat_map(Registry::tasks).collect();
        tasks.sort_by_key(|task| Reverse(task.age()));
        let mut groups: Vec<(TaskInfo, usize)> = Vec::new();
        for task in tasks {
            let is_similar = |oldest: &TaskInfo| (oldest.name(), oldest.location()) == (task.name(), task.location());
            match groups.iter_mut().find(|(oldest, _)| is_similar(oldest)) {
                Some((_, len)) => *len += 1,
                None => groups.push((task, 1)),
            }
        }
        groups.iter().take(MAX_GROUPS).map(|(oldest, len)| describe(oldest, *len)).collect::<Vec<_>>().join(", ")
    }

    /// Returns whether the observers of each registry log the start of its shutdown and the end of its drain.
    pub(crate) fn are_shutdowns_logged(&self) -> bool {
        self.registries.iter().all(Registry::is_shutdown_logged)
    }

    /// Returns the outcomes of all registries together.
    pub(crate) fn summary(&self) -> Summary {
        let mut total = Summary::default();
        for Summary { completed, failed, panicked, abandoned, aborted, rejected, .. } in
            self.registries.iter().map(Registry::summary)
        {
            total.completed += completed;
            total.failed += failed;
            total.panicked += panicked;
            total.abandoned += abandoned;
            total.aborted += aborted;
            total.rejected += rejected;
        }
        total
    }

    /// Returns how many tasks have ended. Rejected tasks are not included, because they never started.
    pub(crate) fn ended(&self) -> u64 {
        let summary = self.summary();
        summary.completed + summary.failed + summary.panicked + summary.abandoned + summary.aborted
    }

    /// If a lost task has started the shutdown of a registry, returns this task. The task is critical, or its registry has
    /// `shutdown_on_panic` or `shutdown_on_failure`.
    pub(crate) fn shutdown_cause(&self) -> Option<TaskInfo> {
        self.registries.iter().find_map(Registry::shutdown_cause)
    }

    /// Aborts all tasks, including tasks that start later.
    pub(crate) fn abort(&self) {
        for registry in &self.registries {
            _ = registry.shutdown().wait_or_abort(Duration::ZERO, Duration::ZERO);
        }
    }

    /// Shuts all registries down. Waits until all of them have drained, or until `time` has expired. Returns the stragglers of each
    /// registry that has not drained.
    pub(crate) fn shutdown_within(&self, time: Duration) -> Vec<Stragglers> {
        let deadline = Instant::now() + time;
        // All registries must be shut down before the first wait.
        let shutdowns: Vec<_> = self.registries.iter().map(Registry::shutdown).collect();
        let wait =
            |shutdown: background_tasks::Shutdown| shutdown.wait_timeout(deadline.saturating_duration_since(Instant::now())).err();
        shutdowns.into_iter().filter_map(wait).collect()
    }
}

/// Returns a text with the number of tasks in flight. If `oldest` is not empty, this description of the oldest tasks follows.
pub(crate) fn describe_in_flight(in_flight: usize, oldest: &str) -> String {
    let separator = if oldest.is_empty() { "" } else { ": " };
    format!("{in_flight} in flight{separator}{oldest}")
}

/// Describes a group of similar tasks. If the tasks have a name, the text does not contain their call site.
fn describe(oldest: &TaskInfo, len: usize) -> String {
    if oldest.kind() == Some(TaskKind::Service) {
        // The text contains no age. A service may have started days ago, but the drain only waits for its current run.
        let service = oldest.name().map_or_else(|| oldest.to_string(), |name| format!("service {name}"));
        return format!("{len} × {service}");
    }
    let task = oldest.name().map_or_else(|| oldest.to_string(), str::to_owned);
    let age = oldest.age().map(|age| format!(" for {age:.1?}")).unwrap_or_default();
    format!("{len} × {task}{age}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use background_tasks::{Restart, SmolSpawner};
    use std::future::pending;

    #[test]
    fn reserves_add_up() {
        let mut phases = Phases::new(Registry::new(()));
        phases.push(Registry::new(()), Duration::from_secs(5));
        phases.push(Registry::new(()), Duration::from_secs(2));
        phases.insert_first(Registry::new(()));
        let reserved: Vec<_> = (1..=4).map(|len| phases.reserved_after(len).as_secs()).collect();
        assert_eq!(reserved, [7, 7, 2, 0]);
        phases.push(Registry::new(()), Duration::MAX);
        assert_eq!(phases.reserved_after(1), Duration::MAX);
    }

    #[test]
    fn age_of_a_service_is_not_shown() {
        let registry = Registry::builder(SmolSpawner).inspect().build();
        registry.named("report").every(Duration::from_secs(3600), pending::<()>);
        registry.service(Restart::always(), pending::<()>);
        let unnamed = registry.services().pop().unwrap().task.location();
        let phases = Phases::new(registry.with_spawner(()));
        assert_eq!(phases.oldest(), format!("1 × service report, 1 × service at {unnamed}"));
        registry.named("mail").run(pending::<()>());
        assert!(phases.oldest().contains("1 × mail for "), "{}", phases.oldest());
        phases.abort();
    }

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
