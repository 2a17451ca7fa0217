//! What `TracingObserver` tells, as a subscriber hears it.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor", feature = "tracing"))]

mod common;

use background_tasks::{Registry, RunWhenReady, TaskBuilder, TaskId, TaskOutput, TracingObserver, Tracked};
use common::{Manual, Owns, PanicDrop, poll_once};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::{Future, pending, ready};
use std::io;
use std::panic::Location;
use std::sync::{Arc, Mutex};
use tracing::field::{Field, Visit};
use tracing::subscriber::with_default;
use tracing::{Event, Instrument, Level, Subscriber, info, info_span};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Scope};

/// One event, as a layer is given it.
#[derive(Debug)]
struct Heard {
    level: Level,
    target: String,
    fields: Fields,
    /// The names of the spans that it is in, outermost first.
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

/// Keeps what it hears.
#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Vec<Heard>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Ear {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let spans = context.event_scope(event).into_iter().flat_map(Scope::from_root).map(|span| span.name());
        let (level, target) = (*event.metadata().level(), event.metadata().target().into());
        self.0.lock().unwrap().push(Heard { level, target, fields, spans: spans.collect() });
    }
}

impl Ear {
    fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    #[track_caller]
    fn take_one(&self) -> Heard {
        let heard = self.take();
        assert_eq!(heard.len(), 1, "{heard:?}");
        heard.into_iter().next().unwrap()
    }
}

/// Runs `f` where an ear hears all, with a registry that has two places.
fn listen<T>(inspected: bool, f: impl FnOnce(&Manual, &Registry<Manual>, &Ear) -> T) -> T {
    let (ear, manual) = (Ear::default(), Manual::default());
    with_default(tracing_subscriber::registry().with(ear.clone()), || {
        let builder = Registry::builder(manual.clone()).observer(TracingObserver).max_in_flight(2);
        let registry = if inspected { builder.inspect() } else { builder }.build();
        f(&manual, &registry, &ear)
    })
}

type Site = &'static Location<'static>;

/// Starts a task and says where: at the caller, as it does itself.
#[track_caller]
fn run<F>(start: TaskBuilder<'_, Manual>, future: F) -> Site
where
    F: Future<Output: TaskOutput> + Send + 'static,
{
    start.run(future);
    Location::caller()
}

#[track_caller]
fn track<F: Future>(registry: &Registry<Manual>, future: F) -> (Tracked<F>, Site) {
    (registry.track(future).unwrap(), Location::caller())
}

#[track_caller]
fn wait<F>(start: TaskBuilder<'_, Manual>, future: F) -> (RunWhenReady<'_, Manual, F>, Site)
where
    F: Future<Output: TaskOutput> + Send + 'static,
{
    (start.run_when_ready(future), Location::caller())
}

impl Heard {
    /// It has these fields and no others: the call site with each loss, and what inspection knows where there is a `kind`.
    #[track_caller]
    fn check_loss(self, level: Level, fields: &[(&'static str, &str)], site: Site, kind: Option<&str>) {
        let Self { level: told, target, fields: Fields { mut text, counts, mut seconds }, spans } = self;
        assert_eq!((told, target.as_str(), spans), (level, "background_tasks", vec![]));
        if let Some(kind) = kind {
            let id = text.remove("task.id").expect("an inspected task has an id");
            assert!(id.parse::<TaskId>().is_ok(), "{id}");
            assert_eq!(text.remove("task.kind").as_deref(), Some(kind));
            let age = seconds.remove("task.age_seconds").expect("an inspected task has an age");
            assert!((0.0..60.0).contains(&age), "{age}");
        }
        let mut expected: BTreeMap<_, _> = fields.iter().map(|(field, value)| (*field, (*value).to_owned())).collect();
        expected.insert("task.location", site.to_string());
        assert_eq!((text, counts, seconds), (expected, BTreeMap::new(), BTreeMap::new()));
    }
}

/// What `lose` loses is told once, with these fields: of a registry that is not inspected, and of one that is.
fn is_told(level: Level, fields: &[(&'static str, &str)], kind: &str, lose: impl Fn(&Manual, &Registry<Manual>) -> Site) {
    for inspected in [false, true] {
        listen(inspected, |manual, registry, ear| {
            let site = lose(manual, registry);
            ear.take_one().check_loss(level, fields, site, inspected.then_some(kind));
        });
    }
}

#[test]
fn a_failure_is_an_error_that_says_what_went_wrong() {
    let fields = [("message", "background task failed"), ("task.name", "mail"), ("error", r#"no mailbox "joe""#)];
    is_told(Level::ERROR, &fields, "future", |manual, registry| {
        let site = run(registry.named("mail"), ready(Err(r#"no mailbox "joe""#)));
        manual.poll_all();
        site
    });
}

#[test]
fn a_panic_is_an_error_with_its_message() {
    let fields = [("message", "background task panicked"), ("task.name", "mail"), ("panic", "a panic, as planned: 7")];
    is_told(Level::ERROR, &fields, "future", |manual, registry| {
        let seven = 7;
        let site = run(registry.named("mail"), async move { panic!("a panic, as planned: {seven}") });
        manual.poll_all();
        site
    });
}

#[test]
fn a_destructor_s_panic_is_told_as_a_panic() {
    let fields = [("message", "background task panicked"), ("task.name", "mail"), ("panic", "a destructor's panic, as planned")];
    is_told(Level::ERROR, &fields, "future", |manual, registry| {
        let site = run(registry.named("mail"), Owns(PanicDrop, pending::<()>()));
        drop(manual.take());
        site
    });
}

const ABANDONED: &str = "background task abandoned: it was dropped before it finished";

#[test]
fn an_abandoned_task_is_a_warning() {
    is_told(Level::WARN, &[("message", ABANDONED), ("task.name", "mail")], "future", |manual, registry| {
        let site = run(registry.named("mail"), pending::<()>());
        drop(manual.take());
        site
    });
}

#[test]
fn a_loss_without_a_name_has_no_field_for_it() {
    is_told(Level::WARN, &[("message", ABANDONED)], "tracked future", |_, registry| {
        let (tracked, site) = track(registry, pending::<()>());
        drop(tracked);
        site
    });
}

#[test]
fn an_aborted_task_is_a_warning() {
    listen(true, |manual, registry, ear| {
        let site = run(registry.named("mail"), pending::<()>());
        manual.poll_all();
        assert_eq!(registry.abort().aborted, 1);
        assert_eq!(ear.take().len(), 0, "it has not come to an await point");
        manual.poll_all();
        let fields = [("message", "background task aborted"), ("task.name", "mail")];
        ear.take_one().check_loss(Level::WARN, &fields, site, Some("future"));
    });
}

#[test]
fn a_refusal_is_a_warning_with_its_reason() {
    for inspected in [false, true] {
        // What was never in flight has no id and no age.
        let kind = inspected.then_some(("task.kind", "future"));
        let fields = |reason| -> Vec<_> {
            [("message", "background task rejected"), ("task.name", "mail"), ("reason", reason)].into_iter().chain(kind).collect()
        };
        listen(inspected, |_, registry, ear| {
            let guards = [registry.guard().unwrap(), registry.guard().unwrap()];
            let site = run(registry.named("mail"), pending::<()>());
            ear.take_one().check_loss(Level::WARN, &fields("too many tasks are in flight"), site, None);

            let (mut waiting, site) = wait(registry.named("mail"), pending::<()>());
            assert!(poll_once(&mut waiting).is_pending());
            registry.shutdown();
            ear.take();
            assert!(poll_once(&mut waiting).is_ready());
            let reason = "shutdown started before a permit was available";
            ear.take_one().check_loss(Level::WARN, &fields(reason), site, None);

            drop(guards);
            ear.take();
            let site = run(registry.named("mail"), pending::<()>());
            ear.take_one().check_loss(Level::WARN, &fields("the registry has shut down and drained"), site, None);
        });
    }
}

/// An event of the registry itself: it has this message and these counts.
#[track_caller]
fn is_news(heard: &Heard, message: &str, counts: &[(&'static str, u64)]) {
    let Heard { level, target, fields, spans } = heard;
    assert_eq!((*level, target.as_str(), spans.as_slice()), (Level::INFO, "background_tasks", [].as_slice()));
    assert_eq!(fields.text, BTreeMap::from([("message", message.to_owned())]));
    assert_eq!(fields.counts, counts.iter().copied().collect());
}

#[test]
fn the_shutdown_s_beginning_and_its_end_are_told_once_each() {
    listen(false, |manual, registry, ear| {
        for _ in 0..2 {
            registry.run(async {});
            manual.poll_all();
        }
        registry.run(ready(Err("a failure")));
        drop(registry.track(pending::<()>()).unwrap());
        registry.run(async { panic!("a panic, as planned") });
        registry.run(async {});
        ear.take();

        let shutdown = registry.shutdown();
        let begun = ear.take_one();
        is_news(&begun, "background task shutdown started", &[("in_flight", 2)]);
        assert_eq!(begun.fields.seconds, BTreeMap::new());
        registry.shutdown();
        assert_eq!(ear.take().len(), 0, "it had begun");

        manual.poll_all();
        shutdown.wait();
        let drained = ear.take().pop().expect("the last thing told is the end");
        let counts = [("completed", 2), ("failed", 1), ("panicked", 1), ("abandoned", 1), ("aborted", 0), ("rejected", 1)];
        is_news(&drained, "background tasks drained", &counts);
        assert_eq!(drained.fields.seconds.keys().collect::<Vec<_>>(), [&"took_seconds"]);
        assert!((0.0..60.0).contains(&drained.fields.seconds["took_seconds"]));
        registry.shutdown().wait();
        assert_eq!(ear.take().len(), 0, "it had ended");
    });
}

#[test]
fn what_goes_well_is_not_told() {
    listen(true, |manual, registry, ear| {
        registry.named("mail").run(async {});
        registry.run(ready(Ok::<(), io::Error>(())));
        manual.poll_all();
        drop(registry.named("lock").guard().unwrap());
        assert!(poll_once(&mut registry.track(ready(7)).unwrap()).is_ready());
        assert_eq!(registry.summary().completed, 4);
        assert_eq!(ear.take().len(), 0);
    });
}

#[test]
fn a_task_is_in_its_caller_s_span_if_it_is_given_that_and_its_loss_is_in_none() {
    listen(false, |manual, registry, ear| {
        info_span!("request").in_scope(|| {
            registry.run(
                async {
                    info!("inside");
                    Err("a failure")
                }
                .in_current_span(),
            );
            registry.run(async { info!("outside") });
        });
        manual.poll_all();
        let spans: Vec<_> = ear.take().into_iter().map(|mut heard| (heard.fields.text.remove("message"), heard.spans)).collect();
        let expected = [("inside", vec!["request"]), ("background task failed", vec![]), ("outside", vec![])];
        assert_eq!(spans, expected.map(|(message, spans)| (Some(message.to_owned()), spans)));
    });
}

#[test]
fn a_loss_reads_well_in_the_log_of_a_program() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let lines = tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(Log(log.clone())).finish();
    with_default(lines, || {
        let manual = Manual::default();
        let registry = Registry::builder(manual.clone()).observer(TracingObserver).build();
        let site = run(registry.named("mail"), ready(Err("no such mailbox")));
        manual.poll_all();
        let line = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        let fields = format!(r#"task.name="mail" task.location={site} error=no such mailbox"#);
        assert_eq!(line, format!("ERROR background_tasks: background task failed {fields}\n"));
    });
}

/// Writes to what all its clones share.
#[derive(Clone)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
