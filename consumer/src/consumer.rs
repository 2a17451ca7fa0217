use crate::delivery::Delivery;
use crate::source::Source;
use crate::worker::Worker;
use background_tasks::{Registry, RejectReason, SpawnInfo, Spawner, Timer};
use futures_util::FutureExt;
use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, Location};
use std::time::Duration;

/// The name of the task that runs the consumer, and of the tasks that report the consumer's errors.
pub(crate) const CONSUMER: &str = "consumer";

/// Creates a consumer of a queue, with the default settings. Call [`Consumer::serve`] to start the consumer.
pub fn consumer<S: Source>(source: S) -> Consumer<S> {
    let options =
        Options { concurrency: 16, max_attempts: 20, backoff: (Duration::from_secs(1), Duration::from_secs(600)), timeout: None };
    Consumer { source, options }
}

/// Configures and starts a consumer, which handles the messages of a queue. [`consumer`] returns this type.
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
    /// The consumer receives messages only while it handles fewer messages than this number.
    pub fn concurrency(mut self, messages: usize) -> Self {
        self.options.concurrency = messages.max(1);
        self
    }

    /// Sets the number of attempts after which a message is dead. Default: 20. Minimum: 1.
    ///
    /// The broker can deliver a message again after its last attempt, for example if the process died. No handler runs then. The consumer
    /// moves the message to the dead-letter queue, and reports this as a failed task. The task has the name that the program has passed to
    /// [`serve`](Self::serve).
    ///
    /// Most brokers count each delivery as an attempt, even if the handler has not failed. If `attempts` is small, such deliveries alone
    /// can make a message dead. The default is therefore high. These deliveries count although the handler has not failed:
    ///
    /// - The process was killed, or the lease of the message expired. This can happen before the handler starts.
    /// - The registry aborted the handler when the grace period expired.
    /// - A shutdown released the message before its handler started. At the last attempt, the consumer does not release the message, but
    ///   handles it during the drain. Messages that RabbitMQ has sent in advance are an exception, because a shutdown releases all of them.
    ///   Classic queues count this release as an attempt, and so do quorum queues before RabbitMQ 4.3.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = attempts.max(1);
        self
    }

    /// Sets the first and the longest delay before a failed message is retried. Defaults: 1 second for the first delay, and 10 minutes for
    /// the longest.
    ///
    /// The delay doubles with each attempt, up to the longest delay. The consumer then subtracts a random part of up to half of the delay.
    /// Messages that failed at the same time therefore return at different times.
    /// [`Failure::retry_after`](crate::Failure::retry_after) replaces the delay.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.options.backoff = (first, longest);
        self
    }

    /// Sets a time limit for each attempt. Default: none.
    ///
    /// When the time limit expires, the consumer drops the handler's future at its current await point, and the attempt has failed. The
    /// time during which a message waits for a permit of the registry does not count.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.options.timeout = Some(limit);
        self
    }

    /// Starts the consumer, which handles messages until the registry shuts down. Each attempt is a task of the registry with the name
    /// `name`.
    ///
    /// # Outcomes
    ///
    /// If the handler completes, the consumer acknowledges the message. The task ends when the broker has confirmed the acknowledgement.
    /// (RabbitMQ confirms acknowledgements only during the drain.) If the acknowledgement fails, the consumer repeats it until the lease
    /// expires, or for 10 seconds on a source without a lease.
    ///
    /// If no acknowledgement succeeds, the task counts as failed, and the message may be handled again. The consumer stops earlier if the
    /// source reports that the receipt is [void](Source::is_void) (no longer valid). In both cases, the text of the failure starts with
    /// `done, but not acknowledged`.
    ///
    /// If the handler fails, panics or exceeds its [time limit](Self::timeout), the task counts as failed or panicked. The consumer retries
    /// the message after a [backoff](Self::backoff). After [`max_attempts`](Self::max_attempts) attempts, or after a
    /// [`Failure::dead`](crate::Failure::dead), the consumer moves the message to the dead-letter queue. If it cannot move the message, the
    /// message returns to its queue: when the lease expires or, on a source without a lease, after a backoff.
    ///
    /// If [`Registry::abort`] aborts a task before shutdown starts, the attempt counts as failed.
    ///
    /// # Leases
    ///
    /// The consumer extends the lease of each message while its handler runs, so handlers may run longer than the lease. The consumer's own
    /// task extends the leases. A handler may therefore block its thread, as long as the executor has another free thread. If the consumer
    /// cannot extend a lease in time, another consumer can receive the message, and the message is handled twice.
    ///
    /// # Shutdown
    ///
    /// When shutdown starts, the consumer does not call `receive` again. If the task of a message has not started, the consumer releases
    /// the message, except at the message's [last attempt](Self::max_attempts). Running handlers continue, and the consumer extends their
    /// leases. If [`Registry::abort`] aborts handlers, the consumer releases their messages. Only a registry with
    /// [inspection](background_tasks::RegistryBuilder::inspect) can abort handlers.
    ///
    /// The drain ends when each message is acknowledged, released or dead, or its lease has expired. On a source without a lease, the
    /// consumer repeats a failed call for 10 seconds. If no call succeeds, the message returns to its queue when the connection closes.
    ///
    /// The drain also waits for a `receive` in progress, for at most one lease or, without a lease, 10 seconds. The consumer then returns
    /// the messages that the broker sent in advance. The drain waits for this call for at most 10 seconds.
    ///
    /// # Tasks in flight
    ///
    /// The consumer is a task with the name `consumer`. The task is in flight until shutdown has started and no message is in progress. It
    /// takes [no permit](Registry::without_permit), and it cannot be aborted. If the source panics, the shutdown starts, because the
    /// consumer is [critical](Registry::critical).
    ///
    /// If the registry has a [limit](background_tasks::RegistryBuilder::max_in_flight), each message waits for a permit before its handler
    /// starts. While it waits, the consumer extends its lease.
    ///
    /// The consumer owns a handle of the registry. The shutdown therefore does not start when the program drops its last handle.
    ///
    /// # Outages of the broker
    ///
    /// If `receive` fails, the consumer calls it again after 100 milliseconds. This pause doubles with each failure, up to 5 seconds. The
    /// consumer reports the first failure of an outage to the registry's observers, as a failed task named `consumer`. In the same way, it
    /// reports each message that it cannot release. It also reports if it cannot return the messages that the broker sent in advance.
    ///
    /// # Errors
    ///
    /// Returns an error if the registry has drained and therefore rejects the consumer.
    ///
    /// # Panics
    ///
    /// Panics if the registry's spawner panics. For example, `TokioSpawner` panics outside a tokio runtime.
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
        // `track` instead of `run`: an abort must end the handlers, but not the consumer, because the consumer releases their messages.
        let consumer = task.track(worker.run()).map_err(|rejected| rejected.reason())?;
        let consumer = AssertUnwindSafe(consumer).catch_unwind().map(drop);
        registry.spawner().spawn_with_info(consumer, &SpawnInfo::new(Some(CONSUMER), location));
        Ok(())
    }
}

impl Options {
    /// Returns the delay after a failed attempt. The delay doubles with each attempt, up to the longest delay. A random part of up to half
    /// is subtracted.
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
