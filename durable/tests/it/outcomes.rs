//! Tests the outcomes of jobs, and what the store returns about these jobs. The tests run on both stores.

use crate::common::{self, Mail, mail, on_each_database, on_each_store, panic_quietly, registry, until};
use background_tasks_durable::testing::advance;
use background_tasks_durable::{Durable, Error, Failure, Job, JobId, JobInfo, JobStatus, Queue, WorkerOptions};
use futures_util::future::join_all;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::unbounded_channel;

/// Returns the options of a worker that retries failed jobs immediately.
fn without_backoff() -> WorkerOptions {
    WorkerOptions::default().backoff(Duration::ZERO, Duration::ZERO)
}

async fn ended<T>(queue: &Queue<T>, id: JobId) -> JobInfo {
    queue.wait(id).await.unwrap().expect("the job exists")
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_returns_the_result() {
    on_each_database(async |database| {
        let (here, there) = (database.open().await, database.open().await);
        let queue = here.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let go = Arc::new(Semaphore::new(0));
        let permits = go.clone();
        let handler = move |job: Job<Mail>| {
            let permits = permits.clone();
            async move {
                permits.acquire().await.unwrap().forget();
                Ok::<_, Infallible>((job.id(), job.attempt(), job.to.len()))
            }
        };
        there.queue::<Mail>("mail").serve(&registry, WorkerOptions::default(), handler).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        until("the job runs", async || (queue.info(id).await.unwrap()?.status() == JobStatus::Running).then_some(())).await;
        assert_eq!(queue.info(id).await.unwrap().unwrap().result::<(JobId, u32, usize)>().unwrap(), None);
        let waits = [&here, &there].map(|jobs| {
            let queue = jobs.queue::<Mail>("mail");
            tokio::spawn(async move { ended(&queue, id).await })
        });
        go.add_permits(1);
        for info in join_all(waits).await {
            let info = info.unwrap();
            assert_eq!((info.status(), info.attempts(), info.error()), (JobStatus::Done, 1, None));
            assert_eq!(info.result().unwrap(), Some((id, 1, 3)));
        }
        let info = ended(&queue, id).await;
        assert_eq!(info.result().unwrap(), Some((id, 1, 3)), "also after the job has ended");
        let error = info.result::<String>().unwrap_err();
        assert!(matches!(error, Error::Decode(_)));
        assert!(error.to_string().starts_with("the stored value does not have the requested type: "), "{error}");
        assert!(matches!(info.payload::<u8>(), Err(Error::Decode(_))));

        let none = "00000000000000000000000000".parse().unwrap();
        assert!(queue.wait(none).await.unwrap().is_none());
        assert!(here.queue::<Mail>("post").wait(id).await.unwrap().is_none());
        registry.shutdown().await;
        assert_eq!(losses.all(), []);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_job_is_listed_and_can_be_retried() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let (attempts, accepts) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (attempted, accepted) = (attempts.clone(), accepts.clone());
        let handler = move |job: Job<Mail>| {
            assert_eq!(job.attempt(), 1, "a retried job starts with its first attempt");
            attempted.fetch_add(1, Ordering::SeqCst);
            let is_accepted = accepted.load(Ordering::SeqCst) > 0;
            async move { if is_accepted { Ok("sent") } else { Err(Failure::dead(format!("no {}", job.to))) } }
        };
        queue.serve(&registry, without_backoff(), handler).await.unwrap();
        let first = queue.enqueue(mail("ann")).await.unwrap();
        let info = ended(&queue, first).await;
        assert_eq!((info.status(), info.attempts(), info.error()), (JobStatus::Dead, 1, Some("no ann")));
        assert_eq!(info.result::<String>().unwrap(), None);
        let second = queue.enqueue(mail("bob")).await.unwrap();
        ended(&queue, second).await;
        assert_eq!(attempts.load(Ordering::SeqCst), 2);

        let dead = queue.dead().await.unwrap();
        assert_eq!(dead.iter().map(JobInfo::error).collect::<Vec<_>>(), [Some("no ann"), Some("no bob")]);
        assert_eq!(dead.iter().map(JobInfo::id).collect::<Vec<_>>(), [first, second]);
        assert_eq!(dead[1].payload::<Mail>().unwrap(), mail("bob"));
        assert_eq!(queue.counts().await.unwrap().dead, 2);
        assert!(jobs.queue::<Mail>("post").dead().await.unwrap().is_empty());
        assert!(!jobs.queue::<Mail>("post").retry(first).await.unwrap());

        accepts.store(1, Ordering::SeqCst);
        assert!(queue.retry(first).await.unwrap());
        let info = ended(&queue, first).await;
        assert_eq!((info.status(), info.attempts(), info.result().unwrap()), (JobStatus::Done, 1, Some("sent".to_owned())));
        assert!(!queue.retry(first).await.unwrap(), "the job is done");
        assert!(!queue.retry("00000000000000000000000000".parse().unwrap()).await.unwrap());
        let counts = queue.counts().await.unwrap();
        assert_eq!((counts.done, counts.dead, counts.waiting), (1, 1, 0));
        registry.shutdown().await;
        let report = |id, to| ("failed", "mail", format!("job {id}, attempt 1 of 20: no {to}; the job is dead"));
        let mut reports = [report(first, "ann"), report(second, "bob")];
        reports.sort();
        assert_eq!(losses.sorted(), reports);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failure_sets_the_time_of_its_retry() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, _) = registry();
        let delay = Duration::from_hours(1);
        let (ran, mut runs) = unbounded_channel();
        let handler = move |job: Job<Mail>| {
            ran.send((job.attempt(), SystemTime::now())).unwrap();
            async move { if job.attempt() == 1 { Err(Failure::retry_after("not yet", delay)) } else { Ok(()) } }
        };
        queue.serve(&registry, WorkerOptions::default(), handler).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        let (attempt, first) = runs.recv().await.unwrap();
        assert_eq!(attempt, 1);
        let info = until("the job has failed", async || queue.info(id).await.unwrap().filter(|info| info.error().is_some())).await;
        assert_eq!((info.status(), info.attempts(), info.error()), (JobStatus::Retrying, 1, Some("not yet")));
        assert_eq!(queue.counts().await.unwrap().retrying, 1);
        let (due, latest) = (info.due(), SystemTime::now() + delay + Duration::from_secs(1));
        assert!(first + delay <= due && due <= latest, "{first:?} {due:?} {latest:?}");
        assert!(runs.is_empty());
        advance(&jobs, delay).await.unwrap();
        assert_eq!(runs.recv().await.unwrap().0, 2);
        let info = ended(&queue, id).await;
        assert_eq!((info.status(), info.attempts(), info.error()), (JobStatus::Done, 2, None));
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn job_is_dead_after_its_last_attempt() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let (ran, mut runs) = unbounded_channel();
        let handler = move |job: Job<Mail>| {
            ran.send(job.attempt()).unwrap();
            async move {
                match &*job.to {
                    "fails" => Err(format!("at {}", job.attempt())),
                    "panics" => panic_quietly("at all"),
                    _ => pending::<Result<(), String>>().await,
                }
            }
        };
        let options = without_backoff().max_attempts(3).timeout(Duration::from_millis(20));
        queue.serve(&registry, options, handler).await.unwrap();
        for (to, error) in [("fails", "at 3"), ("panics", "panicked: at all"), ("hangs", "timed out after 20ms")] {
            let id = queue.enqueue(mail(to)).await.unwrap();
            let info = ended(&queue, id).await;
            assert_eq!((info.status(), info.attempts(), info.error()), (JobStatus::Dead, 3, Some(error)));
            for attempt in 1..=3 {
                assert_eq!(runs.recv().await.unwrap(), attempt);
            }
        }
        assert!(runs.is_empty());
        let summary = registry.shutdown().await;
        assert_eq!((summary.failed, summary.panicked), (6, 3));
        let (outcome, name, text) = &losses.sorted()[6];
        assert_eq!((*outcome, *name), ("panicked", "mail"));
        assert!(text.ends_with(", attempt 1 of 3: at all; retried immediately"), "{text}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn job_is_not_retried_while_a_clone_of_its_last_attempt_exists() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        // An abort and a timeout both drop the handler, but do not stop the blocking closure that it has started.
        for is_aborted in [false, true] {
            let (registry, losses) = registry();
            let retried = Arc::new((Mutex::new(false), Condvar::new()));
            let overlaps = Arc::new(AtomicU32::new(0));
            let (started, mut starts) = unbounded_channel();
            let (retry, overlap) = (retried.clone(), overlaps.clone());
            let handler = move |job: Job<Mail>| {
                let (retry, overlap, started) = (retry.clone(), overlap.clone(), started.clone());
                async move {
                    if job.attempt() == 2 {
                        *retry.0.lock().unwrap() = true;
                        retry.1.notify_all();
                        return Ok(());
                    }
                    let closure = tokio::task::spawn_blocking(move || {
                        started.send(()).unwrap();
                        let limit = Duration::from_millis(500);
                        let (is_retried, _) = retry.1.wait_timeout_while(retry.0.lock().unwrap(), limit, |it| !*it).unwrap();
                        overlap.fetch_add(u32::from(*is_retried), Ordering::SeqCst);
                        drop(job);
                    });
                    closure.await.map_err(|error| error.to_string())
                }
            };
            let limit = if is_aborted { common::HANG } else { Duration::from_millis(20) };
            queue.serve(&registry, without_backoff().timeout(limit), handler).await.unwrap();
            let id = queue.enqueue(mail("ann")).await.unwrap();
            starts.recv().await.unwrap();
            if is_aborted {
                let job = registry.tasks().into_iter().find(|task| task.name() == Some("mail")).unwrap();
                registry.abort_task(job.id().unwrap()).unwrap();
            }
            let info = ended(&queue, id).await;
            assert_eq!((info.status(), info.attempts()), (JobStatus::Done, 2));
            assert_eq!(overlaps.load(Ordering::SeqCst), 0, "the second attempt starts after the closure has ended: {is_aborted}");
            registry.shutdown().await;
            assert_eq!(losses.all().len(), 1);
        }

        // A cancelled job gets its outcome while clones of the job exist.
        let (started, mut starts) = unbounded_channel();
        let (registry, _) = registry();
        let handler = move |job: Job<Mail>| {
            started.send(job).unwrap();
            async { Err::<(), _>("failed") }
        };
        queue.serve(&registry, without_backoff(), handler).await.unwrap();
        let id = queue.enqueue(mail("bob")).await.unwrap();
        let clone = starts.recv().await.unwrap();
        assert!(queue.cancel(id).await.unwrap());
        registry.shutdown().await;
        assert_eq!(queue.info(id).await.unwrap().unwrap().status(), JobStatus::Cancelled);
        drop(clone);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_include_every_status() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, _) = registry();
        let handler = async |job: Job<Mail>| match &*job.to {
            "done" => Ok(()),
            "dead" => Err(Failure::dead("dead")),
            "retrying" => Err(Failure::retry_after("later", Duration::from_hours(1))),
            _ => pending().await,
        };
        queue.serve(&registry, WorkerOptions::default().concurrency(20), handler).await.unwrap();
        for (to, jobs) in [("done", 1), ("dead", 2), ("retrying", 3), ("running", 4)] {
            queue.enqueue_all(vec![mail(to); jobs]).await.unwrap();
        }
        queue.enqueue_all(vec![mail("waiting"); 5]).delay(Duration::from_hours(1)).await.unwrap();
        until("every job has its status", async || {
            let counts = queue.counts().await.unwrap();
            let all = (counts.done, counts.dead, counts.retrying, counts.running, counts.waiting);
            (all == (1, 2, 3, 4, 5)).then_some(())
        })
        .await;
        let json = serde_json::to_value(queue.counts().await.unwrap()).unwrap();
        let all = serde_json::json!({"done": 1, "dead": 2, "retrying": 3, "running": 4, "waiting": 5, "cancelled": 0});
        assert_eq!(json, all);
        assert_eq!(serde_json::to_value(JobStatus::Retrying).unwrap(), JobStatus::Retrying.to_string());
        registry.shutdown().or_abort(std::future::ready(()), || tokio::time::sleep(common::HANG)).await.unwrap();
        let counts = queue.counts().await.unwrap();
        assert_eq!((counts.running, counts.waiting), (0, 9));
    })
    .await;
}

/// Runs a job with the given outcome, and returns the `JobInfo` of the job. Checks that the worker runs another job after that.
async fn outcome<R: Serialize + Clone + Send + Sync + 'static>(jobs: &Durable, outcome: Result<R, String>) -> JobInfo {
    let queue = jobs.queue::<Mail>("mail");
    let (registry, _) = registry();
    let handler = move |job: Job<Mail>| {
        let outcome = if job.to == "first" { Ok(outcome.clone()) } else { Err(()) };
        async move {
            match outcome {
                Ok(outcome) => outcome.map(Some),
                Err(()) => Ok(None),
            }
        }
    };
    queue.serve(&registry, without_backoff().max_attempts(1), handler).await.unwrap();
    let id = queue.enqueue(mail("first")).await.unwrap();
    let info = ended(&queue, id).await;
    let id = queue.enqueue(mail("another")).await.unwrap();
    assert_eq!(ended(&queue, id).await.status(), JobStatus::Done);
    registry.shutdown().await;
    info
}

#[tokio::test(flavor = "multi_thread")]
async fn results_with_unusual_characters_are_stored() {
    on_each_store(async |jobs| {
        let info = outcome(&jobs, Ok("a\0b")).await;
        assert_eq!(info.result::<String>().unwrap().unwrap(), "a\0b");
        let map = BTreeMap::from([("a\0b", vec!["\0", "\u{10ffff}\u{fffe}\"\\"])]);
        let info = outcome(&jobs, Ok(map)).await;
        let stored = BTreeMap::from([("a\0b".to_owned(), vec!["\0".to_owned(), "\u{10ffff}\u{fffe}\"\\".to_owned()])]);
        assert_eq!(info.result().unwrap(), Some(stored));
        // A Postgres string cannot contain NUL characters.
        let nul = if jobs.sqlite_pool().is_some() { "\0" } else { "\u{fffd}" };
        let info = outcome::<()>(&jobs, Err("a\0b '\\u0000".to_owned())).await;
        assert_eq!((info.status(), info.error()), (JobStatus::Dead, Some(&*format!("a{nul}b '\\u0000"))));
        let huge = "\u{1}x".repeat(500_000);
        let info = outcome(&jobs, Ok(huge.clone())).await;
        assert!(info.result::<String>().unwrap().unwrap() == huge);
        let info = outcome::<()>(&jobs, Err(huge.clone())).await;
        assert!(info.error().unwrap() == huge);
        let info = outcome(&jobs, Ok((u64::MAX, i64::MIN, 1.5e300, 1e-300, 0.1, f64::NAN))).await;
        let stored = (u64::MAX, i64::MIN, 1.5e300, 1e-300, 0.1, None::<f64>);
        assert_eq!(info.result().unwrap(), Some(stored));
    })
    .await;
}

/// A result that consists of nested arrays.
#[derive(Clone)]
struct Deep(usize);

impl Serialize for Deep {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0 == 0 { ().serialize(to) } else { [Self(self.0 - 1)].serialize(to) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_result_does_not_stop_the_worker() {
    on_each_store(async |jobs| {
        let info = outcome(&jobs, Ok(Deep(50))).await;
        assert!(info.result::<serde_json::Value>().unwrap().is_some_and(|value| value.is_array()));
        // serde_json reads at most 128 nested levels.
        for depth in [200, 1200] {
            let info = outcome(&jobs, Ok(Deep(depth))).await;
            assert_eq!((info.status(), info.attempts(), info.error()), (JobStatus::Done, 1, None));
            assert!(matches!(info.result::<serde_json::Value>(), Err(Error::Decode(_))));
        }
    })
    .await;
}

/// A result that cannot be serialized. The serialization panics or returns an error.
struct Unserializable(bool);

impl Serialize for Unserializable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        if self.0 { panic_quietly("no way") } else { Err(serde::ser::Error::custom("no way")) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unserializable_result_does_not_repeat_the_job() {
    on_each_store(async |jobs| {
        for (panics, cause) in [(false, "no way"), (true, "panicked: no way")] {
            let queue = jobs.queue::<Mail>("mail");
            let (registry, losses) = registry();
            let runs = Arc::new(AtomicU32::new(0));
            let run = runs.clone();
            let handler = move |_| {
                run.fetch_add(1, Ordering::SeqCst);
                async move { Ok::<_, Infallible>(Unserializable(panics)) }
            };
            queue.serve(&registry, without_backoff(), handler).await.unwrap();
            let id = queue.enqueue(mail("ann")).await.unwrap();
            let info = ended(&queue, id).await;
            assert_eq!((info.status(), info.attempts(), info.result::<String>().unwrap()), (JobStatus::Done, 1, None));
            assert_eq!(info.error().unwrap(), format!("cannot serialize the result as JSON: {cause}"));
            registry.shutdown().await;
            assert_eq!((runs.load(Ordering::SeqCst), losses.all()), (1, vec![]));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn maximum_durations_are_accepted() {
    on_each_store(async |jobs| {
        let longest = Duration::MAX;
        let all = WorkerOptions::default()
            .poll_interval(longest)
            .lease(longest)
            .backoff(longest, longest)
            .timeout(longest)
            .retention(longest)
            .maintenance_interval(longest)
            .unknown_version_delay(longest);
        let (registry, losses) = registry();
        let queue = jobs.queue::<Mail>("mail");
        let handler = async |job: Job<Mail>| match &*job.to {
            "later" => Err(Failure::retry_after("later", Duration::MAX)),
            "backoff" => Err(Failure::retry_after("backoff", Duration::from_secs(1 << 40))),
            _ => Ok(()),
        };
        queue.serve(&registry, all.clone(), handler).await.unwrap();
        jobs.queue::<Mail>("fails").serve(&registry, all, async |_| Err::<(), _>("failed")).await.unwrap();
        let ids = queue.enqueue_all(["later", "backoff", "now"].map(mail)).await.unwrap();
        assert_eq!(ended(&queue, ids[2]).await.status(), JobStatus::Done);
        let fails = jobs.queue::<Mail>("fails");
        let failed = fails.enqueue(mail("ann")).await.unwrap();
        let unknown = jobs.queue::<Mail>("fails").version(2).enqueue(mail("bob")).await.unwrap();
        let far = SystemTime::now() + Duration::from_hours(8760);
        for (queue, id) in [(&queue, ids[0]), (&queue, ids[1]), (&fails, failed), (&fails, unknown)] {
            let info = until("the job waits", async || queue.info(id).await.unwrap().filter(|info| info.error().is_some())).await;
            assert!(info.due() > far, "{info:?}");
        }
        registry.shutdown().await;
        let known = ["later", "backoff", "failed", "unknown payload version 2: this worker knows 1"];
        for (outcome, name, text) in losses.all() {
            assert!(outcome == "failed" && known.iter().any(|known| text.contains(known)), "{outcome} {name} {text}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_without_a_worker_can_be_discarded() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<u32>("discard");
        let (waiting, done, dead) = (
            queue.enqueue(1).delay(Duration::from_hours(1)).unique_key("waits").await.unwrap().id,
            queue.enqueue(2).await.unwrap(),
            queue.enqueue(3).await.unwrap(),
        );
        let (registry, _) = registry();
        let handler = |job: Job<u32>| async move { if *job == 3 { Err(Failure::dead("never")) } else { Ok(()) } };
        queue.serve(&registry, WorkerOptions::default(), handler).await.unwrap();
        queue.wait(done).await.unwrap();
        queue.wait(dead).await.unwrap();
        assert!(!jobs.queue::<u32>("another").discard(waiting).await.unwrap());
        for (id, is_deleted) in [(waiting, true), (waiting, false), (done, false), (dead, true)] {
            assert_eq!(queue.discard(id).await.unwrap(), is_deleted, "{id}");
        }
        assert!(queue.info(waiting).await.unwrap().is_none());
        assert!(queue.dead().await.unwrap().is_empty());
        assert_ne!(queue.enqueue(1).delay(Duration::from_hours(1)).unique_key("waits").await.unwrap().id, waiting);
        registry.shutdown().await;
    })
    .await;
}
