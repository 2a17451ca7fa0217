//! A worker: it fetches jobs, runs them, commits their outcomes, and renews its lease.
//!
//! The worker is a tracked task, which cannot be aborted: when its jobs are aborted, it still returns them to the queue.

mod completer;
mod executor;
mod heartbeat;
mod in_flight;
mod lease;
mod maintenance;
mod producer;
mod result;

use self::completer::Completer;
use self::executor::Executor;
use self::heartbeat::Heartbeat;
use self::in_flight::{InFlightJobs, JobUpdate};
use self::producer::Producer;
use crate::engine::{EngineName, FetchConfig, Semaphore, StartJob};
use crate::error::Error;
use crate::job::{Job, JobId};
use crate::options::WorkerOptions;
use crate::outage::{Report, with_timeout};
use crate::queue::Queue;
use crate::tasks::TaskNames;
use background_tasks::{Registry, Spawner};
use futures_channel::mpsc::UnboundedReceiver;
use futures_util::future::{join, select};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;
use ulid::Ulid;

impl<T> Queue<T> {
    /// Starts a worker, which runs jobs of this queue as tasks of the registry until the registry shuts down. The tasks have the name of
    /// the queue. The future resolves when the worker is in flight in the registry.
    ///
    /// # Outcomes
    ///
    /// A job's task ends when the outcome of the job is committed. A job that fails or panics counts as a failed or panicked task and is
    /// retried. If a [`Registry::abort`] outside a shutdown aborts the task, the attempt has failed.
    ///
    /// # Shutdown
    ///
    /// When shutdown starts, the worker takes no more jobs, and jobs that were fetched but not started return to the queue. Running jobs
    /// continue, with heartbeats, and end before the registry is drained. If a [`Registry::abort`] cuts them off, they return to the queue
    /// without a charged attempt. Only a registry with [inspection](background_tasks::RegistryBuilder::inspect) can abort.
    ///
    /// Jobs that still run when the process exits without an abort go to other workers when the [lease](WorkerOptions::lease) expires, and
    /// are charged an attempt.
    ///
    /// # Outages of the store
    ///
    /// The worker retries during an outage, at least every 5 seconds, and keeps outcomes that it could not commit. A shutdown waits for
    /// them, so set a deadline for the shutdown. Each outage is reported to the registry's observers as one failed task named
    /// `QUEUE worker`. Outages of the engine that follow each other within a minute are reported once.
    ///
    /// # Tasks in flight
    ///
    /// The worker is two tasks, `QUEUE worker` and `QUEUE maintenance`, which are in flight until shutdown.
    /// [`wait_idle`](Registry::wait_idle) waits for them. If the registry has a [limit](background_tasks::RegistryBuilder::max_in_flight),
    /// these two tasks take [no permits](Registry::without_permit). Jobs wait for a permit.
    ///
    /// # Errors
    ///
    /// Errors of the store, which is queried once, and [`Error::Refused`] if the registry rejects the worker.
    ///
    /// # Panics
    ///
    /// If the registry's spawner panics, as tokio's does outside its runtime.
    #[track_caller]
    pub fn serve<S, H, F, R, E>(
        &self,
        registry: &Registry<S>,
        options: WorkerOptions,
        handler: H,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<T, S, H, F, R, E>
    where
        S: Spawner + Clone + Send + Sync + 'static,
        T: DeserializeOwned + Send + 'static,
        H: Fn(Job<T>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<R, E>> + Send + 'static,
        R: Serialize + Send + 'static,
        E: Display + Send + 'static,
    {
        let location = Location::caller();
        let (queue, registry) = (self.clone(), registry.clone());
        async move {
            queue.info(JobId(Ulid::nil())).await?; // checks that the store is available
            let (durable, name) = (queue.durable.clone(), queue.name);
            let names = TaskNames::new(&registry, name, location);
            let (worker_name, maintenance_name) = (names.leak("worker"), names.leak("maintenance"));
            let (worker, updates) = WorkerLoop::new(&queue, &registry, &options, names.report(worker_name));
            let maintenance = maintenance::run(durable.store.clone(), name, options.clone(), names.report(worker_name));
            let in_flight = worker.producer.in_flight.clone();
            let executor = Arc::new(Executor { queue, options, handler, in_flight, registry: registry.clone(), location });
            let worker = durable.runtime.enter(worker.run(updates, move |engine| executor.start_jobs(engine)));
            let signal = registry.signal();
            let maintenance =
                durable.runtime.enter(async move { signal.run_until_shutdown(maintenance).await.unwrap_or_default() });
            names.check_open()?;
            let worker = names.track(worker_name, worker)?;
            let maintenance = names.track(maintenance_name, maintenance)?;
            names.start(worker_name, worker);
            names.start(maintenance_name, maintenance);
            Ok(())
        }
    }
}

struct WorkerLoop {
    producer: Producer,
    completer: Completer,
    heartbeat: Heartbeat,
}

impl WorkerLoop {
    fn new<T, S>(
        queue: &Queue<T>,
        registry: &Registry<S>,
        options: &WorkerOptions,
        report: Report,
    ) -> (Self, UnboundedReceiver<JobUpdate>) {
        let (store, signal) = (queue.durable.store.clone(), registry.signal());
        let (in_flight, updates) = InFlightJobs::new();
        let engine_name = Arc::new(EngineName::new(queue.name));
        let config = FetchConfig::new(queue.name, options);
        let report = Arc::new(report);
        let heartbeat = Heartbeat {
            store: store.clone(),
            interval: config.heartbeat_interval,
            engine_name: engine_name.clone(),
            in_flight: in_flight.clone(),
            signal: signal.clone(),
            report: report.clone(),
        };
        let outcome_event = queue.durable.outcome_event.clone();
        let completer = Completer {
            store: store.clone(),
            in_flight: in_flight.clone(),
            outcome_event,
            report: report.clone(),
            response_timeout: options.response_timeout,
        };
        let producer = Producer {
            store,
            config,
            poll_interval: options.poll_interval,
            enqueue_event: queue.durable.enqueue_event(queue.name),
            semaphore: Semaphore::new(options.concurrency),
            engine_name,
            in_flight,
            signal,
            report,
        };
        (Self { producer, completer, heartbeat }, updates)
    }

    /// Fetches until shutdown starts, and commits outcomes and sends heartbeats until no jobs are left.
    async fn run(self, updates: UnboundedReceiver<JobUpdate>, start_jobs: impl Fn(Arc<str>) -> Arc<StartJob> + Send) {
        let Self { producer, completer, heartbeat } = &self;
        let produce = async {
            producer.run(start_jobs).await;
            producer.in_flight.close_intake();
        };
        select(pin!(join(produce, completer.run(updates))), pin!(heartbeat.run())).await;
        let engine = producer.engine_name.current();
        let _ = with_timeout(producer.config.response_timeout, producer.store.deregister(&engine)).await;
    }
}
