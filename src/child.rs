use crate::builder::checked_limit;
use crate::registry::Registry;
use crate::task_builder::TaskBuilder;

impl<S: Clone> Registry<S> {
    /// Returns a new child registry: a part of this registry that can be shut down, drained and aborted separately. For example,
    /// use one child for each connection, each tenant or each plug-in.
    ///
    /// A child is a [`Registry`], so it has all methods of a registry, including `child`. The child uses the spawner of this
    /// handle. The *root* is the registry at the top, which [`Registry::new`] or a builder has made. A child uses the observers,
    /// the inspection and the shutdown policy of its root.
    ///
    /// Until a child has drained, its parent counts the child as one piece of work in flight. The kind of this work is
    /// [`TaskKind::Child`](crate::TaskKind::Child). Therefore [`wait_idle`](Self::wait_idle) of the parent also waits until the
    /// child has drained.
    ///
    /// The shutdown of a registry also starts the shutdown of all its children, and the registry waits until all children have
    /// drained. A draining child accepts tasks only while its own tasks are in flight. Tasks of its parent do not matter. Therefore
    /// a child without tasks drains immediately, even if the program still holds handles of the child. From this moment on, the
    /// child rejects all tasks.
    ///
    /// In a server, the last requests can still need such a child when the shutdown starts. In this case, shut down the code that
    /// uses the child before the child itself. For example, run the requests in one child and the cache in another child. Call
    /// `requests.shutdown().await` first, and then `root.shutdown().await`. The page [libraries](crate::guide::libraries) shows
    /// this order.
    ///
    /// You can create a child while this registry is draining. The shutdown signal of this child is already triggered, but the
    /// child does not drain yet: it accepts tasks, even if none of its tasks is in flight. The child starts to drain when its last
    /// handle is dropped, or when you start its own shutdown, for example with `child.shutdown()`. A server that creates a child
    /// for each request needs this rule: a request that arrives during the drain can still start its tasks. The same rule applies
    /// to the children of such a child: its shutdown does not reach them, and waits until their last handles are dropped.
    ///
    /// If this registry has drained, the new child is also drained. In this case, this registry counts and reports a rejection.
    ///
    /// [`tasks`](Self::tasks), [`services`](Self::services), [`abort`](Self::abort), [`abort_task`](Self::abort_task),
    /// [`Stragglers`](crate::Stragglers) and [`Shutdown::or_abort`](crate::Shutdown::or_abort) of a registry also cover the tasks
    /// of all its descendants. [`TaskInfo::parent`](crate::TaskInfo::parent) returns the ID of the descendant that a task belongs
    /// to. The [observers](crate::RegistryBuilder::observer) of the root receive the losses of all descendants. When the shutdown
    /// of a child starts, or when its drain ends, no observer is called.
    ///
    /// Until a child has drained, [`in_flight`](Self::in_flight) of its parent counts the child as one task, and
    /// [`summary`](Self::summary) of its parent does not contain the outcomes of the child's tasks. When the child drains, these
    /// outcomes are added to the summary of its parent.
    ///
    /// If a [limit](crate::RegistryBuilder::max_in_flight) applies to this registry, the same limit applies to the tasks of the
    /// child: each of them takes a permit. The child itself takes no permit, so it counts towards the maximum number of tasks
    /// [without a permit](Self::without_permit). Beyond this maximum, a new child is drained from the start.
    /// [`child_with_limit`](Self::child_with_limit) returns a child with a separate limit.
    ///
    /// The loss of a [critical](Self::critical) task starts the shutdown of the registry that the task belongs to. The options
    /// [`shutdown_on_panic`](crate::RegistryBuilder::shutdown_on_panic) and
    /// [`shutdown_on_failure`](crate::RegistryBuilder::shutdown_on_failure) start the shutdown of the root instead.
    ///
    /// To give the child a name, call [`named`](Self::named) first. Creating a child is cheap: the child takes its small state from
    /// a pool.
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

    /// Returns a new child registry that has its own limit: at most `max_in_flight` of its tasks are in flight at the same time.
    /// The minimum and the maximum of this limit are the same as for
    /// [`RegistryBuilder::max_in_flight`](crate::RegistryBuilder::max_in_flight).
    ///
    /// Use this method if the child's tasks must not compete with other tasks for permits. The limits of the child's ancestors do
    /// not apply to the tasks of this child, and not to the tasks of its descendants. In all other respects, this method does the
    /// same as [`child`](Self::child).
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
    /// Returns a new child registry; see [`Registry::child`]. The child has the name and the call site of this builder. The other
    /// settings of the builder have no effect.
    #[must_use = "a child shuts down when its last handle is dropped"]
    #[track_caller]
    pub fn child(self) -> Registry<S> {
        Registry::from_handle(self.make_child(None), self.spawner.clone())
    }

    /// Returns a new child registry with its own limit; see [`Registry::child_with_limit`]. The child has the name and the call
    /// site of this builder.
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
