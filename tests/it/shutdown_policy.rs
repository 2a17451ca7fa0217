//! Tests that the loss of a task starts the shutdown if the task is critical, or with `shutdown_on_panic` or `shutdown_on_failure`.
use crate::common::{HANG, Manual, poll_once};
use background_tasks::{Loss, Observer, Registry, RegistryBuilder, Spawner, Summary, TaskInfo};
use std::future::{Ready, pending, ready};
use std::sync::{Arc, Mutex};

/// Runs one task on a registry that `configure` sets up. Returns whether the task started the shutdown.
fn starts_shutdown(
    configure: impl Fn(RegistryBuilder<Manual>) -> RegistryBuilder<Manual>,
    run: impl Fn(&Registry<Manual>),
) -> bool {
    let spawner = Manual::default();
    let registry = configure(Registry::builder(spawner.clone())).build();
    let _in_flight = registry.guard().unwrap();
    run(&registry);
    spawner.poll_all();
    registry.is_shutting_down()
}

fn failure() -> Ready<Result<(), &'static str>> {
    ready(Err("intentional failure"))
}

fn run_failing_task(registry: &Registry<Manual>) {
    registry.run(failure());
}

fn run_panicking_task(registry: &Registry<Manual>) {
    registry.run(async { panic!("intentional panic") });
}

#[test]
fn loss_starts_no_shutdown_by_default() {
    assert!(!starts_shutdown(|builder| builder, run_failing_task));
    assert!(!starts_shutdown(|builder| builder, run_panicking_task));
}

#[test]
fn shutdown_on_panic_reacts_to_panics_and_not_to_failures() {
    assert!(starts_shutdown(RegistryBuilder::shutdown_on_panic, run_panicking_task));
    assert!(!starts_shutdown(RegistryBuilder::shutdown_on_panic, run_failing_task));
}

#[test]
fn shutdown_on_failure_reacts_to_failures_and_not_to_panics() {
    assert!(starts_shutdown(RegistryBuilder::shutdown_on_failure, run_failing_task));
    assert!(!starts_shutdown(RegistryBuilder::shutdown_on_failure, run_panicking_task));
}

#[test]
fn critical_loss_starts_shutdown_in_any_registry() {
    let run_failing = |registry: &Registry<Manual>| registry.critical().run(failure());
    let run_panicking = |registry: &Registry<Manual>| registry.named("lease").critical().run(async { panic!("intentional panic") });
    for configure in [
        |builder: RegistryBuilder<Manual>| builder,
        RegistryBuilder::inspect,
        |builder: RegistryBuilder<Manual>| builder.max_in_flight(5),
    ] {
        assert!(starts_shutdown(configure, run_failing));
        assert!(starts_shutdown(configure, run_panicking));
    }
}

#[test]
fn critical_task_that_completes_starts_no_shutdown() {
    assert!(!starts_shutdown(|builder| builder, |registry| registry.critical().run(async {})));
}

#[test]
fn each_loss_of_a_critical_task_starts_the_shutdown() {
    let spawner = Manual::default();
    let lost = |lose: fn(&Registry<Manual>, &Manual), outcome: fn(&Registry<Manual>) -> u64| {
        let registry = Registry::builder(spawner.clone()).inspect().max_in_flight(1).build();
        lose(&registry, &spawner);
        assert_eq!((outcome(&registry), registry.is_shutting_down()), (1, true));
        assert_eq!(registry.shutdown_cause().unwrap().name(), Some("lease"));
    };
    let abandon = |registry: &Registry<Manual>, spawner: &Manual| {
        registry.named("lease").critical().run(pending::<()>());
        drop(spawner.take());
    };
    let abort = |registry: &Registry<Manual>, spawner: &Manual| {
        registry.named("lease").critical().run(pending::<()>());
        assert!(!registry.is_shutting_down());
        registry.abort();
        spawner.poll_all();
    };
    let reject = |registry: &Registry<Manual>, _: &Manual| {
        let guard = registry.guard().unwrap();
        registry.named("lease").critical().run(pending::<()>());
        drop(guard);
    };
    let drop_guard = |registry: &Registry<Manual>, _: &Manual| {
        drop(registry.named("lease").critical().guard().unwrap().require_completion());
    };
    lost(abandon, |registry| registry.summary().abandoned);
    lost(abort, |registry| registry.summary().aborted);
    lost(reject, |registry| registry.summary().rejected);
    lost(drop_guard, |registry| registry.summary().abandoned);
}

#[test]
fn shutdown_cause_is_the_first_critical_loss_or_none() {
    let cause = |start_shutdown: fn(&Registry<Manual>)| {
        let spawner = Manual::default();
        let registry = Registry::new(spawner.clone());
        let _in_flight = registry.guard().unwrap();
        assert_eq!(registry.shutdown_cause(), None);
        start_shutdown(&registry);
        spawner.poll_all();
        assert!(registry.is_shutting_down());
        registry.shutdown_cause().map(|task| task.name())
    };
    assert_eq!(cause(|registry| registry.named("lease").critical().run(failure())), Some(Some("lease")));
    assert_eq!(cause(|registry| drop(registry.shutdown())), None);

    let two_losses = |registry: &Registry<Manual>| {
        registry.named("first").critical().run(failure());
        registry.named("second").critical().run(failure());
    };
    assert_eq!(cause(two_losses), Some(Some("first")));

    let loss_after_call = |registry: &Registry<Manual>| {
        registry.start_shutdown();
        registry.named("late").critical().run(failure());
    };
    assert_eq!(cause(loss_after_call), None);
}

#[test]
fn reused_state_has_no_shutdown_cause() {
    let spawner = Manual::default();
    // The pool may also contain states of other tests. With 20 repetitions, at least one state of this test is reused.
    for _ in 0..20 {
        let registry = Registry::new(spawner.clone());
        assert_eq!(registry.shutdown_cause(), None);
        registry.critical().run(failure());
        spawner.poll_all();
        assert!(registry.is_drained() && registry.shutdown_cause().is_some());
    }
}

/// An observer that records panics and the start of the shutdown, in the order of the calls.
#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl Observer for Recorder {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        self.0.lock().unwrap().push(format!("{} {loss}", task.name().unwrap()));
    }

    fn shutdown_started(&self, in_flight: usize) {
        self.0.lock().unwrap().push(format!("shutdown with {in_flight} in flight"));
    }
}

#[test]
fn shutdown_starts_after_the_loss_is_reported_and_before_the_release() {
    let (spawner, recorder) = (Manual::default(), Arc::new(Recorder::default()));
    let registry = Registry::builder(spawner.clone()).observer(recorder.clone()).shutdown_on_panic().build();
    registry.named("lease").run(async { panic!("lost") });
    assert!(poll_once(&mut spawner.take()).is_ready());
    assert_eq!(*recorder.0.lock().unwrap(), ["lease panicked: lost", "shutdown with 1 in flight"]);
    assert!(registry.is_drained());
}

fn critical_panic_signals_and_drains_other_tasks<S: Spawner>(registry: &Registry<S>) {
    let signal = registry.signal();
    registry.run(signal);
    registry.critical().run(async { panic!("intentional panic") });
    let summary = wait_until_drained(registry);
    assert_eq!((summary.completed, summary.panicked), (1, 1));
}

/// Waits for the drain, but does not start the shutdown. The task under test must start the shutdown.
fn wait_until_drained<S>(registry: &Registry<S>) -> Summary {
    futures_lite::future::block_on(registry.signal());
    registry.shutdown().wait_timeout(HANG).unwrap()
}

on_every_runtime!(critical_panic_signals_and_drains_other_tasks);
