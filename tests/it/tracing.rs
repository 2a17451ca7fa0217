//! Tests the events and spans that a subscriber receives from `TracingObserver`, `TaskSpan` and `SpanObserver`.
use crate::common::{Fake, Manual, Owns, PanicDrop, panic_quietly, poll_once};
use background_tasks::{
    BlockingSpawner, DynBlockingSpawner, DynLocalSpawner, LocalSpawner, Registry, SpanObserver, Spawner, StartWhenReady,
    TaskBuilder, TaskId, TaskOutput, TaskSpan, TracingObserver, Tracked,
};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::{Future, pending, ready};
use std::io;
use std::panic::Location;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::with_default;
use tracing::{Event, Instrument, Level, Subscriber, info, info_span};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Scope};

/// An event that a tracing layer has received.
#[derive(Debug)]
struct RecordedEvent {
    level: Level,
    target: String,
    fields: Fields,
    /// The names of the surrounding spans. The outermost span is the first.
    spans: Vec<&'static str>,
}

#[derive(Debug, Default)]
struct Fields {
    text: BTreeMap<&'static str, String>,
    counts: BTreeMap<&'static str, u64>,
    seconds: BTreeMap<&'static str, f64>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text.insert(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.counts.insert(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.seconds.insert(field.name(), value);
    }
}

/// A tracing layer that records all events.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<RecordedEvent>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let spans = context.event_scope(event).into_iter().flat_map(Scope::from_root).map(|span| span.name());
        let (level, target) = (*event.metadata().level(), event.metadata().target().into());
        self.0.lock().unwrap().push(RecordedEvent { level, target, fields, spans: spans.collect() });
    }
}

impl Recorder {
    fn take(&self) -> Vec<RecordedEvent> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    #[track_caller]
    fn take_one(&self) -> RecordedEvent {
        let events = self.take();
        assert_eq!(events.len(), 1, "{events:?}");
        events.into_iter().next().unwrap()
    }
}

/// A tracing layer that records each change of a span as one line of text.
#[derive(Clone, Default)]
struct SpanRecorder(Arc<Mutex<Vec<String>>>);

impl SpanRecorder {
    fn write(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanRecorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let (span, metadata) = (context.span(id).unwrap(), attributes.metadata());
        let (parent, level, target) = (span.parent().map(|parent| parent.name()), metadata.level(), metadata.target());
        self.write(format!("{level} {target} {}: parent {parent:?}, {:?}", span.name(), fields.text));
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, S>) {
        self.write(format!("{} follows from {}", context.span(id).unwrap().name(), context.span(follows).unwrap().name()));
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.write(format!("{} closed", context.span(&id).unwrap().name()));
    }
}

/// Runs `f` with a registry whose limit is two tasks, and with a recorder that receives all events of this registry.
fn with_recorder<T>(inspected: bool, f: impl FnOnce(&Manual, &Registry<Manual>, &Recorder) -> T) -> T {
    let (recorder, manual) = (Recorder::default(), Manual::default());
    with_default(tracing_subscriber::registry().with(recorder.clone()), || {
        let builder = Registry::builder(manual.clone()).observer(TracingObserver).max_in_flight(2);
        let registry = if inspected { builder.inspect() } else { builder }.build();
        f(&manual, &registry, &recorder)
    })
}

type Site = &'static Location<'static>;

/// Starts a task, and returns its call site. The call site is the caller of this function.
#[track_caller]
fn run<S, F>(builder: TaskBuilder<'_, S>, future: F) -> Site
where
    S: Spawner,
    F: Future<Output: TaskOutput> + Send + 'static,
{
    builder.run(future);
    Location::caller()
}

/// Does the same as [`run`], for a tracked future.
#[track_caller]
fn track<F: Future>(registry: &Registry<Manual>, future: F) -> (Tracked<F>, Site) {
    (registry.track(future).unwrap(), Location::caller())
}

/// Does the same as [`run`], for a task that waits for a permit.
#[track_caller]
fn run_when_ready<F>(builder: TaskBuilder<'_, Manual>, future: F) -> (StartWhenReady<'_, Manual, F>, Site)
where
    F: Future<Output: TaskOutput> + Send + 'static,
{
    (builder.run_when_ready(future), Location::caller())
}

impl RecordedEvent {
    /// Asserts that the event reports a loss with exactly these fields and this call site. If `kind` is not `None`, the event must also
    /// have the fields of an inspected task.
    #[track_caller]
    fn assert_loss(self, level: Level, fields: &[(&'static str, &str)], site: Site, kind: Option<&str>) {
        let Self { level: actual_level, target, fields: Fields { mut text, counts, mut seconds }, spans } = self;
        let is_rejection = text["message"] == "background task rejected";
        let expected_target = if is_rejection { "background_tasks::rejected" } else { "background_tasks" };
        assert_eq!((actual_level, target.as_str(), spans), (level, expected_target, vec![]));
        if let Some(kind) = kind {
            let id = text.remove("task.id").expect("an inspected task has an ID");
            assert!(id.parse::<TaskId>().is_ok(), "{id}");
            assert_eq!(text.remove("task.kind").as_deref(), Some(kind));
            let age = seconds.remove("task.age_seconds").expect("an inspected task has an age");
            assert!((0.0..60.0).contains(&age), "{age}");
        }
        let mut expected: BTreeMap<_, _> = fields.iter().map(|(field, value)| (*field, (*value).to_owned())).collect();
        expected.insert("task.location", site.to_string());
        assert_eq!((text, counts, seconds), (expected, BTreeMap::new(), BTreeMap::new()));
    }

    /// Asserts that the event reports a change of the whole registry, with this message and these counts.
    #[track_caller]
    fn assert_registry_event(&self, message: &str, counts: &[(&'static str, u64)]) {
        let Self { level, target, fields, spans } = self;
        assert_eq!((*level, target.as_str(), spans.as_slice()), (Level::INFO, "background_tasks", [].as_slice()));
        assert_eq!(fields.text, BTreeMap::from([("message", message.to_owned())]));
        assert_eq!(fields.counts, counts.iter().copied().collect());
    }
}

/// Asserts that the loss of a task is reported one time with these fields. Checks a registry without inspection and a registry with
/// inspection.
fn assert_loss_is_reported(
    level: Level,
    fields: &[(&'static str, &str)],
    kind: &str,
    lose_task: impl Fn(&Manual, &Registry<Manual>) -> Site,
) {
    for inspected in [false, true] {
        with_recorder(inspected, |manual, registry, recorder| {
            let site = lose_task(manual, registry);
            recorder.take_one().assert_loss(level, fields, site, inspected.then_some(kind));
        });
    }
}

#[test]
fn failure_is_an_error_event_with_the_error_text() {
    let fields = [("message", "background task failed"), ("task.name", "mail"), ("error", r#"no mailbox "joe""#)];
    assert_loss_is_reported(Level::ERROR, &fields, "future", |manual, registry| {
        let site = run(registry.named("mail"), ready(Err::<(), _>(r#"no mailbox "joe""#)));
        manual.poll_all();
        site
    });
}

#[test]
fn panic_is_an_error_event_with_the_panic_message() {
    let fields = [("message", "background task panicked"), ("task.name", "mail"), ("panic", "intentional panic: 7")];
    assert_loss_is_reported(Level::ERROR, &fields, "future", |manual, registry| {
        let seven = 7;
        let site = run(registry.named("mail"), async move { panic!("intentional panic: {seven}") });
        manual.poll_all();
        site
    });
}

#[test]
fn destructor_panic_is_reported_as_a_panic() {
    let fields = [("message", "background task panicked"), ("task.name", "mail"), ("panic", "intentional panic in a destructor")];
    assert_loss_is_reported(Level::ERROR, &fields, "future", |manual, registry| {
        let site = run(registry.named("mail"), Owns(PanicDrop, pending::<()>()));
        drop(manual.take());
        site
    });
}

const ABANDONED: &str = "background task abandoned: it was dropped before it finished";

#[test]
fn abandoned_task_is_a_warning() {
    assert_loss_is_reported(Level::WARN, &[("message", ABANDONED), ("task.name", "mail")], "future", |manual, registry| {
        let site = run(registry.named("mail"), pending::<()>());
        drop(manual.take());
        site
    });
}

#[test]
fn loss_of_an_unnamed_task_has_no_name_field() {
    assert_loss_is_reported(Level::WARN, &[("message", ABANDONED)], "tracked future", |_, registry| {
        let (tracked, site) = track(registry, pending::<()>());
        drop(tracked);
        site
    });
}

#[test]
fn aborted_task_is_a_warning() {
    with_recorder(true, |manual, registry, recorder| {
        let site = run(registry.named("mail"), pending::<()>());
        manual.poll_all();
        assert_eq!(registry.abort().aborted, 1);
        assert_eq!(recorder.take().len(), 0, "the task has not reached its await point");
        manual.poll_all();
        let fields = [("message", "background task aborted"), ("task.name", "mail")];
        recorder.take_one().assert_loss(Level::WARN, &fields, site, Some("future"));
    });
}

#[test]
fn rejection_is_a_warning_with_its_reason() {
    for inspected in [false, true] {
        // A rejected task was never in flight. It therefore has no ID and no age, even if the registry is inspected.
        let kind = inspected.then_some(("task.kind", "future"));
        let fields = |reason| -> Vec<_> {
            [("message", "background task rejected"), ("task.name", "mail"), ("reason", reason)].into_iter().chain(kind).collect()
        };
        with_recorder(inspected, |_, registry, recorder| {
            let guards = [registry.guard().unwrap(), registry.guard().unwrap()];
            let site = run(registry.named("mail"), pending::<()>());
            recorder.take_one().assert_loss(Level::WARN, &fields("too many tasks are in flight"), site, None);

            let (mut waiting, site) = run_when_ready(registry.named("mail"), pending::<()>());
            assert!(poll_once(&mut waiting).is_pending());
            registry.start_shutdown();
            recorder.take();
            assert!(poll_once(&mut waiting).is_ready());
            let reason = "shutdown started before a permit was available";
            recorder.take_one().assert_loss(Level::WARN, &fields(reason), site, None);

            drop(guards);
            recorder.take();
            let site = run(registry.named("mail"), pending::<()>());
            recorder.take_one().assert_loss(Level::WARN, &fields("the registry has shut down and drained"), site, None);
        });
    }
}

#[test]
fn start_of_shutdown_and_end_of_drain_are_reported_once_each() {
    with_recorder(false, |manual, registry, recorder| {
        for _ in 0..2 {
            registry.run(async {});
            manual.poll_all();
        }
        registry.run(ready(Err::<(), _>("intentional failure")));
        drop(registry.track(pending::<()>()).unwrap());
        registry.run(async { panic!("intentional panic") });
        registry.run(async {});
        recorder.take();

        let shutdown = registry.shutdown();
        let started = recorder.take_one();
        started.assert_registry_event("background task shutdown started", &[("in_flight", 2)]);
        assert_eq!(started.fields.seconds, BTreeMap::new());
        registry.start_shutdown();
        assert_eq!(recorder.take().len(), 0, "the shutdown had started already");

        manual.poll_all();
        shutdown.wait();
        let drained = recorder.take().pop().expect("the end of the drain is the last event");
        let counts = [("completed", 2), ("failed", 1), ("panicked", 1), ("abandoned", 1), ("aborted", 0), ("rejected", 1)];
        drained.assert_registry_event("background tasks drained", &counts);
        assert_eq!(drained.fields.seconds.keys().collect::<Vec<_>>(), [&"took_seconds"]);
        assert!((0.0..60.0).contains(&drained.fields.seconds["took_seconds"]));
        registry.shutdown().wait();
        assert_eq!(recorder.take().len(), 0, "the registry had drained already");
    });
}

/// The thread that starts the shutdown or ends the drain may be in the span of a request, but the events must not belong to this span.
#[test]
fn events_of_the_registry_have_no_span() {
    with_recorder(false, |manual, registry, recorder| {
        registry.run(async {});
        info_span!("request").in_scope(|| {
            registry.start_shutdown();
            manual.poll_all();
        });
        let expected = ["background task shutdown started", "background tasks drained"];
        assert_eq!(messages(recorder.take()), expected.map(|message| (message.to_owned(), vec![])));
    });
}

#[test]
fn observer_logs_the_shutdown_of_its_registry() {
    with_recorder(false, |_, registry, _| assert!(registry.is_shutdown_logged()));
    assert!(Registry::builder(()).observer(Arc::new(TracingObserver)).build().is_shutdown_logged());
}

#[test]
fn completed_work_emits_no_event() {
    with_recorder(true, |manual, registry, recorder| {
        registry.named("mail").run(async {});
        registry.run(ready(Ok::<(), io::Error>(())));
        manual.poll_all();
        drop(registry.named("lock").guard().unwrap());
        assert!(poll_once(&mut registry.track(ready(7)).unwrap()).is_ready());
        assert_eq!(registry.summary().completed, 4);
        assert_eq!(recorder.take().len(), 0);
    });
}

#[test]
fn instrumented_task_keeps_its_span_but_the_report_of_its_loss_has_none() {
    with_recorder(false, |manual, registry, recorder| {
        info_span!("request").in_scope(|| {
            registry.run(
                async {
                    info!("inside");
                    Err::<(), _>("intentional failure")
                }
                .in_current_span(),
            );
            registry.run(async { info!("outside") });
        });
        manual.poll_all();
        let spans: Vec<_> =
            recorder.take().into_iter().map(|mut event| (event.fields.text.remove("message"), event.spans)).collect();
        let expected = [("inside", vec!["request"]), ("background task failed", vec![]), ("outside", vec![])];
        assert_eq!(spans, expected.map(|(message, spans)| (Some(message.to_owned()), spans)));
    });
}

/// Returns the message of each event, and the names of its spans.
fn messages(events: Vec<RecordedEvent>) -> Vec<(String, Vec<&'static str>)> {
    events.into_iter().map(|mut event| (event.fields.text.remove("message").unwrap(), event.spans)).collect()
}

/// An exporter receives a span when the span closes, so a task must not keep the span of its request open.
#[test]
fn task_span_follows_from_the_span_of_the_request_and_does_not_keep_it_open() {
    let (spans, events, manual) = (SpanRecorder::default(), Recorder::default(), Manual::default());
    with_default(tracing_subscriber::registry().with(spans.clone()).with(events.clone()), || {
        let registry = Registry::builder(TaskSpan(manual.clone())).observer(TracingObserver).build();
        let task = async {
            futures_lite::future::yield_now().await;
            info!("inside");
            Err::<(), _>("intentional failure")
        };
        let site = info_span!(target: "test", "request").in_scope(|| run(registry.named("mail"), task));
        let opened = format!(r#"INFO background_tasks task: parent None, {{"task.location": "{site}", "task.name": "mail"}}"#);
        let expected = ["INFO test request: parent None, {}", opened.as_str(), "task follows from request", "request closed"];
        assert_eq!((spans.take(), registry.in_flight()), (expected.map(str::to_owned).to_vec(), 1));

        manual.poll_all();
        assert_eq!((spans.take().len(), registry.in_flight()), (0, 1));
        manual.poll_all();
        assert_eq!((spans.take(), registry.in_flight()), (vec!["task closed".to_owned()], 0));
        let expected = ["inside", "background task failed"].map(|message| (message.to_owned(), vec!["task"]));
        assert_eq!(messages(events.take()), expected);
    });
}

#[test]
fn task_span_covers_local_tasks_and_blocking_work_from_start_to_drop() {
    let events = Recorder::default();
    with_default(tracing_subscriber::registry().with(events.clone()), || {
        let local = |spawner| Registry::builder(TaskSpan(spawner)).observer(TracingObserver).build();
        let blocking = |spawner| Registry::builder(TaskSpan(spawner)).observer(TracingObserver).build();
        info_span!("request").in_scope(|| {
            local(DynLocalSpawner::from_fn(|mut task| assert!(poll_once(&mut task).is_ready())))
                .run_local(async { info!("inside") });
            local(DynLocalSpawner::from_fn(drop)).run_local(async {});
            blocking(DynBlockingSpawner::from_fn(|work| work())).run_blocking(|| info!("inside"));
            blocking(DynBlockingSpawner::from_fn(drop)).run_blocking(|| ());
        });
        let mut recorded = messages(events.take());
        // Removes the events for the shutdowns, which the registries emit when they are dropped.
        recorded.retain(|(message, _)| message == "inside" || message == ABANDONED);
        let expected = ["inside", ABANDONED, "inside", ABANDONED].map(|message| (message.to_owned(), vec!["task"]));
        assert_eq!(recorded, expected);
    });
}

/// A tracing layer for spans with the name `task`. It stores the name and the call site of each task, and the recorded outcomes.
#[derive(Clone, Default)]
struct TaskSpans(Arc<Mutex<BTreeMap<u64, SpannedTask>>>);

#[derive(Debug, Default)]
struct SpannedTask {
    name: String,
    site: String,
    follows: Option<&'static str>,
    outcomes: Vec<String>,
    /// The number of durations that were recorded in the span.
    durations: usize,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for TaskSpans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        if attributes.metadata().name() == "task" {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            let mut take = |field| fields.text.remove(field).unwrap_or_default();
            let task = SpannedTask { name: take("task.name"), site: take("task.location"), ..SpannedTask::default() };
            self.0.lock().unwrap().insert(id.into_u64(), task);
        }
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, S>) {
        self.0.lock().unwrap().get_mut(&id.into_u64()).unwrap().follows = Some(context.span(follows).unwrap().name());
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        record.record(&mut fields);
        let mut tasks = self.0.lock().unwrap();
        let task = tasks.get_mut(&id.into_u64()).expect("only the spans of tasks have empty fields");
        task.outcomes.extend(fields.text.remove("task.outcome"));
        if let Some(duration) = fields.seconds.remove("task.duration_seconds") {
            assert!((0.0..60.0).contains(&duration), "{duration}");
            task.durations += 1;
        }
        assert!(fields.text.is_empty() && fields.counts.is_empty() && fields.seconds.is_empty(), "{fields:?}");
    }
}

impl TaskSpans {
    fn in_scope<T>(&self, f: impl FnOnce() -> T) -> T {
        with_default(tracing_subscriber::registry().with(self.clone()), f)
    }

    /// Returns a sorted list of the tasks with their recorded outcomes. Asserts that each accepted task has a duration.
    #[track_caller]
    fn ends(&self) -> Vec<String> {
        let tasks = self.0.lock().unwrap();
        let line = |task: &SpannedTask| {
            let durations = task.outcomes.iter().filter(|outcome| *outcome != "rejected").count();
            assert_eq!(task.durations, durations, "{task:?}");
            format!("{}: {}", task.name, task.outcomes.join(", "))
        };
        let mut lines: Vec<_> = tasks.values().map(line).collect();
        lines.sort();
        lines
    }
}

/// Starts one task for each outcome that is possible on all runtimes, and drains the registry.
fn outcomes_and_durations_are_recorded_in_the_spans<S: Spawner>(registry: &Registry<S>) {
    let spans = TaskSpans::default();
    spans.in_scope(|| {
        let pending_task = |name| registry.named(name).run(pending::<()>());
        let site = info_span!("request").in_scope(|| run(registry.named("completed"), async {}));
        registry.named("failed").run(ready(Err::<(), _>("intentional failure")));
        registry.named("panicked").run(async { panic_quietly("intentional panic") });
        let handle = registry.named("handle").spawn(async { 7 });
        drop(registry.named("detached").spawn(async { 7 }));
        assert_eq!(futures_lite::future::block_on(handle).unwrap(), 7);
        futures_lite::future::block_on(registry.wait_idle());
        pending_task("aborted");
        registry.named("aborted").spawn(pending::<()>()).abort();
        let shutdown = registry.shutdown();
        registry.abort();
        shutdown.wait();
        pending_task("rejected");

        let expected = ["aborted", "aborted", "completed", "detached", "failed", "handle", "panicked", "rejected"];
        let outcome = |name| if ["detached", "handle"].contains(&name) { "completed" } else { name };
        assert_eq!(spans.ends(), expected.map(|name| format!("{name}: {}", outcome(name))));
        let tasks = spans.0.lock().unwrap();
        let completed = tasks.values().find(|task| task.name == "completed").unwrap();
        assert_eq!((completed.site.as_str(), completed.follows), (site.to_string().as_str(), Some("request")));
    });
}

/// A spawner that passes the subscriber of the caller to the threads of the executor. Unlike a test, a program has one subscriber for all
/// threads.
struct InSubscriber<S>(S);

impl<S: Spawner> Spawner for InSubscriber<S> {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.spawn(task.with_current_subscriber());
    }
}

fn spanned<S>(spawner: S) -> TaskSpan<InSubscriber<S>> {
    TaskSpan(InSubscriber(spawner))
}

on_every_runtime!(
    with |spawner| Registry::builder(super::spanned(spawner)).observer(super::SpanObserver).build();
    outcomes_and_durations_are_recorded_in_the_spans,
);

/// A spawner that runs or drops each task and closure on the calling thread.
struct Inline {
    drops: bool,
}

impl LocalSpawner for Inline {
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        let mut task = Box::pin(task);
        if !self.drops {
            assert!(poll_once(&mut task).is_ready());
        }
    }
}

impl BlockingSpawner for Inline {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        if !self.drops {
            work();
        }
    }
}

#[test]
fn outcomes_of_local_tasks_closures_and_dropped_tasks_are_recorded() {
    let spans = TaskSpans::default();
    spans.in_scope(|| {
        let registry = |drops| Registry::builder(TaskSpan(Inline { drops })).observer(SpanObserver).build();
        for registry in [registry(false), registry(true)] {
            registry.named("local").run_local(async {});
            registry.named("local with a handle").spawn_local(async {}).abort_handle();
            registry.named("closure").run_blocking(|| Err::<(), _>("intentional failure"));
            registry.named("closure with a handle").spawn_blocking(|| 7).abort_handle();
        }
    });
    let expected = [
        "closure with a handle: abandoned",
        "closure with a handle: completed",
        "closure: abandoned",
        "closure: failed",
        "local with a handle: abandoned",
        "local with a handle: completed",
        "local: abandoned",
        "local: completed",
    ];
    assert_eq!(spans.ends(), expected);
}

#[test]
fn work_without_a_span_does_not_change_the_span_of_the_task_around_it() {
    let (spans, manual) = (TaskSpans::default(), Manual::default());
    spans.in_scope(|| {
        let registry = Registry::builder(TaskSpan(manual.clone())).observer(SpanObserver).build();
        let inner = registry.clone();
        registry.named("outer").run(async move {
            drop(inner.named("tracked").track(pending::<()>()));
            drop(inner.named("guard").guard());
            drop(inner.named("lost guard").guard().unwrap().require_completion());
            inner.named("child").child().run(async {});
            inner.named("tracked").track(ready(())).unwrap().await;
            futures_lite::future::yield_now().await;
        });
        manual.poll_all();
        assert_eq!(spans.ends(), [": ", "outer: "]);
        manual.poll_all();
        assert_eq!(spans.ends(), [": completed", "outer: completed"]);
    });
}

#[test]
fn span_of_a_service_records_the_outcome_of_each_run() {
    let (spans, fake) = (TaskSpans::default(), Fake::default());
    spans.in_scope(|| {
        let registry = Registry::builder(TaskSpan(fake.clone())).observer(SpanObserver).build();
        fake.run_outbox(&registry);
        registry.start_shutdown();
        fake.advance(Duration::from_secs(1));
        assert_eq!(
            (registry.is_drained(), registry.summary().to_string()),
            (true, "2 completed, 1 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected".into())
        );
        assert_eq!(spans.ends(), ["outbox: failed, completed, completed"]);
    });
}

#[test]
fn outcome_and_duration_are_empty_without_a_span_observer() {
    let (spans, manual) = (TaskSpans::default(), Manual::default());
    spans.in_scope(|| {
        let registry = Registry::builder(TaskSpan(manual.clone())).observer(TracingObserver).build();
        registry.named("mail").run(async {});
        registry.named("mail").run(ready(Err::<(), _>("intentional failure")));
        manual.poll_all();
        assert_eq!(spans.ends(), ["mail: ", "mail: "]);
    });
}

#[test]
fn fmt_subscriber_prints_a_loss_on_one_line() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let subscriber = tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(SharedLog(log.clone())).finish();
    with_default(subscriber, || {
        let manual = Manual::default();
        let registry = Registry::builder(manual.clone()).observer(TracingObserver).build();
        let site = run(registry.named("mail"), ready(Err::<(), _>("no such mailbox")));
        manual.poll_all();
        let line = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        let fields = format!(r#"task.name="mail" task.location={site} error=no such mailbox"#);
        assert_eq!(line, format!("ERROR background_tasks: background task failed {fields}\n"));
    });
}

/// A writer whose clones all append to the same buffer.
#[derive(Clone)]
struct SharedLog(Arc<Mutex<Vec<u8>>>);

impl io::Write for SharedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for SharedLog {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
