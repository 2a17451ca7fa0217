//! Tests `Durable::record_metrics` with the text that the Prometheus exporter renders.
#![expect(clippy::float_cmp, reason = "numbers of jobs are whole")]

use crate::common::{HANG, Mail, mail, on_each_store, registry, sql, until};
use background_tasks_durable::{Durable, Failure, Job, Queue, WorkerOptions};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::convert::Infallible;
use std::future::{pending, ready};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};

/// Returns the only exporter of this process.
fn exporter() -> &'static PrometheusHandle {
    static EXPORTER: OnceLock<PrometheusHandle> = OnceLock::new();
    EXPORTER.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap())
}

/// Waits until no other test uses the exporter. A test that renders can discard a sample that another thread records simultaneously.
async fn exclusive() -> MutexGuard<'static, ()> {
    static EXPORTER: Mutex<()> = Mutex::const_new(());
    EXPORTER.lock().await
}

/// Returns the sorted lines of one metric, without the prefix of this crate. `labels` selects the lines.
fn lines(metric: &str, labels: &str) -> Vec<String> {
    let text = exporter().render();
    let start = format!("background_tasks_{metric}");
    let lines = text.lines().filter(|line| line.contains(labels)).filter_map(|line| line.strip_prefix(&start));
    let mut lines: Vec<_> = lines.filter(|line| line.starts_with(['{', ' '])).map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Returns the only value of a metric.
fn value(metric: &str, labels: &str) -> Option<f64> {
    let lines = lines(metric, labels);
    assert!(lines.len() <= 1, "{lines:?}");
    lines.first().map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

/// Returns a queue with a name that no other test uses, because all tests of the process share one exporter.
fn queue(jobs: &Durable, name: [&'static str; 2]) -> (Queue<Mail>, String) {
    exporter();
    let name = name[usize::from(jobs.sqlite_pool().is_none())];
    (jobs.queue(name), format!("queue=\"{name}\""))
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_by_outcome() {
    let _exporter = exclusive().await;
    on_each_store(async |jobs: Durable| {
        let (queue, label) = queue(&jobs, ["outcomes", "outcomes pg"]);
        jobs.record_metrics(Duration::ZERO);
        jobs.record_metrics(Duration::ZERO);
        let (registry, _) = registry();
        let store = jobs.clone();
        let handler = move |job: Job<Mail>| {
            let store = store.clone();
            async move {
                match &*job.to {
                    "retried" => return Err(Failure::retry_after("no route", Duration::from_hours(1))),
                    "dead" => return Err(Failure::dead("no such address")),
                    "done" => return Ok(()),
                    "completed" => {}
                    _ => pending().await,
                }
                macro_rules! complete {
                    ($tx:expr) => {{
                        let mut tx = $tx;
                        job.complete_in(&mut *tx, &()).await?;
                        tx.commit().await?;
                    }};
                }
                match (store.sqlite_pool(), store.postgres_pool()) {
                    (Some(pool), _) => complete!(pool.begin_with("BEGIN IMMEDIATE").await?),
                    (_, Some(pool)) => complete!(pool.begin().await?),
                    _ => unreachable!(),
                }
                Ok(())
            }
        };
        let options = WorkerOptions::default().concurrency(9).timeout(HANG);
        queue.serve(&registry, options, handler).await.unwrap();
        queue.enqueue_all(["retried", "dead", "done", "completed"].map(mail)).await.unwrap();
        let deferred = jobs.queue::<Mail>(queue.name()).version(2).enqueue(mail("deferred")).await.unwrap();
        let [cancelled, returned] = queue.enqueue_all(["cancelled", "returned"].map(mail)).await.unwrap()[..] else {
            unreachable!()
        };
        until("the job is cancelled", async || {
            (queue.info(cancelled).await.unwrap()?.status().to_string() == "running").then_some(())
        })
        .await;
        assert!(queue.cancel(cancelled).await.unwrap());
        until("the last job runs", async || (queue.info(returned).await.unwrap()?.status().to_string() == "running").then_some(()))
            .await;
        // Waits without the exporter, because a render can discard the duration of an attempt that ends simultaneously.
        until("all other attempts have ended", async || {
            let counts = queue.counts().await.unwrap();
            let is_deferred = queue.info(deferred).await.unwrap()?.error().is_some();
            (is_deferred && (counts.retrying, counts.dead, counts.done) == (1, 1, 2)).then_some(())
        })
        .await;
        registry.shutdown().or_abort(ready(()), || tokio::time::sleep(HANG)).await.unwrap();
        let all = lines("job_attempts_total", &label);
        let count = |outcome: &str, attempts: u32| format!("{{{label},outcome=\"{outcome}\"}} {attempts}");
        let expected = [("cancelled", 1), ("dead", 1), ("deferred", 1), ("done", 2), ("retried", 1), ("returned", 1)];
        assert_eq!(all, expected.map(|(outcome, attempts)| count(outcome, attempts)));
        assert_eq!(lines("job_attempt_duration_seconds_count", &label), all, "each attempt has a duration");
        assert!(value("job_fetch_duration_seconds_count", "").unwrap() >= 1.0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gauges_show_the_depth_of_each_queue_and_the_age_of_the_oldest_due_job() {
    let _exporter = exclusive().await;
    on_each_store(async |jobs: Durable| {
        let (queue, label) = queue(&jobs, ["depth", "depth pg"]);
        queue.pause().await.unwrap();
        let delayed = queue.enqueue_all(["ann", "bob"].map(mail)).delay(Duration::from_hours(1)).await.unwrap();
        let due = queue.enqueue(mail("cy")).await.unwrap();
        jobs.record_metrics(Duration::from_secs(1));
        let of = |state: &str| value("jobs", &format!("{label},state=\"{state}\""));
        until("each state has a gauge", async || (of("waiting") == Some(3.0) && lines("jobs", &label).len() == 6).then_some(()))
            .await;
        let age = || value("jobs_oldest_due_seconds", &label);
        until("the oldest job ages", async || age().is_some_and(|age| age >= 1.0).then_some(())).await;
        assert!(age().unwrap() < 600.0);
        queue.cancel(due).await.unwrap();
        until("no job is due", async || {
            ((of("cancelled"), of("waiting"), age()) == (Some(1.0), Some(2.0), Some(0.0))).then_some(())
        })
        .await;

        // The next statements remove the queue. Its gauges must become zero.
        for id in [delayed[0], delayed[1], due] {
            assert!(queue.discard(id).await.unwrap());
        }
        let delete = if jobs.sqlite_pool().is_some() { "background_tasks_queues" } else { "background_tasks.queues" };
        sql(&jobs, &format!("DELETE FROM {delete}")).await;
        until("the gauges are zero", async || (of("waiting") == Some(0.0) && of("cancelled") == Some(0.0)).then_some(())).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_leases_lost_outcomes_and_recovered_jobs_are_counted() {
    let _exporter = exclusive().await;
    on_each_store(async |jobs: Durable| {
        let (queue, label) = queue(&jobs, ["lost", "lost pg"]);
        jobs.record_metrics(Duration::from_secs(1));
        let (registry, _) = registry();
        let (go, gate) = futures_channel::oneshot::channel::<()>();
        let gate = futures_util::future::FutureExt::shared(gate);
        let handler = move |_: Job<Mail>| {
            let gate = gate.clone();
            async move {
                let _ = gate.await;
                Ok::<_, Infallible>(())
            }
        };
        queue.serve(&registry, WorkerOptions::default().lease(Duration::from_secs(3)), handler).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        until("another worker has the job", async || {
            let taken = format!("UPDATE {{jobs}} SET run = run + 1 WHERE id = '{id}' AND state = 'running'");
            (sql(&jobs, &taken).await == 1).then_some(())
        })
        .await;
        drop(go);
        until("the lost outcome is counted", async || {
            value("job_attempts_total", &format!("{label},outcome=\"lost\"")).filter(|count| *count == 1.0)
        })
        .await;
        sql(&jobs, "DELETE FROM {workers}").await;
        until("the lost lease is counted", async || value("job_leases_lost_total", &label).filter(|count| *count == 1.0)).await;

        let before = value("jobs_recovered_total", "").unwrap_or(0.0);
        let year = if jobs.sqlite_pool().is_some() { "run_at - 31536000000" } else { "run_at - interval '1 year'" };
        let other = jobs.queue::<Mail>("not served").enqueue(mail("bob")).await.unwrap();
        sql(&jobs, &format!("UPDATE {{jobs}} SET state = 'running', worker = 'dead' WHERE id = '{other}'")).await;
        sql(&jobs, &format!("INSERT INTO {{workers}} SELECT 'dead', queue, {year} FROM {{jobs}} WHERE id = '{other}'")).await;
        until("the recovered job is counted", async || value("jobs_recovered_total", "").filter(|count| *count > before)).await;
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_recorded_unless_the_program_asks_for_metrics() {
    let _exporter = exclusive().await;
    on_each_store(async |jobs: Durable| {
        let (queue, label) = queue(&jobs, ["silent", "silent pg"]);
        let (registry, _) = registry();
        queue.serve(&registry, WorkerOptions::default(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        queue.wait(id).await.unwrap();
        registry.shutdown().await;
        assert!(!exporter().render().contains(&label));
    })
    .await;
}
