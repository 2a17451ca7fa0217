//! Commits the outcomes of jobs, in batches. A failed commit is retried until it succeeds, because the outcomes are stored nowhere else.

use super::{Engine, WorkerHandle, list};
use crate::metrics::Metrics;
use crate::outage::{Outage, Report, ResponseTimeout};
use crate::store::{Committed, MAX_ROWS, NextState, Outcome};
use crate::worker::MAX_RESULT_SIZE;
use futures_channel::mpsc::UnboundedReceiver;
use futures_channel::oneshot;
use futures_timer::Delay;
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// If the last commit was less than `BUSY_PERIOD` ago, the engine waits this long before the next commit, to collect more outcomes. A
/// commit of many outcomes takes about as long as a commit of one outcome.
const GROUP_DELAY: Duration = Duration::from_millis(2);
const BUSY_PERIOD: Duration = Duration::from_millis(10);

/// The outcome of a job, which a worker sends to the engine.
pub(crate) struct Update {
    pub(super) worker: Arc<WorkerHandle>,
    pub(super) outcome: Outcome,
    /// `true` if the handler has called `complete_in`, even if the transaction of that call was not committed.
    pub(super) is_completed: bool,
    /// The duration of the attempt, if metrics are recorded.
    pub(super) duration: Option<Duration>,
    pub(super) committed: oneshot::Sender<Committed>,
}

impl Engine {
    /// Commits the outcomes that workers send, until the future is dropped.
    pub(crate) async fn commit_outcomes(self: &Arc<Self>, mut updates: UnboundedReceiver<Update>) {
        let mut last_commit = None::<Instant>;
        while let Some(first) = updates.next().await {
            if last_commit.is_some_and(|at| at.elapsed() < BUSY_PERIOD) {
                Delay::new(GROUP_DELAY).await;
            }
            let size = |update: &Update| update.outcome.result.as_ref().map_or(0, String::len);
            let (mut total, mut all) = (size(&first), vec![first]);
            while all.len() < MAX_ROWS && total < MAX_RESULT_SIZE {
                let Ok(next) = updates.try_recv() else { break };
                total += size(&next);
                all.push(next);
            }
            self.commit(all).await;
            last_commit = Some(Instant::now());
        }
    }

    async fn commit(self: &Arc<Self>, updates: Vec<Update>) {
        let this = self.clone();
        let ids: Vec<_> = updates.iter().map(|update| update.outcome.id).collect();
        let jobs = ids.clone();
        let report: Report = Box::new(move |error| {
            let jobs = list(&jobs);
            this.report(&format!("the worker cannot store the outcomes of these jobs, and retries: {jobs}: {error}"));
        });
        let limit = updates.iter().map(|update| update.worker.options.response_timeout).min().unwrap_or_default();
        let (mut outage, mut timeout) = (Outage::new(&report), ResponseTimeout(limit));
        let outcomes: Vec<_> = updates.iter().map(|update| update.outcome.clone()).collect();
        let mut is_repeated = false;
        let committed = loop {
            match timeout.limit(self.store.commit(&outcomes)).await {
                Ok(committed) => break committed,
                Err(error) => Delay::new(outage.failed(error)).await,
            }
            is_repeated = true;
        };
        for (update, committed) in updates.into_iter().zip(committed) {
            let Outcome { id, run, state, .. } = update.outcome;
            update.worker.remove(id, run);
            match state {
                NextState::Done | NextState::Dead => {}
                NextState::Available | NextState::Scheduled(Duration::ZERO) | NextState::Retrying(Duration::ZERO) => {
                    update.worker.set_ready(true);
                }
                NextState::Scheduled(delay) | NextState::Retrying(delay) => self.look_in(delay),
            }
            if update.worker.is_limited() {
                update.worker.set_ready(true); // the end of this job may allow another job to start
            }
            // If a repeated commit finds nothing to update, an earlier try may have succeeded, and only its response was lost. The outcome
            // then counts as committed. This rule does not apply if the handler has called `complete_in`. In that case, either the
            // handler's transaction was committed, or the worker has lost the job.
            let may_be_applied = is_repeated && !update.is_completed;
            let committed = if may_be_applied && committed == Committed::Lost { Committed::Yes } else { committed };
            if let Some(duration) = update.duration {
                Metrics::attempt_ended(update.worker.queue, label(state, committed, update.is_completed), duration);
            }
            let _ = update.committed.send(committed);
        }
        self.waiters.wake(&ids);
        self.wake();
    }
}

/// Returns the value of the label `outcome` in the metrics for an attempt.
fn label(state: NextState, committed: Committed, is_completed: bool) -> &'static str {
    match (committed, state) {
        (Committed::Lost, _) if is_completed => "done",
        (Committed::Lost, _) => "lost",
        (Committed::Cancelled, _) => "cancelled",
        (Committed::Yes, NextState::Done) => "done",
        (Committed::Yes, NextState::Dead) => "dead",
        (Committed::Yes, NextState::Available) => "returned",
        (Committed::Yes, NextState::Scheduled(_)) => "deferred",
        (Committed::Yes, NextState::Retrying(_)) => "retried",
    }
}
