//! Stores the state of a worker that the engine needs: how many permits are in use, and which jobs the worker holds.

use super::Engine;
use super::completer::Update;
use crate::job::{Failure, Next};
use crate::options::WorkerOptions;
use crate::running::{JobHandle, RunningJob};
use crate::store::{Committed, FetchedJob, MAX_ROWS, NextState, Outcome, QueueTick, WorkerLease};
use crate::sync::lock;
use background_tasks::ShutdownSignal;
use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_channel::oneshot;
use futures_util::future::select;
use std::collections::{HashMap, HashSet};
use std::mem;
use std::pin::pin;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use ulid::Ulid;

/// A command that the engine sends to the task of a worker.
pub(crate) enum Command {
    Start(JobLease, FetchedJob),
    /// Reports an error that does not belong to a single job. The observers of the registry receive the report.
    Report(Arc<str>),
}

pub(crate) struct WorkerHandle {
    pub(crate) id: String,
    pub(crate) queue: &'static str,
    pub(crate) options: WorkerOptions,
    signal: ShutdownSignal,
    commands: UnboundedSender<Command>,
    state: Mutex<WorkerState>,
}

#[derive(Default)]
struct WorkerState {
    updates: Option<UnboundedSender<Update>>,
    /// The jobs that the worker holds: it has fetched them, and their outcomes are not committed yet.
    jobs: HashMap<Ulid, InFlightJob>,
    /// The number of jobs that have a permit.
    running: usize,
    /// Whether the queue may have jobs to fetch.
    is_ready: bool,
    is_limited: bool,
    /// Whether the task of the worker has ended.
    is_gone: bool,
    /// The worker has fetched a job with an unknown payload version, so it fetches less often until this time.
    backs_off_until: Option<Instant>,
    /// The earliest time of the next fetch.
    next_fetch: Option<Instant>,
}

struct InFlightJob {
    running: Arc<RunningJob>,
    /// `true` if the handler has ended. When the store has committed the outcome, a worker can fetch the job again. This can happen before
    /// the response to the commit arrives here.
    is_over: bool,
}

impl WorkerHandle {
    pub(crate) fn new(
        queue: &'static str,
        options: WorkerOptions,
        signal: ShutdownSignal,
    ) -> (Arc<Self>, UnboundedReceiver<Command>) {
        let (commands, receiver) = unbounded();
        let (id, state) = (Ulid::generate().to_string(), Mutex::new(WorkerState { is_ready: true, ..WorkerState::default() }));
        (Arc::new(Self { id, queue, options, signal, commands, state }), receiver)
    }

    pub(crate) fn lease(&self) -> WorkerLease {
        WorkerLease { id: self.id.clone(), queue: self.queue, lease: self.options.lease }
    }

    pub(crate) fn signal(&self) -> ShutdownSignal {
        self.signal.clone()
    }

    pub(crate) fn connect(&self, updates: UnboundedSender<Update>) {
        lock(&self.state).updates = Some(updates);
    }

    pub(super) fn send(&self, command: Command) {
        // If the task of the worker has ended, the command and its lease are dropped. The drop of the lease puts the job back into the
        // queue.
        let _ = self.commands.unbounded_send(command);
    }

    /// Ends the task of the worker.
    pub(super) fn close(&self) {
        self.commands.close_channel();
    }

    /// Records that the task of the worker has ended.
    pub(crate) fn set_gone(&self) {
        lock(&self.state).is_gone = true;
    }

    /// Returns whether the worker has stopped fetching jobs.
    pub(crate) fn is_closing(&self) -> bool {
        self.signal.is_triggered() || lock(&self.state).is_gone
    }

    pub(super) fn has_ended(&self) -> bool {
        self.is_closing() && !self.holds_jobs()
    }

    pub(super) fn holds_jobs(&self) -> bool {
        !lock(&self.state).jobs.is_empty()
    }

    /// Returns whether the worker holds this job.
    pub(super) fn holds(&self, id: Ulid) -> bool {
        lock(&self.state).jobs.contains_key(&id)
    }

    /// Returns the IDs of the jobs that the worker holds, oldest first.
    pub(super) fn held_jobs(&self) -> Vec<Ulid> {
        let mut ids: Vec<_> = lock(&self.state).jobs.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    pub(super) fn set_ready(&self, is_ready: bool) {
        lock(&self.state).is_ready = is_ready;
    }

    pub(super) fn is_limited(&self) -> bool {
        lock(&self.state).is_limited
    }

    /// Stores the result of a check of the queue.
    pub(super) fn looked(&self, tick: &QueueTick) {
        let mut state = lock(&self.state);
        state.is_limited = tick.is_limited;
        state.is_ready |= tick.is_ready && !tick.is_paused;
    }

    /// Returns how many jobs the engine must fetch for the worker now. Returns `None` if the worker cannot start another job, if its next
    /// fetch is delayed, or if its queue has no jobs.
    pub(super) fn wants_jobs(&self) -> Option<usize> {
        let closing = self.is_closing();
        let state = lock(&self.state);
        if closing || !state.is_ready || state.next_fetch.is_some_and(|at| at > Instant::now()) {
            return None;
        }
        let held = state.jobs.values().filter(|job| !job.is_over).count();
        let free = self.options.concurrency.saturating_sub(held);
        (free > 0).then(|| free.max(self.options.batch_size).min(MAX_ROWS))
    }

    /// Records the end of a fetch.
    pub(super) fn fetched(&self, has_more: bool) {
        let mut state = lock(&self.state);
        state.is_ready |= has_more;
        let backs_off = state.backs_off_until.is_some_and(|until| Instant::now() < until);
        // The time of the delayed fetch is random. If several workers fetch less often, each is then sometimes the first to fetch.
        state.next_fetch = backs_off.then(|| Instant::now() + BACK_OFF_INTERVAL.mul_f64(fastrand::f64() + 0.5));
    }

    /// Delays the next fetch, because the rate limit allows no job before this time has passed. Then the worker fetches even without a
    /// notification.
    pub(super) fn fetch_after(&self, delay: Duration) {
        let mut state = lock(&self.state);
        state.is_ready = true;
        state.next_fetch = Some(Instant::now() + delay.min(MAX_RATE_DELAY));
    }

    /// If the next fetch is delayed and the queue may have jobs, returns the time of this fetch.
    pub(super) fn next_fetch(&self) -> Option<Instant> {
        let state = lock(&self.state);
        state.next_fetch.filter(|at| state.is_ready && *at > Instant::now())
    }

    /// Makes the worker fetch less often until this time, because it cannot run some of the jobs. Other workers then usually fetch these
    /// jobs first.
    pub(crate) fn back_off(&self, until: Instant) {
        let mut state = lock(&self.state);
        state.backs_off_until = state.backs_off_until.max(Some(until));
    }

    pub(super) fn acquire(&self) -> bool {
        let mut state = lock(&self.state);
        let is_free = state.running < self.options.concurrency;
        state.running += usize::from(is_free);
        is_free
    }

    pub(super) fn release(&self) {
        lock(&self.state).running -= 1;
    }

    /// Adds a fetched job, and returns its lease. If this worker still runs the job after an earlier fetch, this run continues, and the
    /// function returns `None`. This happens if the process hung for longer than the lease, and another process put the job back into the
    /// queue. This worker can then fetch it again.
    pub(crate) fn take(self: &Arc<Self>, engine: &Arc<Engine>, job: &FetchedJob) -> Option<JobLease> {
        let mut state = lock(&self.state);
        if let Some(held) = state.jobs.get(&job.id).filter(|held| !held.is_over) {
            held.running.run.store(job.run, SeqCst);
            return None;
        }
        let (store, runtime) = (engine.store.clone(), engine.runtime.clone());
        let running = RunningJob::new(store, runtime, job.id, job.run, job.checkpoint.clone());
        state.jobs.insert(job.id, InFlightJob { running: running.clone(), is_over: false });
        let attempt = job.attempts.saturating_add(job.crashes).saturating_add(1);
        Some(JobLease {
            worker: self.clone(),
            engine: engine.clone(),
            running,
            attempt,
            is_last_attempt: job.attempts.saturating_add(1) >= self.options.max_attempts,
            retry_delay: self.options.retry_delay(job.attempts.saturating_add(1)),
            started: None,
            clones: Weak::new(),
            state: LeaseState::Fetched,
        })
    }

    pub(super) fn cancel(&self, ids: &HashSet<Ulid>) {
        lock(&self.state).jobs.values().filter(|job| ids.contains(&job.running.id)).for_each(|job| job.running.cancel());
    }

    /// Removes a job after the outcome of this run is committed. If the worker has fetched the job again, the job stays.
    pub(super) fn remove(&self, id: Ulid, run: i32) {
        let mut state = lock(&self.state);
        if state.jobs.get(&id).is_some_and(|job| job.is_over && job.running.run.load(SeqCst) == run) {
            state.jobs.remove(&id);
        }
    }
}

/// A worker that waits for a rate limit reads the limit again after this time, because it may have been changed.
const MAX_RATE_DELAY: Duration = Duration::from_secs(1);

/// While a worker fetches less often, this is the mean interval between two fetches. By default, other workers check the queue at least
/// this often, so they can fetch the jobs in the meantime.
const BACK_OFF_INTERVAL: Duration = Duration::from_secs(1);

/// The lease of a fetched job. The lease sends exactly one outcome to the engine, even if the task of the job panics or is dropped. If the
/// lease is dropped before the job has ended, the drop sends the outcome.
pub(crate) struct JobLease {
    worker: Arc<WorkerHandle>,
    engine: Arc<Engine>,
    pub(crate) running: Arc<RunningJob>,
    pub(crate) attempt: u32,
    /// Whether a failure of this attempt makes the job dead.
    is_last_attempt: bool,
    /// The backoff after a failure of this attempt.
    retry_delay: Duration,
    /// The start time of the attempt, if metrics are recorded.
    started: Option<Instant>,
    /// Shows whether clones of the handler's `Job` exist.
    clones: Weak<JobHandle>,
    state: LeaseState,
}

#[derive(PartialEq)]
enum LeaseState {
    Fetched,
    Started,
    Over,
}

impl JobLease {
    pub(crate) fn is_closing(&self) -> bool {
        self.worker.is_closing()
    }

    /// Records the start of the attempt. Returns the state that the clones of the handler's job share.
    pub(crate) fn start(&mut self) -> Arc<JobHandle> {
        self.state = LeaseState::Started;
        self.started = self.engine.metrics.now();
        let handle = Arc::new(JobHandle(self.running.clone()));
        self.clones = Arc::downgrade(&handle);
        handle
    }

    /// Resolves when the last clone of the handler's job is dropped, or when the job is cancelled.
    pub(crate) async fn released(&self) {
        JobHandle::released(&self.clones, &self.running).await;
    }

    /// Sends the outcome to the engine. The returned future resolves when the outcome is committed. If the runtime shuts down before the
    /// commit, the future resolves to `None`.
    pub(crate) fn end(
        &mut self,
        state: NextState,
        is_charged: bool,
        result: Option<String>,
        error: Option<String>,
    ) -> impl Future<Output = Option<Committed>> + use<> {
        self.state = LeaseState::Over;
        let (committed, response) = oneshot::channel();
        let mut worker = lock(&self.worker.state);
        let (id, run) = (self.running.id, self.running.run.load(SeqCst));
        if let Some(job) = worker.jobs.get_mut(&id) {
            job.is_over = true;
        }
        let outcome = Outcome { id, run, state, is_charged, result, error };
        if let Some(updates) = &worker.updates {
            let is_completed = self.running.is_completed.load(SeqCst);
            let duration = self.started.map(|start| start.elapsed());
            let _ = updates.unbounded_send(Update { worker: self.worker.clone(), outcome, is_completed, duration, committed });
        }
        drop(worker);
        self.engine.wake(); // the worker may fetch another job
        async move { response.await.ok() }
    }

    /// Returns the next state of the job if this attempt fails.
    pub(crate) fn after(&self, failure: &Failure) -> NextState {
        match failure.next {
            Next::Dead => NextState::Dead,
            _ if self.is_last_attempt => NextState::Dead,
            Next::After(delay) => NextState::Retrying(delay),
            Next::Backoff => NextState::Retrying(self.retry_delay),
        }
    }
}

impl Drop for JobLease {
    fn drop(&mut self) {
        match self.state {
            LeaseState::Over => {}
            LeaseState::Started if !self.is_closing() && self.clones.strong_count() > 0 => {
                // A blocking closure that owns a clone of the job may still run. The next attempt must not start before this closure has
                // ended.
                let (clones, signal) = (mem::take(&mut self.clones), self.worker.signal());
                let lease = Self {
                    worker: self.worker.clone(),
                    engine: self.engine.clone(),
                    running: self.running.clone(),
                    clones: Weak::new(),
                    state: LeaseState::Started,
                    ..*self
                };
                self.engine.runtime.spawn(async move {
                    select(pin!(JobHandle::released(&clones, &lease.running)), signal).await;
                });
            }
            LeaseState::Started if !self.is_closing() => {
                let failure = Failure::retry("the task was aborted");
                drop(self.end(self.after(&failure), true, None, Some(failure.to_string())));
            }
            _ => drop(self.end(NextState::Available, false, None, None)),
        }
    }
}
