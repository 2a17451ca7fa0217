//! Checks the invariants S2, S6, S7 and S8. Observers receive each loss one time, before the number of tasks in flight decreases, and
//! while the registry holds no lock. A panic of an observer does not affect a task.
use crate::common::{Fake, HANG, Manual, Owns, PanicDrop, counts, panic_quietly, poll_once};
use background_tasks::{
    BlockingSpawner, DynSpawner, LocalSpawner, Loss, Observer, Registry, RejectReason, Restart, Spawner, Summary, TaskInfo,
};
use std::fmt;
use std::future::{pending, ready};
use std::panic::{AssertUnwindSafe, Location, catch_unwind, panic_any};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// An observer that records each event as one line of text.
#[derive(Default)]
struct EventLog(Mutex<Vec<String>>);

impl EventLog {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Observer for EventLog {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        self.0.lock().unwrap().push(format!("{} {loss}", task.name().unwrap_or("-")));
    }

    fn shutdown_started(&self, in_flight: usize) {
        self.0.lock().unwrap().push(format!("shutdown with {in_flight}"));
    }

    fn drained(&self, summary: &Summary, _: Duration) {
        self.0.lock().unwrap().push(format!("drained: {summary}"));
    }
}

fn logged<S>(spawner: S) -> (Arc<EventLog>, Registry<S>) {
    let log = Arc::new(EventLog::default());
    (log.clone(), Registry::builder(spawner).observer(log).build())
}

fn logged_manual() -> (Manual, Arc<EventLog>, Registry<Manual>) {
    let spawner = Manual::default();
    let (log, registry) = logged(spawner.clone());
    (spawner, log, registry)
}

#[test]
fn observer_logs_no_shutdown_unless_it_says_so() {
    struct Logs(bool);
    impl Observer for Logs {
        fn logs_shutdown(&self) -> bool {
            self.0
        }
    }
    assert!(!Registry::new(()).is_shutdown_logged());
    assert!(!logged(()).1.is_shutdown_logged());
    let registry = |observers: [bool; 2]| Registry::builder(()).observer(Logs(observers[0])).observer(Box::new(Logs(observers[1])));
    for (observers, expected) in [([false, false], false), ([true, false], true), ([false, true], true)] {
        let registry = registry(observers).build();
        assert_eq!(registry.is_shutdown_logged(), expected, "{observers:?}");
        assert!(!registry.child().is_shutdown_logged(), "the observers do not receive the shutdown of a child");
    }
}

#[test]
fn every_loss_is_reported_and_completion_is_not() {
    let (spawner, log, registry) = logged_manual();
    registry.named("good").run(async { Ok::<(), fmt::Error>(()) });
    registry.run(async { Err::<(), _>("no such mailbox") });
    registry.named("text").run(async { panic!("a text") });
    registry.named("format").run(async { panic!("number {}", 7) });
    registry.named("odd").run(async { panic_any(7) });
    spawner.poll_all();
    registry.named("left").run(pending::<()>());
    drop(spawner.take());
    assert_eq!(
        log.take(),
        [
            "- failed: no such mailbox",
            "text panicked: a text",
            "format panicked: number 7",
            "odd panicked: (a payload that is not a string)",
            "left was abandoned"
        ]
    );
    let guard = registry.guard().unwrap();
    registry.start_shutdown();
    drop(guard);
    registry.named("late").run(async {});
    let events = log.take();
    assert_eq!(
        events,
        [
            "shutdown with 1",
            "drained: 2 completed, 1 failed, 3 panicked, 1 abandoned, 0 aborted, 0 rejected",
            "late was rejected: the registry has shut down and drained"
        ]
    );
}

/// An error that prints its cause with the format `{:#}`, as `anyhow::Error` does.
struct Chain;

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot send the mail")?;
        if f.alternate() { f.write_str(": connection refused") } else { Ok(()) }
    }
}

#[test]
fn error_is_reported_with_its_causes() {
    let (spawner, log, registry) = logged_manual();
    registry.run(async { Err::<(), _>(Chain) });
    spawner.poll_all();
    assert_eq!(log.take(), ["- failed: cannot send the mail: connection refused"]);
}

#[test]
fn loss_text_continues_a_sentence_about_the_task() {
    for (loss, outcome, text) in [
        (Loss::Failed("no such mailbox"), "failed", "failed: no such mailbox"),
        (Loss::Panicked("a text"), "panicked", "panicked: a text"),
        (Loss::Abandoned, "abandoned", "was abandoned"),
        (Loss::Aborted, "aborted", "was aborted"),
        (Loss::Rejected(RejectReason::Full), "rejected", "was rejected: too many tasks are in flight"),
    ] {
        assert_eq!((loss.outcome(), loss.to_string().as_str()), (outcome, text));
    }
}

#[test]
fn destructor_panic_is_reported_once_as_panicked() {
    let (spawner, log, registry) = logged_manual();
    registry.named("done").run(Owns(PanicDrop, ready(())));
    spawner.poll_all();
    registry.named("left").run(Owns(PanicDrop, pending::<()>()));
    drop(spawner.take());
    let event = "panicked: intentional panic in a destructor";
    assert_eq!(log.take(), [format!("done {event}"), format!("left {event}")]);
    assert_eq!(registry.summary().panicked, 2);
}

#[test]
fn losses_of_tracked_futures_and_guards_are_reported() {
    let (_, log, registry) = logged_manual();
    let mut tracked = Box::pin(registry.named("polled").track(async { panic!("intentional panic") }).unwrap());
    catch_unwind(AssertUnwindSafe(|| poll_once(&mut tracked).map(|()| ()))).unwrap_err();
    drop(registry.named("left").track(pending::<()>()).unwrap());
    let guard = registry.named("held").guard().unwrap();
    catch_unwind(AssertUnwindSafe(|| {
        let _guard = guard;
        panic!("intentional panic");
    }))
    .unwrap_err();
    assert_eq!(log.take(), ["polled panicked: intentional panic", "left was abandoned", "held panicked: dropped by a panic"]);
}

/// An error whose `Display` panics.
struct PanicDisplay;

impl fmt::Display for PanicDisplay {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("intentional panic in Display");
    }
}

#[test]
fn error_whose_display_panics_is_reported_as_failed() {
    let (spawner, log, registry) = logged_manual();
    registry.run(async { Err::<(), _>(PanicDisplay) });
    spawner.poll_all();
    assert_eq!(log.take(), ["- failed: (an error whose Display panicked)"]);
    assert_eq!(registry.summary().failed, 1);
}

#[test]
fn error_is_not_formatted_without_observers() {
    struct Formatted(Arc<AtomicBool>);
    impl fmt::Display for Formatted {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.store(true, SeqCst);
            Ok(())
        }
    }
    let formatted = Arc::new(AtomicBool::new(false));
    let manual = Manual::default();
    let registry = Registry::builder(manual.clone()).inspect().build();
    let error = Formatted(formatted.clone());
    registry.run(async { Err::<(), _>(error) });
    manual.poll_all();
    assert_eq!((registry.summary().failed, formatted.load(SeqCst)), (1, false));
}

/// An observer that records the call site of each rejection.
struct CallSites(Mutex<Vec<&'static Location<'static>>>);

impl Observer for CallSites {
    fn lost(&self, task: &TaskInfo, _: &Loss<'_>) {
        self.0.lock().unwrap().push(task.location());
    }
}

/// A spawner that drops all tasks.
#[derive(Clone)]
struct DroppingSpawner;

impl Spawner for DroppingSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, _: F) {}
}

impl LocalSpawner for DroppingSpawner {
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, _: F) {}
}

impl BlockingSpawner for DroppingSpawner {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, _: F) {}
}

#[test]
fn every_method_reports_the_call_site_of_its_caller() {
    let sites = Arc::new(CallSites(Mutex::default()));
    let registry = Registry::builder(DroppingSpawner).observer(sites.clone()).build();
    registry.start_shutdown();
    // The next 19 calls must stay on consecutive lines, because the test compares their line numbers.
    let first = line!() + 1;
    registry.run(async {});
    registry.try_run(async {}).unwrap_err();
    registry.run_local(async {});
    registry.task().try_run_local(async {}).unwrap_err();
    registry.run_blocking(|| {});
    registry.task().try_run_blocking(|| {}).unwrap_err();
    drop(registry.track(async {}).unwrap_err());
    registry.guard().unwrap_err();
    drop(poll_once(&mut registry.run_when_ready(async {})));
    registry.named("n").run(async {});
    registry.named("n").try_run(async {}).unwrap_err();
    registry.named("n").run_local(async {});
    registry.named("n").try_run_local(async {}).unwrap_err();
    registry.named("n").run_blocking(|| {});
    registry.named("n").try_run_blocking(|| {}).unwrap_err();
    drop(registry.named("n").track(async {}).unwrap_err());
    registry.named("n").guard().unwrap_err();
    drop(poll_once(&mut registry.named("n").run_when_ready(async {})));
    registry.critical().run(async {});
    let sites = sites.0.lock().unwrap();
    assert!(sites.iter().all(|site| site.file() == file!()));
    assert!(sites.iter().map(|site| site.line()).eq(first..first + 19), "{sites:?}");
}

/// An observer that blocks in each call until the test resumes it.
struct BlockingObserver {
    called: Sender<&'static str>,
    resumed: Mutex<Receiver<()>>,
}

impl BlockingObserver {
    fn block(&self, event: &'static str) {
        self.called.send(event).unwrap();
        self.resumed.lock().unwrap().recv_timeout(HANG).unwrap();
    }
}

impl Observer for BlockingObserver {
    fn lost(&self, _: &TaskInfo, loss: &Loss<'_>) {
        self.block(loss.outcome());
    }

    fn shutdown_started(&self, _: usize) {
        self.block("shutdown started");
    }

    fn drained(&self, _: &Summary, _: Duration) {
        self.block("drained");
    }
}

#[test]
fn count_and_drain_wait_for_observers() {
    let ((called, calls), (resume, resumed)) = (channel(), channel());
    let spawner = Manual::default();
    let observer = BlockingObserver { called, resumed: Mutex::new(resumed) };
    let registry = Registry::builder(spawner.clone()).observer(observer).build();
    let expect_call = |event| assert_eq!(calls.recv_timeout(HANG).unwrap(), event);
    thread::scope(|scope| {
        registry.run(async { Err::<(), _>("intentional failure") });
        let running = scope.spawn(|| spawner.poll_all());
        expect_call("failed");
        assert_eq!((registry.in_flight(), registry.summary().failed), (1, 1));
        let shutdown = scope.spawn(|| registry.shutdown());
        expect_call("shutdown started");
        assert!(registry.is_shutting_down());
        resume.send(()).unwrap();
        resume.send(()).unwrap();
        expect_call("drained");
        assert_eq!((registry.in_flight(), registry.is_drained()), (0, false));
        resume.send(()).unwrap();
        running.join().unwrap();
        assert_eq!(shutdown.join().unwrap().wait_timeout(HANG).unwrap().failed, 1);
    });
    assert!(registry.is_drained());
}

/// An observer whose methods and destructor panic.
struct PanicObserver;

impl Observer for PanicObserver {
    fn lost(&self, _: &TaskInfo, _: &Loss<'_>) {
        panic!("intentional panic in an observer");
    }

    fn shutdown_started(&self, _: usize) {
        panic!("intentional panic in an observer");
    }

    fn drained(&self, _: &Summary, _: Duration) {
        panic!("intentional panic in an observer");
    }
}

#[test]
fn observer_panic_during_unwinding_does_not_abort_the_process() {
    let registry = Registry::builder(()).observer(PanicObserver).build();
    let guard = registry.guard().unwrap();
    catch_unwind(AssertUnwindSafe(|| {
        let _guard = guard;
        panic!("intentional panic");
    }))
    .unwrap_err();
    assert_eq!((registry.in_flight(), registry.summary().panicked), (0, 1));
}

impl Drop for PanicObserver {
    fn drop(&mut self) {
        panic!("intentional panic in an observer's destructor");
    }
}

fn observer_panic_affects_no_task_and_no_other_observer<S: Spawner + Clone>(registry: &Registry<S>) {
    let log = Arc::new(EventLog::default());
    let observed =
        Registry::builder(registry.spawner().clone()).observer(PanicObserver).observer(PanicObserver).observer(log.clone()).build();
    observed.run(async { Err::<(), _>("intentional failure") });
    let summary = observed.shutdown().wait_timeout(HANG).unwrap();
    assert_eq!((summary.failed, summary.panicked), (1, 0));
    observed.run(async {});
    drop(observed);
    let events = log.take();
    assert!(
        events.contains(&"- failed: intentional failure".to_owned()),
        "the third observer must receive the failure: {events:?}"
    );
    assert_eq!(events.len(), 4);
}

/// An observer that calls a function of the test at each failure.
struct OnFailure<F>(F);

impl<F: Fn() + Send + Sync + 'static> Observer for OnFailure<F> {
    fn lost(&self, _: &TaskInfo, loss: &Loss<'_>) {
        if let Loss::Failed(_) = loss {
            (self.0)();
        }
    }
}

#[test]
fn observer_may_use_its_registry() {
    let spawner = Manual::default();
    let slot: Arc<Mutex<Option<Registry<Manual>>>> = Arc::default();
    let observer_slot = slot.clone();
    let observer = OnFailure(move || {
        let registry = observer_slot.lock().unwrap().take().unwrap();
        registry.named("follow-up").run(async {});
        registry.tasks();
        registry.abort();
        drop(registry.shutdown());
    });
    let registry = Registry::builder(spawner.clone()).observer(observer).inspect().build();
    *slot.lock().unwrap() = Some(registry.clone());
    registry.run(async { Err::<(), _>("intentional failure") });
    spawner.poll_all();
    let shutdown = registry.shutdown();
    drop(registry);
    spawner.poll_all();
    let summary = shutdown.wait_timeout(HANG).unwrap();
    assert_eq!((summary.failed, summary.aborted), (1, 1), "the observer's abort must end the task that the observer started");
}

/// An observer that starts a task for each loss.
struct RunOnLoss<S>(Mutex<Option<Registry<S>>>, AtomicUsize);

impl<S: Spawner + Clone + Send + Sync + 'static> Observer for RunOnLoss<S> {
    fn lost(&self, _: &TaskInfo, _: &Loss<'_>) {
        // With this limit, a failure of the test does not overflow the stack.
        if self.1.fetch_add(1, SeqCst) < 50 {
            let registry = self.0.lock().unwrap().clone();
            registry.unwrap().run(pending::<()>());
        }
    }
}

/// Either a runtime that has shut down drops each new task, or the registry is full and rejects each new task.
#[test]
fn losses_caused_by_an_observer_are_reported_up_to_a_depth() {
    fn check<S: Spawner + Clone + Send + Sync + 'static>(spawner: S, is_full: bool) {
        let observer = Arc::new(RunOnLoss(Mutex::default(), AtomicUsize::new(0)));
        let registry = Registry::builder(spawner).observer(observer.clone()).max_in_flight(1 + usize::from(!is_full) * 99).build();
        *observer.0.lock().unwrap() = Some(registry.clone());
        let guard = registry.guard();
        for round in 1..=2 {
            registry.run(pending::<()>());
            let Summary { abandoned, rejected, .. } = registry.summary();
            let lost = if is_full { rejected } else { abandoned };
            assert_eq!((observer.1.load(SeqCst), abandoned + rejected, lost), (8 * round, 9 * round as u64, 9 * round as u64));
        }
        *observer.0.lock().unwrap() = None;
        drop(guard);
    }
    check(DynSpawner::<()>::from_fn(drop), false);
    check(Manual::default(), true);
}

#[test]
fn observers_are_dropped_with_their_registry_and_not_inherited() {
    let (spawner, log, registry) = logged_manual();
    drop(registry.shutdown());
    drop(registry);
    assert_eq!(Arc::strong_count(&log), 1);
    log.take();
    for _ in 0..100 {
        let unobserved = Registry::new(spawner.clone());
        unobserved.run(async { Err::<(), _>("intentional failure") });
        spawner.poll_all();
    }
    assert_eq!(log.take(), [""; 0]);
}

#[test]
fn drain_duration_starts_with_the_first_shutdown() {
    struct DrainTime(Mutex<Option<Duration>>);
    impl Observer for DrainTime {
        fn drained(&self, _: &Summary, took: Duration) {
            *self.0.lock().unwrap() = Some(took);
        }
    }
    let time = Arc::new(DrainTime(Mutex::default()));
    let registry = Registry::builder(()).observer(time.clone()).build();
    let guard = registry.guard().unwrap();
    drop(registry.shutdown());
    let first = Instant::now();
    let before_second = loop {
        let elapsed = first.elapsed();
        if elapsed > Duration::from_millis(100) {
            break elapsed;
        }
    };
    drop(registry.shutdown());
    drop(guard);
    let took = time.0.lock().unwrap().expect("the drain is reported");
    // With the feature `coarse-clock`, the clock may be up to ten milliseconds late, so the measured time may be too short.
    assert!(took >= before_second / 2, "{took:?} < {before_second:?}");
}

#[test]
fn shutdown_started_by_many_threads_is_reported_once() {
    let (_, log, registry) = logged_manual();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| registry.shutdown().wait_timeout(HANG).unwrap());
        }
    });
    let events = log.take();
    assert_eq!(events, ["shutdown with 0", "drained: 0 completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected"]);
}

fn losses_are_reported<S: Spawner + Clone>(registry: &Registry<S>) {
    let (log, observed) = logged(registry.spawner().clone());
    observed.named("bad").run(async { Err::<(), _>("intentional failure") });
    observed.named("worse").run(async { panic!("intentional panic") });
    observed.named("good").run(async {});
    observed.shutdown().wait_timeout(HANG).unwrap();
    let mut events = log.take();
    events.retain(|line| line.starts_with(['b', 'w', 'g']));
    events.sort();
    assert_eq!(events, ["bad failed: intentional failure", "worse panicked: intentional panic"]);
}

on_every_runtime!(observer_panic_affects_no_task_and_no_other_observer, losses_are_reported);

/// An observer that records the start and the end of each task, and the number of tasks in flight during the call.
#[derive(Default)]
struct Progress {
    lines: Mutex<Vec<String>>,
    registry: Mutex<Option<Registry<Fake>>>,
}

impl Progress {
    fn write(&self, task: &TaskInfo, event: &str) {
        let kind = task.kind().expect("the registry is inspected");
        let in_flight = self.registry.lock().unwrap().as_ref().map_or(0, Registry::in_flight);
        assert!(event == "rejected" || task.age().is_some());
        self.lines.lock().unwrap().push(format!("{} {kind} {event} {in_flight}", task.name().unwrap_or("-")));
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines.lock().unwrap())
    }
}

impl Observer for Progress {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        self.write(task, loss.outcome());
    }

    fn started(&self, task: &TaskInfo) {
        self.write(task, "started");
    }

    fn completed(&self, task: &TaskInfo) {
        self.write(task, "completed");
    }

    fn observes_every_task(&self) -> bool {
        true
    }
}

/// Returns a registry with an observer that observes all tasks. The observer is in a box that contains an `Arc`.
fn progress() -> (Fake, Arc<Progress>, Registry<Fake>) {
    let (fake, progress) = (Fake::default(), Arc::<Progress>::default());
    let registry = fake.builder().observer(Box::new(progress.clone())).build();
    *progress.registry.lock().unwrap() = Some(registry.clone());
    (fake, progress, registry)
}

/// Checks invariant S8: the observer receives one start and one end of each accepted task, while the task counts as in flight.
#[test]
fn observer_of_every_task_receives_the_start_and_the_end_of_each_task() {
    let (fake, progress, registry) = progress();
    let started_and = |ended: &str| {
        let lines = progress.take();
        let event = |event: &str| format!("- future {event} 1");
        assert_eq!(lines, [event("started"), event(ended)]);
        assert_eq!(registry.in_flight(), 0);
    };
    registry.run(async {});
    fake.tasks.poll_all();
    started_and("completed");
    registry.run(ready(Err::<(), _>("intentional failure")));
    fake.tasks.poll_all();
    started_and("failed");
    registry.run(async { panic_quietly("intentional panic") });
    fake.tasks.poll_all();
    started_and("panicked");
    registry.run(pending::<()>());
    drop(fake.tasks.take());
    started_and("abandoned");
    registry.run(pending::<()>());
    registry.abort();
    fake.tasks.poll_all();
    started_and("aborted");
    let handle = registry.spawn(async { 7 });
    fake.tasks.poll_all();
    started_and("completed");
    drop(handle);
    drop(registry.spawn(async { 7 }));
    fake.tasks.poll_all();
    started_and("completed");
    drop(registry.spawn(async { panic_quietly("intentional panic") }));
    fake.tasks.poll_all();
    started_and("panicked");
    assert!(poll_once(&mut registry.run_when_ready(async {})).is_ready());
    fake.tasks.poll_all();
    started_and("completed");

    drop(registry.named("lock").guard());
    drop(registry.named("lock").guard().unwrap().require_completion());
    assert!(poll_once(&mut registry.named("work").track(ready(7)).unwrap()).is_ready());
    let expected = ["lock guard started", "lock guard completed", "lock guard started", "lock guard abandoned"];
    let tracked = ["work tracked future started", "work tracked future completed"];
    let expected: Vec<_> = expected.into_iter().chain(tracked).map(|line| format!("{line} 1")).collect();
    assert_eq!(progress.take(), expected);

    progress.registry.lock().unwrap().take();
    registry.start_shutdown();
    registry.run(async {});
    assert_eq!(progress.take(), ["- future rejected 0"]);
}

#[test]
fn observer_of_every_task_receives_the_tasks_of_children_but_not_the_children() {
    let (fake, progress, registry) = progress();
    let child = registry.named("tenant").child();
    child.named("mail").run(async {});
    fake.tasks.poll_all();
    child.shutdown().wait();
    drop(child);
    // The child counts as one task in flight of its parent.
    assert_eq!(progress.take(), ["mail future started 1", "mail future completed 1"]);
    assert_eq!(registry.in_flight(), 0);
    progress.registry.lock().unwrap().take();
}

#[test]
fn observer_of_every_task_receives_each_run_of_a_service() {
    let (fake, progress, registry) = progress();
    let mut runs = 0;
    registry.named("outbox").service(Restart::always().backoff(SECOND, SECOND), move || {
        runs += 1;
        ready(if runs == 1 { Err("intentional failure") } else { Ok(()) })
    });
    fake.advance(SECOND);
    assert_eq!(progress.take(), ["outbox service started 1", "outbox service failed 1", "outbox service started 1"]);
    fake.advance(SECOND);
    assert_eq!(progress.take(), [""; 0], "a completed run ends when the next run starts");
    fake.advance(SECOND);
    assert_eq!(progress.take(), ["outbox service completed 1", "outbox service started 1"]);
    registry.start_shutdown();
    fake.advance(SECOND);
    assert_eq!(progress.take(), ["outbox service completed 1"]);
    assert_eq!(counts(registry.summary()), [2, 1, 0, 0, 0, 0]);
    progress.registry.lock().unwrap().take();
}

/// An observer that receives only losses, not each task.
#[derive(Clone, Default)]
struct OnlyLosses(Arc<AtomicUsize>);

impl Observer for OnlyLosses {
    fn started(&self, _: &TaskInfo) {
        self.0.fetch_add(1, SeqCst);
    }

    fn completed(&self, _: &TaskInfo) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn starts_and_completions_are_reported_only_if_an_observer_observes_every_task() {
    let (manual, calls) = (Manual::default(), OnlyLosses::default());
    let builder = || Registry::builder(manual.clone()).observer(calls.clone());
    for (registry, expected) in
        [(builder().build(), 0), (builder().inspect().build(), 0), (builder().observer(Progress::default()).build(), 4)]
    {
        registry.run(async {});
        registry.named("mail").run(async {});
        manual.poll_all();
        assert_eq!(calls.0.swap(0, SeqCst), expected);
    }
}
