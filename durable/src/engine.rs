//! Implements the engine. The engine fetches jobs for all workers of this process that use the same store, and commits the outcomes of the
//! jobs.
//!
//! The engine wakes when this process enqueues a job, when a permit becomes free, and when another process sends a notification. It also
//! checks the queues for due jobs, both at the time when the next job is due and at a regular interval. The regular checks find the jobs
//! whose notification was lost.

mod completer;
mod heartbeat;
mod maintenance;
mod slots;
mod waiters;
mod worker_handle;

pub(crate) use self::completer::Update;
pub(crate) use self::slots::{Permit, Suspect};
pub(crate) use self::worker_handle::{Command, JobLease, WorkerHandle};

use self::slots::Slots;
use self::waiters::Waiters;
use crate::metrics::Metrics;
use crate::outage::{Outage, RESPONSE_TIMEOUT, Report, with_timeout};
use crate::runtime::Runtime;
use crate::store::{FetchRequest, FetchedJob, Notice, Store, StoreResult, WorkerLease};
use crate::sync::lock;
use event_listener::Event;
use futures_channel::mpsc::{UnboundedSender, unbounded};
use futures_timer::Delay;
use futures_util::future::{Either, join, select};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use ulid::Ulid;

/// If a worker without jobs shuts down during a call to the store, this call can delay the shutdown by at most this time.
const SHUTDOWN_DELAY: Duration = Duration::from_millis(300);

pub(crate) struct Engine {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) runtime: Runtime,
    pub(crate) waiters: Waiters,
    pub(crate) slots: Slots,
    pub(crate) metrics: Metrics,
    state: Mutex<State>,
    /// This event wakes the engine when there is work to do.
    wake: Event,
    notices: Mutex<PendingNotices>,
}

#[derive(Default)]
struct State {
    workers: Vec<Arc<WorkerHandle>>,
    /// The channel over which the workers send outcomes to the engine. `None` if the engine does not run.
    updates: Option<UnboundedSender<Update>>,
    has_heart: bool,
    /// The time at which the engine next checks the queues for due jobs.
    next_tick: Option<Instant>,
}

/// Collects the queues for which this process must still notify other processes.
#[derive(Default)]
struct PendingNotices {
    queues: HashSet<String>,
    is_sending: bool,
}

impl Engine {
    pub(crate) fn new(store: Arc<dyn Store>, runtime: Runtime) -> Arc<Self> {
        Arc::new(Self {
            waiters: Waiters::default(),
            slots: Slots::default(),
            metrics: Metrics::default(),
            state: Mutex::default(),
            wake: Event::new(),
            notices: Mutex::default(),
            store,
            runtime,
        })
    }

    /// Adds a worker, and starts the engine if the engine does not run.
    pub(crate) fn add(self: &Arc<Self>, worker: &Arc<WorkerHandle>) {
        let mut state = lock(&self.state);
        let updates = state.updates.get_or_insert_with(|| {
            let (updates, receiver) = unbounded();
            let this = self.clone();
            self.runtime.spawn(async move {
                let background = join(this.commit_outcomes(receiver), this.maintain());
                select(pin!(this.fetch_jobs()), pin!(background)).await;
            });
            updates
        });
        worker.connect(updates.clone());
        state.workers.push(worker.clone());
        state.next_tick = None;
        if !state.has_heart {
            state.has_heart = true;
            heartbeat::start(self.clone());
        }
        drop(state);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        self.wake.notify(usize::MAX);
    }

    /// Records that jobs of this queue are due after this delay, and notifies other processes.
    pub(crate) fn changed(self: &Arc<Self>, queue: &str, delay: Duration) {
        if delay.is_zero() {
            self.mark_ready(queue);
        } else {
            self.look_in(delay);
        }
        let mut notices = lock(&self.notices);
        notices.queues.insert(queue.to_owned());
        if !std::mem::replace(&mut notices.is_sending, true) {
            let this = self.clone();
            self.runtime.spawn(async move { this.send_notices().await });
        }
    }

    /// Records that jobs of this queue are due now, and notifies other processes. Unlike `changed`, this function waits until the
    /// notification is sent, because the program may exit after the call. If the notification is lost, other processes find the jobs at
    /// their next check of the queue.
    pub(crate) async fn notify_changed(&self, queue: &str) {
        self.mark_ready(queue);
        let _ = with_timeout(RESPONSE_TIMEOUT, self.store.notify(vec![queue.to_owned()])).await;
    }

    /// Sends notifications for jobs that the program enqueues in its own transaction. They are sent a short time after this call, and not
    /// by the transaction itself, because Postgres commits transactions with notifications one at a time.
    pub(crate) fn changes_soon(self: &Arc<Self>, queue: &'static str) {
        let this = self.clone();
        self.runtime.spawn(async move {
            for delay in COMMIT_DELAYS {
                Delay::new(delay).await;
                this.changed(queue, Duration::ZERO);
            }
        });
    }

    /// Sends notifications until none is pending. The transaction that enqueues a job does not send its notification, because Postgres
    /// commits transactions with notifications one at a time. If more notifications become pending during a call to the store, the next
    /// call sends all of them. If a notification is lost, its job waits until the next check of the queue.
    async fn send_notices(&self) {
        loop {
            let queues: Vec<_> = {
                let mut notices = lock(&self.notices);
                notices.is_sending = !notices.queues.is_empty();
                notices.queues.drain().collect()
            };
            if queues.is_empty() {
                return;
            }
            let _ = with_timeout(RESPONSE_TIMEOUT, self.store.notify(queues)).await;
        }
    }

    fn mark_ready(&self, queue: &str) {
        self.workers().iter().filter(|worker| worker.queue == queue).for_each(|worker| worker.set_ready(true));
        self.wake();
    }

    /// Stops a cancelled job if it runs in this process, and notifies other processes.
    pub(crate) async fn cancelled(&self, queue: &str, id: Ulid) {
        let ids = HashSet::from([id]);
        self.workers().iter().for_each(|worker| worker.cancel(&ids));
        self.waiters.wake(&[id]);
        self.notify_changed(queue).await;
    }

    /// Handles a notification from another process.
    fn noticed(&self, notice: &Notice) {
        match notice {
            #[cfg(feature = "postgres")]
            Notice::Queue(queue) => {
                self.mark_ready(queue);
                self.look_in(LOOK_AFTER_NOTICE);
            }
            Notice::Any => self.look_in(Duration::ZERO),
            Notice::Nothing => {}
        }
    }

    /// Schedules the next check of the queues after this delay. If an earlier check is already scheduled, does nothing.
    pub(crate) fn look_in(&self, delay: Duration) {
        let at = Instant::now() + delay;
        let mut state = lock(&self.state);
        if state.next_tick.is_some_and(|tick| tick > at) {
            state.next_tick = Some(at);
            drop(state);
            self.wake();
        }
    }

    /// Returns the shortest poll interval of the workers.
    fn poll_interval(&self) -> Duration {
        let default = self.store.poll_interval();
        let state = lock(&self.state);
        state.workers.iter().map(|worker| worker.options.poll_interval.unwrap_or(default)).min().unwrap_or(default)
    }

    fn workers(&self) -> Vec<Arc<WorkerHandle>> {
        lock(&self.state).workers.clone()
    }

    fn worker(&self, id: &str) -> Option<Arc<WorkerHandle>> {
        lock(&self.state).workers.iter().find(|worker| worker.id == id).cloned()
    }

    /// Returns the leases of all workers, for the heartbeat.
    fn leases(&self) -> Vec<WorkerLease> {
        lock(&self.state).workers.iter().map(|worker| worker.lease()).collect()
    }

    /// Returns the shortest lease of all workers. If there are no workers, returns `None` and records that the heartbeat thread ends.
    fn shortest_lease(&self) -> Option<Duration> {
        let mut state = lock(&self.state);
        state.has_heart = !state.workers.is_empty();
        state.workers.iter().map(|worker| worker.options.lease).min()
    }

    /// Reports an error that does not belong to a single job. The observers of every worker receive the report.
    fn report(&self, text: &str) {
        let text = Arc::<str>::from(text);
        for worker in self.workers() {
            worker.send(Command::Report(text.clone()));
        }
    }

    /// Returns a function that reports an outage. The report starts with the text `work`, for example "the worker cannot fetch jobs".
    fn reporter(self: &Arc<Self>, work: &'static str) -> Report {
        let this = self.clone();
        Box::new(move |error| this.report(&format!("{work}, and retries: {error}")))
    }

    /// Fetches jobs until all workers have ended.
    async fn fetch_jobs(self: &Arc<Self>) {
        let report = self.reporter("the worker cannot fetch jobs");
        let (mut outage, mut paused_until) = (Outage::new(&report), None::<Instant>);
        loop {
            let wake = self.wake.listen();
            let workers = self.workers();
            self.remove_ended(&workers).await;
            if self.stop_without_workers() {
                return;
            }
            let now = Instant::now();
            let next_tick = *lock(&self.state).next_tick.get_or_insert(now);
            let mut wait = next_tick.saturating_duration_since(now);
            if let Some(time_left) = paused_until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero()) {
                wait = time_left;
            } else {
                let worked = async {
                    let has_looked = wait.is_zero() && self.look(&workers).await?;
                    Ok(self.fetch(&workers).await? || has_looked)
                };
                match worked.await {
                    Ok(true) => {
                        outage.ended();
                        continue;
                    }
                    Ok(false) => {}
                    Err(error) => {
                        let delay = outage.failed(error);
                        paused_until = Some(Instant::now() + delay);
                        wait = delay;
                    }
                }
                if let Some(at) = workers.iter().filter_map(|worker| worker.next_fetch()).min() {
                    wait = wait.min(at.saturating_duration_since(Instant::now()));
                }
            }
            select(wake, Delay::new(wait)).await;
        }
    }

    /// If a worker is shutting down and holds no jobs, removes this worker from the store.
    async fn remove_ended(&self, workers: &[Arc<WorkerHandle>]) {
        let ended: Vec<_> = workers.iter().filter(|worker| worker.has_ended()).collect();
        if ended.is_empty() {
            return;
        }
        let ids: Vec<_> = ended.iter().map(|worker| worker.id.clone()).collect();
        // The engine removes the workers from its list before the call to the store. A heartbeat during the call can add such a worker to
        // the store again. The heartbeat thread then does not find the worker in the list, and deletes it from the store.
        lock(&self.state).workers.retain(|worker| !ids.contains(&worker.id));
        // If this call fails, the workers stay in the store until their leases expire.
        let _ = with_timeout(SHUTDOWN_DELAY, self.store.deregister(&ids)).await;
        for worker in ended {
            worker.close();
        }
    }

    fn stop_without_workers(&self) -> bool {
        let mut state = lock(&self.state);
        if state.workers.is_empty() {
            state.updates = None;
        }
        state.workers.is_empty()
    }

    /// Checks the queues for due jobs. Then checks, for the jobs that the workers hold, whether a job was cancelled and whether the
    /// response to a fetch was lost; see `compare_held_jobs`. Returns `false` if a shutdown has interrupted the check of the queues.
    async fn look(self: &Arc<Self>, workers: &[Arc<WorkerHandle>]) -> StoreResult<bool> {
        let open: Vec<_> = workers.iter().filter(|worker| !worker.is_closing()).cloned().collect();
        let queues: HashSet<_> = open.iter().map(|worker| worker.queue).collect();
        let queues: Vec<_> = queues.into_iter().collect();
        let interval = self.store.look_interval(self.poll_interval());
        // Sets the time of the next check before the call, so that a notification during the call can schedule an earlier check.
        lock(&self.state).next_tick = Some(Instant::now() + interval);
        if !open.is_empty() {
            let Some(ticks) = self.unless_closing(&open, self.store.tick(&queues)).await? else { return Ok(false) };
            for tick in &ticks {
                for worker in open.iter().filter(|worker| worker.queue == tick.queue) {
                    worker.looked(tick);
                }
                if let Some(due) = tick.next_due {
                    self.look_in(due.max(Duration::from_millis(1)));
                }
            }
        }
        self.compare_held_jobs(workers).await?;
        Ok(true)
    }

    /// Reads from the store which jobs the workers hold. Stops those jobs that were cancelled. If the store lists a job that no worker has,
    /// the response to the job's fetch was lost. This job goes back into its queue.
    async fn compare_held_jobs(&self, workers: &[Arc<WorkerHandle>]) -> StoreResult {
        let ids: Vec<_> = workers.iter().map(|worker| worker.id.clone()).collect();
        let Some(held) = self.unless_closing(workers, self.store.held(&ids)).await? else { return Ok(()) };
        let (cancelled, running): (Vec<_>, Vec<_>) = held.into_iter().partition(|job| job.is_cancelled);
        let cancelled = cancelled.iter().map(|job| job.id).collect();
        for worker in workers {
            worker.cancel(&cancelled);
        }
        let unknown: Vec<_> = running.into_iter().filter(|job| !workers.iter().any(|worker| worker.holds(job.id))).collect();
        if !unknown.is_empty() {
            self.unless_closing(workers, self.store.give_back(&unknown)).await?;
            for worker in workers {
                worker.set_ready(true);
            }
        }
        Ok(())
    }

    /// Fetches jobs for each worker that can start more jobs, if its queue may have jobs. Returns whether the store was called.
    async fn fetch(self: &Arc<Self>, workers: &[Arc<WorkerHandle>]) -> StoreResult<bool> {
        if self.slots.is_reserved() {
            return Ok(false);
        }
        let (mut requests, mut limited, mut queues) = (Vec::new(), Vec::new(), HashSet::new());
        for worker in workers {
            let Some(limit) = worker.wants_jobs() else { continue };
            if !queues.insert(worker.queue) {
                continue; // another worker of this queue fetches in this round
            }
            let request = FetchRequest { queue: worker.queue, worker: worker.id.clone(), limit };
            worker.set_ready(false);
            if worker.is_limited() { &mut limited } else { &mut requests }.push((worker.clone(), request));
        }
        if requests.is_empty() && limited.is_empty() {
            return Ok(false);
        }
        let (asked, all): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let result = self.fetch_each(&asked, &all, &limited).await;
        if result.is_err() {
            asked.iter().chain(limited.iter().map(|(worker, _)| worker)).for_each(|worker| worker.set_ready(true));
        }
        result.map(|()| true)
    }

    async fn fetch_each(
        self: &Arc<Self>,
        workers: &[Arc<WorkerHandle>],
        requests: &[FetchRequest],
        limited: &[(Arc<WorkerHandle>, FetchRequest)],
    ) -> StoreResult {
        let start = self.metrics.now();
        if !requests.is_empty()
            && let Some(jobs) = self.unless_closing(workers, self.store.fetch(requests)).await?
        {
            Metrics::fetched(start);
            let mut counts = vec![0; requests.len()];
            for job in jobs {
                let Some(index) = requests.iter().position(|request| request.queue == job.queue) else { continue };
                counts[index] += 1;
                self.start(&workers[index], job);
            }
            for (index, worker) in workers.iter().enumerate() {
                worker.fetched(counts[index] >= requests[index].limit);
            }
        }
        for (worker, request) in limited {
            let start = self.metrics.now();
            let fetch = self.unless_closing(std::slice::from_ref(worker), self.store.fetch_limited(request)).await?;
            let Some(fetch) = fetch else { continue };
            Metrics::fetched(start);
            for job in fetch.jobs {
                self.start(worker, job);
            }
            worker.fetched(fetch.has_more);
            if let Some(delay) = fetch.retry_after {
                worker.fetch_after(delay);
            }
        }
        Ok(())
    }

    fn start(self: &Arc<Self>, worker: &Arc<WorkerHandle>, job: FetchedJob) {
        if let Some(lease) = worker.take(self, &job) {
            worker.send(Command::Start(lease, job));
        }
    }

    /// Calls the store with the shortest response timeout of these workers. Returns `None` if a worker shuts down and the call then takes
    /// longer than `SHUTDOWN_DELAY`.
    async fn unless_closing<T>(
        &self,
        workers: &[Arc<WorkerHandle>],
        call: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<Option<T>> {
        let limit = response_timeout(workers);
        let closing = async {
            loop {
                let wake = self.wake.listen();
                if workers.iter().any(|worker| worker.is_closing()) {
                    break;
                }
                wake.await;
            }
            Delay::new(SHUTDOWN_DELAY).await;
        };
        match select(pin!(with_timeout(limit, call)), pin!(closing)).await {
            Either::Left((result, _)) => result.map(Some),
            Either::Right(_) => Ok(None),
        }
    }
}

/// When the program enqueues jobs in its own transaction, the engine waits for the first delay and sends a notification. It then waits for
/// the second delay and sends another notification, for transactions that commit later. Most transactions commit within the first delay.
const COMMIT_DELAYS: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(190)];

/// A notification of another process does not say whether jobs are due, delayed or cancelled. The engine fetches due jobs immediately, and
/// checks for delayed and cancelled jobs after this time.
#[cfg(feature = "postgres")]
const LOOK_AFTER_NOTICE: Duration = Duration::from_millis(100);

fn response_timeout(workers: &[Arc<WorkerHandle>]) -> Duration {
    workers.iter().map(|worker| worker.options.response_timeout).min().unwrap_or(RESPONSE_TIMEOUT)
}

/// Returns a list of job IDs for a report.
fn list(ids: &[Ulid]) -> String {
    const MAX: usize = 10;
    let mut text = ids.iter().take(MAX).map(Ulid::to_string).collect::<Vec<_>>().join(", ");
    if let Some(more @ 1..) = ids.len().checked_sub(MAX) {
        let _ = write!(text, " and {more} more");
    }
    text
}
