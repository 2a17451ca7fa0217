use crate::observer::Observer;
use crate::registry::Registry;
use crate::state::{EVERY_TASK, INSPECTED, OBSERVED, RegistryHandle, SHUTDOWN_ON_FAILURE, SHUTDOWN_ON_PANIC, Settings};
use crate::sync::gate::MAX_PERMITS;
use alloc::boxed::Box;
use core::fmt;

impl<S> Registry<S> {
    /// Returns a new registry that starts its tasks with `spawner`.
    ///
    /// The registry has no observers and no limit, and keeps no list of its tasks. To set these options, use
    /// [`builder`](Self::builder).
    ///
    /// The registry takes its state from a process-wide pool. The state returns to the pool after the registry has drained, and
    /// after the program has dropped all its handles, and all its [`Shutdown`](crate::Shutdown), [`WaitIdle`](crate::WaitIdle) and
    /// [`ShutdownGuard`](crate::ShutdownGuard) values. Another registry can then use the state. Memory is therefore bounded by the
    /// largest number of registries that existed at the same time.
    pub fn new(spawner: S) -> Self {
        Self::builder(spawner).build()
    }

    /// Returns a builder for a registry. The options of the builder add observers, inspection (a list of the tasks), a limit on the
    /// tasks in flight, or a shutdown after a task fails or panics.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")] {
    /// use background_tasks::{Registry, SmolSpawner};
    ///
    /// let registry = Registry::builder(SmolSpawner).inspect().max_in_flight(1000).build();
    /// registry.named("sweeper").run(std::future::pending::<()>());
    /// assert_eq!(registry.tasks()[0].name(), Some("sweeper"));
    /// # }
    /// ```
    pub fn builder(spawner: S) -> RegistryBuilder<S> {
        RegistryBuilder::new(spawner)
    }
}

/// Sets the options of a new [`Registry`]: its observers, inspection (a list of its tasks), limit, and shutdown policy (which
/// losses start the shutdown).
///
/// [`Registry::builder`] returns this type.
#[must_use = "a builder makes no registry until `build` is called"]
pub struct RegistryBuilder<S> {
    spawner: S,
    settings: Settings,
}

impl<S> RegistryBuilder<S> {
    pub(crate) fn new(spawner: S) -> Self {
        Self { spawner, settings: Settings::default() }
    }

    /// Adds an [`Observer`]. The registry calls its observers for every lost task, at the start of the shutdown, and at the end
    /// of the drain. Default: no observers.
    ///
    /// The registry calls its observers in the order in which they were added. For a task without a name, observers add a cost only
    /// if the task is lost, or if one of the observers [observes every task](Observer::observes_every_task). In a registry with
    /// observers, each [named](Registry::named) task occupies a slot: a table entry with information about the task.
    /// [`inspect`](Self::inspect) describes the cost of slots.
    ///
    /// An observer that observes every task, such as `SpanObserver`, also enables inspection.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        let every_task = if observer.observes_every_task() { EVERY_TASK | INSPECTED } else { 0 };
        self.settings.flags |= OBSERVED | every_task;
        self.settings.observers.push(Box::new(observer));
        self
    }

    /// Makes the registry inspected: it then stores information about each task in flight. Default: off.
    ///
    /// [`Registry::tasks`] and [`Stragglers`](crate::Stragglers) list the tasks of an inspected registry. [`Registry::abort`] and
    /// [`Registry::abort_task`] can abort these tasks.
    ///
    /// An inspected registry takes a timestamp for each task, and each task occupies a slot: a table entry with information about
    /// the task. When a task ends, another task can reuse its slot. The memory of slots is never freed. Each shard of the registry
    /// (about four for each core) has its own slots, as many as the largest number of its tasks that were in flight simultaneously.
    /// A child registry has one shard. When a child has drained, a later child reuses this shard with its slots.
    pub fn inspect(mut self) -> Self {
        self.settings.flags |= INSPECTED;
        self
    }

    /// Limits the number of tasks in flight. Default: no limit. Minimum: 1. Maximum: 4,194,303 (1,023 on 32-bit targets). Larger
    /// limits are reduced to the maximum.
    ///
    /// The limit is the number of permits. A task takes a permit when it starts, and releases the permit when it ends. If no permit
    /// is free, methods that do not wait, such as [`run`](Registry::run) and [`guard`](Registry::guard), reject tasks as
    /// [full](crate::RejectReason::Full). [`run_when_ready`](Registry::run_when_ready) waits for a permit instead. Tracked futures,
    /// guards and services also take a permit each. A child registry takes no permit, but the [tasks of the child](Registry::child)
    /// do.
    ///
    /// Work that is started [without a permit](Registry::without_permit) does not count towards the limit. Use `without_permit` for
    /// requests, and for other work that itself starts tasks. Without this setting, the requests could take all permits, and the
    /// registry would then reject the tasks that the requests start. In the crate `background-tasks-host`, the program of a `Host`
    /// and the requests of a `RequestLayer` take no permits.
    ///
    /// When the shutdown starts, `run_when_ready` stops waiting for a permit, and the registry rejects the task. Only a
    /// [follow-up](Registry::follow_up), which continues the work of a task in flight, still waits.
    ///
    /// The limit is exact, because all threads share one counter. The cost is that threads which start or end tasks compete for one
    /// cache line.
    ///
    /// # Panics
    ///
    /// Panics if `limit` is 0, because no task could ever get a permit.
    pub fn max_in_flight(mut self, limit: usize) -> Self {
        self.settings.limit = Some(checked_limit(limit, "max_in_flight"));
        self
    }

    /// Starts the shutdown when any task panics. Default: off.
    ///
    /// When the shutdown starts, the panicked task still counts as in flight. Even if this option is off, the shutdown starts when
    /// a [critical](Registry::critical) task is lost.
    pub fn shutdown_on_panic(mut self) -> Self {
        self.settings.flags |= SHUTDOWN_ON_PANIC;
        self
    }

    /// Starts the shutdown when any task fails. Default: off.
    ///
    /// When the shutdown starts, the failed task still counts as in flight. Even if this option is off, the shutdown starts when a
    /// [critical](Registry::critical) task is lost.
    pub fn shutdown_on_failure(mut self) -> Self {
        self.settings.flags |= SHUTDOWN_ON_FAILURE;
        self
    }

    /// Returns the configured registry.
    pub fn build(self) -> Registry<S> {
        Registry::from_handle(RegistryHandle::pooled(self.settings), self.spawner)
    }
}

/// Returns the limit, reduced to `MAX_PERMITS` if it is larger. Panics if the limit is 0.
#[track_caller]
pub(crate) fn checked_limit(limit: usize, method: &str) -> usize {
    assert_ne!(limit, 0, "{method}(0) would reject every task; the minimum is 1");
    limit.min(MAX_PERMITS)
}

impl<S> fmt::Debug for RegistryBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryBuilder").field("max_in_flight", &self.settings.limit).finish_non_exhaustive()
    }
}
