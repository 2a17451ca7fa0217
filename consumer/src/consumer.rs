use crate::delivery::Delivery;
use crate::source::Source;
use crate::worker::Worker;
use background_tasks::{Registry, RejectReason, SpawnInfo, Spawner, Timer};
use futures_util::FutureExt;
use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, Location};
use std::time::Duration;

/// The name of the consumer's task, and of the tasks that report its errors.
pub(crate) const CONSUMER: &str = "consumer";

/// Returns a consumer of a queue, with the default settings.
pub fn consumer<S: Source>(source: S) -> Consumer<S> {
    let options =
        Options { concurrency: 16, max_attempts: 20, backoff: (Duration::from_secs(1), Duration::from_secs(600)), timeout: None };
    Consumer { source, options }
}

/// Configures how the messages of a queue are handled. [`consumer`] returns this type.
#[must_use = "a consumer handles no messages until `serve` is called"]
pub struct Consumer<S> {
    source: S,
    options: Options,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) concurrency: usize,
    pub(crate) max_attempts: u32,
    pub(crate) backoff: (Duration, Duration),
    pub(crate) timeout: Option<Duration>,
}

impl<S: Source> Consumer<S> {
    /// Sets how many messages this consumer handles at the same time. Default: 16. Minimum: 1.
    ///
    /// The consumer receives messages only while it handles fewer than this number.
    pub fn concurrency(mut self, messages: usize) -> Self {
        self.options.concurrency = messages.max(1);
        self
    }

    /// Sets how many attempts a message has before it is dead. Default: 20. Minimum: 1.
    ///
    /// If a message is delivered after its last attempt, no handler runs: the message moves to the dead-letter queue, and a task with
    /// the name of the handler's tasks fails.
    ///
    /// The default is high because most brokers count each delivery as an attempt. With a small number, such deliveries can make a
    /// message dead:
    ///
    /// - Its process was killed, or its lease expired. If this happened before the handler started, no handler has ever run.
    /// - A shutdown cut the handler off when the grace period expired.
    /// - A shutdown released the message before its handler started. This delivery is never the last attempt: at its last attempt, a
    ///   message is handled during the drain. The messages that RabbitMQ has sent in advance are an exception. RabbitMQ counts
    ///   them in classic queues and, before version 4.3, in quorum queues.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = attempts.max(1);
        self
    }

    /// Sets the first and the longest delay before a failed message is retried. Default: 1 second and 10 minutes.
    ///
    /// The delay doubles with each attempt. A random part of up to half is then subtracted, so that messages that failed at the same
    /// time return at different times. [`Failure::retry_after`](crate::Failure::retry_after) replaces the delay.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.options.backoff = (first, longest);
        self
    }

    /// Sets a time limit for each attempt. Default: none.
    ///
    /// When the limit expires, the handler's future is dropped at its await point, and the attempt has failed. The limit does not include
    /// the time that a message waits for a permit.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.options.timeout = Some(limit);
        self
    }

    /// Starts the consumer, which handles messages until the registry shuts down. Each attempt is a task of the registry with the name
    /// `name`.
    ///
    /// # Outcomes
    ///
    /// A task whose handler has completed ends when the source has acknowledged the message: the broker has confirmed that it deleted
    /// the message, except that RabbitMQ confirms only during the drain. The consumer repeats failed calls until the lease expires or,
    /// on a source without a lease, for 10 seconds. After that, or if the receipt is void, the task counts as failed with a text that
    /// starts with `done, but not acknowledged`, and the message may be handled again.
    ///
    /// A handler that fails, panics or exceeds its [time limit](Self::timeout) counts as a failed or panicked task. The message is
    /// retried after a [backoff](Self::backoff). After [`max_attempts`](Self::max_attempts) attempts, or after a
    /// [`Failure::dead`](crate::Failure::dead), it moves to the dead-letter queue. If this fails, the message returns when its lease
    /// expires or, on a source without a lease, after a backoff. A task that is aborted before shutdown is a failed attempt too.
    ///
    /// # Leases
    ///
    /// The consumer extends the lease of each message while its handler runs, so handlers may run longer than the lease. The
    /// extensions run in another task, so a handler may block its thread if the executor has another free thread. If a lease cannot be
    /// extended in time, another consumer can receive the message, and both run.
    ///
    /// # Shutdown
    ///
    /// When shutdown starts, the consumer starts no other `receive`, and releases messages whose tasks have not started, except messages
    /// at their [last attempt](Self::max_attempts). Running handlers continue, with extensions. If [`Registry::abort`] cuts them off, the consumer releases their messages. Only a registry with
    /// [inspection](background_tasks::RegistryBuilder::inspect) can abort.
    ///
    /// The registry drains when each message is settled or its lease has expired. On a source without a lease, the consumer gives up
    /// after 10 seconds, and the message returns when its connection closes. The drain also waits for a `receive` in progress, for at
    /// most one lease or 10 seconds, and for the return of prefetched messages, for at most 10 seconds.
    ///
    /// # Tasks in flight
    ///
    /// The consumer is a task with the name `consumer`. It is in flight until shutdown has started and all its messages are settled.
    /// It takes [no permit](Registry::without_permit), and it cannot be aborted. If the registry has a
    /// [limit](background_tasks::RegistryBuilder::max_in_flight), messages wait for a permit, with extensions. If the source panics,
    /// the shutdown starts, because the consumer is [critical](Registry::critical). The consumer owns a handle of the registry, so
    /// dropping the program's last handle does not start the shutdown.
    ///
    /// If `receive` fails, the consumer calls it again after 100 milliseconds. This pause doubles up to 5 seconds. The first failure
    /// of an outage is reported to the registry's observers as a failed task named `consumer`. The consumer also reports each message
    /// that cannot be released, and prefetched messages that cannot be returned.
    ///
    /// # Errors
    ///
    /// Returns the reason if the registry rejects the consumer because it has drained.
    ///
    /// # Panics
    ///
    /// Panics if the registry's spawner panics, as tokio's does outside its runtime.
    #[track_caller]
    pub fn serve<P, H, F, E>(self, registry: &Registry<P>, name: &'static str, handler: H) -> Result<(), RejectReason>
    where
        P: Spawner + Timer<Sleep: Send> + Clone + Send + Sync + 'static,
        H: Fn(Delivery) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let location = Location::caller();
        let Self { source, options } = self;
        let worker = Worker { source, options, registry: registry.clone(), name, location, handler };
        let task = registry.named(CONSUMER).location(location).critical().without_permit();
        // Tracked, not run: an abort must end the handlers, but not the consumer, which releases their messages.
        let consumer = task.track(worker.run()).map_err(|rejected| rejected.reason())?;
        let consumer = AssertUnwindSafe(consumer).catch_unwind().map(drop);
        registry.spawner().spawn_with_info(consumer, &SpawnInfo::new(Some(CONSUMER), location));
        Ok(())
    }
}

impl Options {
    /// Returns the delay after a failed attempt: doubled, capped, and up to half of it subtracted at random.
    pub(crate) fn retry_delay(&self, attempt: u32) -> Duration {
        let (first, longest) = self.backoff;
        let doubled = first.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1))).min(longest);
        doubled.mul_f64(fastrand::f64().mul_add(0.5, 0.5))
    }
}

impl<S> fmt::Debug for Consumer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("options", &self.options).finish_non_exhaustive()
    }
}
