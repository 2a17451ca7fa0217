//! Tests shutdowns, aborts, and jobs that panic, on both stores. Also tests jobs on executors other than tokio.

use crate::common::{
    self, HANG, Mail, TestDatabase, mail, numbers, on_each_database, on_each_store, panic_quietly, registry, until,
};
use background_tasks::{Registry, RejectReason, SmolSpawner, Spawner, TaskKind, ThreadsSpawner, TokioSpawner};
use background_tasks_durable::{Durable, Error, Job, JobId, JobStatus, WorkerOptions};
use futures_util::future::join_all;
use std::convert::Infallible;
use std::future::{Future, pending, ready};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::sleep;

/// Returns options with a lease and a backoff that are longer than a test.
fn patient() -> WorkerOptions {
    WorkerOptions::default().lease(Duration::from_hours(1)).backoff(Duration::from_hours(1), Duration::from_hours(1))
}

/// Returns a handler that sends a message when it starts, and waits for a permit.
fn held() -> (impl Fn(Job<Mail>) -> Held + Send + Sync + 'static, UnboundedReceiver<JobId>, Arc<Semaphore>) {
    let ((started, starts), go) = (unbounded_channel(), Arc::new(Semaphore::new(0)));
    let permits = go.clone();
    let handler = move |job: Job<Mail>| {
        let permits = permits.clone();
        started.send(job.id()).unwrap();
        Box::pin(async move {
            permits.acquire().await.unwrap().forget();
            Ok(())
        }) as Held
    };
    (handler, starts, go)
}

type Held = std::pin::Pin<Box<dyn Future<Output = Result<(), Infallible>> + Send>>;

/// Counts the jobs that no worker holds and for which no attempt or crash has been counted.
async fn free(jobs: &Durable) -> i64 {
    let free =
        "SELECT count(*) FROM {jobs} WHERE state IN ('available', 'scheduled') AND worker IS NULL AND attempts = 0 AND crashes = 0";
    numbers(jobs, free).await[0]
}

/// If a worker ends while it starts, its first heartbeat must not register the worker again.
#[tokio::test(flavor = "multi_thread")]
async fn worker_that_ends_while_it_starts_is_deregistered() {
    on_each_database(async |database| {
        let (mut all, mut slow) = (Vec::new(), 0);
        for _ in 0..20 {
            let jobs = database.open().await;
            let (registry, _) = registry();
            let queue = jobs.queue::<Mail>("mail");
            queue.serve(&registry, patient(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
            let start = Instant::now();
            registry.shutdown().await;
            // If the database is busy, the shutdown waits only briefly. In this case, the worker stays registered until its lease
            // expires.
            slow += i64::from(start.elapsed() > Duration::from_millis(200));
            all.push(jobs);
        }
        let workers = async || numbers(&all[0], "SELECT count(*) FROM {workers}").await[0];
        until("the workers are deregistered", async || (workers().await <= slow).then_some(())).await;
    })
    .await;
}

/// Checks that another worker runs these jobs without waiting for a lease or a backoff.
async fn another_worker_runs(database: &TestDatabase, ids: &[JobId], attempt: u32) {
    let jobs = database.open().await;
    let (registry, losses) = registry();
    let queue = jobs.queue::<Mail>("mail");
    let handler = async |job: Job<Mail>| Ok::<_, Infallible>(job.attempt());
    queue.serve(&registry, patient().concurrency(20), handler).await.unwrap();
    for id in ids {
        let info =
            tokio::time::timeout(HANG / 4, queue.wait(*id)).await.expect("the jobs run before the lease expires").unwrap().unwrap();
        assert_eq!(info.result().unwrap(), Some(attempt));
    }
    assert!(registry.shutdown().await.is_clean(), "{:?}", losses.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_waits_for_jobs_in_flight() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let (handler, mut starts, go) = held();
        queue.serve(&registry, patient().concurrency(3), handler).await.unwrap();
        let ids = queue.enqueue_all((0..5).map(|number| mail(&number.to_string()))).await.unwrap();
        let mut started = Vec::new();
        for _ in 0..3 {
            started.push(starts.recv().await.unwrap());
        }
        let shutdown = registry.shutdown();
        let shutdown = tokio::spawn(shutdown);
        let late = queue.enqueue(mail("late")).await.unwrap();
        go.add_permits(100);
        let summary = shutdown.await.unwrap();
        // When the registry has drained, the jobs must be done in the store.
        for id in &started {
            assert_eq!(queue.info(*id).await.unwrap().unwrap().status(), JobStatus::Done);
        }
        // The summary counts three jobs and the worker task.
        assert_eq!((summary.completed, summary.is_clean()), (4, true), "{summary}");
        assert!(starts.is_empty(), "no job starts after shutdown has started");
        assert_eq!(queue.info(late).await.unwrap().unwrap().status(), JobStatus::Waiting);
        let counts = queue.counts().await.unwrap();
        assert_eq!((counts.done, counts.waiting, counts.running), (3, 3, 0));
        assert_eq!(free(&jobs).await, 3);
        assert_eq!((ids.len(), losses.all()), (5, vec![]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fetched_jobs_return_to_the_queue_when_shutdown_starts() {
    on_each_database(async |database| {
        let jobs = database.open().await;
        let queue = jobs.queue::<Mail>("mail");
        let (registry, _) = registry();
        let (handler, mut starts, go) = held();
        let ids = queue.enqueue_all((0..10).map(|number| mail(&number.to_string()))).await.unwrap();
        queue.serve(&registry, patient().concurrency(1).batch_size(10), handler).await.unwrap();
        let started = starts.recv().await.unwrap();
        until("all jobs are fetched", async || (queue.counts().await.unwrap().running == 10).then_some(())).await;
        let shutdown = tokio::spawn(registry.shutdown());
        // One job still runs at this time.
        until("the other jobs are back in the queue", async || (free(&jobs).await == 9).then_some(())).await;
        let others: Vec<_> = ids.into_iter().filter(|id| *id != started).collect();
        another_worker_runs(database, &others, 1).await;
        assert_eq!(queue.info(started).await.unwrap().unwrap().status(), JobStatus::Running);
        go.add_permits(1);
        assert!(shutdown.await.unwrap().is_clean());
        assert_eq!(queue.counts().await.unwrap().done, 10);
        assert!(starts.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_cut_off_by_the_grace_period_are_back_when_shutdown_ends() {
    on_each_database(async |database| {
        let jobs = database.open().await;
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let (handler, mut starts, _go) = held();
        queue.serve(&registry, patient().concurrency(3), handler).await.unwrap();
        let ids = queue.enqueue_all((0..3).map(|number| mail(&number.to_string()))).await.unwrap();
        for _ in 0..3 {
            starts.recv().await.unwrap();
        }
        until("all jobs run", async || (queue.counts().await.unwrap().running == 3).then_some(())).await;
        let summary = registry.shutdown().or_abort(sleep(Duration::from_millis(50)), || sleep(HANG)).await.unwrap();
        assert_eq!((summary.aborted, summary.completed, summary.failed), (3, 1, 0), "{summary}");
        assert_eq!(free(&jobs).await, 3);
        for id in &ids {
            let info = queue.info(*id).await.unwrap().unwrap();
            assert_eq!((info.status(), info.attempts(), info.error()), (JobStatus::Waiting, 0, None));
        }
        assert_eq!(losses.all(), vec![("aborted", "mail", String::new()); 3]);
        another_worker_runs(database, &ids, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn abort_outside_a_shutdown_is_a_failed_attempt() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let (handler, mut starts, go) = held();
        queue.serve(&registry, patient().max_attempts(2), handler).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        starts.recv().await.unwrap();
        let job = registry.tasks().into_iter().find(|task| task.name() == Some("mail")).unwrap();
        registry.abort_task(job.id().unwrap()).unwrap();
        let info = until("the job has failed", async || queue.info(id).await.unwrap().filter(|info| info.error().is_some())).await;
        assert_eq!((info.status(), info.attempts(), info.error()), (JobStatus::Retrying, 1, Some("the task was aborted")));
        assert!(info.due() > std::time::SystemTime::now() + Duration::from_secs(1000), "the job waits for its backoff");
        until("the loss is reported", async || (!losses.all().is_empty()).then_some(())).await;
        assert_eq!(losses.all(), [("aborted", "mail", String::new())]);

        // Aborts all tasks during the last attempt of the job. The worker must continue.
        let set = format!("UPDATE {{jobs}} SET run_at = enqueued_at WHERE id = '{id}'");
        common::sql(&jobs, &set).await;
        starts.recv().await.unwrap();
        let aborted = registry.abort();
        assert_eq!((aborted.aborted, aborted.not_abortable), (1, 1));
        let info = queue.wait(id).await.unwrap().unwrap();
        assert_eq!((info.status(), info.attempts(), info.error()), (JobStatus::Dead, 2, Some("the task was aborted")));
        go.add_permits(1);
        let next = queue.enqueue(mail("bob")).await.unwrap();
        assert_eq!(queue.wait(next).await.unwrap().unwrap().status(), JobStatus::Done);
        let names: Vec<_> = registry.tasks().iter().filter_map(background_tasks::TaskInfo::name).collect();
        assert!(names.contains(&"mail worker"), "{names:?}");
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_is_counted_and_the_job_is_retried() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let handler = |job: Job<Mail>| async move {
            if job.attempt() == 1 {
                panic_quietly("oh")
            }
            Ok::<_, Infallible>(job.attempt())
        };
        queue.serve(&registry, WorkerOptions::default().backoff(Duration::ZERO, Duration::ZERO), handler).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        let info = queue.wait(id).await.unwrap().unwrap();
        assert_eq!((info.attempts(), info.result().unwrap()), (2, Some(2)));
        let summary = registry.shutdown().await;
        assert_eq!((summary.panicked, summary.completed), (1, 2), "{summary}");
        let report = format!("job {id}, attempt 1 of 20: oh; retried immediately");
        assert_eq!(losses.all(), [("panicked", "mail", report)]);

        // A panic during the drain also counts as a failed attempt.
        let (registry, losses) = common::registry();
        let (started, mut starts) = unbounded_channel();
        let signal = registry.signal();
        let handler = move |_: Job<Mail>| {
            let signal = signal.clone();
            started.send(()).unwrap();
            async move {
                signal.await;
                panic_quietly("at the end") as Result<(), Infallible>
            }
        };
        queue.serve(&registry, patient(), handler).await.unwrap();
        let id = queue.enqueue(mail("bob")).await.unwrap();
        starts.recv().await.unwrap();
        assert_eq!(registry.shutdown().await.panicked, 1);
        let info = queue.info(id).await.unwrap().unwrap();
        assert_eq!((info.status(), info.attempts(), info.error()), (JobStatus::Retrying, 1, Some("panicked: at the end")));
        let (outcome, name, text) = &losses.all()[0];
        assert_eq!((losses.all().len(), *outcome, *name), (1, "panicked", "mail"));
        assert!(text.starts_with(&format!("job {id}, attempt 1 of ")) && text.contains(": at the end; retried in "), "{text}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registry_in_shutdown_rejects_a_worker() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let id = queue.enqueue(mail("ann")).await.unwrap();
        let (registry, _) = registry();
        let guard = registry.guard().unwrap();
        let shutdown = registry.shutdown();
        let serve = || queue.serve(&registry, WorkerOptions::default(), async |_| Ok::<_, Infallible>(()));
        let error = serve().await.unwrap_err();
        assert!(matches!(error, Error::Refused(RejectReason::ShuttingDown)), "{error:?}");
        assert_eq!(error.to_string(), format!("the registry rejected the task: {}", RejectReason::ShuttingDown));
        drop(guard);
        shutdown.await;
        let error = serve().await.unwrap_err();
        assert!(matches!(error, Error::Refused(RejectReason::Drained)), "{error:?}");
        assert_eq!(error.to_string(), format!("the registry rejected the task: {}", RejectReason::Drained));
        assert_eq!(queue.info(id).await.unwrap().unwrap().status(), JobStatus::Waiting);

        let full = Registry::builder(TokioSpawner).max_in_flight(1).build();
        let guard = full.guard().unwrap();
        queue.serve(&full, WorkerOptions::default(), async |_| Ok::<_, Infallible>(())).await.unwrap();
        let shutdown = full.shutdown();
        drop(guard);
        assert_eq!(shutdown.await.completed, 2, "the worker takes no permit");
        assert_eq!(queue.info(id).await.unwrap().unwrap().status(), JobStatus::Waiting);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_wait_for_a_full_registry() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        // The limit allows two jobs. The worker task itself does not count for this limit.
        let registry = Registry::builder(TokioSpawner).max_in_flight(2).build();
        let (handler, mut starts, go) = held();
        queue.serve(&registry, patient().concurrency(8), handler).await.unwrap();
        let ids = queue.enqueue_all((0..6).map(|number| mail(&number.to_string()))).await.unwrap();
        for _ in 0..2 {
            starts.recv().await.unwrap();
        }
        assert_eq!(registry.in_flight(), 3);
        for _ in 0..4 {
            go.add_permits(1);
            starts.recv().await.unwrap();
            assert!(registry.in_flight() <= 3);
        }
        go.add_permits(2);
        for id in ids {
            assert_eq!(queue.wait(id).await.unwrap().unwrap().status(), JobStatus::Done);
        }
        let summary = registry.shutdown().await;
        assert_eq!((summary.completed, summary.rejected), (7, 0));

        // When the shutdown starts, the worker puts jobs that wait for a permit back into the queue.
        let registry = Registry::builder(TokioSpawner).max_in_flight(1).build();
        let (handler, mut starts, go) = held();
        queue.serve(&registry, patient().concurrency(8), handler).await.unwrap();
        queue.enqueue_all((0..6).map(|number| mail(&number.to_string()))).await.unwrap();
        starts.recv().await.unwrap();
        let shutdown = tokio::spawn(registry.shutdown());
        until("the other jobs are back in the queue", async || (free(&jobs).await == 5).then_some(())).await;
        go.add_permits(1);
        let summary = shutdown.await.unwrap();
        assert_eq!((summary.completed, summary.abandoned), (2, 0), "{summary}");
        assert!(starts.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_several_queues_are_listed_by_name() {
    on_each_store(async |jobs| {
        let (mails, posts) = (jobs.queue::<Mail>("mail"), jobs.queue::<Mail>("post"));
        let (registry, losses) = registry();
        let ((mail_handler, mut mails_started, go), (post_handler, mut posts_started, post_go)) = (held(), held());
        let line = line!() + 1;
        mails.serve(&registry, patient(), mail_handler).await.unwrap();
        posts.serve(&registry, patient(), post_handler).await.unwrap();
        let ids = [mails.enqueue(mail("ann")).await.unwrap(), posts.enqueue(mail("bob")).await.unwrap()];
        assert_eq!(mails_started.recv().await.unwrap(), ids[0]);
        assert_eq!(posts_started.recv().await.unwrap(), ids[1]);
        let mut tasks: Vec<_> =
            registry.tasks().iter().map(|task| (task.name().unwrap(), task.location().line(), task.kind().unwrap())).collect();
        tasks.sort_unstable_by_key(|(name, ..)| *name);
        let (here, there) = (line, line + 1);
        assert_eq!(
            tasks,
            [
                ("mail", here, TaskKind::Future),
                ("mail worker", here, TaskKind::Tracked),
                ("post", there, TaskKind::Future),
                ("post worker", there, TaskKind::Tracked),
            ]
        );
        assert!(registry.tasks().iter().all(|task| task.location().file().ends_with("shutdown.rs")));
        go.add_permits(1);
        post_go.add_permits(1);
        let summary = registry.shutdown().await;
        assert_eq!((summary.completed, losses.all()), (4, vec![]));
        assert!(mails_started.is_empty() && posts_started.is_empty());
        for (queue, id) in [(&mails, ids[0]), (&posts, ids[1])] {
            assert_eq!(queue.info(id).await.unwrap().unwrap().status(), JobStatus::Done);
        }
    })
    .await;
}

/// Runs jobs on an executor other than tokio. The tokio runtime runs on a separate thread.
fn on_another_executor<S: Spawner + Clone + Send + Sync + 'static>(spawner: &S) {
    for database in [Some(TestDatabase::sqlite()), TestDatabase::postgres()].into_iter().flatten() {
        let (opened, receiver) = mpsc::channel();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let address = database.address.clone();
        let runtime = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                opened.send(Durable::connect(&address).await.unwrap()).unwrap();
                let _ = ended.await;
            });
        });
        let jobs = receiver.recv().unwrap();
        let registry = Registry::builder(spawner.clone()).inspect().build();
        let run = |future| {
            let late = async {
                smol::Timer::after(HANG).await;
                panic!("the test hangs");
            };
            smol::block_on(smol::future::or(future, late));
        };
        run(Box::pin(async {
            let queue = jobs.queue::<Mail>("mail");
            let is_started = Arc::new(AtomicBool::new(false));
            let starts = is_started.clone();
            let handler = move |job: Job<Mail>| {
                let starts = starts.clone();
                async move {
                    assert!(tokio::runtime::Handle::try_current().is_err(), "jobs run on the registry's executor");
                    if &*job.to == "hangs" {
                        starts.store(true, Ordering::SeqCst);
                        pending::<()>().await;
                    }
                    Ok::<_, Infallible>(job.into_inner().to)
                }
            };
            queue.serve(&registry, patient(), handler).await.unwrap();
            let ids = queue.enqueue_all(["ann", "bob"].map(mail)).await.unwrap();
            let waits = join_all(ids.iter().map(|id| queue.wait(*id))).await;
            assert!(waits.into_iter().all(|info| info.unwrap().unwrap().status() == JobStatus::Done));
            let hangs = queue.enqueue(mail("hangs")).await.unwrap();
            while !is_started.load(Ordering::SeqCst) {
                smol::Timer::after(Duration::from_millis(5)).await;
            }
            // Drops `enqueue` futures outside the tokio runtime.
            for _ in 0..20 {
                let dropped = queue.enqueue(mail("dropped")).delay(HANG).into_future();
                assert!(smol::future::or(async { Some(dropped.await) }, async { None }).await.is_none_or(|result| result.is_ok()));
            }
            let summary = registry.shutdown().or_abort(ready(()), || smol::Timer::after(HANG)).await.unwrap();
            assert_eq!((summary.aborted, summary.completed), (1, 3), "{summary}");
            assert_eq!(queue.info(hangs).await.unwrap().unwrap().status(), JobStatus::Waiting);
        }));
        drop(jobs);
        drop(end);
        runtime.join().unwrap();
    }
}

#[test]
fn jobs_run_on_smol() {
    on_another_executor(&SmolSpawner);
}

#[test]
fn jobs_run_on_threads() {
    on_another_executor(&ThreadsSpawner::new(2).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrency_is_limited() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, _) = registry();
        let (mut started, now, maximum) = (unbounded_channel(), AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let (running, highest, starts) = (Arc::new(now), maximum.clone(), started.0);
        let go = Arc::new(Semaphore::new(0));
        let permits = go.clone();
        let handler = move |_: Job<Mail>| {
            let (running, highest, permits) = (running.clone(), highest.clone(), permits.clone());
            highest.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            starts.send(()).unwrap();
            async move {
                permits.acquire().await.unwrap().forget();
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Infallible>(())
            }
        };
        queue.serve(&registry, patient().concurrency(3).batch_size(2), handler).await.unwrap();
        let ids = queue.enqueue_all((0..9).map(|number| mail(&number.to_string()))).await.unwrap();
        for job in 1..=9 {
            started.1.recv().await.unwrap();
            if job >= 3 {
                go.add_permits(1);
            }
        }
        go.add_permits(2);
        for id in ids {
            assert_eq!(queue.wait(id).await.unwrap().unwrap().status(), JobStatus::Done);
        }
        assert_eq!(maximum.load(Ordering::SeqCst), 3);
        registry.shutdown().await;
    })
    .await;
}
