//! What a shutdown, an abort and a panic do to jobs, on both stores; and on which executors they run.

mod common;

use background_tasks::{Registry, RejectReason, SmolSpawner, Spawner, TaskKind, ThreadsSpawner, TokioSpawner};
use background_tasks_durable::{Durable, Error, Job, JobId, Options, Status};
use common::{HANG, Mail, Place, each, each_place, mail, numbers, panic_quietly, registry, until};
use futures_util::future::join_all;
use std::convert::Infallible;
use std::future::{Future, pending, ready};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::sleep;

/// Far longer than a test: what waits for it has failed.
fn patient() -> Options {
    Options::default().lease(Duration::from_hours(1)).backoff(Duration::from_hours(1), Duration::from_hours(1))
}

/// A handler that tells when it begins, and ends when it is let.
fn held() -> (impl Fn(Job<Mail>) -> Held + Send + Sync + 'static, UnboundedReceiver<JobId>, Arc<Semaphore>) {
    let ((begun, begins), go) = (unbounded_channel(), Arc::new(Semaphore::new(0)));
    let gone = go.clone();
    let handler = move |job: Job<Mail>| {
        let gone = gone.clone();
        begun.send(job.id()).unwrap();
        Box::pin(async move {
            gone.acquire().await.unwrap().forget();
            Ok(())
        }) as Held
    };
    (handler, begins, go)
}

type Held = std::pin::Pin<Box<dyn Future<Output = Result<(), Infallible>> + Send>>;

/// Nobody holds them: those that are not over are there for anybody.
async fn free(jobs: &Durable) -> i64 {
    let free = "SELECT count(*) FROM {jobs} WHERE status = 'Pending' AND lock_by IS NULL AND lock_at IS NULL AND attempts = 0";
    numbers(jobs, free).await[0]
}

/// A worker that does everything at once.
async fn done_by_another(place: &Place, ids: &[JobId], attempt: u32) {
    let jobs = place.open().await;
    let (registry, losses) = registry();
    let queue = jobs.queue::<Mail>("mail");
    let handler = async |job: Job<Mail>| Ok::<_, Infallible>(job.attempt());
    queue.serve(&registry, patient().concurrency(20), handler).await.unwrap();
    for id in ids {
        let info = tokio::time::timeout(HANG / 4, queue.wait(*id)).await.expect("not after a lease").unwrap().unwrap();
        assert_eq!(info.result().unwrap(), Some(attempt));
    }
    assert!(registry.shutdown().await.is_clean(), "{:?}", losses.all());
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_in_flight_end_before_the_shutdown_does() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let (handler, mut begins, go) = held();
        queue.serve(&registry, patient().concurrency(3), handler).await.unwrap();
        let ids = queue.enqueue_all((0..5).map(|number| mail(&number.to_string()))).await.unwrap();
        let mut begun = Vec::new();
        for _ in 0..3 {
            begun.push(begins.recv().await.unwrap());
        }
        let shutdown = registry.shutdown();
        let shutdown = tokio::spawn(shutdown);
        let late = queue.enqueue(mail("late")).await.unwrap();
        go.add_permits(100);
        let summary = shutdown.await.unwrap();
        // In the store, without a wait, when it is drained.
        for id in &begun {
            assert_eq!(queue.info(*id).await.unwrap().unwrap().status(), Status::Done);
        }
        // The jobs, the worker, and its upkeep.
        assert_eq!((summary.completed, summary.is_clean()), (5, true), "{summary}");
        assert!(begins.is_empty(), "intake is over");
        assert_eq!(queue.info(late).await.unwrap().unwrap().status(), Status::Waiting);
        let counts = queue.counts().await.unwrap();
        assert_eq!((counts.done, counts.waiting, counts.running), (3, 3, 0));
        assert_eq!(free(&jobs).await, 3);
        assert_eq!((ids.len(), losses.all()), (5, vec![]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_and_not_started_goes_back_at_once() {
    each_place(async |place| {
        let jobs = place.open().await;
        let queue = jobs.queue::<Mail>("mail");
        let (registry, _) = registry();
        let (handler, mut begins, go) = held();
        let ids = queue.enqueue_all((0..10).map(|number| mail(&number.to_string()))).await.unwrap();
        queue.serve(&registry, patient().concurrency(1).batch(10), handler).await.unwrap();
        let begun = begins.recv().await.unwrap();
        until("all are fetched", async || (queue.counts().await.unwrap().running == 10).then_some(())).await;
        let shutdown = tokio::spawn(registry.shutdown());
        // While the one goes on.
        until("the others are back", async || (free(&jobs).await == 9).then_some(())).await;
        let others: Vec<_> = ids.into_iter().filter(|id| *id != begun).collect();
        done_by_another(place, &others, 1).await;
        assert_eq!(queue.info(begun).await.unwrap().unwrap().status(), Status::Running);
        go.add_permits(1);
        assert!(shutdown.await.unwrap().is_clean());
        assert_eq!(queue.counts().await.unwrap().done, 10);
        assert!(begins.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_end_of_the_grace_cuts_is_back_when_the_shutdown_ends() {
    each_place(async |place| {
        let jobs = place.open().await;
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let (handler, mut begins, _go) = held();
        queue.serve(&registry, patient().concurrency(3), handler).await.unwrap();
        let ids = queue.enqueue_all((0..3).map(|number| mail(&number.to_string()))).await.unwrap();
        for _ in 0..3 {
            begins.recv().await.unwrap();
        }
        until("all run", async || (queue.counts().await.unwrap().running == 3).then_some(())).await;
        let summary = registry.shutdown().or_abort(sleep(Duration::from_millis(50)), || sleep(HANG)).await.unwrap();
        assert_eq!((summary.aborted, summary.completed, summary.failed), (3, 2, 0), "{summary}");
        assert_eq!(free(&jobs).await, 3);
        for id in &ids {
            let info = queue.info(*id).await.unwrap().unwrap();
            assert_eq!((info.status(), info.attempts(), info.error()), (Status::Waiting, 0, None));
        }
        assert_eq!(losses.all(), vec![("aborted", "mail", String::new()); 3]);
        done_by_another(place, &ids, 1).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_at_any_other_time_is_a_failed_attempt() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let (handler, mut begins, go) = held();
        queue.serve(&registry, patient().attempts(2), handler).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        begins.recv().await.unwrap();
        let job = registry.tasks().into_iter().find(|task| task.name() == Some("mail")).unwrap();
        registry.abort_task(job.id().unwrap()).unwrap();
        let info = until("it failed", async || queue.info(id).await.unwrap().filter(|info| info.error().is_some())).await;
        assert_eq!((info.status(), info.attempts(), info.error()), (Status::Retrying, 1, Some("it was aborted")));
        assert!(info.due() > std::time::SystemTime::now() + Duration::from_secs(1000), "with its backoff");
        assert_eq!(losses.all(), [("aborted", "mail", String::new())]);

        // The last attempt, and all at once; the worker goes on.
        let set = format!("UPDATE {{jobs}} SET run_at = lock_at WHERE id = '{id}'");
        common::sql(&jobs, &set).await;
        begins.recv().await.unwrap();
        let aborted = registry.abort();
        assert_eq!((aborted.aborted, aborted.not_abortable), (1, 2));
        let info = queue.wait(id).await.unwrap().unwrap();
        assert_eq!((info.status(), info.attempts(), info.error()), (Status::Dead, 2, Some("it was aborted")));
        go.add_permits(1);
        let next = queue.enqueue(mail("bob")).await.unwrap();
        assert_eq!(queue.wait(next).await.unwrap().unwrap().status(), Status::Done);
        let names: Vec<_> = registry.tasks().iter().filter_map(background_tasks::TaskInfo::name).collect();
        assert!(names.contains(&"mail worker") && names.contains(&"mail upkeep"), "{names:?}");
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_counted_and_the_job_comes_again() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let handler = |job: Job<Mail>| async move {
            if job.attempt() == 1 {
                panic_quietly("oh")
            }
            Ok::<_, Infallible>(job.attempt())
        };
        queue.serve(&registry, Options::default().backoff(Duration::ZERO, Duration::ZERO), handler).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        let info = queue.wait(id).await.unwrap().unwrap();
        assert_eq!((info.attempts(), info.result().unwrap()), (2, Some(2)));
        let summary = registry.shutdown().await;
        assert_eq!((summary.panicked, summary.completed), (1, 3), "{summary}");
        assert_eq!(losses.all(), [("panicked", "mail", "oh".to_owned())]);

        // So is one that ends a shutdown's wait.
        let (registry, losses) = common::registry();
        let (begun, mut begins) = unbounded_channel();
        let signal = registry.signal();
        let handler = move |_: Job<Mail>| {
            let signal = signal.clone();
            begun.send(()).unwrap();
            async move {
                signal.await;
                panic_quietly("at the end") as Result<(), Infallible>
            }
        };
        queue.serve(&registry, patient(), handler).await.unwrap();
        let id = queue.enqueue(mail("bob")).await.unwrap();
        begins.recv().await.unwrap();
        assert_eq!(registry.shutdown().await.panicked, 1);
        let info = queue.info(id).await.unwrap().unwrap();
        assert_eq!((info.status(), info.attempts(), info.error()), (Status::Retrying, 1, Some("it panicked: at the end")));
        assert_eq!(losses.all(), [("panicked", "mail", "at the end".to_owned())]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_shuts_down_takes_no_worker() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let id = queue.enqueue(mail("ann")).await.unwrap();
        let (registry, _) = registry();
        let guard = registry.guard().unwrap();
        let shutdown = registry.shutdown();
        let serve = || queue.serve(&registry, Options::default(), async |_| Ok::<_, Infallible>(()));
        let error = serve().await.unwrap_err();
        assert!(matches!(error, Error::Refused(RejectReason::ShuttingDown)), "{error:?}");
        assert_eq!(error.to_string(), format!("no worker was started: {}", RejectReason::ShuttingDown));
        drop(guard);
        shutdown.await;
        let error = serve().await.unwrap_err();
        assert!(matches!(error, Error::Refused(RejectReason::Drained)), "{error:?}");
        assert_eq!(error.to_string(), format!("no worker was started: {}", RejectReason::Drained));
        assert_eq!(queue.info(id).await.unwrap().unwrap().status(), Status::Waiting);

        let full = Registry::builder(TokioSpawner).max_in_flight(1).build();
        let error = queue.serve(&full, Options::default(), async |_| Ok::<_, Infallible>(())).await.unwrap_err();
        assert!(matches!(error, Error::Refused(RejectReason::Full)), "{error:?}");
        full.shutdown().await;
        assert_eq!(queue.info(id).await.unwrap().unwrap().status(), Status::Waiting);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_full_is_waited_for() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        // The worker, its upkeep, and two jobs.
        let registry = Registry::builder(TokioSpawner).max_in_flight(4).build();
        let (handler, mut begins, go) = held();
        queue.serve(&registry, patient().concurrency(8), handler).await.unwrap();
        let ids = queue.enqueue_all((0..6).map(|number| mail(&number.to_string()))).await.unwrap();
        for _ in 0..2 {
            begins.recv().await.unwrap();
        }
        assert_eq!(registry.in_flight(), 4);
        for _ in 0..4 {
            go.add_permits(1);
            begins.recv().await.unwrap();
            assert!(registry.in_flight() <= 4);
        }
        go.add_permits(2);
        for id in ids {
            assert_eq!(queue.wait(id).await.unwrap().unwrap().status(), Status::Done);
        }
        let summary = registry.shutdown().await;
        assert_eq!((summary.completed, summary.rejected), (8, 0));

        // And given up when the shutdown begins: what waits for a place goes back.
        let registry = Registry::builder(TokioSpawner).max_in_flight(3).build();
        let (handler, mut begins, go) = held();
        queue.serve(&registry, patient().concurrency(8), handler).await.unwrap();
        queue.enqueue_all((0..6).map(|number| mail(&number.to_string()))).await.unwrap();
        begins.recv().await.unwrap();
        let shutdown = tokio::spawn(registry.shutdown());
        until("the others are back", async || (free(&jobs).await == 5).then_some(())).await;
        go.add_permits(1);
        let summary = shutdown.await.unwrap();
        assert_eq!((summary.completed, summary.abandoned), (3, 0), "{summary}");
        assert!(begins.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_of_one_registry_stand_in_it_by_name() {
    each(async |jobs| {
        let (mails, posts) = (jobs.queue::<Mail>("mail"), jobs.queue::<Mail>("post"));
        let (registry, losses) = registry();
        let ((mailer, mut sent, go), (poster, mut nailed, gone)) = (held(), held());
        let line = line!() + 1;
        mails.serve(&registry, patient(), mailer).await.unwrap();
        posts.serve(&registry, patient(), poster).await.unwrap();
        let ids = [mails.enqueue(mail("ann")).await.unwrap(), posts.enqueue(mail("bob")).await.unwrap()];
        assert_eq!(sent.recv().await.unwrap(), ids[0]);
        assert_eq!(nailed.recv().await.unwrap(), ids[1]);
        let mut tasks: Vec<_> =
            registry.tasks().iter().map(|task| (task.name().unwrap(), task.location().line(), task.kind().unwrap())).collect();
        tasks.sort_unstable_by_key(|(name, ..)| *name);
        let (here, there) = (line, line + 1);
        assert_eq!(
            tasks,
            [
                ("mail", here, TaskKind::Future),
                ("mail upkeep", here, TaskKind::Tracked),
                ("mail worker", here, TaskKind::Tracked),
                ("post", there, TaskKind::Future),
                ("post upkeep", there, TaskKind::Tracked),
                ("post worker", there, TaskKind::Tracked),
            ]
        );
        assert!(registry.tasks().iter().all(|task| task.location().file().ends_with("shutdown.rs")));
        go.add_permits(1);
        gone.add_permits(1);
        let summary = registry.shutdown().await;
        assert_eq!((summary.completed, losses.all()), (6, vec![]));
        assert!(sent.is_empty() && nailed.is_empty());
        for (queue, id) in [(&mails, ids[0]), (&posts, ids[1])] {
            assert_eq!(queue.info(id).await.unwrap().unwrap().status(), Status::Done);
        }
    })
    .await;
}

/// All that a `Durable` does, on an executor that is not tokio's, with the runtime on a thread of its own.
fn on_another_executor<S: Spawner + Clone + Send + Sync + 'static>(spawner: &S) {
    for place in [Some(Place::sqlite()), Place::postgres()].into_iter().flatten() {
        let (told, tells) = mpsc::channel();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let address = place.address.clone();
        let runtime = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                told.send(Durable::connect(&address).await.unwrap()).unwrap();
                let _ = ended.await;
            });
        });
        let jobs = tells.recv().unwrap();
        let registry = Registry::builder(spawner.clone()).inspect().build();
        let within = |future| {
            let late = async {
                smol::Timer::after(HANG).await;
                panic!("it hangs");
            };
            smol::block_on(smol::future::or(future, late));
        };
        within(Box::pin(async {
            let queue = jobs.queue::<Mail>("mail");
            let begun = Arc::new(AtomicBool::new(false));
            let begins = begun.clone();
            let handler = move |job: Job<Mail>| {
                let begins = begins.clone();
                async move {
                    assert!(tokio::runtime::Handle::try_current().is_err(), "it runs on the registry's executor");
                    if &*job.to == "hangs" {
                        begins.store(true, Ordering::SeqCst);
                        pending::<()>().await;
                    }
                    Ok::<_, Infallible>(job.into_inner().to)
                }
            };
            queue.serve(&registry, patient(), handler).await.unwrap();
            let ids = queue.enqueue_all(["ann", "bob"].map(mail)).await.unwrap();
            let waits = join_all(ids.iter().map(|id| queue.wait(*id))).await;
            assert!(waits.into_iter().all(|info| info.unwrap().unwrap().status() == Status::Done));
            let hangs = queue.enqueue(mail("hangs")).await.unwrap();
            while !begun.load(Ordering::SeqCst) {
                smol::Timer::after(Duration::from_millis(5)).await;
            }
            // What is dropped is dropped outside the runtime.
            for _ in 0..20 {
                let dropped = queue.enqueue(mail("dropped")).later(HANG).into_future();
                assert!(smol::future::or(async { Some(dropped.await) }, async { None }).await.is_none_or(|told| told.is_ok()));
            }
            let summary = registry.shutdown().or_abort(ready(()), || smol::Timer::after(HANG)).await.unwrap();
            assert_eq!((summary.aborted, summary.completed), (1, 4), "{summary}");
            assert_eq!(queue.info(hangs).await.unwrap().unwrap().status(), Status::Waiting);
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
async fn concurrency_is_a_bound() {
    each(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, _) = registry();
        let (mut begun, now, most) = (unbounded_channel(), AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let (running, highest, begins) = (Arc::new(now), most.clone(), begun.0);
        let go = Arc::new(Semaphore::new(0));
        let gone = go.clone();
        let handler = move |_: Job<Mail>| {
            let (running, highest, gone) = (running.clone(), highest.clone(), gone.clone());
            highest.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            begins.send(()).unwrap();
            async move {
                gone.acquire().await.unwrap().forget();
                running.fetch_sub(1, Ordering::SeqCst);
                Ok::<_, Infallible>(())
            }
        };
        queue.serve(&registry, patient().concurrency(3).batch(2), handler).await.unwrap();
        let ids = queue.enqueue_all((0..9).map(|number| mail(&number.to_string()))).await.unwrap();
        for job in 1..=9 {
            begun.1.recv().await.unwrap();
            if job >= 3 {
                go.add_permits(1);
            }
        }
        go.add_permits(2);
        for id in ids {
            assert_eq!(queue.wait(id).await.unwrap().unwrap().status(), Status::Done);
        }
        assert_eq!(most.load(Ordering::SeqCst), 3);
        registry.shutdown().await;
    })
    .await;
}
