//! Tests what the observers of the registry receive for each kind of loss. The task name is the name of the queue. The message names the
//! job and its attempt, what happened, and what happens next.

use crate::common::{HANG, Losses, Mail, mail, on_each_store, panic_quietly, registry, sql, until};
use background_tasks::{Registry, TokioSpawner};
use background_tasks_durable::{Durable, Failure, Job, JobId, Queue, WorkerOptions};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Waits for the next losses and returns them sorted, with `ID` in place of the job ID. An attempt may report its loss after the next
/// attempt has.
async fn reports(losses: &Losses, before: usize, expected: usize, id: JobId) -> Vec<(&'static str, &'static str, String)> {
    until("the losses are reported", async || (losses.all().len() >= before + expected).then_some(())).await;
    let mut new = losses.all().split_off(before);
    new.sort();
    new.into_iter().map(|(outcome, name, text)| (outcome, name, text.replace(&id.to_string(), "ID"))).collect()
}

/// Serves a queue. The payload of a job decides how the job ends.
async fn serve(jobs: &Durable, queue: &Queue<Mail>, registry: &Registry<TokioSpawner>, go: &Arc<Semaphore>) {
    let (jobs, permits) = (jobs.clone(), go.clone());
    let handler = move |job: Job<Mail>| {
        let (jobs, permits) = (jobs.clone(), permits.clone());
        async move {
            match &*job.to {
                "fails" => return Err(Failure::retry_after("no route", Duration::from_hours(1))),
                "fails thrice" => return Err(Failure::retry("no route")),
                "is invalid" => return Err(Failure::dead("no such address")),
                "panics" => panic_quietly("oh"),
                "rolls back" => match (jobs.sqlite_pool(), jobs.postgres_pool()) {
                    (Some(pool), _) => job.complete_in(&mut *pool.begin_with("BEGIN IMMEDIATE").await?, &()).await?,
                    (_, Some(pool)) => job.complete_in(&mut *pool.begin().await?, &()).await?,
                    _ => unreachable!(),
                },
                _ => permits.acquire().await?.forget(),
            }
            match &*job.to {
                "loses its lease and fails" => Err(Failure::retry("no route")),
                "loses its lease and panics" => panic_quietly("oh"),
                _ => Ok(()),
            }
        }
    };
    let options = WorkerOptions::default().max_attempts(3).backoff(Duration::ZERO, Duration::ZERO);
    queue.serve(registry, options, handler).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_loss_names_its_job_its_attempt_and_what_comes_next() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let ((registry, losses), go) = (registry(), Arc::new(Semaphore::new(0)));
        serve(&jobs, &queue, &registry, &go).await;
        let never = if jobs.sqlite_pool().is_some() { "9000000000000000" } else { "now() + interval '1 year'" };
        sql(&jobs, &format!("INSERT INTO {{workers}} VALUES ('another', 'mail', {never})")).await;
        let discarded = "the outcome is discarded because the lease had expired, and the job runs again";
        let table = [
            ("fails", "failed", vec!["attempt 1 of 3: no route; retried in 3600.0s".to_owned()]),
            (
                "fails thrice",
                "failed",
                vec![
                    "attempt 1 of 3: no route; retried immediately".to_owned(),
                    "attempt 2 of 3: no route; retried immediately".to_owned(),
                    "attempt 3 of 3: no route; the job is dead".to_owned(),
                ],
            ),
            ("is invalid", "failed", vec!["attempt 1 of 3: no such address; the job is dead".to_owned()]),
            (
                "panics",
                "panicked",
                vec![
                    "attempt 1 of 3: oh; retried immediately".to_owned(),
                    "attempt 2 of 3: oh; retried immediately".to_owned(),
                    "attempt 3 of 3: oh; the job is dead".to_owned(),
                ],
            ),
            (
                "rolls back",
                "failed",
                vec![
                    "attempt 1 of 3: the transaction that completes the job was not committed; retried immediately".to_owned(),
                    "attempt 2 of 3: the transaction that completes the job was not committed; retried immediately".to_owned(),
                    "attempt 3 of 3: the transaction that completes the job was not committed; the job is dead".to_owned(),
                ],
            ),
            ("loses its lease", "failed", vec![format!("attempt 1 of 3: completed; {discarded}")]),
            ("loses its lease and fails", "failed", vec![format!("attempt 1 of 3: no route; {discarded}")]),
            ("loses its lease and panics", "panicked", vec![format!("attempt 1 of 3: oh; {discarded}")]),
        ];
        for (to, outcome, texts) in table {
            let before = losses.all().len();
            let id = queue.enqueue(mail(to)).await.unwrap();
            if to.starts_with("loses") {
                let running =
                    format!("UPDATE {{jobs}} SET run = run + 1, worker = 'another' WHERE id = '{id}' AND state = 'running'");
                until("another worker has the job", async || (sql(&jobs, &running).await == 1).then_some(())).await;
                go.add_permits(1);
            }
            let expected: Vec<_> = texts.iter().map(|text| (outcome, "mail", format!("job ID, {text}"))).collect();
            assert_eq!(reports(&losses, before, texts.len(), id).await, expected, "{to}");
        }

        let before = losses.all().len();
        let id = jobs.queue::<Mail>("mail").version(2).enqueue(mail("ann")).await.unwrap();
        let text = "job ID, attempt 1 of 3: unknown payload version 2: this worker knows 1; retried in 60.0s";
        assert_eq!(reports(&losses, before, 1, id).await, [("failed", "mail", text.to_owned())]);

        let before = losses.all().len();
        let id = jobs.queue::<u8>("mail").enqueue(7).await.unwrap();
        let text = "job ID, attempt 1 of 3: cannot deserialize the payload as it::common::Mail: invalid type: integer `7`, \
            expected struct Mail at line 1 column 1; the job is dead";
        assert_eq!(reports(&losses, before, 1, id).await, [("failed", "mail", text.to_owned())]);

        let before = losses.all().len();
        let id = queue.enqueue(mail("ann")).delay(HANG).await.unwrap();
        sql(&jobs, &format!("UPDATE {{jobs}} SET crashes = 11, attempts = 1, run_at = enqueued_at WHERE id = '{id}'")).await;
        let text = "job ID, attempt 13 of 14: gave up after the process died 11 times; the job is dead";
        assert_eq!(reports(&losses, before, 1, id).await, [("failed", "mail", text.to_owned())]);
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn timeout_names_its_job_and_what_comes_next() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let options = WorkerOptions::default().max_attempts(1).timeout(Duration::from_millis(20));
        queue.serve(&registry, options, async |_: Job<Mail>| pending::<Result<(), String>>().await).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        let text = "job ID, attempt 1 of 1: timed out after 20ms; the job is dead".to_owned();
        assert_eq!(reports(&losses, 0, 1, id).await, [("failed", "mail", text)]);
        registry.shutdown().await;
    })
    .await;
}
