//! What `enqueue` promises its caller, on both stores.

mod common;

use background_tasks_durable::{Durable, Enqueue, Error, JobId, Options, ParseJobIdError, Queue, Status, sqlx};
use common::{Mail, each, each_place, mail, numbers, registry, sql};
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
    each_place(async |place| {
        let (here, there) = (place.open().await, place.open().await);
        let id = here.queue("mail").enqueue(mail("ann")).await.unwrap();
        let seen = there.queue::<Mail>("mail").info(id).await.unwrap().expect("it is committed");
        assert_eq!((seen.id(), seen.status(), seen.attempts(), seen.version()), (id, Status::Waiting, 0, 1));
        assert_eq!(seen.payload::<Mail>().unwrap(), mail("ann"));
        assert_eq!((seen.error(), seen.result::<()>().unwrap()), (None, None));
        let age = SystemTime::now().duration_since(seen.due()).expect("it was due at once");
        assert!(age < common::HANG, "{age:?}");
        assert!(there.queue::<Mail>("post").info(id).await.unwrap().is_none(), "another queue has it");
        drop((here, there));
        let counts = place.open().await.queue::<Mail>("mail").counts().await.unwrap();
        assert_eq!((counts.waiting, counts.running, counts.retrying, counts.done, counts.dead), (1, 0, 0, 0, 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_too_early() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        // As late in a second as may be, where a rounding down costs most.
        let fraction = Duration::from_nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into());
        tokio::time::sleep((Duration::from_millis(900)).saturating_sub(fraction)).await;
        let delay = Duration::from_millis(1050);
        let due = SystemTime::now() + delay;
        let later = queue.enqueue(mail("later")).later(delay).await.unwrap();
        let all = queue.enqueue_all([mail("one"), mail("two")]).at(due).await.unwrap();
        let passed = queue.enqueue(mail("passed")).at(UNIX_EPOCH).await.unwrap();
        let before = queue.enqueue(mail("before")).at(UNIX_EPOCH - Duration::from_secs(1)).await.unwrap();
        for id in all.iter().chain([&later]) {
            let told = queue.info(*id).await.unwrap().unwrap().due();
            let off = told.duration_since(due).expect("never too early");
            assert!(off <= Duration::from_secs(2), "{off:?}");
            assert_eq!(told.duration_since(UNIX_EPOCH).unwrap().subsec_nanos(), 0);
        }

        let (registry, _) = registry();
        let (ran, mut runs) = unbounded_channel();
        let handler = move |job: background_tasks_durable::Job<Mail>| {
            ran.send((job.id(), SystemTime::now())).unwrap();
            async { Ok::<_, Infallible>(()) }
        };
        queue.serve(&registry, Options::default(), handler).await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..5 {
            let (id, at) = runs.recv().await.unwrap();
            if id != passed && id != before {
                at.duration_since(due).unwrap_or_else(|early| panic!("{:?} too early", early.duration()));
            }
            seen.push(id);
        }
        assert!(seen[..2].contains(&passed) && seen[..2].contains(&before));
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_time_is_a_time() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        for enqueue in
            [queue.enqueue(mail("never")).later(Duration::MAX), queue.enqueue(mail("never")).at(last + Duration::from_secs(1))]
        {
            let id = enqueue.await.unwrap();
            assert_eq!(queue.info(id).await.unwrap().unwrap().due(), last);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_priority_comes_first() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let due = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        queue.enqueue(mail("none")).at(due).await.unwrap();
        queue.enqueue_all([mail("some")]).at(due + Duration::from_secs(1)).priority(7).await.unwrap();
        queue.enqueue(mail("most")).at(due + Duration::from_secs(2)).priority(u16::MAX).await.unwrap();
        let (registry, _) = registry();
        let (ran, mut runs) = unbounded_channel();
        let handler = move |job: background_tasks_durable::Job<Mail>| {
            ran.send(job.into_inner().to).unwrap();
            async { Ok::<_, Infallible>(()) }
        };
        queue.serve(&registry, Options::default().concurrency(1), handler).await.unwrap();
        for next in ["most", "some", "none"] {
            assert_eq!(runs.recv().await.unwrap(), next);
        }
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_a_job() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let first = queue.enqueue(mail("ann")).unique("signup 7").await.unwrap();
        let again = queue.enqueue(mail("not ann")).unique("signup 7").later(Duration::from_hours(1)).await.unwrap();
        assert_eq!(first, again);
        assert_eq!(queue.info(first).await.unwrap().unwrap().payload::<Mail>().unwrap(), mail("ann"));
        assert_ne!(first, queue.enqueue(mail("bob")).unique("signup 8").await.unwrap());
        assert_ne!(first, jobs.queue::<Mail>("post").enqueue(mail("ann")).unique("signup 7").await.unwrap());
        assert_eq!(queue.counts().await.unwrap().waiting, 2);

        let (registry, _) = registry();
        queue.serve(&registry, Options::default(), async |_| Ok::<_, Infallible>(())).await.unwrap();
        assert_eq!(queue.wait(first).await.unwrap().unwrap().status(), Status::Done);
        assert_eq!(queue.enqueue(mail("ann")).unique("signup 7").await.unwrap(), first, "done or not");
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_with_one_key_one_is_enqueued() {
    each_place(async |place| {
        let all = 40;
        let (here, there, start) = (place.open().await, place.open().await, Arc::new(Barrier::new(all)));
        let enqueues: Vec<_> = (0..all)
            .map(|number| {
                let queue = if number % 2 == 0 { &here } else { &there }.queue::<Mail>("mail");
                let start = start.clone();
                tokio::spawn(async move {
                    start.wait().await;
                    queue.enqueue(mail(&number.to_string())).unique("one").await.unwrap()
                })
            })
            .collect();
        let mut ids = HashSet::new();
        for enqueue in enqueues {
            ids.insert(enqueue.await.unwrap());
        }
        assert_eq!(ids.len(), 1);
        assert_eq!(here.queue::<Mail>("mail").counts().await.unwrap().waiting, 1);
    })
    .await;
}

/// Runs in a transaction of the caller's own, which it commits or not.
async fn in_a_transaction(jobs: &Durable, commit: bool, enqueues: Vec<Enqueue>, rows: &[&'static str]) -> Vec<JobId> {
    let mut ids = Vec::new();
    let mut rows = rows.iter().copied();
    macro_rules! run {
        ($tx:expr) => {{
            let mut tx = $tx;
            for enqueue in enqueues {
                sqlx::query(sqlx::AssertSqlSafe(rows.next().unwrap())).execute(&mut *tx).await.unwrap();
                ids.push(enqueue.within(&mut *tx).await.unwrap());
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
async fn within_a_transaction_it_is_there_with_the_row_or_not_at_all() {
    each(async |jobs| {
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
async fn a_key_that_is_taken_costs_nobody_a_transaction() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        sql(&jobs, "CREATE TABLE signups (id BIGINT)").await;
        let taken = queue.enqueue(mail("ann")).unique("7").await.unwrap();
        let enqueues = ["7", "8", "8"].map(|key| queue.enqueue(mail("ann")).unique(key));
        let ids = in_a_transaction(&jobs, true, enqueues.into(), &[ROW; 4]).await;
        assert_eq!(ids[0], taken);
        assert!(ids[1] != taken && ids[1] == ids[2], "{ids:?}");
        assert_eq!(numbers(&jobs, "SELECT count(*) FROM signups").await, [4]);
        assert_eq!(queue.counts().await.unwrap().waiting, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_begun_by_hand_is_left_to_its_hand() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        queue.enqueue(mail("ann")).unique("7").await.unwrap();
        let enqueues = || ["7", "8"].map(|key| queue.enqueue(mail("ann")).unique(key));
        macro_rules! run {
            ($pool:expr, $begin:expr) => {{
                let mut conn = $pool.acquire().await.unwrap();
                sqlx::query($begin).execute(&mut *conn).await.unwrap();
                for enqueue in enqueues() {
                    enqueue.within(&mut *conn).await.unwrap();
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
async fn on_a_connection_without_a_transaction_it_is_committed() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let mut ids = Vec::new();
        macro_rules! run {
            ($pool:expr) => {{
                let mut conn = $pool.acquire().await.unwrap();
                for key in ["7", "7"] {
                    ids.push(queue.enqueue(mail("ann")).unique(key).within(&mut *conn).await.unwrap());
                }
                ids.extend(queue.enqueue_all([mail("bob"), mail("cy")]).within(&mut *conn).await.unwrap());
                assert_eq!(queue.enqueue_all([]).within(&mut *conn).await.unwrap(), []);
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

/// Is no JSON if it is 3.
struct Number(u32);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0 == 3 { Err(serde::ser::Error::custom("three is none")) } else { self.0.serialize(to) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_are_enqueued_or_none() {
    each(async |jobs| {
        let queue: Queue<Number> = jobs.queue("numbers");
        let error = queue.enqueue_all((0..5).map(Number)).await.unwrap_err();
        assert!(matches!(error, Error::Encode(_)));
        assert_eq!(error.to_string(), "the job cannot be written as JSON: three is none");
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
                "CREATE TRIGGER refuse BEFORE INSERT ON {jobs} WHEN CAST(new.job AS TEXT) LIKE '%2999%'
                BEGIN SELECT RAISE(ABORT, 'not this one'); END"
            }
            None => {
                "ALTER TABLE {jobs} ADD CONSTRAINT refuse CHECK (job_type = 'many' OR convert_from(job, 'UTF8') NOT LIKE '%2999%')"
            }
        };
        sql(&jobs, refuse).await;
        let queue = jobs.queue::<Mail>("none");
        assert!(matches!(queue.enqueue_all(all).await.unwrap_err(), Error::Database(_)));
        assert_eq!(queue.counts().await.unwrap().waiting, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_may_be_anything_that_is_json() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let odd = ["", "\0", "\u{feff}' OR 1=1; --\\\"", "\u{10ffff}"].map(str::to_owned);
        for to in odd.into_iter().chain([format!("{}\0", "x".repeat(5_000_000))]) {
            let id = queue.enqueue(Mail { to: to.clone() }).await.unwrap();
            assert!(queue.info(id).await.unwrap().unwrap().payload::<Mail>().unwrap().to == to);
        }
    })
    .await;
}

/// Polls it so often, and then drops it.
async fn polled<F: Future>(most: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polls = 0;
    poll_fn(|cx| {
        polls += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if polls == most => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_future_that_is_dropped_leaves_a_whole_job_or_none() {
    each_place(async |place| {
        let (jobs, other) = (place.open().await, place.open().await);
        let queue = jobs.queue::<Mail>("mail");
        let (mut ended, mut dropped) = (0, 0);
        for most in (1..12).cycle().take(200) {
            let all = || [mail("ann"), mail("bob"), mail("cy")];
            match polled(most, queue.enqueue_all(all()).into_future()).await {
                Some(told) => ended += told.unwrap().len() as u64,
                None => dropped += 1,
            }
            // That nothing is left begun, nor locked.
            other.queue::<Mail>("others").enqueue(mail("dan")).await.unwrap();
        }
        assert!(dropped > 0 && ended > 0, "{dropped} {ended}");
        ended += queue.enqueue_all([mail("ann"), mail("bob"), mail("cy")]).await.unwrap().len() as u64;
        let there = other.queue::<Mail>("mail").counts().await.unwrap().waiting;
        assert!((ended..=ended + 3 * dropped).contains(&there) && there % 3 == 0, "{there} {ended} {dropped}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn identifiers_are_text_that_can_be_read_again() {
    each(async |jobs| {
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
            assert_eq!(error.to_string(), "this is no identifier of a job");
        }
        assert_eq!(text.to_lowercase().parse::<JobId>().unwrap(), id);
    })
    .await;
}
