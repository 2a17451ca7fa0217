//! Tests that observers, inspection, aborts, limits and the shutdown policy work with the feature `std` and without it.
//!
//! `cargo test --no-default-features --features critical-section --test it bare::` runs these tests without the feature `std`. The tests
//! themselves use the standard library, but call only functions of this crate that work without `std`. They block no thread and catch no
//! panic.
use crate::common::{Manual, counting_waker, inspected, poll, poll_once};
use allocation_counter::measure;
use background_tasks::{
    AbortError, AbortReport, Loss, Observer, Registry, RegistryState, RejectReason, Summary, TaskInfo, TaskKind,
};
use std::future::{Ready, pending, ready};
use std::panic::Location;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread;
use std::time::Duration;

type Name = Option<&'static str>;

/// A call to an observer.
#[derive(Debug, Clone, PartialEq)]
enum Event {
    Failed(Name, String),
    Panicked(Name, String),
    Abandoned(Name),
    Aborted(Name),
    Rejected(Name, RejectReason),
    ShutdownStarted(usize),
    Drained(Summary),
}

/// An observer that records all events. All clones of the observer share one list.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Event>>>);

impl Recorder {
    fn push(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    /// Removes and returns the events that were recorded since the last call of this method.
    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// Checks that the call site of a task is in this file, and returns the name of the task.
fn name(task: &TaskInfo) -> Name {
    assert_eq!(task.location().file(), file!());
    task.name()
}

impl Observer for Recorder {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        self.push(match *loss {
            Loss::Failed(error) => Event::Failed(name(task), error.into()),
            Loss::Panicked(message) => Event::Panicked(name(task), message.into()),
            Loss::Abandoned => Event::Abandoned(name(task)),
            Loss::Aborted => Event::Aborted(name(task)),
            Loss::Rejected(reason) => Event::Rejected(name(task), reason),
            _ => panic!("unknown loss: {loss}"),
        });
    }

    fn shutdown_started(&self, in_flight: usize) {
        self.push(Event::ShutdownStarted(in_flight));
    }

    fn drained(&self, summary: &Summary, took: Duration) {
        assert!(cfg!(feature = "std") || took.is_zero(), "without `std` the library has no clock");
        self.push(Event::Drained(*summary));
    }
}

const FAILURE: &str = "intentional failure";

fn failure() -> Ready<Result<(), &'static str>> {
    ready(Err(FAILURE))
}

/// Checks invariant S8 of `docs/invariants.md`.
#[test]
fn observer_is_notified_of_each_loss_and_of_the_shutdown() {
    let (manual, recorder) = (Manual::default(), Recorder::default());
    let registry = Registry::builder(manual.clone()).observer(recorder.clone()).inspect().build();
    registry.named("completes").run(async {});
    registry.named("fails").run(failure());
    manual.poll_all();
    assert_eq!(recorder.take(), [Event::Failed(Some("fails"), FAILURE.into())]);

    registry.named("abandoned").run(pending::<()>());
    manual.poll_all();
    drop(manual.take());
    assert_eq!(recorder.take(), [Event::Abandoned(Some("abandoned"))]);

    registry.named("aborted").run(pending::<()>());
    manual.poll_all();
    registry.abort();
    assert_eq!(recorder.take(), [], "an aborted task ends at its next poll");
    manual.poll_all();
    assert_eq!(recorder.take(), [Event::Aborted(Some("aborted"))]);

    let guard = registry.guard().unwrap();
    let mut shutdown = registry.shutdown();
    assert_eq!(recorder.take(), [Event::ShutdownStarted(1)]);
    assert!(poll_once(&mut shutdown).is_pending());
    drop(guard);
    let Poll::Ready(summary) = poll_once(&mut shutdown) else { panic!("the registry has drained") };
    assert_eq!(recorder.take(), [Event::Drained(summary)]);
    assert_eq!((summary.completed, summary.failed, summary.abandoned, summary.aborted), (2, 1, 1, 1));

    registry.named("late").run(async {});
    registry.guard().unwrap_err();
    let expected = [Event::Rejected(Some("late"), RejectReason::Drained), Event::Rejected(None, RejectReason::Drained)];
    assert_eq!(recorder.take(), expected);
}

/// Without inspection, an observer receives names and call sites, but no IDs and no kinds.
#[test]
fn loss_without_inspection_has_a_name_and_a_call_site_only() {
    #[derive(Clone, Default)]
    struct LastFailure(Arc<Mutex<Option<TaskInfo>>>);

    impl Observer for LastFailure {
        fn lost(&self, task: &TaskInfo, _: &Loss<'_>) {
            *self.0.lock().unwrap() = Some(*task);
        }
    }

    let (manual, last) = (Manual::default(), LastFailure::default());
    let registry = Registry::builder(manual.clone()).observer(last.clone()).build();
    let line = line!() + 1;
    registry.named("mail").run(failure());
    manual.poll_all();
    let task = last.0.lock().unwrap().unwrap();
    assert_eq!((task.name(), task.location().file(), task.location().line()), (Some("mail"), file!(), line));
    assert_eq!((task.id(), task.kind(), task.age()), (None, None, None));
}

/// Checks invariant S8: while an observer receives a loss, the lost task still counts as in flight.
#[test]
fn loss_is_reported_before_the_count_is_released() {
    #[derive(Clone, Default)]
    struct InFlightRecorder {
        registry: Arc<Mutex<Option<Registry<Manual>>>>,
        in_flight: Arc<Mutex<Vec<usize>>>,
    }

    impl Observer for InFlightRecorder {
        fn lost(&self, _: &TaskInfo, _: &Loss<'_>) {
            let registry = self.registry.lock().unwrap().clone().unwrap();
            self.in_flight.lock().unwrap().push(registry.in_flight());
        }
    }

    let (manual, recorder) = (Manual::default(), InFlightRecorder::default());
    let registry = Registry::builder(manual.clone()).observer(recorder.clone()).build();
    *recorder.registry.lock().unwrap() = Some(registry.clone());
    registry.run(failure());
    manual.poll_all();
    assert_eq!((&**recorder.in_flight.lock().unwrap(), registry.in_flight()), (&[1][..], 0));
    *recorder.registry.lock().unwrap() = None;
}

#[test]
fn every_observer_is_notified_and_dropped_with_the_registry() {
    let (manual, recorders) = (Manual::default(), [Recorder::default(), Recorder::default()]);
    let [first, second] = recorders.clone();
    let registry = Registry::builder(manual.clone()).observer(first).observer(second).build();
    registry.run(failure());
    manual.poll_all();
    for recorder in &recorders {
        assert_eq!(recorder.take(), [Event::Failed(None, FAILURE.into())]);
        assert_eq!(Arc::strong_count(&recorder.0), 2, "the registry owns its observer");
    }
    drop(registry);
    for recorder in &recorders {
        assert_eq!(recorder.take().len(), 2, "the drop of the last handle starts and ends the shutdown");
        assert_eq!(Arc::strong_count(&recorder.0), 1, "the registry has dropped its observer");
    }
}

#[test]
fn inspected_task_is_listed_with_name_call_site_kind_and_id() {
    let (manual, registry) = inspected();
    let line = line!() + 1;
    registry.named("sweeper").run(pending::<()>());
    let guard = registry.guard().unwrap();
    let mut tracked = registry.track(ready(7)).unwrap();

    let tasks = registry.tasks();
    assert_eq!(tasks.len(), 3);
    let find = |kind| *tasks.iter().find(|task| task.kind() == Some(kind)).unwrap();
    let sweeper = find(TaskKind::Future);
    assert_eq!((sweeper.name(), sweeper.location().file(), sweeper.location().line()), (Some("sweeper"), file!(), line));
    assert!(!sweeper.abort_requested());
    assert_eq!((find(TaskKind::Guard).name(), find(TaskKind::Tracked).name()), (None, None));
    for task in &tasks {
        let id = task.id().expect("an inspected task has an ID");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(tasks.iter().filter(|other| other.id() == Some(id)).count(), 1, "an ID names one task");
        assert_eq!(task.age().is_some(), cfg!(feature = "std"), "ages need a clock");
    }

    drop(guard);
    assert!(poll_once(&mut tracked).is_ready());
    assert_eq!(registry.tasks().len(), 1, "work that has ended is not listed");
    drop(manual.take());
    assert_eq!(registry.tasks(), []);
}

#[test]
fn task_builder_overrides_the_call_site() {
    #[track_caller]
    fn library_function(registry: &Registry<Manual>) {
        registry.named("on behalf").location(Location::caller()).run(pending::<()>());
    }

    let (_manual, registry) = inspected();
    let line = line!() + 1;
    library_function(&registry);
    assert_eq!(registry.tasks()[0].location().line(), line);
}

/// Checks the invariants L3 and S9 of `docs/invariants.md`.
#[test]
fn abort_task_wakes_and_ends_only_the_task_with_that_id() {
    let (manual, registry) = inspected();
    let id = |name| registry.tasks().into_iter().find(|task| task.name() == Some(name)).unwrap().id().unwrap();
    registry.named("first").run(pending::<()>());
    let (first_wake_count, first_waker) = counting_waker();
    manual.poll_all_with(&first_waker);
    registry.named("second").run(pending::<()>());
    let guard = registry.named("guard").guard().unwrap();

    let first = id("first");
    assert_eq!(registry.abort_task(first), Ok(()));
    assert_eq!(first_wake_count.get(), 1);
    assert!(registry.tasks().iter().all(|task| task.abort_requested() == (task.id() == Some(first))));
    manual.poll_all();
    assert_eq!((registry.summary().aborted, registry.in_flight()), (1, 2));
    assert_eq!(registry.abort_task(first), Err(AbortError::NotInFlight));
    assert_eq!(registry.abort_task(id("guard")), Err(AbortError::NotAbortable));

    registry.named("third").run(pending::<()>());
    assert_ne!(id("third"), first, "a reused slot has a new generation");
    assert_eq!(registry.abort_task(first), Err(AbortError::NotInFlight));
    drop(guard);
}

#[test]
fn abort_ends_tasks_and_reports_work_that_it_cannot_abort() {
    let (manual, registry) = inspected();
    registry.run(pending::<()>());
    let (wake_count, waker) = counting_waker();
    manual.poll_all_with(&waker);
    registry.run(async { unreachable!("the abort comes before the first poll") });
    let guard = registry.guard().unwrap();
    let tracked = registry.track(pending::<()>()).unwrap();

    let AbortReport { aborted, not_abortable, .. } = registry.abort();
    assert_eq!((aborted, not_abortable, wake_count.get()), (2, 2, 1));
    manual.poll_all();
    assert_eq!((registry.summary().aborted, registry.in_flight()), (2, 2));
    drop((guard, tracked));

    let uninspected = Registry::builder(manual).build();
    uninspected.run(pending::<()>());
    let AbortReport { aborted, not_abortable, .. } = uninspected.abort();
    assert_eq!((aborted, not_abortable, uninspected.tasks().len()), (0, 1, 0));
}

#[test]
fn expired_deadline_returns_the_stragglers() {
    let (_manual, registry) = inspected();
    registry.named("slow").run(pending::<()>());
    let mut wait = pin!(registry.shutdown().until(ready(())));
    let Poll::Ready(Err(stragglers)) = poll_once(&mut wait) else { panic!("a task is in flight at the deadline") };
    assert_eq!((stragglers.len(), stragglers.tasks().len()), (1, 1));
    assert_eq!(stragglers.tasks()[0].name(), Some("slow"));
    assert!(stragglers.to_string().contains("slow"), "{stragglers}");
}

#[test]
fn expired_grace_period_aborts_the_tasks() {
    let (manual, registry) = inspected();
    registry.run(pending::<()>());
    let (task_wake_count, task_waker) = counting_waker();
    manual.poll_all_with(&task_waker);
    let (drain_wake_count, drain_waker) = counting_waker();
    let mut wait = pin!(registry.shutdown().or_abort(ready(()), pending::<()>));
    assert!(poll(&mut wait, &drain_waker).is_pending());
    assert_eq!(task_wake_count.get(), 1);
    manual.poll_all();
    assert_eq!(drain_wake_count.get(), 1);
    let Poll::Ready(Ok(summary)) = poll_once(&mut wait) else { panic!("the aborted task has ended") };
    assert_eq!(summary.aborted, 1);
}

/// Checks the invariants S10 and L4 of `docs/invariants.md`.
#[test]
fn full_registry_rejects_and_passes_a_released_permit_to_the_first_waiter() {
    let (manual, recorder) = (Manual::default(), Recorder::default());
    let registry = Registry::builder(manual.clone()).observer(recorder.clone()).max_in_flight(1).build();
    registry.run(pending::<()>());
    assert_eq!(registry.named("extra").try_run(async {}).unwrap_err().reason(), RejectReason::Full);
    assert_eq!(registry.guard().unwrap_err().reason(), RejectReason::Full);
    let expected = [Event::Rejected(Some("extra"), RejectReason::Full), Event::Rejected(None, RejectReason::Full)];
    assert_eq!(recorder.take(), expected);

    let (first_wake_count, first_waker) = counting_waker();
    let (second_wake_count, second_waker) = counting_waker();
    let mut first = registry.run_when_ready(pending::<()>());
    let mut second = registry.named("second").run_when_ready(pending::<()>());
    assert!(poll(&mut first, &first_waker).is_pending());
    assert!(poll(&mut second, &second_waker).is_pending());
    drop(manual.take());
    assert_eq!((first_wake_count.get(), second_wake_count.get()), (1, 0), "the released permit belongs to the first waiter");
    assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full);
    assert!(poll(&mut second, &second_waker).is_pending());
    assert!(matches!(poll(&mut first, &first_waker), Poll::Ready(Ok(()))));
    assert_eq!((registry.in_flight(), second_wake_count.get()), (1, 0));

    recorder.take();
    registry.start_shutdown();
    assert_eq!(second_wake_count.get(), 1, "the shutdown wakes the remaining waiter");
    let Poll::Ready(Err(rejected)) = poll(&mut second, &second_waker) else { panic!("the shutdown rejects waiters") };
    assert_eq!(rejected.reason(), RejectReason::ShuttingDown);
    assert_eq!(recorder.take(), [Event::ShutdownStarted(1), Event::Rejected(Some("second"), RejectReason::ShuttingDown)]);
}

#[test]
fn dropped_waiter_passes_its_permit_to_the_next_waiter() {
    let manual = Manual::default();
    let registry = Registry::builder(manual.clone()).max_in_flight(1).build();
    registry.run(pending::<()>());
    let (second_wake_count, second_waker) = counting_waker();
    let mut first = registry.run_when_ready(pending::<()>());
    let mut second = registry.run_when_ready(pending::<()>());
    assert!(poll_once(&mut first).is_pending());
    assert!(poll(&mut second, &second_waker).is_pending());
    drop(manual.take());
    drop(first);
    assert_eq!(second_wake_count.get(), 1);
    assert!(poll_once(&mut second).is_ready());
    assert_eq!((registry.in_flight(), registry.summary().rejected), (1, 0));
}

/// Checks the invariants S3, S10 and L4, also for a registry with only one shard.
#[test]
fn request_without_a_permit_starts_its_follow_up_in_a_full_registry_that_drains() {
    let manual = Manual::default();
    let registry = Registry::builder(manual.clone()).max_in_flight(1).build();
    registry.run(pending::<()>());
    let request = registry.named("request").without_permit().guard().unwrap();
    assert_eq!(registry.in_flight(), 2);
    registry.start_shutdown();
    let (wake_count, waker) = counting_waker();
    let mut follow_up = registry.follow_up().run_when_ready(pending::<()>());
    assert!(poll(&mut follow_up, &waker).is_pending());
    drop(manual.take());
    assert_eq!((wake_count.get(), registry.is_drained()), (1, false));
    assert!(poll_once(&mut follow_up).is_ready());
    let mut late = registry.follow_up().run_when_ready(pending::<()>());
    assert!(poll(&mut late, &waker).is_pending());
    drop((manual.take(), request));
    assert_eq!((wake_count.get(), registry.is_drained()), (2, true));
    let Poll::Ready(Err(rejected)) = poll_once(&mut late) else { panic!("the registry has drained") };
    assert_eq!(rejected.reason(), RejectReason::Drained);
    assert_eq!((registry.summary().completed, registry.summary().abandoned), (1, 2));
}

#[test]
fn critical_failure_starts_the_shutdown_and_is_its_cause() {
    let (manual, recorder) = (Manual::default(), Recorder::default());
    let registry = Registry::builder(manual.clone()).observer(recorder.clone()).build();
    let (wake_count, waker) = counting_waker();
    let mut signal = registry.signal();
    assert!(poll(&mut signal, &waker).is_pending());
    let guard = registry.guard().unwrap();

    registry.critical().run(async {});
    manual.poll_all();
    assert_eq!((registry.is_shutting_down(), registry.shutdown_cause()), (false, None));

    let line = line!() + 1;
    registry.named("lease").critical().run(failure());
    manual.poll_all();
    assert!(registry.is_shutting_down() && poll(&mut signal, &waker).is_ready());
    assert_eq!(wake_count.get(), 1);
    let cause = registry.shutdown_cause().unwrap();
    assert_eq!((cause.name(), cause.location().line()), (Some("lease"), line));
    // When the shutdown starts, the failed task and the guard are still in flight.
    assert_eq!(recorder.take(), [Event::Failed(Some("lease"), FAILURE.into()), Event::ShutdownStarted(2)]);

    registry.named("second").critical().run(failure());
    manual.poll_all();
    assert_eq!(registry.shutdown_cause().unwrap().name(), Some("lease"), "the cause is the first critical loss");
    drop(guard);
    assert!(registry.is_drained());
}

#[test]
fn shutdown_on_failure_applies_to_every_task_but_a_call_leaves_no_cause() {
    let manual = Manual::default();
    let registry = Registry::builder(manual.clone()).inspect().shutdown_on_failure().build();
    let _guard = registry.guard().unwrap();
    registry.named("mail").run(failure());
    manual.poll_all();
    let cause = registry.shutdown_cause().unwrap();
    assert_eq!((registry.is_shutting_down(), cause.name(), cause.kind()), (true, Some("mail"), Some(TaskKind::Future)));

    let registry = Registry::builder(manual.clone()).shutdown_on_failure().build();
    let _guard = registry.guard().unwrap();
    registry.start_shutdown();
    registry.run(failure());
    manual.poll_all();
    assert_eq!((registry.summary().failed, registry.shutdown_cause()), (1, None));
}

/// A static registry has no builder. Critical tasks work, but a static registry has no inspection, no observers and no limit.
#[test]
fn static_registry_supports_critical_tasks_but_no_inspection_and_no_limit() {
    static STATE: RegistryState = RegistryState::new();
    let manual = Manual::default();
    let registry = Registry::in_static(&STATE, manual.clone());
    assert!(poll_once(&mut registry.run_when_ready(pending::<()>())).is_ready());
    assert_eq!((registry.in_flight(), registry.tasks().len()), (1, 0));
    let AbortReport { aborted, not_abortable, .. } = registry.abort();
    assert_eq!((aborted, not_abortable), (0, 1));

    registry.named("lease").critical().run(failure());
    manual.poll_all();
    assert!(registry.is_shutting_down());
    assert_eq!(registry.shutdown_cause().unwrap().name(), Some("lease"));
}

/// When a registry has drained, a pool receives its state for reuse. A new registry must not have the settings and counts of the earlier
/// registry.
#[test]
fn registry_with_a_reused_state_starts_from_zero() {
    let manual = Manual::default();
    // The pool may also contain states of other tests. With 20 repetitions, at least one state of this test is reused.
    for _ in 0..20 {
        let recorder = Recorder::default();
        let builder = Registry::builder(manual.clone()).observer(recorder.clone());
        let used = builder.inspect().max_in_flight(1).shutdown_on_failure().build();
        let old_signal = used.signal();
        used.run(pending::<()>());
        let old_id = used.tasks()[0].id().unwrap();
        used.abort();
        manual.poll_all();
        used.critical().run(failure());
        used.run(async { unreachable!("the limit is one task") });
        manual.poll_all();
        assert!(used.is_drained() && used.shutdown_cause().is_some());
        assert_eq!((used.summary().aborted, used.summary().failed, used.summary().rejected), (1, 1, 1));
        drop(used);
        recorder.take();

        let reused = Registry::builder(manual.clone()).build();
        assert_eq!((reused.summary(), reused.in_flight()), (Summary::default(), 0));
        assert_eq!((reused.is_shutting_down(), reused.is_drained(), reused.shutdown_cause()), (false, false, None));
        let signal = reused.signal();
        assert!(old_signal.is_triggered() && !signal.is_triggered());
        reused.run(failure());
        reused.run(pending::<()>());
        assert_eq!((reused.in_flight(), reused.tasks().len()), (2, 0), "neither a limit nor inspection is left");
        assert_eq!(reused.abort_task(old_id), Err(AbortError::NotInFlight));
        manual.poll_all();
        assert_eq!((reused.summary().failed, reused.is_shutting_down()), (1, false), "no shutdown policy is left");
        drop(reused);
        drop(manual.take());
        assert!(signal.is_triggered());
        assert_eq!(recorder.take(), [], "the observer of the earlier registry is not notified");
    }
}

/// The memory of a state is never freed. If drained registries did not put their states into the pool, each new registry would allocate a
/// state.
#[test]
fn drained_registry_returns_its_state_to_the_pool() {
    const ROUNDS: i64 = if cfg!(miri) { 1000 } else { 10_000 };
    let use_registry = || {
        let registry = Registry::builder(()).inspect().build();
        let guard = registry.named("guard").guard().unwrap();
        assert!(poll_once(&mut registry.signal()).is_pending());
        drop((registry, guard));
    };
    let allocations = measure(|| (0..ROUNDS).for_each(|_| use_registry())).count_current;
    // Other tests may take states out of the pool at the same time, so a few new states are allowed.
    assert!(allocations < ROUNDS, "{ROUNDS} registries leave {allocations} allocations");
}

/// Checks the invariants S5, S8 and S10 of `docs/invariants.md`.
#[test]
fn counts_events_and_limit_are_exact_on_many_threads() {
    const THREADS: usize = 4;
    const PER_THREAD: usize = if cfg!(miri) { 20 } else { 2000 };
    let recorder = Recorder::default();
    let registry = Registry::builder(()).observer(recorder.clone()).inspect().max_in_flight(1).build();
    let [in_flight, completed, abandoned, rejected] = [const { AtomicUsize::new(0) }; 4];
    let assert_alone = || {
        assert_eq!(in_flight.fetch_add(1, Ordering::Relaxed), 0, "the limit is one task");
        in_flight.fetch_sub(1, Ordering::Relaxed);
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for n in 0..PER_THREAD {
                    let outcome = if n % 2 == 0 {
                        registry.guard().map_or(&rejected, |_guard| {
                            assert_alone();
                            &completed
                        })
                    } else {
                        registry.track(pending::<()>()).map_or(&rejected, |_tracked| {
                            assert_alone();
                            &abandoned
                        })
                    };
                    outcome.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let Poll::Ready(summary) = poll_once(&mut registry.shutdown()) else { panic!("nothing is in flight") };
    let [completed, abandoned, rejected] = [completed, abandoned, rejected].map(AtomicUsize::into_inner);
    assert_eq!((summary.completed, summary.abandoned, summary.rejected), (completed as u64, abandoned as u64, rejected as u64));
    assert_eq!(completed + abandoned + rejected, THREADS * PER_THREAD);

    let events = recorder.take();
    assert_eq!(events.iter().filter(|event| **event == Event::Abandoned(None)).count(), abandoned);
    // While a thread reports a rejection, the registry does not report other rejections of this thread. Without `std`, the registry
    // cannot distinguish threads, so this rule applies to all threads together.
    let reported = events.iter().filter(|event| **event == Event::Rejected(None, RejectReason::Full)).count();
    assert!(if cfg!(feature = "std") { reported == rejected } else { reported <= rejected }, "{reported} of {rejected}");
    assert_eq!(events[events.len() - 2..], [Event::ShutdownStarted(0), Event::Drained(summary)]);
}
