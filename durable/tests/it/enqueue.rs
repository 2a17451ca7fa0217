//! Tests what the documentation of `enqueue` promises, on both stores.

use crate::common::{self, Mail, mail, numbers, on_each_database, on_each_store, registry, sql};
use background_tasks_durable::{Durable, Enqueue, Enqueued, Error, JobId, JobStatus, ParseJobIdError, Queue, WorkerOptions, sqlx};
use serde::{Serialize, Serializer};
use std::collections::HashSet;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Barrier;
use tokio::sync::mpsc::unbounded_channel;

#[tokio::test(flavor = "multi_thread")]
async fn ok_means_committed() {
    on_each_database(async |database| {
        let (here, there) = (database.open().await, database.open().await);
        let id = here.queue("mail").enqueue(mail("ann")).await.unwrap();
        let seen = there.queue::<Mail>("mail").info(id).await.unwrap().expect("the job is committed");
        assert_eq!((seen.id(), seen.status(), seen.attempts(), seen.version()), (id, JobStatus::Waiting, 0, 1));
        assert_eq!(seen.payload::<Mail>().unwrap(), mail("ann"));
        assert_eq!((seen.error(), seen.result::<()>().unwrap()), (None, None));
        let age = SystemTime::now().duration_since(seen.due()).expect("the job is due immediately");
        assert!(age < common::HANG, "{age:?}");
        assert!(there.queue::<Mail>("post").info(id).await.unwrap().is_none(), "the job is in another queue");
        drop((here, there));
        let counts = database.open().await.queue::<Mail>("mail").counts().await.unwrap();
        assert_eq!((counts.waiting, counts.running, counts.retrying, counts.done, counts.dead), (1, 0, 0, 0, 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_job_starts_early() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        // Waits for a time late in a second. If the code rounded the time down, the job would start too early by almost a second.
        let fraction = Duration::from_nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into());
        tokio::time::sleep((Duration::from_millis(900)).saturating_sub(fraction)).await;
        let delay = Duration::from_millis(1050);
        let due = SystemTime::now() + delay;
        let later = queue.enqueue(mail("later")).delay(delay).await.unwrap();
        let all = queue.enqueue_all([mail("one"), mail("two")]).run_at(due).await.unwrap();
        let passed = queue.enqueue(mail("passed")).run_at(UNIX_EPOCH).await.unwrap();
        let before = queue.enqueue(mail("before")).run_at(UNIX_EPOCH - Duration::from_secs(1)).await.unwrap();
        for id in all.iter().chain([&later]) {
            let stored = queue.info(*id).await.unwrap().unwrap().due();
            let difference = stored.duration_since(due).expect("no job is due early");
            assert!(difference <= Duration::from_mins(1), "{difference:?}");
        }

        let (registry, _) = registry();
        let (ran, mut runs) = unbounded_channel();
        let handler = move |job: background_tasks_durable::Job<Mail>| {
            ran.send((job.id(), SystemTime::now())).unwrap();
            async { Ok::<_, Infallible>(()) }
        };
        queue.serve(&registry, WorkerOptions::default(), handler).await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..5 {
            let (id, at) = runs.recv().await.unwrap();
            if id != passed && id != before {
                at.duration_since(due).unwrap_or_else(|early| panic!("{:?} early", early.duration()));
            }
            seen.push(id);
        }
        seen.sort();
        let mut enqueued = [&all[..], &[later, passed, before]].concat();
        enqueued.sort();
        assert_eq!(seen, enqueued);
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn far_future_is_clamped_to_the_last_date() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        for enqueue in
            [queue.enqueue(mail("never")).delay(Duration::MAX), queue.enqueue(mail("never")).run_at(last + Duration::from_secs(1))]
        {
            let id = enqueue.await.unwrap();
            assert_eq!(queue.info(id).await.unwrap().unwrap().due(), last);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn higher_priority_runs_first() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let due = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        queue.enqueue(mail("none")).run_at(due).await.unwrap();
        queue.enqueue_all([mail("some")]).run_at(due + Duration::from_secs(1)).priority(7).await.unwrap();
        queue.enqueue(mail("most")).run_at(due + Duration::from_secs(2)).priority(u16::MAX).await.unwrap();
        let (registry, _) = registry();
        let (ran, mut runs) = unbounded_channel();
        let handler = move |job: background_tasks_durable::Job<Mail>| {
            ran.send(job.into_inner().to).unwrap();
            async { Ok::<_, Infallible>(()) }
        };
        queue.serve(&registry, WorkerOptions::default().concurrency(1), handler).await.unwrap();
        for next in ["most", "some", "none"] {
            assert_eq!(runs.recv().await.unwrap(), next);
        }
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn same_key_returns_the_existing_job() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let first = queue.enqueue(mail("ann")).unique_key("signup 7").await.unwrap();
        let again = queue.enqueue(mail("not ann")).unique_key("signup 7").delay(Duration::from_hours(1)).await.unwrap();
        assert_eq!((first.id, true, false), (again.id, first.is_new, again.is_new));
        let first = first.id;
        assert_eq!(queue.info(first).await.unwrap().unwrap().payload::<Mail>().unwrap(), mail("ann"));
        assert_ne!(first, queue.enqueue(mail("bob")).unique_key("signup 8").await.unwrap().id);
        assert_ne!(first, jobs.queue::<Mail>("post").enqueue(mail("ann")).unique_key("signup 7").await.unwrap().id);
        assert_eq!(queue.counts().await.unwrap().waiting, 2);

        let (registry, _) = registry();
        queue.serve(&registry, WorkerOptions::default(), async |_| Ok::<_, Infallible>(())).await.unwrap();
        assert_eq!(queue.wait(first).await.unwrap().unwrap().status(), JobStatus::Done);
        let second = queue.enqueue(mail("ann")).unique_key("signup 7").unique_for(Duration::from_hours(1)).await.unwrap();
        assert!(second.is_new && second.id != first, "the key is free when the job is done");
        assert_eq!(queue.wait(second.id).await.unwrap().unwrap().status(), JobStatus::Done);
        let third = queue.enqueue(mail("ann")).unique_key("signup 7").await.unwrap();
        assert_eq!((third.id, third.is_new), (second.id, false), "the key stays in use for an hour");
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_enqueues_with_one_key_create_one_job() {
    on_each_database(async |database| {
        let all = 40;
        let (here, there, start) = (database.open().await, database.open().await, Arc::new(Barrier::new(all)));
        let enqueues: Vec<_> = (0..all)
            .map(|number| {
                let queue = if number % 2 == 0 { &here } else { &there }.queue::<Mail>("mail");
                let start = start.clone();
                tokio::spawn(async move {
                    start.wait().await;
                    queue.enqueue(mail(&number.to_string())).unique_key("one").await.unwrap()
                })
            })
            .collect();
        let (mut ids, mut new) = (HashSet::new(), 0);
        for enqueue in enqueues {
            let Enqueued { id, is_new } = enqueue.await.unwrap();
            ids.insert(id);
            new += u32::from(is_new);
        }
        assert_eq!((ids.len(), new), (1, 1));
        assert_eq!(here.queue::<Mail>("mail").counts().await.unwrap().waiting, 1);
    })
    .await;
}

/// Enqueues jobs in a transaction, between other statements of the caller. Then commits the transaction or rolls it back.
async fn in_a_transaction<R>(jobs: &Durable, commit: bool, enqueues: Vec<Enqueue<R>>, rows: &[&'static str]) -> Vec<R> {
    let mut ids = Vec::new();
    let mut rows = rows.iter().copied();
    macro_rules! run {
        ($tx:expr) => {{
            let mut tx = $tx;
            for enqueue in enqueues {
                sqlx::query(sqlx::AssertSqlSafe(rows.next().unwrap())).execute(&mut *tx).await.unwrap();
                ids.push(enqueue.in_transaction(&mut *tx).await.unwrap());
            }
            for row in rows {
                sqlx::query(sqlx::AssertSqlSafe(row)).execute(&mut *tx).await.unwrap();
            }
            if commit { tx.commit().await.unwrap() } else { tx.rollback().await.unwrap() }
        }};
    }
    match (jobs.sqlite_pool(), jobs.postgres_pool()) {
        (Some(pool), _) => run!(pool.begin_with("BEGIN IMMEDIATE").await.unwrap()),
        (_, Some(pool)) => run!(pool.begin().await.unwrap()),
        _ => unreachable!(),
    }
    ids
}

const ROW: &str = "INSERT INTO signups VALUES (1)";

#[tokio::test(flavor = "multi_thread")]
async fn job_in_transaction_commits_or_rolls_back_with_the_row() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        sql(&jobs, "CREATE TABLE signups (id BIGINT)").await;
        let ids = in_a_transaction(&jobs, false, vec![queue.enqueue(mail("ann"))], &[ROW]).await;
        assert!(queue.info(ids[0]).await.unwrap().is_none());
        assert_eq!(numbers(&jobs, "SELECT count(*) FROM signups").await, [0]);
        let ids = in_a_transaction(&jobs, true, vec![queue.enqueue(mail("bob"))], &[ROW]).await;
        assert_eq!(queue.info(ids[0]).await.unwrap().unwrap().payload::<Mail>().unwrap(), mail("bob"));
        assert_eq!(numbers(&jobs, "SELECT count(*) FROM signups").await, [1]);
        assert_eq!(queue.counts().await.unwrap().waiting, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_key_does_not_abort_the_transaction() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        sql(&jobs, "CREATE TABLE signups (id BIGINT)").await;
        let taken = queue.enqueue(mail("ann")).unique_key("7").await.unwrap().id;
        let enqueues = ["7", "8", "8"].map(|key| queue.enqueue(mail("ann")).unique_key(key));
        let ids = in_a_transaction(&jobs, true, enqueues.into(), &[ROW; 4]).await;
        assert_eq!((ids[0].id, ids[0].is_new), (taken, false));
        assert!(ids[1].id != taken && ids[1].id == ids[2].id && ids[1].is_new && !ids[2].is_new, "{ids:?}");
        assert_eq!(numbers(&jobs, "SELECT count(*) FROM signups").await, [4]);
        assert_eq!(queue.counts().await.unwrap().waiting, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn manual_transaction_is_left_open() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        queue.enqueue(mail("ann")).unique_key("7").await.unwrap();
        let enqueues = || ["7", "8"].map(|key| queue.enqueue(mail("ann")).unique_key(key));
        macro_rules! run {
            ($pool:expr, $begin:expr) => {{
                let mut conn = $pool.acquire().await.unwrap();
                sqlx::query($begin).execute(&mut *conn).await.unwrap();
                for enqueue in enqueues() {
                    enqueue.in_transaction(&mut *conn).await.unwrap();
                }
                sqlx::query("ROLLBACK").execute(&mut *conn).await.unwrap();
            }};
        }
        match (jobs.sqlite_pool(), jobs.postgres_pool()) {
            (Some(pool), _) => run!(pool, "BEGIN IMMEDIATE"),
            (_, Some(pool)) => run!(pool, "BEGIN"),
            _ => unreachable!(),
        }
        assert_eq!(queue.counts().await.unwrap().waiting, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_without_transaction_commits_immediately() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let mut ids = Vec::new();
        macro_rules! run {
            ($pool:expr) => {{
                let mut conn = $pool.acquire().await.unwrap();
                for key in ["7", "7"] {
                    ids.push(queue.enqueue(mail("ann")).unique_key(key).in_transaction(&mut *conn).await.unwrap().id);
                }
                ids.extend(queue.enqueue_all([mail("bob"), mail("cy")]).in_transaction(&mut *conn).await.unwrap());
                assert_eq!(queue.enqueue_all([]).in_transaction(&mut *conn).await.unwrap(), []);
            }};
        }
        match (jobs.sqlite_pool(), jobs.postgres_pool()) {
            (Some(pool), _) => run!(pool),
            (_, Some(pool)) => run!(pool),
            _ => unreachable!(),
        }
        assert_eq!(ids[0], ids[1]);
        assert_eq!(queue.counts().await.unwrap().waiting, 3);
        for id in ids {
            assert!(queue.info(id).await.unwrap().is_some());
        }
    })
    .await;
}

/// A payload that cannot be serialized if the number is 3.
struct Number(u32);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0 == 3 { Err(serde::ser::Error::custom("three is invalid")) } else { self.0.serialize(to) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_enqueue_is_atomic() {
    on_each_store(async |jobs| {
        let queue: Queue<Number> = jobs.queue("numbers");
        let error = queue.enqueue_all((0..5).map(Number)).await.unwrap_err();
        assert!(matches!(error, Error::Encode(_)));
        assert_eq!(error.to_string(), "cannot serialize as JSON: three is invalid");
        let error = queue.enqueue(Number(3)).await.unwrap_err();
        assert!(matches!(error, Error::Encode(_)));
        assert_eq!(queue.counts().await.unwrap().waiting, 0);
        assert_eq!(queue.enqueue_all([]).await.unwrap(), []);

        let queue = jobs.queue::<Mail>("many");
        let all: Vec<_> = (0..3000).map(|number| mail(&number.to_string())).collect();
        let ids = queue.enqueue_all(all.clone()).await.unwrap();
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 3000);
        assert_eq!(queue.counts().await.unwrap().waiting, 3000);
        for number in [0, 1, 99, 100, 1500, 2999] {
            assert_eq!(queue.info(ids[number]).await.unwrap().unwrap().payload::<Mail>().unwrap(), all[number]);
        }

        let refuse = match jobs.sqlite_pool() {
            Some(_) => {
                "CREATE TRIGGER refuse BEFORE INSERT ON {jobs} WHEN new.payload LIKE '%2999%'
                BEGIN SELECT RAISE(ABORT, 'not this one'); END"
            }
            None => "ALTER TABLE {jobs} ADD CONSTRAINT refuse CHECK (queue = 'many' OR payload NOT LIKE '%2999%')",
        };
        sql(&jobs, refuse).await;
        let queue = jobs.queue::<Mail>("none");
        assert!(matches!(queue.enqueue_all(all).await.unwrap_err(), Error::Database(_)));
        assert_eq!(queue.counts().await.unwrap().waiting, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_json_payload_is_stored() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let odd = ["", "\0", "\u{feff}' OR 1=1; --\\\"", "\u{10ffff}"].map(str::to_owned);
        for to in odd.into_iter().chain([format!("{}\0", "x".repeat(5_000_000))]) {
            let id = queue.enqueue(Mail { to: to.clone() }).await.unwrap();
            assert!(queue.info(id).await.unwrap().unwrap().payload::<Mail>().unwrap().to == to);
        }
    })
    .await;
}

/// Polls a future at most `limit` times, and then drops the future.
async fn polled<F: Future>(limit: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polls = 0;
    poll_fn(|cx| {
        polls += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls == limit => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_enqueue_stores_all_jobs_or_none() {
    on_each_database(async |database| {
        let (jobs, other) = (database.open().await, database.open().await);
        let queue = jobs.queue::<Mail>("mail");
        let (mut completed, mut dropped) = (0, 0);
        for limit in (1..12).cycle().take(200) {
            let all = || [mail("ann"), mail("bob"), mail("cy")];
            match polled(limit, queue.enqueue_all(all()).into_future()).await {
                Some(ids) => completed += ids.unwrap().len() as u64,
                None => dropped += 1,
            }
            // This call succeeds only if no transaction has stayed open and no table has stayed locked.
            other.queue::<Mail>("others").enqueue(mail("dan")).await.unwrap();
        }
        assert!(dropped > 0 && completed > 0, "{dropped} {completed}");
        completed += queue.enqueue_all([mail("ann"), mail("bob"), mail("cy")]).await.unwrap().len() as u64;
        let waiting = other.queue::<Mail>("mail").counts().await.unwrap().waiting;
        let possible = completed..=completed + 3 * dropped;
        assert!(possible.contains(&waiting) && waiting % 3 == 0, "{waiting} {completed} {dropped}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn job_id_round_trips_as_text_and_json() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let id = queue.enqueue(mail("ann")).await.unwrap();
        let text = id.to_string();
        assert_eq!(text.len(), 26);
        assert_eq!(text.parse::<JobId>().unwrap(), id);
        assert_eq!(format!("{id:?}"), text);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("{text:?}"));
        assert_eq!(serde_json::from_str::<JobId>(&json).unwrap(), id);
        assert!(queue.info(text.parse().unwrap()).await.unwrap().is_some());
        for wrong in ["", "7", &text[1..], "8zzzzzzzzzzzzzzzzzzzzzzzzz ", "'; DROP TABLE Jobs; --aaaa"] {
            let error: ParseJobIdError = wrong.parse::<JobId>().unwrap_err();
            assert_eq!(error.to_string(), "invalid job ID");
        }
        assert_eq!(text.to_lowercase().parse::<JobId>().unwrap(), id);
    })
    .await;
}
