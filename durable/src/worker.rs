//! A worker: its task receives jobs from the engine and starts them as tasks of the registry.
//!
//! The worker is a tracked task, which cannot be aborted: when its jobs are aborted, it still returns them to the queue.

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
    /// Starts a worker, which runs jobs of this queue as tasks of the registry until the registry shuts down. The tasks have the name of
    /// the queue. The future resolves when the worker is in flight in the registry.
    ///
    /// # Outcomes
    ///
    /// A job's task ends when the outcome of the job is committed. A job that fails or panics counts as a failed or panicked task and is
    /// retried. If a [`Registry::abort`] outside a shutdown aborts the task, the attempt has failed.
    ///
    /// The registry's observers receive a text that names the job and its attempt, and says what comes next. The name of the task is that
    /// of the queue:
    ///
    /// ```text
    /// job 01KAZ3V1Y3Q8RD7ZKJ1D3E5S9B, attempt 2 of 20: connection refused; retried in 1.7s
    /// ```
    ///
    /// The message of a panic is reported in the same way, whatever the type of its payload is. Only an abort has no text.
    ///
    /// # Shutdown
    ///
    /// When shutdown starts, the worker takes no more jobs, and jobs that were fetched but not started return to the queue. Running jobs
    /// continue, with heartbeats, and end before the registry is drained. If a [`Registry::abort`] cuts them off, they return to the queue
    /// without a charged attempt. Only a registry with [inspection](background_tasks::RegistryBuilder::inspect) can abort.
    ///
    /// Jobs that still run when the process exits without an abort go to other workers when the [lease](WorkerOptions::lease) expires, and
    /// are charged a [crash](WorkerOptions::crashes).
    ///
    /// # Outages of the store
    ///
    /// The worker retries during an outage, at least every 5 seconds, and keeps outcomes that it could not commit. A shutdown waits for
    /// them, so set a deadline for the shutdown. Each outage is reported to the registry's observers as one failed task named
    /// `QUEUE worker`. So is a lease that the worker could not renew in time ([`Error::LeaseLost`]).
    ///
    /// # Handlers that block
    ///
    /// A handler that blocks its thread keeps its lease, because a dedicated thread sends the heartbeats. It may still delay the jobs, the
    /// outcomes and the shutdown of the process, so move blocking work to `spawn_blocking` or a similar function. A
    /// [timeout](WorkerOptions::timeout) or a [cancellation](Queue::cancel) drops the handler's future, but does not stop a blocking
    /// closure that the handler has started. Move the [`Job`] or a clone of it into the closure: an attempt that fails ends when the
    /// last clone is dropped. Until then the job keeps its permit and its lease, it is not retried, and a shutdown waits for it. After an
    /// [abort](Registry::abort), it keeps only the lease. Without a clone, the next attempt can run at the same time as the closure.
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
    /// When a worker dies, its jobs are retried after 2 to 3 seconds. The delay doubles with each death. A job whose worker has died twice is a
    /// suspect: it runs while no other job of its process runs. While it waits for the others to end, the process fetches no jobs.
    ///
    /// # Tasks in flight
    ///
    /// The worker is a task, `QUEUE worker`, which is in flight until shutdown. [`wait_idle`](Registry::wait_idle) waits for it. If the
    /// registry has a [limit](background_tasks::RegistryBuilder::max_in_flight), this task takes [no permit](Registry::without_permit).
    /// Jobs wait for a permit.
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

/// The task of a worker. It ends when the engine has committed the outcomes of all its jobs after the start of the shutdown.
struct WorkerTask {
    handle: Arc<WorkerHandle>,
    engine: Arc<Engine>,
    /// Fetched jobs without a permit.
    jobs: VecDeque<(JobLease, FetchedJob)>,
    /// Jobs that run alone.
    suspects: VecDeque<(JobLease, FetchedJob, Suspect)>,
    report: Box<dyn Fn(Arc<str>) + Send + Sync>,
    /// Starts the task of a job. The future resolves when the registry has the task.
    start: Box<StartJob>,
}

/// A job whose worker has died this often runs alone. All jobs of a process that dies count a crash, so one crash does not make a suspect.
const SUSPICIOUS_CRASHES: u32 = 2;

impl WorkerTask {
    async fn run(mut self, mut commands: UnboundedReceiver<Command>) {
        let mut starting = FuturesUnordered::new();
        let mut shutdown = self.handle.signal().fuse();
        loop {
            let slots_changed = self.engine.slots.changed().listen();
            if self.handle.is_closing() {
                // The leases return the jobs.
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

    /// Starts the next job if there is a permit.
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
