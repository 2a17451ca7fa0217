//! Checks invariant L3: an abort ends each task at its next await point, and reports the tasks that cannot be aborted.
use crate::common::{HANG, Manual, Owns, PanicDrop, SlowDrop, inspected, panic_waker, poll, poll_once, waker_fn};
use background_tasks::{AbortError, BoxWork, DynBlockingSpawner, Registry, Spawner};
use std::future::{pending, poll_fn};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

/// Returns a future that never finishes, and a channel that receives a message at its first poll.
fn never_finishes() -> (impl Future<Output = ()> + Send, std::sync::mpsc::Receiver<()>) {
    let (polled, is_polled) = channel();
    let future = async move {
        polled.send(()).unwrap();
        pending::<()>().await;
    };
    (future, is_polled)
}

fn waiting_tasks_are_woken_dropped_and_counted<S: Spawner>(registry: &Registry<S>) {
    for _ in 0..10 {
        let (future, is_polled) = never_finishes();
        registry.run(future);
        is_polled.recv_timeout(HANG).unwrap();
    }
    let shutdown = registry.shutdown();
    let report = registry.abort();
    assert_eq!((report.aborted, report.not_abortable), (10, 0));
    let summary = shutdown.wait_timeout(HANG).unwrap();
    assert_eq!((summary.aborted, summary.completed), (10, 0));
    assert!(!summary.is_clean());
}

fn drain_waits_for_destructors_of_aborted_tasks<S: Spawner>(registry: &Registry<S>) {
    let (slow, destructor) = SlowDrop::new();
    let (future, is_polled) = never_finishes();
    registry.run(Owns(slow, Box::pin(future)));
    is_polled.recv_timeout(HANG).unwrap();
    let shutdown = registry.shutdown();
    registry.abort();
    destructor.started.recv_timeout(HANG).unwrap();
    assert_eq!((registry.in_flight(), registry.is_drained(), destructor.is_dropped()), (1, false, false));
    destructor.resume.send(()).unwrap();
    assert_eq!(shutdown.wait_timeout(HANG).unwrap().aborted, 1);
    assert!(destructor.is_dropped());
}

fn abort_task_ends_only_the_task_with_that_id<S: Spawner>(registry: &Registry<S>) {
    let (future, is_polled) = never_finishes();
    registry.named("one").run(future);
    is_polled.recv_timeout(HANG).unwrap();
    let (future, is_polled) = never_finishes();
    registry.named("two").run(future);
    is_polled.recv_timeout(HANG).unwrap();
    let id = registry.tasks().iter().find(|task| task.name() == Some("one")).unwrap().id().unwrap();
    assert_eq!(registry.abort_task(id), Ok(()));
    let shutdown = registry.shutdown();
    let stragglers = loop {
        let stragglers = registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err();
        if stragglers.len() == 1 {
            break stragglers;
        }
        thread::yield_now();
    };
    assert_eq!(stragglers.tasks()[0].name(), Some("two"));
    assert_eq!(registry.abort_task(id), Err(AbortError::NotInFlight));
    registry.abort();
    assert_eq!(shutdown.wait_timeout(HANG).unwrap().aborted, 2);
}

fn expired_grace_period_aborts_tasks_and_ends_the_drain<S: Spawner>(registry: &Registry<S>) {
    let (future, is_polled) = never_finishes();
    registry.run(future);
    is_polled.recv_timeout(HANG).unwrap();
    let summary = futures_lite::future::block_on(registry.shutdown().or_abort(async {}, pending::<()>)).unwrap();
    assert_eq!(summary.aborted, 1);
}

on_every_runtime!(
    with |spawner| Registry::builder(spawner).inspect().build();
    waiting_tasks_are_woken_dropped_and_counted,
    drain_waits_for_destructors_of_aborted_tasks,
    abort_task_ends_only_the_task_with_that_id,
    expired_grace_period_aborts_tasks_and_ends_the_drain,
);

#[test]
fn aborted_task_that_was_never_polled_ends_at_its_first_poll() {
    let (spawner, registry) = inspected();
    registry.run(async { unreachable!("the task was aborted before its first poll") });
    registry.abort();
    assert!(poll_once(&mut spawner.take()).is_ready());
    assert_eq!(registry.summary().aborted, 1);
}

#[test]
fn abort_during_a_poll_takes_effect_when_the_poll_returns() {
    let (spawner, registry) = inspected();
    let handle = registry.clone();
    registry.run(poll_fn(move |_| {
        handle.abort();
        Poll::<()>::Pending
    }));
    assert!(poll_once(&mut spawner.take()).is_ready());
    assert_eq!(registry.summary().aborted, 1);
    let handle = registry.clone();
    registry.run(async move {
        handle.abort();
    });
    assert!(poll_once(&mut spawner.take()).is_ready());
    assert_eq!(registry.summary().completed, 1, "the task finished in the poll that aborted it");
}

/// There are more tasks than slots in the first chunk of the table. The later tasks therefore reuse the slots of aborted tasks.
#[test]
fn abort_does_not_reach_the_next_task_in_a_slot() {
    let (spawner, registry) = inspected();
    let start_and_poll = || {
        (0..40).for_each(|_| registry.run(pending::<()>()));
        spawner.poll_all();
    };
    start_and_poll();
    assert_eq!(registry.abort().aborted, 40);
    spawner.poll_all();
    assert_eq!((registry.in_flight(), registry.summary().aborted), (0, 40));
    start_and_poll();
    assert_eq!((registry.in_flight(), registry.summary().aborted), (40, 40));
    assert!(registry.tasks().iter().all(|task| !task.abort_requested()));
}

#[test]
fn destructor_panic_of_an_aborted_task_counts_as_panicked() {
    let (spawner, registry) = inspected();
    registry.run(Owns(PanicDrop, pending::<()>()));
    registry.abort();
    spawner.poll_all();
    assert_eq!((registry.summary().panicked, registry.summary().aborted), (1, 0));
}

#[test]
fn aborted_task_dropped_before_its_next_poll_counts_as_abandoned() {
    let (spawner, registry) = inspected();
    registry.run(pending::<()>());
    registry.abort();
    drop(spawner.take());
    assert_eq!((registry.summary().abandoned, registry.summary().aborted), (1, 0));
}

#[test]
#[cfg(feature = "tokio")]
fn work_that_cannot_be_aborted_stays_in_flight_and_is_named() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let registry = Registry::builder(runtime.handle().clone()).inspect().build();
    let ((start, started), (resume_task, task_resumed)) = (channel(), channel::<()>());
    let (resume_closure, closure_resumed) = channel::<()>();
    registry.named("never-yields").run(async move {
        start.send(()).unwrap();
        task_resumed.recv_timeout(HANG).unwrap();
    });
    started.recv_timeout(HANG).unwrap();
    let (start_closure, closure_started) = channel();
    registry.named("blocks").run_blocking(move || {
        start_closure.send(()).unwrap();
        closure_resumed.recv_timeout(HANG).unwrap();
    });
    closure_started.recv_timeout(HANG).unwrap();
    let guard = registry.named("held").guard().unwrap();
    let mut tracked = Box::pin(registry.named("tracked").track(async { 7 }).unwrap());

    let stragglers = registry.shutdown().wait_or_abort(Duration::ZERO, Duration::ZERO).unwrap_err();
    assert_eq!(stragglers.len(), 4);
    assert!(stragglers.tasks().iter().all(background_tasks::TaskInfo::abort_requested));
    let text = format!("{stragglers:#}");
    for (name, reason) in [
        ("never-yields", "(abort requested, but no await point reached yet)"),
        ("blocks", "(a blocking closure that has started cannot be aborted)"),
        ("held", "(a guard cannot be aborted)"),
        ("tracked", "(a tracked future cannot be aborted)"),
    ] {
        assert!(text.lines().any(|line| line.contains(name) && line.ends_with(reason)), "{text}");
    }
    let report = registry.abort();
    assert_eq!((report.aborted, report.not_abortable), (1, 3));
    let held = registry.tasks().into_iter().find(|task| task.name() == Some("held")).unwrap();
    assert_eq!(registry.abort_task(held.id().unwrap()), Err(AbortError::NotAbortable));

    assert_eq!(poll_once(&mut tracked), Poll::Ready(7));
    drop(guard);
    resume_task.send(()).unwrap();
    resume_closure.send(()).unwrap();
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    assert_eq!((summary.completed, summary.aborted), (4, 0), "all four completed despite the abort");
}

/// Starts 20 closures on a runtime that runs one closure at a time. Only the first closure starts before the abort.
#[cfg(feature = "tokio")]
fn abort_leaves_only_the_first_closure(abort: impl FnOnce(&Registry<tokio::runtime::Handle>)) {
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    let registry = Registry::builder(runtime.handle().clone()).inspect().build();
    let ((start, started), (resume, resumed)) = (channel(), channel::<()>());
    let calls = Arc::new(AtomicUsize::new(0));
    registry.named("first").run_blocking(move || {
        start.send(()).unwrap();
        resumed.recv_timeout(HANG).unwrap();
    });
    started.recv_timeout(HANG).unwrap();
    for _ in 1..20 {
        let calls = calls.clone();
        registry.run_blocking(move || _ = calls.fetch_add(1, SeqCst));
    }
    abort(&registry);
    assert_eq!(registry.in_flight(), 20, "the runtime still owns the aborted closures");
    resume.send(()).unwrap();
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    assert_eq!((summary.completed, summary.aborted, calls.load(SeqCst)), (1, 19, 0));
    assert_eq!(Arc::strong_count(&calls), 1, "each aborted closure was dropped before its count was released");
}

#[test]
#[cfg(feature = "tokio")]
fn closures_aborted_before_they_start_never_run() {
    abort_leaves_only_the_first_closure(|registry| {
        let report = registry.abort();
        assert_eq!((report.aborted, report.not_abortable), (19, 1));
    });
}

#[test]
#[cfg(feature = "tokio")]
fn closures_that_have_not_started_when_the_grace_period_expires_never_run() {
    abort_leaves_only_the_first_closure(|registry| {
        let expired = registry.shutdown().or_abort(async {}, || async {});
        let stragglers = futures_lite::future::block_on(expired).unwrap_err();
        let mut groups: Vec<_> = stragglers.groups().map(|(oldest, len)| (oldest.name(), oldest.is_abortable(), len)).collect();
        // The list has no fixed order for tasks that started at the same time.
        groups.sort_unstable();
        assert_eq!(groups, [(None, true, 19), (Some("first"), false, 1)]);
        let text = stragglers.to_string();
        for reason in [
            "(a blocking closure that has started cannot be aborted)",
            "(aborted before it started, but not dropped by its executor yet)",
        ] {
            assert!(text.contains(reason), "{text}");
        }
    });
}

/// Returns a channel that receives the closures of the registry.
fn queued_closures() -> (std::sync::mpsc::Receiver<BoxWork>, Registry<DynBlockingSpawner>) {
    let (queue, closures) = channel();
    (closures, Registry::builder(DynBlockingSpawner::from_fn(move |work| queue.send(work).unwrap())).inspect().build())
}

#[test]
fn abort_task_ends_a_closure_only_before_it_starts() {
    let (closures, registry) = queued_closures();
    let only_task = |registry: &Registry<_>| registry.tasks()[0];
    let handle = registry.clone();
    registry.run_blocking(move || {
        let task = only_task(&handle);
        assert!(!task.is_abortable());
        assert_eq!(handle.abort_task(task.id().unwrap()), Err(AbortError::NotAbortable));
    });
    assert!(only_task(&registry).is_abortable());
    closures.recv().unwrap()();
    assert_eq!((registry.in_flight(), registry.summary().completed), (0, 1));

    registry.run_blocking(|| unreachable!("the closure was aborted before it started"));
    let id = only_task(&registry).id().unwrap();
    assert_eq!((registry.abort_task(id), registry.abort_task(id)), (Ok(()), Ok(())));
    let task = only_task(&registry);
    assert!(task.is_abortable() && task.abort_requested());
    closures.recv().unwrap()();
    assert_eq!((registry.in_flight(), registry.summary().aborted), (0, 1));
    assert_eq!(registry.abort_task(id), Err(AbortError::NotInFlight));
}

#[test]
fn aborted_closure_that_its_executor_drops_counts_as_aborted() {
    let (closures, registry) = queued_closures();
    registry.run_blocking(|| ());
    drop(closures.recv().unwrap());
    assert_eq!((registry.summary().abandoned, registry.summary().aborted), (1, 0));
    registry.run_blocking(|| ());
    registry.abort();
    drop(closures.recv().unwrap());
    assert_eq!((registry.summary().abandoned, registry.summary().aborted), (1, 1));
}

#[test]
fn tasks_that_end_during_an_abort_are_not_counted_as_not_abortable() {
    let (spawner, registry) = inspected();
    let _guards: Vec<_> = (0..3).map(|_| registry.guard().unwrap()).collect();
    for _ in 0..5 {
        registry.run(pending::<()>());
        let task = Arc::new(Mutex::new(Some(spawner.take())));
        let woken_task = task.clone();
        // The executor polls the task inside the call to its waker, so the task ends while `abort` still iterates over the slots.
        let waker = waker_fn(move || {
            let ended = woken_task.lock().unwrap().take().map(|mut task| poll_once(&mut task));
            assert_eq!(ended, Some(Poll::Ready(())));
        });
        let mut task = task.lock().unwrap();
        assert!(poll(task.as_mut().unwrap(), &waker).is_pending());
    }
    let report = registry.abort();
    assert_eq!((report.aborted, report.not_abortable, registry.summary().aborted), (5, 3, 5));
}

/// Checks invariant S6 of `docs/invariants.md`.
#[test]
fn waker_destructor_panic_does_not_leave_the_registry() {
    let (spawner, registry) = inspected();
    registry.run(pending::<()>());
    let mut task = spawner.take();
    let waker = panic_waker();
    assert!(poll(&mut task, &waker).is_pending());
    drop(waker); // The registry now owns the last clone of the waker.
    assert!(poll_once(&mut task).is_pending());
    registry.abort();
    assert!(poll_once(&mut task).is_ready());
    assert_eq!((registry.in_flight(), registry.summary().aborted), (0, 1));
}

#[test]
fn registry_without_inspection_aborts_nothing() {
    let spawner = Manual::default();
    let registry = Registry::new(spawner.clone());
    registry.run(pending::<()>());
    registry.critical().run(pending::<()>());
    let report = registry.abort();
    assert_eq!((report.aborted, report.not_abortable), (0, 2));
    spawner.poll_all();
    assert_eq!(registry.in_flight(), 2);
}

#[test]
#[cfg(feature = "tokio")]
fn local_task_is_aborted_on_its_own_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let registry = Registry::builder(background_tasks::TokioSpawner).inspect().build();
    let handle = registry.clone();
    let summary = tokio::task::LocalSet::new().block_on(&runtime, async move {
        let local = std::rc::Rc::new(());
        handle.run_local(async move {
            pending::<()>().await;
            drop(local);
        });
        tokio::task::yield_now().await;
        let remote = handle.clone();
        thread::spawn(move || remote.abort()).join().unwrap();
        handle.shutdown().await
    });
    assert_eq!(summary.aborted, 1);
}

/// `or_abort` must create the second timer when the grace period expires, because most timers start when they are created.
#[test]
fn abort_timeout_is_made_when_the_grace_period_expires() {
    let (spawner, registry) = inspected();
    registry.run(pending::<()>());
    let (made, grace_expired) = (AtomicUsize::new(0), std::cell::Cell::new(false));
    let abort_timeout = || {
        made.fetch_add(1, SeqCst);
        async {}
    };
    let grace = poll_fn(|_| if grace_expired.get() { Poll::Ready(()) } else { Poll::Pending });
    let mut wait = Box::pin(registry.shutdown().or_abort(grace, abort_timeout));
    assert!(poll_once(&mut wait).is_pending());
    assert_eq!((made.load(SeqCst), registry.tasks()[0].abort_requested()), (0, false));
    grace_expired.set(true);
    let Poll::Ready(Err(stragglers)) = poll_once(&mut wait) else { panic!("the wait must fail when the abort timeout expires") };
    assert_eq!((made.load(SeqCst), stragglers.len()), (1, 1));
    drop(spawner.take());
}

/// A value whose destructor starts a task.
struct StartOnDrop(Registry<Manual>);

impl Drop for StartOnDrop {
    fn drop(&mut self) {
        self.0.run(async { unreachable!("the grace period expired before the task started") });
    }
}

#[test]
fn tasks_started_after_the_grace_period_are_aborted_before_their_first_poll() {
    let (spawner, registry) = inspected();
    let held = registry.guard().unwrap();
    registry.run(Owns(StartOnDrop(registry.clone()), pending::<()>()));
    let mut wait = Box::pin(registry.shutdown().or_abort(async {}, pending::<()>));
    assert!(poll_once(&mut wait).is_pending());
    spawner.poll_all();
    assert_eq!((registry.in_flight(), registry.summary().aborted), (2, 1), "the aborted task has started another one");
    let (late, _) = never_finishes();
    registry.run(late);
    assert!(registry.tasks().iter().all(background_tasks::TaskInfo::abort_requested));
    spawner.poll_all();
    drop((held, registry.guard().unwrap()));
    let Poll::Ready(Ok(summary)) = poll_once(&mut wait) else { panic!("the registry must have drained") };
    assert_eq!((summary.completed, summary.aborted), (2, 3));
}

#[test]
fn tasks_started_after_a_blocking_wait_has_aborted_are_aborted() {
    let (spawner, registry) = inspected();
    let held = registry.guard().unwrap();
    registry.shutdown().wait_or_abort(Duration::ZERO, Duration::ZERO).unwrap_err();
    registry.run(pending::<()>());
    spawner.poll_all();
    drop(held);
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().aborted, 1);
}

#[test]
fn drain_within_the_grace_period_aborts_nothing() {
    let (spawner, registry) = inspected();
    registry.run(async {});
    let shutdown = registry.shutdown();
    spawner.poll_all();
    let summary = shutdown.wait_or_abort(Duration::ZERO, Duration::ZERO).unwrap();
    assert_eq!((summary.completed, summary.aborted), (1, 0));
}

/// Checks invariant S7. The registry must also drop the waker before or together with the task.
#[test]
fn task_waker_may_call_the_registry_and_is_dropped_with_its_task() {
    let (spawner, registry) = inspected();
    let woken = Arc::new(AtomicUsize::new(0));
    let (handle, wake_count) = (registry.clone(), woken.clone());
    let waker = waker_fn(move || {
        wake_count.fetch_add(1, SeqCst);
        handle.tasks();
        handle.abort();
    });
    registry.run(pending::<()>());
    let mut task = spawner.take();
    assert!(poll(&mut task, &waker).is_pending());
    registry.abort();
    assert_eq!(woken.load(SeqCst), 1);
    assert!(poll(&mut task, &waker).is_ready());
    registry.run(pending::<()>());
    let mut task = spawner.take();
    assert!(poll(&mut task, &waker).is_pending());
    drop((task, waker));
    assert_eq!(Arc::strong_count(&woken), 1, "the registry must keep no clone of the waker");
}

/// A waker whose destructor aborts all tasks.
struct AbortOnDrop(Registry<Manual>);

impl Wake for AbortOnDrop {
    fn wake(self: Arc<Self>) {}
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Checks invariant S7: the abort would hang if the registry dropped a waker while it holds the lock of the task's slot.
#[test]
fn task_waker_destructor_may_call_the_registry() {
    let (spawner, registry) = inspected();
    let start_and_park = || {
        registry.run(pending::<()>());
        let mut task = spawner.take();
        let waker = Waker::from(Arc::new(AbortOnDrop(registry.clone())));
        assert!(poll(&mut task, &waker).is_pending());
        task // The registry now owns the last clone of the waker.
    };
    let mut repolled = start_and_park();
    assert!(poll_once(&mut repolled).is_ready(), "the replaced waker aborts the task");
    assert_eq!(registry.summary().aborted, 1);
    drop(start_and_park());
    assert_eq!((registry.summary().abandoned, registry.in_flight()), (1, 0));
}
