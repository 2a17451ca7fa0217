//! Tests the test kit that programs use: a store in memory, inline runs of jobs, and the list of waiting jobs.

use crate::common::{Mail, mail, numbers, on_each_store, panic_quietly, registry, sql, until};
use background_tasks_durable::testing::{advance, drain, enqueued};
use background_tasks_durable::{Durable, Error, Failure, Job, JobInfo, JobStatus, QueueLimits, WorkerOptions, sqlx};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const HOUR: Duration = Duration::from_hours(1);

fn options() -> WorkerOptions {
    WorkerOptions::default()
}

async fn accept(job: Job<Mail>) -> Result<String, Infallible> {
    Ok(job.into_inner().to)
}

fn statuses(attempts: &[JobInfo]) -> Vec<JobStatus> {
    attempts.iter().map(JobInfo::status).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_database_in_memory_is_separate_and_shared_by_its_connections() {
    let (here, there) = (Durable::in_memory().await.unwrap(), Durable::in_memory().await.unwrap());
    let queue = here.queue::<Mail>("mail");
    let all = (0..20).map(|number| {
        let queue = queue.clone();
        tokio::spawn(async move { queue.enqueue(mail(&number.to_string())).await.unwrap() })
    });
    for id in futures_util::future::join_all(all).await {
        assert!(queue.info(id.unwrap()).await.unwrap().is_some());
    }
    let counts = futures_util::future::join_all((0..20).map(|_| queue.counts())).await;
    assert!(counts.into_iter().all(|counts| counts.unwrap().waiting == 20));
    assert_eq!(there.queue::<Mail>("mail").counts().await.unwrap().waiting, 0);

    let mut tx = here.sqlite_pool().unwrap().begin_with("BEGIN IMMEDIATE").await.unwrap();
    queue.enqueue(mail("rolled back")).in_transaction(&mut *tx).await.unwrap();
    tx.rollback().await.unwrap();
    assert_eq!(enqueued(&queue).await.unwrap().len(), 20);
    let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(here.sqlite_pool().unwrap()).await.unwrap();
    assert_eq!(journal, "memory", "nothing is written to a file");
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_runs_jobs_of_a_database_in_memory() {
    let jobs = Durable::in_memory().await.unwrap();
    let queue = jobs.queue::<Mail>("mail");
    let (registry, losses) = registry();
    queue.serve(&registry, options().lease(Duration::from_secs(3)).concurrency(8), accept).await.unwrap();
    let expiry = async || numbers(&jobs, "SELECT max(expires_at) FROM {workers}").await[0];
    let first = expiry().await;
    for id in queue.enqueue_all((0..100).map(|number| mail(&number.to_string()))).await.unwrap() {
        assert_eq!(queue.wait(id).await.unwrap().unwrap().status(), JobStatus::Done);
    }
    // The heartbeat thread uses another connection to the same database in memory.
    until("the lease is renewed", async || (expiry().await > first).then_some(())).await;
    let later = queue.enqueue(mail("later")).delay(HOUR).await.unwrap();
    advance(&jobs, HOUR).await.unwrap();
    assert_eq!(queue.wait(later).await.unwrap().unwrap().status(), JobStatus::Done);
    assert!(registry.shutdown().await.is_clean(), "{:?}", losses.all());
}

#[tokio::test]
async fn drain_runs_due_jobs_in_order_and_the_jobs_that_they_enqueue() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        assert!(drain(&queue, options(), accept).await.unwrap().is_empty());
        queue.enqueue(mail("second")).await.unwrap();
        queue.enqueue(mail("first")).priority(7).await.unwrap();
        queue.enqueue(mail("later")).delay(HOUR).await.unwrap();
        jobs.queue::<Mail>("post").enqueue(mail("another queue")).await.unwrap();
        let more = queue.clone();
        let handler = move |job: Job<Mail>| {
            let more = more.clone();
            async move {
                if &*job.to == "second" {
                    more.enqueue(mail("third")).await?;
                }
                Ok::<_, Error>(job.into_inner().to)
            }
        };
        let attempts = drain(&queue, options(), handler.clone()).await.unwrap();
        let results: Vec<String> = attempts.iter().map(|info| info.result().unwrap().unwrap()).collect();
        assert_eq!(results, ["first", "second", "third"]);
        assert!(attempts.iter().all(|info| info.attempts() == 1 && info.queue() == "mail"), "{attempts:?}");
        assert_eq!(enqueued(&queue).await.unwrap()[0].payload, mail("later"));
        advance(&jobs, Duration::from_mins(59)).await.unwrap();
        assert!(drain(&queue, options(), handler.clone()).await.unwrap().is_empty(), "not due for a minute");
        advance(&jobs, Duration::from_mins(1)).await.unwrap();
        assert_eq!(statuses(&drain(&queue, options(), handler).await.unwrap()), [JobStatus::Done]);
        assert_eq!(numbers(&jobs, "SELECT count(*) FROM {workers}").await, [0]);
        assert_eq!(jobs.queue::<Mail>("post").counts().await.unwrap().waiting, 1);
    })
    .await;
}

#[tokio::test]
async fn drained_attempts_end_as_those_of_a_worker_do() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let dead = Arc::new(Mutex::new(Vec::new()));
        let hook = dead.clone();
        let options = options()
            .max_attempts(2)
            .backoff(HOUR, HOUR)
            .on_dead(move |job| hook.lock().unwrap().push((job.queue().to_owned(), job.id())));
        let handler = async |job: Job<Mail>| {
            let from: u32 = job.checkpoint()?.unwrap_or(0);
            job.save_checkpoint(&(from + 1)).await?;
            match &*job.to {
                "panics" => panic_quietly("oh"),
                "invalid" => Err::<(), _>(Failure::dead("no such address")),
                _ => Err(Failure::retry_after(format!("failed {}", from + 1), 2 * HOUR)),
            }
        };
        let ids = queue.enqueue_all(["panics", "invalid", "fails"].map(mail)).await.unwrap();
        let attempts = drain(&queue, options.clone(), handler).await.unwrap();
        let (retrying, is_dead) = (JobStatus::Retrying, JobStatus::Dead);
        assert_eq!(statuses(&attempts), [retrying, is_dead, retrying]);
        let errors: Vec<_> = attempts.iter().map(|info| info.error().unwrap()).collect();
        assert_eq!(errors, ["panicked: oh", "no such address", "failed 1"]);
        assert!(drain(&queue, options.clone(), handler).await.unwrap().is_empty(), "the backoff has not expired");
        advance(&jobs, HOUR).await.unwrap();
        let attempts = drain(&queue, options.clone(), handler).await.unwrap();
        assert_eq!((attempts.len(), attempts[0].status(), attempts[0].attempts()), (1, is_dead, 2));
        advance(&jobs, HOUR).await.unwrap();
        let attempts = drain(&queue, options, handler).await.unwrap();
        assert_eq!((attempts.len(), attempts[0].status(), attempts[0].error()), (1, is_dead, Some("failed 2")));
        let dead = dead.lock().unwrap().clone();
        assert_eq!(dead, [1, 0, 2].map(|job| ("mail".to_owned(), ids[job])));

        let queue = jobs.queue::<Mail>("hangs");
        queue.enqueue(mail("ann")).await.unwrap();
        let options = WorkerOptions::default().timeout(Duration::from_millis(20));
        let attempts = drain(&queue, options, async |_: Job<Mail>| pending::<Result<(), String>>().await).await.unwrap();
        assert_eq!((statuses(&attempts), attempts[0].error()), (vec![retrying], Some("timed out after 20ms")));
    })
    .await;
}

#[tokio::test]
async fn drain_upgrades_payloads_and_leaves_unknown_versions() {
    on_each_store(async |jobs: Durable| {
        jobs.queue::<u32>("mail").enqueue(7).await.unwrap();
        jobs.queue::<u32>("mail").version(9).enqueue(7).await.unwrap();
        let queue = jobs.queue::<Mail>("mail").version(2).upgrade(1, |old: u32| mail(&old.to_string()));
        let error = enqueued(&queue).await.unwrap_err();
        assert!(error.to_string().ends_with(": unknown payload version 9: this worker knows 1, 2"), "{error}");
        let attempts = drain(&queue, options(), accept).await.unwrap();
        assert_eq!(statuses(&attempts), [JobStatus::Done, JobStatus::Waiting]);
        assert_eq!(attempts[0].result().unwrap(), Some("7".to_owned()));
        assert_eq!(attempts[1].error(), Some("unknown payload version 9: this worker knows 1, 2"));
    })
    .await;
}

#[tokio::test]
async fn drained_job_completes_in_the_transaction_of_its_handler() {
    let jobs = Durable::in_memory().await.unwrap();
    let queue = jobs.queue::<Mail>("mail");
    queue.enqueue(mail("ann")).await.unwrap();
    let pool = jobs.sqlite_pool().unwrap().clone();
    let handler = move |job: Job<Mail>| {
        let pool = pool.clone();
        async move {
            let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
            job.complete_in(&mut *tx, &"paid").await?;
            tx.commit().await?;
            Ok::<_, Failure>(())
        }
    };
    let attempts = drain(&queue, options(), handler).await.unwrap();
    assert_eq!(statuses(&attempts), [JobStatus::Done]);
    assert_eq!(attempts[0].result().unwrap(), Some("paid".to_owned()));
}

#[tokio::test]
async fn drain_respects_pause_and_limits() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        queue.enqueue_all(["ann", "bob", "cy"].map(mail)).limit_key("customer").await.unwrap();
        queue.pause().await.unwrap();
        assert!(drain(&queue, options(), accept).await.unwrap().is_empty());
        queue.resume().await.unwrap();
        queue.set_limits(QueueLimits::default().running_per_key(1).rate(2, HOUR)).await.unwrap();
        assert_eq!(drain(&queue, options(), accept).await.unwrap().len(), 2);
        assert!(drain(&queue, options(), accept).await.unwrap().is_empty());
        advance(&jobs, HOUR).await.unwrap();
        assert_eq!(drain(&queue, options(), accept).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn enqueued_jobs_are_listed_with_their_options() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let ann = queue.enqueue(mail("ann")).delay(HOUR).priority(3).unique_key("ann").unique_for(2 * HOUR).await.unwrap();
        let bob = queue.enqueue(mail("bob")).limit_key("customer").await.unwrap();
        queue.enqueue(mail("ann")).unique_key("ann").await.unwrap();
        jobs.queue("post").enqueue(mail("another queue")).await.unwrap();
        let check = async || {
            let all = enqueued(&queue).await.unwrap();
            assert_eq!(all.iter().map(|job| job.id).collect::<Vec<_>>(), [ann.id, bob]);
            let [ann, bob] = &all[..] else { unreachable!() };
            let options = (ann.delay, ann.priority, ann.unique_key.as_deref(), ann.limit_key.as_deref());
            assert_eq!((&ann.payload, options), (&mail("ann"), (HOUR, 3, Some("ann"), None)));
            let options = (bob.delay, bob.priority, bob.unique_key.as_deref(), bob.limit_key.as_deref());
            assert_eq!((&bob.payload, options), (&mail("bob"), (Duration::ZERO, 0, None, Some("customer"))));
            assert!(all.iter().all(|job| job.status == JobStatus::Waiting && job.attempts == 0));
        };
        check().await;
        advance(&jobs, HOUR).await.unwrap();
        check().await;
        let handler = async |job: Job<Mail>| if job.to == "ann" { Ok(()) } else { Err("no route") };
        assert_eq!(drain(&queue, options(), handler).await.unwrap().len(), 2);
        let all = enqueued(&queue).await.unwrap();
        assert_eq!((all.len(), all[0].id, all[0].status, all[0].attempts), (1, bob, JobStatus::Retrying, 1));
        assert!(!queue.enqueue(mail("ann")).unique_key("ann").await.unwrap().is_new, "the period of the key has not expired");
        advance(&jobs, HOUR).await.unwrap();
        assert!(queue.enqueue(mail("ann")).unique_key("ann").await.unwrap().is_new);
    })
    .await;
}

/// A payload that serializes as a number and deserializes from a string.
#[derive(Debug)]
struct Asymmetric;

impl Serialize for Asymmetric {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        7.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Asymmetric {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|_| Self)
    }
}

/// A payload of nested lists.
#[derive(Debug, Serialize, Deserialize)]
struct Deep(Vec<Self>);

fn deep(levels: usize) -> Deep {
    (1..levels).fold(Deep(Vec::new()), |inner, _| Deep(vec![inner]))
}

/// Checks that `enqueued` and `drain` report an error for a payload that cannot be deserialized.
async fn finds<T>(jobs: &Durable, payload: T, error: &str)
where
    T: Serialize + for<'de> Deserialize<'de> + std::fmt::Debug + Send + 'static,
{
    let queue = jobs.queue::<T>("odd");
    let id = queue.enqueue(payload).await.unwrap();
    let listed = enqueued(&queue).await.unwrap_err();
    assert!(matches!(listed, Error::Decode(_)));
    assert_eq!(listed.to_string(), format!("the stored value does not have the requested type: job {id}: {error}"));
    let attempts = drain(&queue, options(), async |_: Job<T>| Ok::<_, Infallible>(())).await.unwrap();
    assert_eq!((attempts.len(), attempts[0].status(), attempts[0].error()), (1, JobStatus::Dead, Some(error)));
}

#[tokio::test]
async fn payloads_that_cannot_be_read_back_are_found() {
    on_each_store(async |jobs: Durable| {
        let start = "cannot deserialize the payload as";
        finds(&jobs, f64::NAN, &format!("{start} f64: invalid type: null, expected f64 at line 1 column 4")).await;
        let error = format!("{start} it::kit::Asymmetric: invalid type: integer `7`, expected a string at line 1 column 1");
        finds(&jobs, Asymmetric, &error).await;
        finds(&jobs, deep(128), &format!("{start} it::kit::Deep: recursion limit exceeded at line 1 column 128")).await;
        let queue = jobs.queue::<Deep>("deep");
        queue.enqueue(deep(127)).await.unwrap();
        let attempts = drain(&queue, options(), async |_: Job<Deep>| Ok::<_, Infallible>(())).await.unwrap();
        assert_eq!(statuses(&attempts), [JobStatus::Done], "{:?}", attempts[0].error());
    })
    .await;
}

#[tokio::test]
async fn errors_of_the_store_end_a_drain() {
    on_each_store(async |jobs: Durable| {
        sql(&jobs, "ALTER TABLE {jobs} RENAME TO elsewhere").await;
        let queue = jobs.queue::<Mail>("mail");
        assert!(matches!(drain(&queue, options(), accept).await, Err(Error::Schema(_))));
        assert!(matches!(enqueued(&queue).await, Err(Error::Schema(_))));
        assert!(matches!(advance(&jobs, HOUR).await, Err(Error::Schema(_))));
    })
    .await;
}
