//! Implements a worker, which receives jobs from the engine and starts them as tasks of the registry.
//!
//! `Registry::abort` does not abort the task of the worker itself. If the registry aborts all jobs, the worker can therefore still put the
//! jobs back into the queue.

mod drain;
mod executor;

pub(crate) use self::drain::drain;
pub(crate) use self::executor::MAX_RESULT_SIZE;

use self::executor::Executor;
use crate::engine::{Command, Engine, JobLease, Permit, Suspect, WorkerHandle};
use crate::error::Error;
use crate::job::Job;
use crate::options::WorkerOptions;
use crate::queue::Queue;
use crate::store::FetchedJob;
use crate::tasks::TaskNames;
use background_tasks::{Registry, Spawner};
use futures_channel::mpsc::UnboundedReceiver;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::select_biased;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::fmt::Display;
use std::panic::Location;
use std::sync::Arc;

impl<T> Queue<T> {
    /// Starts a worker when the returned future is awaited. The worker runs jobs of this queue as tasks of the registry until the registry
    /// shuts down. The tasks have the name of the queue. The future resolves when the worker is in flight in the registry.
    ///
    /// # Outcomes
    ///
    /// A job's task ends when the outcome of the job is committed to the store. If an attempt fails or panics, the registry counts its task
    /// as failed or panicked, and the job is retried or becomes dead. If [`Registry::abort`] aborts the task while the registry is not
    /// shutting down, the attempt counts as failed.
    ///
    /// For each failed attempt, the registry's observers receive a message with the job, the attempt, the error and the next step:
    ///
    /// ```text
    /// job 01KAZ3V1Y3Q8RD7ZKJ1D3E5S9B, attempt 2 of 20: connection refused; retried in 1.7s
    /// ```
    ///
    /// For each panicked attempt, the observers receive the message of the panic in the same form. For an aborted task, the observers
    /// receive the loss without a message.
    ///
    /// # Shutdown
    ///
    /// When shutdown starts, the worker fetches no more jobs. Jobs that are fetched but not started go back into the queue. Running jobs
    /// and heartbeats continue. The registry is drained only after the running jobs have ended. If [`Registry::abort`] interrupts a job
    /// during the shutdown, the job goes back into the queue, and the interrupted attempt is not counted. Only a registry with
    /// [inspection](background_tasks::RegistryBuilder::inspect) can abort tasks.
    ///
    /// If the process exits while a job still runs, and the job was not aborted, another worker takes the job when the
    /// [lease](WorkerOptions::lease) expires. The exit counts as a [crash](WorkerOptions::crashes) of this job.
    ///
    /// # Outages of the store
    ///
    /// During an outage, the worker retries its calls to the store after 0.1 to 5 seconds. Outcomes that are not committed yet stay in
    /// memory. A shutdown waits until these outcomes are committed, so set a deadline for the shutdown. The worker reports an outage as a
    /// failed task named `QUEUE worker`, where `QUEUE` is the name of the queue. One outage can cause several reports. The fetches, the
    /// heartbeats, the maintenance and each batch of outcomes report it separately, and each of them only once. If the worker could not
    /// renew its lease in time, it reports [`Error::LeaseLost`] in the same way.
    ///
    /// # Handlers that block
    ///
    /// If a handler blocks its thread, its worker keeps the lease, because a dedicated thread sends the heartbeats. The blocked thread can
    /// still delay other jobs, their outcomes and the shutdown of the process. Therefore move blocking work to `spawn_blocking` or a
    /// similar function.
    ///
    /// A [timeout](WorkerOptions::timeout) or a [cancellation](Queue::cancel) drops the handler's future, but does not stop a blocking
    /// closure that the handler has started. After a timeout, the next attempt could then run at the same time as the closure. To prevent
    /// this, move the [`Job`] or a clone of it into the closure. A failed attempt then ends only when the last clone is dropped. Until
    /// then, the job keeps its permit and its lease, and a shutdown waits for the job. After an [abort](Registry::abort), the job keeps the
    /// lease, but not the permit, and a shutdown does not wait for the job.
    ///
    /// ```
    /// # use background_tasks_durable::{Failure, Job};
    /// # struct Video { path: String }
    /// # fn encode(_: &str) -> Result<(), std::io::Error> { Ok(()) }
    /// async fn convert(job: Job<Video>) -> Result<(), Failure> {
    ///     Ok(tokio::task::spawn_blocking(move || encode(&job.path)).await??)
    /// }
    /// ```
    ///
    /// # Jobs that kill their process
    ///
    /// When the lease of a dead worker has expired, its jobs wait for a backoff of 2 seconds. The backoff doubles with each death, up to 10
    /// minutes. A random part of up to half of the backoff is then added or subtracted. A job whose worker has died twice is called a
    /// suspect. A process runs a suspect only while no other job of the process runs. While a suspect waits or runs, the process fetches no
    /// jobs.
    ///
    /// # Tasks in flight
    ///
    /// The worker's own task, `QUEUE worker`, stays in flight until the registry shuts down, so [`wait_idle`](Registry::wait_idle) does not
    /// return before the shutdown. If the registry has a [limit](background_tasks::RegistryBuilder::max_in_flight) of tasks in flight, only
    /// the jobs wait for permits. The worker's own task takes [no permit](Registry::without_permit).
    ///
    /// # Errors
    ///
    /// Errors of the store that occur while the worker is registered. [`Error::Refused`] if the registry rejects the worker.
    ///
    /// # Panics
    ///
    /// The future panics if the thread for the heartbeats cannot be started, or if the registry's spawner panics. For example,
    /// `TokioSpawner` panics outside a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it resolves, no worker is started.
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
            let (durable, name) = (queue.durable.clone(), queue.name);
            let (handle, commands) = WorkerHandle::new(name, options.clone(), registry.signal());
            let names = TaskNames::new(&registry, name, location);
            let worker_name = names.leak("worker");
            let executor = Arc::new(Executor { queue, options, handler, registry: registry.clone(), location });
            names.check_open()?;
            durable.runtime.enter(durable.engine.store.register(&handle.lease())).await?;
            let worker = WorkerTask {
                handle: handle.clone(),
                engine: durable.engine.clone(),
                jobs: VecDeque::new(),
                suspects: VecDeque::new(),
                report: names.report(worker_name),
                start: Box::new(move |lease, job, permit| executor.clone().start(lease, job, permit).boxed()),
            };
            let worker = names.track(worker_name, durable.runtime.enter(worker.run(commands)))?;
            durable.engine.add(&handle);
            names.start(worker_name, worker);
            Ok(())
        }
    }
}

type StartJob = dyn Fn(JobLease, FetchedJob, Permit) -> BoxFuture<'static, ()> + Send + Sync;

/// The state of a worker's task. After shutdown has started, the task ends when the outcomes of all its jobs are committed.
struct WorkerTask {
    handle: Arc<WorkerHandle>,
    engine: Arc<Engine>,
    /// Jobs that the worker has fetched, and that wait for a permit.
    jobs: VecDeque<(JobLease, FetchedJob)>,
    /// Suspects that the worker has fetched, and that wait until they can run alone.
    suspects: VecDeque<(JobLease, FetchedJob, Suspect)>,
    report: Box<dyn Fn(Arc<str>) + Send + Sync>,
    /// Starts the task of a job. The returned future resolves when the registry has accepted or rejected the task.
    start: Box<StartJob>,
}

/// A job becomes a suspect after its worker has died this many times. One death is not enough, because a death is counted for all jobs of
/// the worker. Most of these jobs have not caused the death.
const SUSPICIOUS_CRASHES: u32 = 2;

impl WorkerTask {
    async fn run(mut self, mut commands: UnboundedReceiver<Command>) {
        let mut starting = FuturesUnordered::new();
        let mut shutdown = self.handle.signal().fuse();
        loop {
            let slots_changed = self.engine.slots.changed().listen();
            if self.handle.is_closing() {
                // Each entry contains a job and its lease. The drop of the lease puts the job back into the queue.
                self.jobs.clear();
                self.suspects.clear();
                self.engine.wake();
            }
            while let Some(start) = self.next_start() {
                starting.push(start);
            }
            select_biased! {
                command = commands.next() => match command {
                    Some(Command::Start(lease, job)) if job.crashes >= SUSPICIOUS_CRASHES => {
                        self.suspects.push_back((lease, job, self.engine.suspect()));
                    }
                    Some(Command::Start(lease, job)) => self.jobs.push_back((lease, job)),
                    Some(Command::Report(text)) => (self.report)(text),
                    None => return,
                },
                () = starting.select_next_some() => {}
                () = slots_changed.fuse() => {}
                () = shutdown => {}
            }
        }
    }

    /// Starts the next job if a permit is free. A suspect starts only when the worker has no other job that waits.
    fn next_start(&mut self) -> Option<BoxFuture<'static, ()>> {
        if !self.jobs.is_empty() {
            let permit = self.engine.try_start(&self.handle, false)?;
            let (lease, job) = self.jobs.pop_front()?;
            return Some((self.start)(lease, job, permit));
        }
        if !self.suspects.is_empty() {
            let permit = self.engine.try_start(&self.handle, true)?;
            let (lease, job, _) = self.suspects.pop_front()?;
            return Some((self.start)(lease, job, permit));
        }
        None
    }
}

impl Drop for WorkerTask {
    fn drop(&mut self) {
        self.handle.set_gone();
        self.jobs.clear();
        self.suspects.clear();
        self.engine.wake();
    }
}
