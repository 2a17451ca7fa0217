//! Tests combined spawners: a spawner that wraps each task, several executors for one registry, and type-erased spawners.
use crate::common::{HANG, Manual};
use background_tasks::{
    BlockingSpawner, DynBlockingSpawner, DynLocalSpawner, DynSpawner, InSpan, LocalSpawner, Loss, Observer, Registry, SmolSpawner,
    SpawnInfo, Spawner, TaskInfo, TaskSpan, ThreadsSpawner, TokioSpawner,
};
use futures_lite::future::{block_on, pending};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread;
use tracing::Span;
use tracing_subscriber::registry as subscriber;

/// Returns the ID of the current span.
fn span_id() -> Option<tracing::Id> {
    Span::current().id()
}

/// A list of spans. Each task adds its current span, and this observer adds the current span at each loss.
#[derive(Clone, Default)]
struct SpanLog(Arc<Mutex<Vec<Option<tracing::Id>>>>);

impl Observer for SpanLog {
    fn lost(&self, _: &TaskInfo, _: &Loss<'_>) {
        self.0.lock().unwrap().push(span_id());
    }
}

#[test]
fn in_span_enters_the_span_of_the_caller_for_a_task_and_its_loss() {
    tracing::subscriber::with_default(subscriber(), || {
        let log = SpanLog::default();
        let manual = Manual::default();
        let registry = Registry::builder(InSpan(manual.clone())).observer(log.clone()).build();
        let span = tracing::info_span!("request");
        let task_log = log.clone();
        span.in_scope(|| {
            registry.run(async move {
                task_log.0.lock().unwrap().push(span_id());
                Err::<(), _>("intentional failure")
            });
        });
        assert!(span_id().is_none() && span.id().is_some());
        manual.poll_all();
        assert_eq!(registry.shutdown().wait().failed, 1);
        assert_eq!(*log.0.lock().unwrap(), [span.id(), span.id()]);
    });
}

/// An observer can therefore log the ID of a task together with the fields of the request.
#[test]
fn start_of_a_task_is_observed_in_the_span_of_the_caller() {
    struct Starts(SpanLog);

    impl Observer for Starts {
        fn started(&self, task: &TaskInfo) {
            assert!(task.id().is_some());
            self.0.0.lock().unwrap().push(span_id());
        }

        fn observes_every_task(&self) -> bool {
            true
        }
    }

    tracing::subscriber::with_default(subscriber(), || {
        let log = SpanLog::default();
        let registry = Registry::builder(InSpan(Manual::default())).observer(Starts(log.clone())).build();
        let span = tracing::info_span!("request");
        assert!(span.id().is_some());
        span.in_scope(|| registry.run(async {}));
        assert_eq!(*log.0.lock().unwrap(), [span.id()]);
    });
}

#[test]
fn in_span_covers_local_tasks_and_blocking_work() {
    tracing::subscriber::with_default(subscriber(), || {
        let log = SpanLog::default();
        let span = tracing::info_span!("request");
        assert!(span.id().is_some());
        let executor = Rc::new(async_executor::LocalExecutor::new());
        let registry = Registry::new(InSpan(executor.clone()));
        let task_log = log.clone();
        span.in_scope(|| registry.run_local(async move { task_log.0.lock().unwrap().push(span_id()) }));
        block_on(executor.run(registry.shutdown()));

        let registry = Registry::new(InSpan(DynBlockingSpawner::from_fn(|work| work())));
        let task_log = log.clone();
        span.in_scope(|| registry.run_blocking(move || task_log.0.lock().unwrap().push(span_id())));
        assert_eq!(*log.0.lock().unwrap(), [span.id(), span.id()]);

        // The span must also be current while the registry reports a closure that was dropped before it ran.
        let stored = Arc::new(Mutex::new(None));
        let store = stored.clone();
        let storing_spawner = DynBlockingSpawner::from_fn(move |work| *store.lock().unwrap() = Some(work));
        let registry = Registry::builder(InSpan(storing_spawner)).observer(log.clone()).build();
        span.in_scope(|| registry.run_blocking(|| ()));
        drop(stored.lock().unwrap().take());
        assert_eq!(registry.shutdown().wait().abandoned, 1);
        assert_eq!(log.0.lock().unwrap()[2..], [span.id()]);
    });
}

/// A spawner that records the names and call sites of the tasks, and drops the tasks.
#[derive(Clone, Default)]
struct InfoRecorder(Arc<Mutex<Vec<SpawnInfo>>>);

impl InfoRecorder {
    /// Asserts that a wrapper around this recorder passes on the `SpawnInfo` for each kind of task.
    #[track_caller]
    fn assert_receives<S: Spawner + LocalSpawner + BlockingSpawner>(&self, wrapper: S) {
        self.assert_receives_from(wrapper, |registry| {
            registry.named("mail").run(async {});
            registry.named("mail").run_local(async {});
            registry.named("mail").run_blocking(|| ());
            drop(block_on(registry.named("mail").run_when_ready(async {})));
        });
    }

    #[track_caller]
    fn assert_receives_from<S>(&self, wrapper: S, run: impl FnOnce(&Registry<S>)) {
        let registry = Registry::new(wrapper);
        run(&registry);
        let received = std::mem::take(&mut *self.0.lock().unwrap());
        assert_eq!((received.len() as u64, registry.in_flight()), (registry.summary().abandoned, 0));
        assert!(!received.is_empty());
        assert!(received.iter().all(|info| info.name() == Some("mail") && info.location().file() == file!()), "{received:?}");
        assert!(received.windows(2).all(|pair| pair[0].location().line() < pair[1].location().line()), "{received:?}");
    }
}

impl Spawner for InfoRecorder {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, _: F) {}

    fn spawn_with_info<F: Future<Output = ()> + Send + 'static>(&self, _: F, info: &SpawnInfo) {
        self.0.lock().unwrap().push(*info);
    }
}

impl LocalSpawner for InfoRecorder {
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, _: F) {}

    fn spawn_local_with_info<F: Future<Output = ()> + 'static>(&self, _: F, info: &SpawnInfo) {
        self.0.lock().unwrap().push(*info);
    }
}

impl BlockingSpawner for InfoRecorder {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, _: F) {}

    fn spawn_blocking_with_info<F: FnOnce() + Send + 'static>(&self, _: F, info: &SpawnInfo) {
        self.0.lock().unwrap().push(*info);
    }
}

#[test]
fn every_wrapper_passes_on_the_name_and_the_call_site() {
    let recorder = InfoRecorder::default();
    recorder.assert_receives(recorder.clone());
    recorder.assert_receives(&recorder);
    recorder.assert_receives(Box::new(recorder.clone()));
    recorder.assert_receives(Rc::new(recorder.clone()));
    recorder.assert_receives(Arc::new(recorder.clone()));
    recorder.assert_receives(InSpan(recorder.clone()));
    recorder.assert_receives(TaskSpan(recorder.clone()));
    recorder.assert_receives_from(DynSpawner::new(recorder.clone()), |registry| {
        registry.named("mail").run(async {});
        registry.named("mail").run_blocking(|| ());
    });
    recorder.assert_receives_from(DynLocalSpawner::new(recorder.clone()), |registry| registry.named("mail").run_local(async {}));
    recorder.assert_receives_from(DynBlockingSpawner::new(recorder.clone()), |registry| registry.named("mail").run_blocking(|| ()));
}

tokio::task_local!(static TENANT: u32);

/// A spawner that passes the tenant of the caller to each task.
struct WithTenant<S>(S);

impl<S: Spawner> Spawner for WithTenant<S> {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.spawn(TENANT.scope(TENANT.get(), task));
    }
}

#[test]
fn spawner_wrapper_passes_a_task_local_to_the_task() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let registry = Registry::new(WithTenant(TokioSpawner));
    let summary = runtime.block_on(TENANT.scope(7, async {
        registry.run(async { if TENANT.get() == 7 { Ok(()) } else { Err("wrong tenant") } });
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
fn handle_with_another_spawner_keeps_the_registry_open() {
    let registry = Registry::new(());
    let other = registry.with_spawner(SmolSpawner);
    drop(registry);
    assert!(!other.is_shutting_down());
    let signal = other.signal();
    drop(other);
    assert!(signal.is_triggered());
}

/// The type of the registry does not depend on the executor, so an application can store the registry without a type parameter.
#[test]
fn dyn_spawner_runs_tasks_on_the_wrapped_spawner() {
    let registry: Registry<DynSpawner> = Registry::new(DynSpawner::new(SmolSpawner));
    registry.run(async {});
    registry.run_blocking(|| Err::<(), _>("intentional failure"));
    registry.with_spawner(DynBlockingSpawner::new(SmolSpawner)).run_blocking(|| Err::<(), _>("intentional failure"));
    let executor = Rc::new(async_executor::LocalExecutor::new());
    let local = registry.with_spawner(DynLocalSpawner::new(executor.clone()));
    let not_send = Rc::new(());
    local.run_local(async move { drop(not_send) });
    let summary = block_on(executor.run(registry.shutdown()));
    assert_eq!((summary.completed, summary.failed), (2, 2));
    assert_eq!(format!("{:?}", registry.spawner()), "DynSpawner { .. }");
}

/// An application state without a type parameter. The handlers of a web framework share a state of this kind.
#[derive(Clone)]
struct State {
    tasks: Registry<DynSpawner>,
}

/// On each runtime, a registry of the same type runs tasks and blocking closures.
#[test]
fn state_without_type_parameter_runs_tasks_and_closures_on_each_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let threads = DynSpawner::without_blocking(ThreadsSpawner::new(1).unwrap());
    let spawners = [
        DynSpawner::new(TokioSpawner),
        DynSpawner::new(runtime.handle().clone()),
        DynSpawner::new(SmolSpawner),
        #[cfg(feature = "async-std")]
        DynSpawner::new(background_tasks::AsyncStdSpawner),
        threads.with_blocking(SmolSpawner),
    ];
    let _context = runtime.enter();
    for spawner in spawners {
        let state = State { tasks: Registry::new(spawner) };
        let handler = state.clone();
        state.tasks.run(async move { handler.tasks.run_blocking(|| ()) });
        assert_eq!(state.tasks.shutdown().wait_timeout(HANG).unwrap().completed, 2);
    }
}

#[test]
fn task_refused_or_dropped_by_a_spawner_closure_is_abandoned() {
    let registry = Registry::new(DynSpawner::from_fn(drop));
    registry.run(pending::<()>());
    let refusing = registry.with_spawner(DynSpawner::from_fn(|_| panic!("intentional panic: the queue is full")));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| refusing.run(async {})));
    assert!(panicked.is_err());
    assert_eq!(registry.shutdown().wait().abandoned, 2);
}
