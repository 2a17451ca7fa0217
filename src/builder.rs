use crate::observer::Observer;
use crate::registry::Registry;
use crate::state::{RegistryHandle, Settings};
use crate::sync::gate::MAX_IN_FLIGHT;
use alloc::boxed::Box;
use core::fmt;

impl<S> Registry<S> {
    /// Returns a new registry that starts its tasks with `spawner`.
    ///
    /// It has no observers, no inspection and no limit; see [`builder`](Self::builder). Its state comes from a process-wide pool. It
    /// returns to the pool when the registry has drained and all handles are dropped. So memory is bounded by the largest number of
    /// registries that existed at the same time.
    pub fn new(spawner: S) -> Self {
        Self::builder(spawner).build()
    }

    /// Returns a builder for a registry with observers, inspection, a limit, or a policy that starts the shutdown after a loss.
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

/// Configures observers, inspection, a limit and shutdown policy of a new [`Registry`]; see [`Registry::builder`].
#[must_use = "a builder makes no registry until `build` is called"]
pub struct RegistryBuilder<S> {
    spawner: S,
    settings: Settings,
}

impl<S> RegistryBuilder<S> {
    pub(crate) fn new(spawner: S) -> Self {
        Self { spawner, settings: Settings::default() }
    }

    /// Adds an observer, which receives every loss, and the start and the end of the shutdown; see [`Observer`]. Default: none.
    ///
    /// Observers are called in the order in which they were added. A successful task costs nothing extra. A [named](Registry::named) task
    /// needs a slot then, as an [inspected](Self::inspect) task does.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.settings.observers.push(Box::new(observer));
        self
    }

    /// Enables inspection: the registry keeps a slot with information about each task in flight. Default: off.
    ///
    /// [`Registry::tasks`] and [`Stragglers`](crate::Stragglers) then list the tasks, and [`Registry::abort`] and
    /// [`Registry::abort_task`] can abort them.
    ///
    /// Each task costs a slot and a timestamp. Slots are reused and never freed: memory is bounded by the most tasks that were in flight
    /// simultaneously.
    pub fn inspect(mut self) -> Self {
        self.settings.inspect = true;
        self
    }

    /// Limits the number of tasks in flight. Default: no limit. Minimum: 1.
    ///
    /// When the limit is reached, [`run`](Registry::run) and [`try_run`](Registry::try_run) reject further tasks as
    /// [full](crate::RejectReason::Full), and [`run_when_ready`](Registry::run_when_ready) waits for a permit. Tracked futures and guards
    /// count too.
    ///
    /// The limit is exact because all threads share one counter. Starting a task then writes a cache line that other threads write too.
    ///
    /// # Panics
    ///
    /// If `limit` is 0, because no task could ever run.
    pub fn max_in_flight(mut self, limit: usize) -> Self {
        assert_ne!(limit, 0, "max_in_flight(0) would reject every task; the minimum is 1");
        self.settings.limit = Some(limit.min(MAX_IN_FLIGHT));
        self
    }

    /// Starts the shutdown when any task panics. Default: off. The panic of a [critical](Registry::critical) task always does so.
    ///
    /// The shutdown starts before the task's in-flight count is released.
    pub fn shutdown_on_panic(mut self) -> Self {
        self.settings.shutdown_on_panic = true;
        self
    }

    /// Starts the shutdown when any task fails. Default: off. The failure of a [critical](Registry::critical) task always does so.
    ///
    /// The shutdown starts before the task's in-flight count is released.
    pub fn shutdown_on_failure(mut self) -> Self {
        self.settings.shutdown_on_failure = true;
        self
    }

    /// Returns the configured registry.
    pub fn build(self) -> Registry<S> {
        Registry::from_handle(RegistryHandle::pooled(self.settings), self.spawner)
    }
}

impl<S> fmt::Debug for RegistryBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
