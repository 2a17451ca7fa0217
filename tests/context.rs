//! Something around each task, several executors for one registry, and spawners without their types.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-executor", feature = "tracing"))]

mod common;

use background_tasks::{
    DynBlockingSpawner, DynLocalSpawner, DynSpawner, InSpan, Observer, Registry, SmolSpawner, Spawner, TaskInfo, ThreadsSpawner,
    TokioSpawner,
};
use common::{HANG, Manual};
use futures_lite::future::{block_on, pending};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread;
use tracing::Span;
use tracing_subscriber::registry as subscriber;

/// The span of who asks.
fn id() -> Option<tracing::Id> {
    Span::current().id()
}

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Option<tracing::Id>>>>);

impl Observer for Told {
    fn failed(&self, _: &TaskInfo, _: &str) {
        self.0.lock().unwrap().push(id());
    }

    fn abandoned(&self, _: &TaskInfo) {
        self.0.lock().unwrap().push(id());
    }
}

#[test]
fn a_task_and_its_loss_are_in_the_span_of_its_caller() {
    tracing::subscriber::with_default(subscriber(), || {
        let told = Told::default();
        let manual = Manual::default();
        let registry = Registry::builder(InSpan(manual.clone())).observer(told.clone()).build();
        let span = tracing::info_span!("request");
        let inside = told.clone();
        span.in_scope(|| {
            registry.run(async move {
                inside.0.lock().unwrap().push(id());
                Err("as planned")
            });
        });
        assert!(id().is_none() && span.id().is_some());
        manual.poll_all();
        assert_eq!(registry.shutdown().wait().failed, 1);
        assert_eq!(*told.0.lock().unwrap(), [span.id(), span.id()]);
    });
}

#[test]
fn local_tasks_and_blocking_work_are_in_it_too() {
    tracing::subscriber::with_default(subscriber(), || {
        let told = Told::default();
        let span = tracing::info_span!("request");
        assert!(span.id().is_some());
        let executor = Rc::new(async_executor::LocalExecutor::new());
        let registry = Registry::new(InSpan(executor.clone()));
        let inside = told.clone();
        span.in_scope(|| registry.run_local(async move { inside.0.lock().unwrap().push(id()) }));
        block_on(executor.run(registry.shutdown()));

        let registry = Registry::new(InSpan(DynBlockingSpawner::from_fn(|work| work())));
        let inside = told.clone();
        span.in_scope(|| registry.run_blocking(move || inside.0.lock().unwrap().push(id())));
        assert_eq!(*told.0.lock().unwrap(), [span.id(), span.id()]);

        // What is dropped undone is told in it.
        let kept = Arc::new(Mutex::new(None));
        let own = kept.clone();
        let keeps = DynBlockingSpawner::from_fn(move |work| *own.lock().unwrap() = Some(work));
        let registry = Registry::builder(InSpan(keeps)).observer(told.clone()).build();
        span.in_scope(|| registry.run_blocking(|| ()));
        drop(kept.lock().unwrap().take());
        assert_eq!(registry.shutdown().wait().abandoned, 1);
        assert_eq!(told.0.lock().unwrap()[2..], [span.id()]);
    });
}

tokio::task_local!(static TENANT: u32);

/// Gives each task the tenant of its caller.
struct OfTenant<S>(S);

impl<S: Spawner> Spawner for OfTenant<S> {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.spawn(TENANT.scope(TENANT.get(), task));
    }
}

#[test]
fn a_task_local_goes_with_the_task() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let registry = Registry::new(OfTenant(TokioSpawner));
    let summary = runtime.block_on(TENANT.scope(7, async {
        registry.run(async { if TENANT.get() == 7 { Ok(()) } else { Err("another tenant's") } });
        registry.shutdown().await
    }));
    assert_eq!(summary.completed, 1);
}

#[test]
fn one_drain_covers_several_executors() {
    let requests = Registry::new(SmolSpawner);
    let threads = requests.with_spawner(ThreadsSpawner::new(1).unwrap());
    requests.run(requests.signal());
    threads.run(async { assert_eq!(thread::current().name(), Some("background-0")) });
    let shutdown = requests.shutdown();
    drop(requests);
    assert_eq!(shutdown.wait_timeout(HANG).unwrap().completed, 2);
    assert!(threads.is_drained());
}

#[test]
fn another_handle_keeps_the_registry_open() {
    let registry = Registry::new(());
    let other = registry.with_spawner(SmolSpawner);
    drop(registry);
    assert!(!other.is_shutting_down());
    let signal = other.signal();
    drop(other);
    assert!(signal.is_triggered());
}

/// An application's state has one type, and takes what each executor serves.
#[test]
fn an_erased_spawner_serves_what_it_was_made_of() {
    let registry: Registry<DynSpawner> = Registry::new(DynSpawner::new(SmolSpawner));
    registry.run(async {});
    registry.with_spawner(DynBlockingSpawner::new(SmolSpawner)).run_blocking(|| Err("as planned"));
    let executor = Rc::new(async_executor::LocalExecutor::new());
    let local = registry.with_spawner(DynLocalSpawner::new(executor.clone()));
    let here = Rc::new(());
    local.run_local(async move { drop(here) });
    let summary = block_on(executor.run(registry.shutdown()));
    assert_eq!((summary.completed, summary.failed), (2, 1));
    assert_eq!(format!("{:?}", registry.spawner()), "DynSpawner { .. }");
}

#[test]
fn what_a_closure_refuses_or_drops_is_abandoned() {
    let registry = Registry::new(DynSpawner::from_fn(drop));
    registry.run(pending::<()>());
    let refuses = registry.with_spawner(DynSpawner::from_fn(|_| panic!("the queue is full, as planned")));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| refuses.run(async {})));
    assert!(panicked.is_err());
    assert_eq!(registry.shutdown().wait().abandoned, 2);
}
