//! Checks invariant S11, and the invariants S2, S8, S9 and L3 for tasks that have a handle.
use crate::common::{
    HANG, Manual, Owns, PanicDrop, SlowDrop, counting_waker, counts, inspected, panic_quietly, panic_waker, poll, poll_once,
    waker_fn,
};
use background_tasks::{
    AbortError, BoxWork, DynBlockingSpawner, JoinError, JoinHandle, Loss, Observer, Registry, RejectReason, Spawner, TaskInfo,
};
use futures_lite::future::{block_on, yield_now};
use std::error::Error;
use std::future::{pending, ready};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread;

/// Waits for the handle of a lost task, and returns the reported loss.
fn loss<T>(handle: JoinHandle<T>) -> String {
    match block_on(handle) {
        Ok(_) => "no loss".into(),
        Err(error) => error.loss().to_string(),
    }
}

fn output_arrives_after_the_release<S: Spawner>(registry: &Registry<S>) {
    for i in 0..300 {
        let handle = registry.spawn(async move { Box::new(i) });
        assert_eq!(*block_on(handle).unwrap(), i);
        assert_eq!(registry.in_flight(), 0, "a caller that has the output finds the count released");
    }
    assert_eq!(registry.summary().completed, 300);
}

fn drained_registry_has_ready_handles<S: Spawner>(registry: &Registry<S>) {
    let start = |i| {
        registry.spawn(async move {
            yield_now().await;
            i
        })
    };
    let handles: Vec<_> = (0..100).map(start).collect();
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 100);
    for (i, mut handle) in handles.into_iter().enumerate() {
        assert!(handle.is_finished());
        assert!(matches!(poll_once(&mut handle), Poll::Ready(Ok(output)) if output == i));
    }
}

fn handle_can_be_awaited_in_another_task<S: Spawner>(registry: &Registry<S>) {
    let inner = registry.spawn(async {
        yield_now().await;
        1
    });
    let outer = registry.spawn(async move { inner.await.unwrap() + 1 });
    assert_eq!(block_on(outer).unwrap(), 2);
}

fn panic_is_an_error_with_its_payload<S: Spawner>(registry: &Registry<S>) {
    let line = line!() + 1;
    let error = block_on(registry.named("risky").spawn(async { panic_quietly("oh") })).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("risky at ") && text.contains(&format!("join.rs:{line}:")) && text.ends_with(" panicked: oh"),
        "{text}"
    );
    assert_eq!((error.loss(), error.is_panic(), error.task().name()), (Loss::Panicked("oh"), true, Some("risky")));
    assert_eq!(error.into_panic().downcast_ref(), Some(&"oh"));
    assert_eq!(counts(registry.summary()), [0, 0, 1, 0, 0, 0]);
}

fn destructor_panic_is_an_error<S: Spawner>(registry: &Registry<S>) {
    assert_eq!(loss(registry.spawn(Owns(PanicDrop, ready(())))), "panicked: intentional panic in a destructor");
    assert_eq!(counts(registry.summary()), [0, 0, 1, 0, 0, 0]);
}

fn error_output_counts_as_completed<S: Spawner>(registry: &Registry<S>) {
    assert_eq!(block_on(registry.spawn(async { Err::<(), _>("its owner's") })).unwrap(), Err("its owner's"));
    assert_eq!(counts(registry.summary()), [1, 0, 0, 0, 0, 0]);
}

/// Starts a task that never finishes, and returns its handle after the first poll of the task. The task owns the value.
fn waiting_task<S: Spawner, T: Send + 'static>(registry: &Registry<S>, value: T) -> JoinHandle<()> {
    let (polled, is_polled) = channel();
    let handle = registry.spawn(async move {
        let _value = value;
        polled.send(()).unwrap();
        pending::<()>().await;
    });
    is_polled.recv_timeout(HANG).unwrap();
    handle
}

fn abort_ends_a_waiting_task<S: Spawner>(registry: &Registry<S>) {
    let (slow, destructor) = SlowDrop::new();
    let handle = waiting_task(registry, slow);
    handle.abort();
    handle.abort();
    destructor.started.recv_timeout(HANG).unwrap();
    assert_eq!((handle.is_finished(), registry.in_flight()), (false, 1), "the destructor has not finished");
    destructor.resume.send(()).unwrap();
    assert_eq!(loss(handle), "was aborted");
    assert!(destructor.is_dropped());
    assert_eq!(counts(registry.summary()), [0, 0, 0, 0, 1, 0]);
}

fn abort_handle_ends_a_waiting_task<S: Spawner>(registry: &Registry<S>) {
    let handle = waiting_task(registry, ());
    let aborter = handle.abort_handle();
    thread::spawn(move || aborter.clone().abort()).join().unwrap();
    assert_eq!(loss(handle), "was aborted");
}

fn dropped_handle_detaches_the_task<S: Spawner>(registry: &Registry<S>) {
    let (resume, resumed) = futures_channel();
    drop(registry.spawn(resumed));
    resume.send(()).unwrap();
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 1);
}

/// Returns a future that finishes when the sender sends a message or is dropped.
fn futures_channel() -> (tokio::sync::oneshot::Sender<()>, impl Future<Output = ()> + Send) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    (sender, async move { receiver.await.unwrap() })
}

fn handle_that_aborts_on_drop_aborts<S: Spawner>(registry: &Registry<S>) {
    drop(waiting_task(registry, ()).abort_on_drop());
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [0, 0, 0, 0, 1, 0]);
}

fn rejected_task_has_a_handle_with_the_reason<S: Spawner>(registry: &Registry<S>) {
    registry.start_shutdown();
    let handle = registry.named("late").spawn(async {});
    assert!(handle.is_finished());
    handle.abort();
    handle.abort_handle().abort();
    let error = block_on(handle).unwrap_err();
    assert_eq!((error.loss(), error.task().name()), (Loss::Rejected(RejectReason::Drained), Some("late")));
    assert_eq!(error.task().location().file(), file!());
    assert!(error.try_into_panic().unwrap_err().to_string().starts_with("late at "));
    let rejected = registry.try_spawn(ready(7)).unwrap_err();
    assert_eq!(rejected.reason(), RejectReason::Drained);
    assert_eq!(block_on(rejected.into_inner()), 7);
    assert_eq!(counts(registry.summary()), [0, 0, 0, 0, 0, 2]);
}

on_every_runtime!(
    output_arrives_after_the_release,
    drained_registry_has_ready_handles,
    handle_can_be_awaited_in_another_task,
    panic_is_an_error_with_its_payload,
    destructor_panic_is_an_error,
    error_output_counts_as_completed,
    abort_ends_a_waiting_task,
    abort_handle_ends_a_waiting_task,
    dropped_handle_detaches_the_task,
    handle_that_aborts_on_drop_aborts,
    rejected_task_has_a_handle_with_the_reason,
);

/// Runs the same test with an inspected registry, which lists the task.
mod inspected_registry {
    use super::{abort_ends_a_waiting_task, abort_handle_ends_a_waiting_task};

    on_every_runtime!(
        with |spawner| Registry::builder(spawner).inspect().build();
        abort_ends_a_waiting_task,
        abort_handle_ends_a_waiting_task,
    );
}

mod full_registry {
    use super::*;

    fn permit_is_free_once_the_handle_has_resolved<S: Spawner>(registry: &Registry<S>) {
        for _ in 0..300 {
            block_on(registry.try_spawn(async {}).expect("the permit is free")).unwrap();
        }
    }

    fn spawn_when_ready_waits_for_a_permit<S: Spawner>(registry: &Registry<S>) {
        let (resume, resumed) = futures_channel();
        let first = block_on(registry.task().spawn_when_ready(resumed)).unwrap();
        assert_eq!(loss(registry.spawn(async {})), "was rejected: too many tasks are in flight");
        let mut second = registry.named("second").spawn_when_ready(async { 2 });
        assert!(poll_once(&mut second).is_pending());
        resume.send(()).unwrap();
        block_on(first).unwrap();
        assert_eq!(block_on(block_on(second).unwrap()).unwrap(), 2);
        registry.start_shutdown();
        let rejected = block_on(registry.task().spawn_when_ready(ready(3))).unwrap_err();
        assert_eq!(block_on(rejected.into_inner()), 3);
    }

    on_every_runtime!(
        with |spawner| Registry::builder(spawner).max_in_flight(1).build();
        permit_is_free_once_the_handle_has_resolved,
        spawn_when_ready_waits_for_a_permit,
    );
}

#[cfg(any(feature = "tokio", feature = "smol", feature = "async-std"))]
fn blocking_closures_have_handles<S: background_tasks::BlockingSpawner>(registry: &Registry<S>) {
    assert_eq!(block_on(registry.spawn_blocking(|| 7)).unwrap(), 7);
    assert_eq!(loss(registry.named("b").spawn_blocking(|| panic_quietly("oh"))), "panicked: oh");
    let (started, is_started) = channel();
    let (resume, resumed) = channel::<()>();
    let handle = registry.spawn_blocking(move || {
        started.send(()).unwrap();
        resumed.recv_timeout(HANG).unwrap();
        8
    });
    is_started.recv_timeout(HANG).unwrap();
    handle.abort();
    resume.send(()).unwrap();
    assert_eq!(block_on(handle).unwrap(), 8, "a closure that has started is not aborted");
    registry.start_shutdown();
    assert_eq!(registry.task().try_spawn_blocking(|| 9).unwrap_err().into_inner()(), 9);
    assert_eq!(loss(registry.spawn_blocking(|| 9)), "was rejected: the registry has shut down and drained");
    assert_eq!(counts(registry.summary()), [2, 0, 1, 0, 0, 2]);
}

#[test]
#[cfg(any(feature = "tokio", feature = "smol", feature = "async-std"))]
fn blocking_closures_have_handles_on_each_runtime() {
    #[cfg(feature = "tokio")]
    crate::common::tokio_multi_thread(|handle| blocking_closures_have_handles(&Registry::new(handle)));
    #[cfg(feature = "smol")]
    blocking_closures_have_handles(&Registry::new(background_tasks::SmolSpawner));
    #[cfg(feature = "async-std")]
    blocking_closures_have_handles(&Registry::new(background_tasks::AsyncStdSpawner));
}

fn queued_closures() -> (Receiver<BoxWork>, Registry<DynBlockingSpawner>) {
    let (queue, closures) = channel();
    (closures, Registry::new(DynBlockingSpawner::from_fn(move |work| queue.send(work).unwrap())))
}

/// Checks invariant L3 of `docs/invariants.md`.
#[test]
fn closure_that_its_handle_aborts_before_it_starts_never_runs() {
    let (closures, registry) = queued_closures();
    for run in [|work: BoxWork| work(), |work| drop(work)] {
        let handle = registry.spawn_blocking(|| unreachable!("the closure was aborted"));
        handle.abort();
        run(closures.recv().unwrap());
        assert_eq!(loss(handle), "was aborted");
    }
    assert_eq!(counts(registry.summary()), [0, 0, 0, 0, 2, 0]);
    let handle = registry.spawn_blocking(|| ());
    drop(closures.recv().unwrap());
    assert_eq!(loss(handle), "was abandoned");
}

#[test]
#[cfg(feature = "tokio")]
fn local_task_may_return_a_value_that_is_not_send() {
    use std::rc::Rc;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let local = Rc::new(tokio::task::LocalSet::new());
    let registry = Registry::new(local.clone());
    let value = Rc::new(3);
    let own = value.clone();
    let handle = registry.spawn_local(async move { own });
    let aborted = registry.spawn_local(async move { pending::<Rc<()>>().await });
    aborted.abort();
    local.block_on(&runtime, async {
        assert!(Rc::ptr_eq(&handle.await.unwrap(), &value));
        assert_eq!(aborted.await.unwrap_err().loss(), Loss::Aborted);
    });
    registry.start_shutdown();
    assert!(registry.task().try_spawn_local(async {}).is_err());
    assert_eq!(loss(registry.spawn_local(async {})), "was rejected: the registry has shut down and drained");
}

fn manual() -> (Manual, Registry<Manual>) {
    let spawner = Manual::default();
    (spawner.clone(), Registry::new(spawner))
}

#[test]
fn task_aborted_before_its_first_poll_is_never_polled() {
    for (manual, registry) in [manual(), inspected()] {
        let handle = registry.spawn(async { unreachable!("the task was aborted") });
        handle.abort();
        assert!(!handle.is_finished(), "the executor drops the future");
        manual.poll_all();
        assert_eq!(loss::<()>(handle), "was aborted");
    }
}

#[test]
fn abort_during_a_poll_takes_effect_when_the_poll_returns() {
    for (manual, registry) in [manual(), inspected()] {
        let handle: Arc<Mutex<Option<JoinHandle<()>>>> = Arc::default();
        let own = handle.clone();
        *handle.lock().unwrap() = Some(registry.spawn(async move {
            own.lock().unwrap().as_ref().unwrap().abort();
            yield_now().await;
            unreachable!("the task was aborted");
        }));
        manual.poll_all();
        assert_eq!(loss(handle.lock().unwrap().take().unwrap()), "was aborted");
    }
}

#[test]
fn abort_after_the_end_has_no_effect() {
    for (manual, registry) in [manual(), inspected()] {
        let handle = registry.spawn(async { 7 });
        let aborter = handle.abort_handle();
        manual.poll_all();
        handle.abort();
        assert_eq!(block_on(handle).unwrap(), 7);
        // The second task may reuse the slot of the first task (invariant S9).
        let next = registry.spawn(async { 8 });
        assert_eq!(aborter.id().is_some(), next.id().is_some());
        aborter.abort();
        manual.poll_all();
        assert_eq!(block_on(next).unwrap(), 8);
    }
}

#[test]
fn abandoned_task_is_an_error() {
    for (manual, registry) in [manual(), inspected()] {
        let handle = registry.spawn(pending::<()>());
        let aborted = registry.spawn(pending::<()>());
        manual.poll_all();
        // The executor drops this task before the abort ends the task, so the task counts as abandoned. The same applies to an abort of
        // the registry.
        aborted.abort();
        manual.0.lock().unwrap().clear();
        assert_eq!((loss(handle), loss(aborted)), ("was abandoned".into(), "was abandoned".into()));
        assert_eq!(registry.summary().abandoned, 2);
    }
}

/// An abort by the handle and an abort by the registry have the same effect: the task list shows the first, and the handle returns the
/// second.
#[test]
fn handle_and_registry_abort_an_inspected_task_alike() {
    let (manual, registry) = inspected();
    let handle = registry.named("n").spawn(pending::<()>());
    manual.poll_all();
    let id = handle.id().unwrap();
    assert_eq!(registry.tasks()[0].id(), Some(id));
    handle.abort();
    assert!(registry.tasks()[0].abort_requested());
    assert_eq!(registry.abort_task(id), Ok(()), "an abort is idempotent");
    manual.poll_all();
    assert_eq!(registry.abort_task(id), Err(AbortError::NotInFlight));
    let error = block_on(handle).unwrap_err();
    assert_eq!((error.loss(), error.task().id()), (Loss::Aborted, Some(id)));
    let handle = registry.spawn(pending::<()>());
    manual.poll_all();
    assert_eq!(registry.abort().aborted, 1);
    manual.poll_all();
    assert_eq!(loss(handle), "was aborted");
    assert_eq!(registry.summary().aborted, 2);
}

/// Checks invariant L3 of `docs/invariants.md`.
#[test]
fn task_spawned_after_or_abort_is_never_polled() {
    let (manual, registry) = inspected();
    let first = registry.spawn(pending::<()>());
    let mut shutdown = Box::pin(registry.shutdown().or_abort(ready(()), pending::<()>));
    assert!(poll_once(&mut shutdown).is_pending());
    let late = registry.spawn(async { unreachable!("the registry aborts") });
    manual.poll_all();
    assert_eq!((loss(first), loss::<()>(late)), ("was aborted".into(), "was aborted".into()));
    assert!(poll_once(&mut shutdown).is_ready());
}

#[test]
fn registry_without_inspection_does_not_abort_tasks_with_handles() {
    let (manual, registry) = manual();
    let handle = registry.spawn(async { 1 });
    assert_eq!((registry.abort().aborted, registry.abort().not_abortable), (0, 1));
    manual.poll_all();
    assert_eq!((handle.id(), block_on(handle).unwrap()), (None, 1));
}

#[test]
fn critical_task_with_a_handle_starts_the_shutdown_if_it_is_lost() {
    let (manual, registry) = manual();
    let failed = registry.critical().spawn(async { Err::<(), _>("its owner's") });
    manual.poll_all();
    assert!(block_on(failed).unwrap().is_err());
    assert!(!registry.is_shutting_down(), "an error belongs to the owner of the handle");
    let panicked = registry.named("vital").critical().spawn(async { panic_quietly("oh") });
    manual.poll_all();
    assert_eq!(loss::<()>(panicked), "panicked: oh");
    assert_eq!(registry.shutdown_cause().unwrap().name(), Some("vital"));
}

#[test]
fn critical_task_that_its_handle_aborts_starts_the_shutdown() {
    let (manual, registry) = manual();
    let aborted = registry.named("vital").critical().spawn(async {});
    aborted.abort();
    manual.poll_all();
    assert_eq!(loss(aborted), "was aborted");
    assert_eq!(registry.shutdown_cause().unwrap().name(), Some("vital"));
}

#[test]
fn rejected_critical_task_with_a_handle_starts_the_shutdown() {
    let manual = Manual::default();
    let registry = Registry::builder(manual.clone()).max_in_flight(1).build();
    let guard = registry.guard().unwrap();
    let rejected = registry.named("vital").critical().spawn(async {});
    assert!(matches!(block_on(rejected).unwrap_err().loss(), Loss::Rejected(_)));
    assert_eq!(registry.shutdown_cause().unwrap().name(), Some("vital"));
    drop(guard);
}

/// Checks invariant S8 of `docs/invariants.md`.
#[test]
fn loss_is_reported_before_the_handle_resolves() {
    #[derive(Clone, Default)]
    struct Reports(Arc<Mutex<Vec<String>>>);
    impl Observer for Reports {
        fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
            self.0.lock().unwrap().push(format!("{} {loss}", task.name().unwrap()));
        }
    }

    let (manual, reports) = (Manual::default(), Reports::default());
    let registry = Registry::builder(manual.clone()).observer(reports.clone()).build();
    let mut handle = registry.named("n").spawn(async { panic_quietly("oh") });
    let seen = reports.clone();
    let seen_when_woken = Arc::new(AtomicUsize::new(0));
    let count = seen_when_woken.clone();
    assert!(poll(&mut handle, &waker_fn(move || count.store(seen.0.lock().unwrap().len(), SeqCst))).is_pending());
    manual.poll_all();
    assert_eq!(seen_when_woken.load(SeqCst), 1);
    assert_eq!(loss::<()>(handle), "panicked: oh");
    assert_eq!(*reports.0.lock().unwrap(), ["n panicked: oh"]);
}

#[test]
fn handle_wakes_its_latest_waker() {
    let (manual, registry) = manual();
    let mut handle = registry.spawn(async {});
    let ((first, first_waker), (second, second_waker)) = (counting_waker(), counting_waker());
    assert!(poll(&mut handle, &first_waker).is_pending());
    assert!(poll(&mut handle, &first_waker).is_pending());
    assert!(poll(&mut handle, &second_waker).is_pending());
    assert_eq!(Arc::strong_count(&first), 2, "the replaced waker has been dropped");
    manual.poll_all();
    assert_eq!((first.get(), second.get()), (0, 1));
    assert!(poll_once(&mut handle).is_ready());
}

/// Checks invariant L3 of `docs/invariants.md`.
#[test]
fn abort_wakes_the_latest_waker_of_the_task() {
    for (manual, registry) in [manual(), inspected()] {
        let handle = registry.spawn(pending::<()>());
        let ((first, first_waker), (second, second_waker)) = (counting_waker(), counting_waker());
        manual.poll_all_with(&first_waker);
        manual.poll_all_with(&second_waker);
        manual.poll_all_with(&second_waker);
        handle.abort();
        handle.abort();
        assert_eq!((first.get(), second.get()), (0, 1));
    }
}

/// Checks invariant S6 of `docs/invariants.md`.
#[test]
fn panics_of_wakers_do_not_leave_the_registry() {
    for (manual, registry) in [manual(), inspected()] {
        let mut handle = registry.spawn(async { yield_now().await });
        assert!(poll(&mut handle, &waker_fn(|| panic_quietly("a waker"))).is_pending());
        manual.poll_all_with(&panic_waker());
        manual.poll_all();
        assert_eq!(registry.in_flight(), 0);
        assert!(poll_once(&mut handle).is_ready());
    }
}

/// Checks invariant S2 of `docs/invariants.md`.
#[test]
fn waker_of_the_task_is_dropped_before_release() {
    for (manual, registry) in [manual(), inspected()] {
        let (slow, destructor) = SlowDrop::new();
        let slow = Mutex::new(slow);
        let handle = registry.spawn(async { yield_now().await });
        manual.poll_all_with(&waker_fn(move || drop(slow.lock())));
        let executor = thread::spawn(move || manual.poll_all());
        destructor.started.recv_timeout(HANG).unwrap();
        assert_eq!((registry.in_flight(), handle.is_finished()), (1, false));
        destructor.resume.send(()).unwrap();
        block_on(handle).unwrap();
        executor.join().unwrap();
    }
}

/// Checks invariant S7 of `docs/invariants.md`.
#[test]
fn waker_of_the_handle_may_drop_the_handle() {
    let (manual, registry) = manual();
    let handle = Arc::new(Mutex::new(Some(registry.spawn(async {}))));
    let own = handle.clone();
    let waker = waker_fn(move || drop(own.lock().unwrap().take()));
    assert!(poll(handle.lock().unwrap().as_mut().unwrap(), &waker).is_pending());
    manual.poll_all();
    assert!(handle.lock().unwrap().is_none());
    assert_eq!(registry.summary().completed, 1);
}

#[test]
fn output_of_a_handle_that_is_dropped_late_is_dropped_with_the_handle() {
    let (manual, registry) = manual();
    let value = Arc::new(());
    let own = value.clone();
    let handle = registry.spawn(async move { own });
    let aborter = handle.abort_handle();
    manual.poll_all();
    assert_eq!((registry.in_flight(), Arc::strong_count(&value)), (0, 2));
    drop(handle);
    assert_eq!(Arc::strong_count(&value), 1);
    drop(aborter);
}

#[test]
fn spawner_panic_drops_the_task_as_abandoned() {
    struct Full;
    impl Spawner for Full {
        fn spawn<F: Future<Output = ()> + Send + 'static>(&self, _: F) {
            panic_quietly("the executor is full")
        }
    }
    let registry = Registry::new(Full);
    let panic = catch_unwind(AssertUnwindSafe(|| registry.spawn(async { 1 }).is_finished())).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"the executor is full"));
    assert_eq!(counts(registry.summary()), [0, 0, 0, 1, 0, 0]);
}

#[test]
#[should_panic(expected = "polled after it resolved")]
fn poll_after_the_end_panics() {
    let (manual, registry) = manual();
    let mut handle = registry.spawn(async {});
    manual.poll_all();
    assert!(poll_once(&mut handle).is_ready());
    assert!(handle.is_finished());
    handle.abort();
    let _ = poll_once(&mut handle);
}

#[test]
fn join_error_converts_to_dynamic_errors() {
    /// The conversions of `anyhow` and `eyre` have the same trait bounds.
    fn convert<E: Error + Send + Sync + 'static>(error: E) -> Box<dyn Error + Send + Sync> {
        error.into()
    }

    let (manual, registry) = manual();
    let handle = registry.named("n").spawn(async { panic_any(Mutex::new(1)) });
    manual.poll_all();
    let error: JoinError = block_on(handle).unwrap_err();
    assert!(format!("{error:?}").contains("Panicked"));
    let error = convert(error);
    assert!(error.to_string().ends_with("panicked: (a payload that is not a string)"), "{error}");
    let payload = error.downcast::<JoinError>().unwrap().into_panic();
    assert!(catch_unwind(AssertUnwindSafe(|| resume_unwind(payload))).unwrap_err().is::<Mutex<i32>>());
}

#[test]
fn into_panic_of_another_loss_panics() {
    let (manual, registry) = manual();
    let handle = registry.named("n").spawn(pending::<()>());
    handle.abort();
    manual.poll_all();
    let error = block_on(handle).unwrap_err();
    let panic = catch_unwind(AssertUnwindSafe(|| error.into_panic())).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.starts_with("the task did not panic: n at ") && text.ends_with(" was aborted"), "{text}");
}

#[test]
fn debug_shows_the_task() {
    let (manual, registry) = manual();
    let handle = registry.named("n").spawn(async {});
    let text = format!("{handle:?} {:?}", handle.abort_handle());
    assert!(text.contains("task: n at ") && text.contains("is_finished: false"), "{text}");
    manual.poll_all();
    assert!(format!("{handle:?}").contains("is_finished: true"));
}
