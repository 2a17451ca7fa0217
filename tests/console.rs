//! The names and call sites of tasks that tokio-console receives. `cargo xtask runtimes` runs these tests, because they need
//! `RUSTFLAGS="--cfg tokio_unstable"`.
#![cfg(all(tokio_unstable, feature = "tokio-console"))]

use background_tasks::{BlockingSpawner, DynSpawner, LocalSpawner, Registry, Restart, Spawner, Timer, TokioSpawner};
use console_api::instrument::instrument_client::InstrumentClient;
use console_api::instrument::{InstrumentRequest, Update};
use console_subscriber::{ConsoleLayer, ServerParts};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::ready;
use std::panic::Location;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;
use tonic::Streaming;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::subscriber::with_default;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Records the spans that tokio-console shows as tasks.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<SpawnedTask>>>);

#[derive(Default)]
struct SpawnedTask(BTreeMap<&'static str, String>);

impl Visit for SpawnedTask {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.into());
    }
}

impl<S: tracing::Subscriber> Layer<S> for Console {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        // The name of the span by which console-subscriber recognizes a task.
        if attributes.metadata().name() == "runtime.spawn" {
            let mut task = SpawnedTask::default();
            attributes.record(&mut task);
            // The future of `block_on` is not a task of a registry.
            if task.0["kind"] != "block_on" {
                self.0.lock().unwrap().push(task);
            }
        }
    }
}

impl SpawnedTask {
    /// Returns the kind, the name and the location, as the console shows them.
    fn shown(&self) -> (&str, &str, String) {
        let field = |name| self.0[name].as_str();
        let location = ["loc.file", "loc.line", "loc.col"].map(field).join(":");
        (field("kind"), field("task.name"), location)
    }
}

/// Makes the caller the only running test. If a thread without a subscriber reaches a call site of tokio first, tracing can disable this
/// call site for the subscribers of other threads.
fn alone() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs `f` inside a runtime and returns the tasks that the console receives from this thread.
fn console<T>(f: impl AsyncFnOnce() -> T) -> (Console, T) {
    let console = Console::default();
    let output =
        with_default(tracing_subscriber::registry().with(console.clone()), || runtime().block_on(LocalSet::new().run_until(f())));
    (console, output)
}

/// Asserts that the console shows these kinds and names, each with the given call site as its location.
#[track_caller]
fn assert_shown(console: &Console, expected: &[(&str, &str, Site)]) {
    let tasks = console.0.lock().unwrap();
    let shown: Vec<_> = tasks.iter().map(SpawnedTask::shown).collect();
    let expected: Vec<_> = expected.iter().map(|(kind, name, site)| (*kind, *name, site.to_string())).collect();
    assert_eq!(shown, expected);
}

type Site = &'static Location<'static>;

/// Starts a task and returns its call site. This function has `#[track_caller]`, so its caller is the call site.
#[track_caller]
fn run<S: Spawner>(registry: &Registry<S>) -> Site {
    registry.run(async {});
    Location::caller()
}

#[track_caller]
fn run_named<S: Spawner>(registry: &Registry<S>) -> Site {
    registry.named("mail").run(async {});
    Location::caller()
}

#[track_caller]
fn spawn_named<S: Spawner>(registry: &Registry<S>) -> Site {
    drop(registry.named("mail").spawn(async { 7 }));
    Location::caller()
}

#[track_caller]
fn run_local_named<S: LocalSpawner>(registry: &Registry<S>) -> Site {
    registry.named("mail").run_local(async {});
    Location::caller()
}

#[track_caller]
fn run_blocking_named<S: BlockingSpawner>(registry: &Registry<S>) -> Site {
    registry.named("mail").run_blocking(|| ());
    Location::caller()
}

#[track_caller]
fn service_named<S: Spawner + Timer<Sleep: Send> + Clone + Send + 'static>(registry: &Registry<S>) -> Site {
    registry.named("outbox").service(Restart::on_failure(), || ready(()));
    Location::caller()
}

#[test]
fn console_shows_the_name_and_the_call_site() {
    let _alone = alone();
    let (console, sites) = console(async || {
        let registry = Registry::new(TokioSpawner);
        let sites = [run(&registry), run_named(&registry), spawn_named(&registry), run_local_named(&registry)];
        let blocking = run_blocking_named(&registry);
        assert_eq!(registry.shutdown().await.completed, 5);
        (sites, blocking)
    });
    let ([unnamed, named, spawned, local], blocking) = sites;
    let expected = [
        ("task", "", unnamed),
        ("task", "mail", named),
        ("task", "mail", spawned),
        ("local", "mail", local),
        ("blocking", "mail", blocking),
    ];
    assert_shown(&console, &expected);
}

#[test]
fn console_shows_the_tasks_of_a_handle_and_of_a_local_set() {
    let _alone = alone();
    let local_set = Rc::new(LocalSet::new());
    let (console, sites) = console(async || {
        let registry = Registry::new(tokio::runtime::Handle::current());
        let sites = (run_named(&registry), run_blocking_named(&registry));
        let local = run_local_named(&registry.with_spawner(local_set.clone()));
        local_set.run_until(registry.shutdown()).await;
        (sites, local)
    });
    let ((named, blocking), local) = sites;
    assert_shown(&console, &[("task", "mail", named), ("blocking", "mail", blocking), ("local", "mail", local)]);
}

/// Tokio takes the location from `#[track_caller]`, which a poll, a closure and an explicit location do not pass on.
#[test]
fn name_contains_the_call_site_that_tokio_does_not_receive() {
    let _alone = alone();
    let (console, sites) = console(async || {
        let registry = Registry::new(TokioSpawner);
        let located = Location::caller();
        registry.named("mail").location(located).run(async {});
        let service = service_named(&registry);
        let when_ready = registry.named("thumbnail").run_when_ready(async {});
        pin!(when_ready).await.unwrap();
        Registry::new(DynSpawner::new(TokioSpawner)).run(async {});
        assert_eq!(registry.shutdown().await.completed, 3);
        (located, service)
    });
    let tasks = console.0.lock().unwrap();
    let names: Vec<_> = tasks.iter().map(|task| task.shown().1).collect();
    let (located, service) = sites;
    assert_eq!(names[..2], [format!("mail at {located}"), format!("outbox at {service}")]);
    assert!(names[2].starts_with("thumbnail at tests/console.rs:"), "{}", names[2]);
    assert!(names[3].starts_with("task at tests/console.rs:"), "{}", names[3]);
    assert_eq!(names.len(), 4);
}

/// Returns the values of the next task's fields and its location, as a connected tokio-console receives them.
async fn next_task(updates: &mut Streaming<Update>) -> (Vec<String>, String) {
    loop {
        let update = updates.message().await.unwrap().expect("the server runs");
        for task in update.task_update.unwrap_or_default().new_tasks {
            let fields: Vec<_> = task.fields.iter().map(|field| field.value.as_ref().unwrap().to_string()).collect();
            // The future of `block_on` is not a task of a registry.
            if !fields.contains(&"block_on".to_owned()) {
                return (fields, task.location.unwrap().to_string());
            }
        }
    }
}

#[test]
fn console_subscriber_sends_the_name_and_the_call_site() {
    let _alone = alone();
    let (layer, server) = ConsoleLayer::builder().publish_interval(Duration::from_millis(10)).build();
    let ServerParts { instrument_server, aggregator, .. } = server.into_parts();
    let (address, bound) = std::sync::mpsc::channel();
    // The subscriber applies to the thread of this test, so it sees no task of the server.
    thread::spawn(move || {
        runtime().block_on(async {
            let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).unwrap();
            address.send(incoming.local_addr().unwrap()).unwrap();
            let serve = Server::builder().add_service(instrument_server).serve_with_incoming(incoming);
            drop(tokio::join!(serve, aggregator.run()));
        });
    });
    let url = format!("http://{}", bound.recv().unwrap());
    let (sent, site) = with_default(tracing_subscriber::registry().with(layer), || {
        let site = runtime().block_on(async {
            let registry = Registry::new(TokioSpawner);
            let site = run_named(&registry);
            assert_eq!(registry.shutdown().await.completed, 1);
            site
        });
        // On another thread, because the client also starts tasks.
        let sent = thread::spawn(move || {
            runtime().block_on(async {
                let mut client = InstrumentClient::connect(url).await.unwrap();
                let mut updates = client.watch_updates(InstrumentRequest {}).await.unwrap().into_inner();
                next_task(&mut updates).await
            })
        });
        (sent.join().unwrap(), site)
    });
    let (fields, location) = sent;
    assert!(fields.contains(&"mail".to_owned()), "{fields:?}");
    assert_eq!(location, site.to_string());
}

#[test]
fn closures_of_a_dropped_runtime_count_as_abandoned() {
    let _alone = alone();
    let runtime = runtime();
    let registry = Registry::new(runtime.handle().clone());
    drop(runtime);
    registry.run_blocking(|| ());
    registry.run(async {});
    assert_eq!(registry.shutdown().wait().abandoned, 2);
}

#[test]
#[should_panic(expected = "TokioSpawner was used outside a tokio runtime")]
fn task_outside_a_runtime_panics_with_advice() {
    let _alone = alone();
    Registry::new(TokioSpawner).run(async {});
}
