//! Tests payloads of different versions of a program, on both stores. If a worker cannot read a job, it reports the job and keeps it in
//! the queue for another worker.

use crate::common::{self, Mail, mail, numbers, on_each_store, panic_quietly, registry, sql, until};
use background_tasks_durable::{Job, JobStatus, Queue, WorkerOptions};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::time::{Duration, SystemTime};

/// The second version of the payload, which can have more than one recipient.
#[derive(Serialize, Deserialize)]
struct MailV2 {
    to: Vec<String>,
}

async fn recipients(job: Job<MailV2>) -> Result<Vec<String>, Infallible> {
    Ok(job.into_inner().to)
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_version_waits_for_a_worker_that_knows_it() {
    on_each_store(async |jobs| {
        let new: Queue<MailV2> = jobs.queue("mail").version(2).upgrade(1, |old: Mail| MailV2 { to: vec![old.to] });
        let id = new.enqueue(MailV2 { to: vec!["ann".to_owned(), "bob".to_owned()] }).await.unwrap();
        assert_eq!(new.info(id).await.unwrap().unwrap().version(), 2);

        let (before, losses) = registry();
        let old = jobs.queue::<Mail>("mail");
        let handler = async |job: Job<Mail>| Ok::<_, Infallible>(job.into_inner().to);
        // The delay is short, so that this worker fetches the job more than one time.
        let options = WorkerOptions::default().max_attempts(1).crashes(0).unknown_version_delay(Duration::from_secs(1));
        old.serve(&before, options, handler).await.unwrap();
        until("the worker has met the job twice", async || (losses.all().len() >= 2).then_some(())).await;
        let info =
            until("the job waits", async || old.info(id).await.unwrap().filter(|info| info.status() == JobStatus::Waiting)).await;
        let error = "unknown payload version 2: this worker knows 1";
        assert_eq!((info.error(), info.attempts(), info.version()), (Some(error), 0, 2));
        let done = old.enqueue(mail("cy")).await.unwrap();
        assert_eq!(old.wait(done).await.unwrap().unwrap().result().unwrap(), Some("cy".to_owned()), "other jobs run");
        let summary = before.shutdown().await;
        assert_eq!(summary.failed, losses.all().len() as u64);
        for loss in losses.all() {
            assert_eq!(loss, ("failed", "mail", format!("job {id}, attempt 1 of 1: {error}; retried in 1.0s")));
        }
        assert!(old.dead().await.unwrap().is_empty());

        let (after, losses) = registry();
        new.serve(&after, WorkerOptions::default(), recipients).await.unwrap();
        let info = new.wait(id).await.unwrap().unwrap();
        assert_eq!(info.result().unwrap(), Some(vec!["ann".to_owned(), "bob".to_owned()]));
        assert_eq!((info.attempts(), info.error()), (1, None));
        let earlier = old.enqueue(mail("dan")).await.unwrap();
        let info = new.wait(earlier).await.unwrap().unwrap();
        assert_eq!((info.version(), info.result().unwrap()), (1, Some(vec!["dan".to_owned()])), "old payloads are upgraded");
        after.shutdown().await;
        assert_eq!(losses.all(), []);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_version_is_delayed() {
    on_each_store(async |jobs| {
        let (registry, losses) = registry();
        let queue = jobs.queue::<Mail>("mail");
        queue.serve(&registry, WorkerOptions::default(), async |_| Ok::<_, Infallible>(())).await.unwrap();
        let enqueued = SystemTime::now();
        let id = jobs.queue::<Mail>("mail").version(7).enqueue(mail("ann")).await.unwrap();
        let info = until("the job is deferred", async || queue.info(id).await.unwrap().filter(|info| info.error().is_some())).await;
        assert_eq!((info.status(), queue.counts().await.unwrap().waiting), (JobStatus::Waiting, 1));
        let delay = info.due().duration_since(enqueued).unwrap();
        assert!(delay > Duration::from_secs(59) && delay < common::HANG, "{delay:?}");
        registry.shutdown().await;
        assert_eq!(losses.all().len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_payload_is_dead_until_a_worker_can_read_it() {
    on_each_store(async |jobs| {
        let numbers = jobs.queue::<u32>("mail");
        let broken = numbers.enqueue(7).await.unwrap();
        let (before, losses) = registry();
        let queue = jobs.queue::<Mail>("mail");
        queue.serve(&before, WorkerOptions::default(), async |_| Ok::<_, Infallible>(())).await.unwrap();
        let info = queue.wait(broken).await.unwrap().unwrap();
        assert_eq!((info.status(), info.attempts()), (JobStatus::Dead, 1));
        let error =
            "cannot deserialize the payload as it::common::Mail: invalid type: integer `7`, expected struct Mail at line 1 column 1";
        assert_eq!(info.error(), Some(error));
        assert_eq!(queue.dead().await.unwrap()[0].id(), broken);
        assert_eq!(info.payload::<u32>().unwrap(), 7);
        before.shutdown().await;
        assert_eq!(losses.all(), [("failed", "mail", format!("job {broken}, attempt 1 of 20: {error}; the job is dead"))]);

        let (after, losses) = registry();
        assert!(numbers.retry(broken).await.unwrap());
        numbers.serve(&after, WorkerOptions::default(), async |job: Job<u32>| Ok::<_, Infallible>(*job)).await.unwrap();
        let info = numbers.wait(broken).await.unwrap().unwrap();
        assert_eq!((info.status(), info.attempts(), info.result().unwrap()), (JobStatus::Done, 1, Some(7)));
        after.shutdown().await;
        assert_eq!(losses.all(), []);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_rows_do_not_stop_the_worker() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let ids = queue.enqueue_all((0..6).map(|number| mail(&number.to_string()))).await.unwrap();
        // These changes set payloads that are not valid JSON, and a version that does not exist.
        let bytes = if jobs.sqlite_pool().is_some() { "x'ff00fe'" } else { "E'\\x7f'" };
        for (id, set) in [
            (0, format!("payload = {bytes}")),
            (1, "payload = 'not { json'".to_owned()),
            (2, "payload = ''".to_owned()),
            (3, "version = -1".to_owned()),
        ] {
            assert_eq!(sql(&jobs, &format!("UPDATE {{jobs}} SET {set} WHERE id = '{}'", ids[id])).await, 1);
        }
        let (registry, losses) = registry();
        queue.serve(&registry, WorkerOptions::default().batch_size(10), async |_| Ok::<_, Infallible>(())).await.unwrap();
        let later = queue.enqueue(mail("later")).await.unwrap();
        for id in [ids[4], ids[5], later] {
            assert_eq!(queue.wait(id).await.unwrap().unwrap().status(), JobStatus::Done);
        }
        for id in &ids[..3] {
            let info = queue.wait(*id).await.unwrap().unwrap();
            assert_eq!(info.status(), JobStatus::Dead);
            assert!(info.error().unwrap().starts_with("cannot deserialize the payload as it::common::Mail: "), "{info:?}");
            assert!(info.payload::<Mail>().is_err());
        }
        assert_eq!(queue.dead().await.unwrap().len(), 3);
        let info =
            until("the job is deferred", async || queue.info(ids[3]).await.unwrap().filter(|info| info.error().is_some())).await;
        assert_eq!(info.status(), JobStatus::Waiting);
        registry.shutdown().await;
        assert!(losses.all().iter().all(|(outcome, name, _)| (*outcome, *name) == ("failed", "mail")), "{:?}", losses.all());
        assert_eq!(losses.all().len(), 4);
        assert_eq!(numbers(&jobs, "SELECT count(*) FROM {jobs} WHERE worker IS NULL AND state = 'scheduled'").await, [1]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn panicking_upgrade_is_a_failed_attempt() {
    on_each_store(async |jobs| {
        let id = jobs.queue::<Mail>("mail").enqueue(mail("ann")).await.unwrap();
        let queue: Queue<MailV2> = jobs.queue("mail").version(2).upgrade(1, |_: Mail| panic_quietly("no upgrade"));
        let (registry, losses) = registry();
        let options = WorkerOptions::default().max_attempts(2).backoff(Duration::ZERO, Duration::ZERO);
        queue.serve(&registry, options, recipients).await.unwrap();
        let info = queue.wait(id).await.unwrap().unwrap();
        assert_eq!((info.status(), info.attempts(), info.error()), (JobStatus::Dead, 2, Some("panicked: no upgrade")));
        registry.shutdown().await;
        let report = |attempt, next| ("panicked", "mail", format!("job {id}, attempt {attempt} of 2: no upgrade; {next}"));
        assert_eq!(losses.sorted(), [report(1, "retried immediately"), report(2, "the job is dead")]);
    })
    .await;
}
