//! Commits the updates about jobs, in batches. It retries until it succeeds, because outcomes are stored nowhere else.

use super::in_flight::{InFlightJobs, JobEvent, JobUpdate};
use super::result::MAX_SIZE;
use crate::outage::{Outage, Report, ResponseTimeout};
use crate::store::{OutcomeBatch, Store};
use event_listener::Event;
use futures_channel::mpsc::UnboundedReceiver;
use futures_channel::oneshot;
use futures_timer::Delay;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use ulid::Ulid;

/// How long a start waits for other updates. A job that ends within this time costs one transaction instead of two.
const START_DELAY: Duration = Duration::from_millis(20);

/// How long an update waits for others if the last commit was less than `BUSY_PERIOD` ago. A commit of many updates costs as much as a
/// commit of one.
const GROUP_DELAY: Duration = Duration::from_millis(2);
const BUSY_PERIOD: Duration = Duration::from_millis(10);

const MAX_BATCH: usize = 1000;

pub(super) struct Completer {
    pub(super) store: Arc<dyn Store>,
    pub(super) in_flight: Arc<InFlightJobs>,
    pub(super) outcome_event: Arc<Event>,
    pub(super) report: Arc<Report>,
    pub(super) response_timeout: Duration,
}

impl Completer {
    /// Runs until the intake is closed and no jobs are left.
    pub(super) async fn run(&self, mut updates: UnboundedReceiver<JobUpdate>) {
        let (mut is_closed, mut last_commit) = (false, None::<Instant>);
        while let Some(first) = updates.next().await {
            let is_busy = last_commit.is_some_and(|at| at.elapsed() < BUSY_PERIOD);
            let all = gather(first, &mut updates, is_busy).await;
            is_closed |= all.iter().any(|update| matches!(update.event, JobEvent::IntakeClosed));
            let is_final = |update: &&JobUpdate| !matches!(update.event, JobEvent::Started | JobEvent::IntakeClosed);
            let ended: Vec<_> = all.iter().filter(is_final).map(|update| (update.id, update.run)).collect();
            let (batches, committed) = self.batches(all);
            self.commit(batches, &ended).await;
            let has_outcomes = !ended.is_empty();
            let is_idle = self.in_flight.remove(ended);
            for committed in committed {
                let _ = committed.send(());
            }
            if has_outcomes {
                self.outcome_event.notify(usize::MAX);
            }
            last_commit = Some(Instant::now());
            if is_closed && is_idle {
                break;
            }
        }
    }

    async fn commit(&self, batches: HashMap<Arc<str>, OutcomeBatch>, ended: &[(Ulid, u64)]) {
        let (mut outage, mut timeout) = (Outage::new(&self.report), ResponseTimeout(self.response_timeout));
        for (engine, mut batch) in batches {
            while let Err(error) = timeout.limit(self.store.commit_outcomes(&engine, &batch)).await {
                Delay::new(outage.failed(error)).await;
                // If a job already runs again here, its outcome was committed without a response. The next outcome belongs to a later run.
                let has_later_run = |&&(id, run): &&(Ulid, u64)| {
                    self.in_flight.last_run(id).is_some_and(|last| last != run && !ended.contains(&(id, last)))
                };
                batch.remove(&ended.iter().filter(has_later_run).map(|(id, _)| id.to_string()).collect());
            }
        }
    }

    /// Groups updates by engine, as the store requires. Omits starts of jobs that have already ended. Omits updates about a run that the
    /// store treated as lost, because there is a later run.
    fn batches(&self, updates: Vec<JobUpdate>) -> (HashMap<Arc<str>, OutcomeBatch>, Vec<oneshot::Sender<()>>) {
        let is_final = |update: &&JobUpdate| !matches!(update.event, JobEvent::Started);
        let ended: HashSet<Ulid> = updates.iter().filter(is_final).map(|update| update.id).collect();
        let mut batches = HashMap::<Arc<str>, OutcomeBatch>::new();
        let mut committed = Vec::new();
        for update in updates {
            committed.push(update.committed);
            let Some(engine) = self.in_flight.engine_of(update.id, update.run) else { continue };
            let (id, batch) = (update.id.to_string(), batches.entry(engine).or_default());
            match update.event {
                JobEvent::Started if ended.contains(&update.id) => {}
                JobEvent::Started => batch.started.push(id),
                JobEvent::Ended { result, retry, .. } => {
                    batch.ended.push(result);
                    batch.retries.extend(retry.map(|delay| (id, delay)));
                }
                JobEvent::Returned => batch.returned.push(id),
                JobEvent::Deferred(delay, reason) => batch.deferred.push((id, delay, reason)),
                JobEvent::IntakeClosed => {}
            }
        }
        (batches, committed)
    }
}

/// Receives the updates that are committed together.
async fn gather(first: JobUpdate, updates: &mut UnboundedReceiver<JobUpdate>, is_busy: bool) -> Vec<JobUpdate> {
    let mut all = vec![first];
    let mut delay = Delay::new(START_DELAY);
    while matches!(all[all.len() - 1].event, JobEvent::Started) {
        let Either::Left((Some(next), _)) = select(updates.next(), &mut delay).await else { break };
        all.push(next);
    }
    if is_busy {
        Delay::new(GROUP_DELAY).await;
    }
    let size = |update: &JobUpdate| if let JobEvent::Ended { size, .. } = update.event { size } else { 0 };
    let mut total: usize = all.iter().map(size).sum();
    while all.len() < MAX_BATCH && total < MAX_SIZE {
        let Ok(next) = updates.try_recv() else { break };
        total += size(&next);
        all.push(next);
    }
    all
}
