use crate::observer::Observer;
use crate::registry::Registry;
use crate::state::{RegistryHandle, Settings};
use crate::sync::gate::MAX_IN_FLIGHT;
use alloc::boxed::Box;
use core::fmt;

impl<S> Registry<S> {
    /// Returns a new registry that starts its tasks with `spawner`.
    ///
    /// Its state comes from a process-wide pool and goes back there when it has drained and its handles are gone.
    pub fn new(spawner: S) -> Self {
        Self::builder(spawner).build()
    }

    /// Returns a builder, for a registry that tells its losses, lists its tasks, or has a limit.
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

/// Makes a [`Registry`] that tells, lists, limits or reacts; see [`Registry::builder`].
#[must_use = "it makes a registry when it is built"]
pub struct RegistryBuilder<S> {
    spawner: S,
    settings: Settings,
}

impl<S> RegistryBuilder<S> {
    pub(crate) fn new(spawner: S) -> Self {
        Self { spawner, settings: Settings::default() }
    }

    /// Adds somebody who is told of each loss, and of the shutdown's beginning and end.
    ///
    /// All that are added are told, in turn. It costs a task nothing while it goes well; one that is
    /// [named](Registry::named) keeps its name in a slot then, as an [inspected](Self::inspect) one does.
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.settings.observers.push(Box::new(observer));
        self
    }

    /// Has the registry know each task that is in flight: [`Registry::tasks`] lists them, [`Stragglers`](crate::Stragglers) names them, and
    /// [`Registry::abort`] ends them.
    ///
    /// Each task then has a slot, with a reading of the clock. Slots are used again and never given back: memory is bounded by the most
    /// tasks that were in flight at once from each call, on each shard.
    pub fn inspect(mut self) -> Self {
        self.settings.inspect = true;
        self
    }

    /// Has the registry accept at most `limit` pieces of work at a time.
    ///
    /// `run` and its like refuse the next one as [full](crate::RejectReason::Full); [`run_when_ready`](Registry::run_when_ready) waits for a place. The
    /// limit is exact, which takes one count for all threads: they share one shard.
    ///
    /// # Panics
    ///
    /// If it is zero: nothing could ever run.
    pub fn max_in_flight(mut self, limit: usize) -> Self {
        assert_ne!(limit, 0, "max_in_flight(0) would refuse every task; the least is 1");
        self.settings.limit = Some(limit.min(MAX_IN_FLIGHT));
        self
    }

    /// Has the panic of any task begin the shutdown, before its count is given back.
    ///
    /// Without it a panic is counted and told, and the others go on; unless the task is [critical](Registry::critical).
    pub fn shutdown_on_panic(mut self) -> Self {
        self.settings.shutdown_on_panic = true;
        self
    }

    /// Has the failure of any task begin the shutdown, as [`shutdown_on_panic`](Self::shutdown_on_panic) does a panic.
    pub fn shutdown_on_failure(mut self) -> Self {
        self.settings.shutdown_on_failure = true;
        self
    }

    /// Returns the registry.
    pub fn build(self) -> Registry<S> {
        Registry::from_handle(RegistryHandle::pooled(self.settings), self.spawner)
    }
}

impl<S> fmt::Debug for RegistryBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
