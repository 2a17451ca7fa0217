use crate::builder::checked_limit;
use crate::registry::Registry;
use crate::task_builder::TaskBuilder;

impl<S: Clone> Registry<S> {
    /// Returns a new child registry: a part of this registry that can be shut down, drained and aborted alone. Use a child for each
    /// connection, each tenant or each plug-in.
    ///
    /// A child is a [`Registry`], so it has all methods of a registry, including `child`. It uses the spawner of this handle,
    /// and the observers, the inspection and the shutdown policy of its root, which is the registry that [`Registry::new`] or a
    /// builder has made.
    ///
    /// In its parent, a child that is open or not empty counts as one piece of work in flight, of the kind
    /// [`TaskKind::Child`](crate::TaskKind::Child). [`wait_idle`](Self::wait_idle) of the parent therefore waits for an open child.
    ///
    /// The shutdown of a registry starts the shutdown of all its children, and then waits for their drain. A child without
    /// tasks drains immediately, so a forgotten map of children does not delay the drain. If this registry is draining already,
    /// the new child's signal is triggered, but the child stays open until its last handle is dropped or it is shut down
    /// itself. If this registry has drained, the child has drained too, and this registry counts and reports a rejection.
    ///
    /// [`tasks`](Self::tasks), [`services`](Self::services), [`abort`](Self::abort), [`abort_task`](Self::abort_task),
    /// [`Stragglers`](crate::Stragglers) and [`Shutdown::or_abort`](crate::Shutdown::or_abort) of a registry include the tasks
    /// of all its descendants; [`TaskInfo::parent`](crate::TaskInfo::parent) returns which descendant a task belongs to. The
    /// [observers](crate::RegistryBuilder::observer) of the root receive the losses of all descendants, but neither the start
    /// of a child's shutdown nor the end of its drain. The [`Summary`](crate::Summary) of a registry includes the tasks of a
    /// descendant once that descendant, and all registries between it and this registry, have drained.
    /// [`in_flight`](Self::in_flight) counts a child as one.
    ///
    /// If a [limit](crate::RegistryBuilder::max_in_flight) applies to this registry, it also applies to the tasks of the child: they take
    /// permits of the same limit. The child itself takes no permit. [`child_with_limit`](Self::child_with_limit) returns a child with a
    /// separate limit.
    ///
    /// The loss of a [critical](Self::critical) task starts the shutdown of the task's own registry. The options
    /// [`shutdown_on_panic`](crate::RegistryBuilder::shutdown_on_panic) and
    /// [`shutdown_on_failure`](crate::RegistryBuilder::shutdown_on_failure) start the shutdown of the root.
    ///
    /// To give the child a name, call [`named`](Self::named) first. The states of children are small and come from a pool, as the states of
    /// other registries do.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, SmolSpawner};
    ///
    /// let server = Registry::new(SmolSpawner);
    /// let tenant = server.named("tenant-42").child();
    /// tenant.run(async { /* work for this tenant */ });
    ///
    /// let summary = tenant.shutdown().await; // the other tenants continue
    /// assert_eq!(summary.completed, 1);
    /// assert_eq!(server.shutdown().await.completed, 1);
    /// # });
    /// ```
    #[must_use = "a child shuts down when its last handle is dropped"]
    #[track_caller]
    pub fn child(&self) -> Self {
        self.task().child()
    }

    /// Returns a new child registry that has its own limit: at most `max_in_flight` of its tasks are in flight at the same time. Its
    /// minimum and maximum are the same as for [`RegistryBuilder::max_in_flight`](crate::RegistryBuilder::max_in_flight).
    ///
    /// This limit replaces the limits of the child's ancestors for the tasks of the child and of its descendants. Use such a child for
    /// work that must not compete with other work for permits. Otherwise the method does what [`child`](Self::child) does.
    ///
    /// # Panics
    ///
    /// Panics if `max_in_flight` is 0, because no task could ever get a permit.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")] {
    /// use background_tasks::{Registry, SmolSpawner};
    ///
    /// let registry = Registry::builder(SmolSpawner).max_in_flight(100).build();
    /// let thumbnails = registry.named("thumbnails").child_with_limit(2);
    /// let guards = [thumbnails.guard().unwrap(), thumbnails.guard().unwrap()];
    /// assert!(thumbnails.guard().is_err());
    /// assert!(registry.guard().is_ok());
    /// # }
    /// ```
    #[must_use = "a child shuts down when its last handle is dropped"]
    #[track_caller]
    pub fn child_with_limit(&self, max_in_flight: usize) -> Self {
        self.task().child_with_limit(max_in_flight)
    }
}

impl<S: Clone> TaskBuilder<'_, S> {
    /// Returns a new child registry with the builder's name and call site; see [`Registry::child`]. The other settings of the builder
    /// have no effect.
    #[must_use = "a child shuts down when its last handle is dropped"]
    #[track_caller]
    pub fn child(self) -> Registry<S> {
        Registry::from_handle(self.make_child(None), self.spawner.clone())
    }

    /// Returns a new child registry with its own limit, and with the builder's name and call site; see
    /// [`Registry::child_with_limit`].
    ///
    /// # Panics
    ///
    /// Panics if `max_in_flight` is 0.
    #[must_use = "a child shuts down when its last handle is dropped"]
    #[track_caller]
    pub fn child_with_limit(self, max_in_flight: usize) -> Registry<S> {
        Registry::from_handle(self.make_child(Some(checked_limit(max_in_flight, "child_with_limit"))), self.spawner.clone())
    }
}
