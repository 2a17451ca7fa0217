//! A panic or a failure that begins the shutdown.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

mod common;

use background_tasks::{Observer, Registry, RegistryBuilder, Spawner, TaskInfo};
use common::{HANG, Manual, poll_once};
use std::future::{Ready, pending, ready};
use std::sync::{Arc, Mutex};

/// Runs one task with a registry that `ask` sets up; returns whether that began the shutdown.
fn begins_shutdown<F>(
    ask: impl Fn(RegistryBuilder<Manual>) -> RegistryBuilder<Manual>,
    run: impl Fn(&Registry<Manual>) -> F,
) -> bool {
    let spawner = Manual::default();
    let registry = ask(Registry::builder(spawner.clone())).build();
    let _other = registry.guard().unwrap();
    run(&registry);
    spawner.poll_all();
    registry.is_shutting_down()
}

fn fails(registry: &Registry<Manual>) {
    registry.run(async { Err("a failure, as planned") });
}

fn panics(registry: &Registry<Manual>) {
    registry.run(async { panic!("a panic, as planned") });
}

#[test]
fn by_default_a_loss_is_counted_and_all_goes_on() {
    assert!(!begins_shutdown(|builder| builder, fails));
    assert!(!begins_shutdown(|builder| builder, panics));
}

#[test]
fn a_panic_begins_it_where_the_builder_says_so_and_a_failure_does_not() {
    assert!(begins_shutdown(RegistryBuilder::shutdown_on_panic, panics));
    assert!(!begins_shutdown(RegistryBuilder::shutdown_on_panic, fails));
}

#[test]
fn a_failure_begins_it_where_the_builder_says_so_and_a_panic_does_not() {
    assert!(begins_shutdown(RegistryBuilder::shutdown_on_failure, fails));
    assert!(!begins_shutdown(RegistryBuilder::shutdown_on_failure, panics));
}

#[test]
fn a_critical_task_begins_it_by_both_in_any_registry() {
    let failed = |registry: &Registry<Manual>| registry.critical().run(async { Err("a failure, as planned") });
    let panicked = |registry: &Registry<Manual>| registry.named("lease").critical().run(async { panic!("as planned") });
    for ask in [
        |builder: RegistryBuilder<Manual>| builder,
        RegistryBuilder::inspect,
        |builder: RegistryBuilder<Manual>| builder.max_in_flight(5),
    ] {
        assert!(begins_shutdown(ask, failed));
        assert!(begins_shutdown(ask, panicked));
    }
}

#[test]
fn a_critical_task_that_completes_or_is_dropped_begins_nothing() {
    assert!(!begins_shutdown(|builder| builder, |registry| registry.critical().run(async {})));
    let spawner = Manual::default();
    let registry = Registry::new(spawner.clone());
    registry.critical().run(pending::<()>());
    drop(spawner.take());
    assert_eq!((registry.summary().abandoned, registry.is_shutting_down()), (1, false));
}

fn failed() -> Ready<Result<(), &'static str>> {
    ready(Err("a failure, as planned"))
}

#[test]
fn whose_loss_began_it_is_known_and_by_nobody_else() {
    let cause = |run: fn(&Registry<Manual>)| {
        let spawner = Manual::default();
        let registry = Registry::new(spawner.clone());
        let _other = registry.guard().unwrap();
        assert_eq!(registry.shutdown_cause(), None);
        run(&registry);
        spawner.poll_all();
        assert!(registry.is_shutting_down());
        registry.shutdown_cause().map(|task| task.name())
    };
    assert_eq!(cause(|registry| registry.named("lease").critical().run(failed())), Some(Some("lease")));
    assert_eq!(cause(|registry| drop(registry.shutdown())), None);
    // The first is the one; and a loss that comes after somebody's call is none.
    let two = |registry: &Registry<Manual>| {
        registry.named("first").critical().run(failed());
        registry.named("second").critical().run(failed());
    };
    assert_eq!(cause(two), Some(Some("first")));
    let late = |registry: &Registry<Manual>| {
        registry.shutdown();
        registry.named("late").critical().run(failed());
    };
    assert_eq!(cause(late), None);
}

#[test]
fn the_next_registry_of_a_core_does_not_know_the_cause_of_the_last() {
    let spawner = Manual::default();
    // The pool hands a core out again once it has drained; more than one may be there from other tests.
    for _ in 0..20 {
        let registry = Registry::new(spawner.clone());
        assert_eq!(registry.shutdown_cause(), None);
        registry.critical().run(async { Err("a failure, as planned") });
        spawner.poll_all();
        assert!(registry.is_drained() && registry.shutdown_cause().is_some());
    }
}

/// Remembers whether the shutdown had begun when a loss was told, and what was told when it began.
#[derive(Default)]
struct Order(Mutex<Vec<String>>);

impl Observer for Order {
    fn panicked(&self, task: &TaskInfo, message: &str) {
        self.0.lock().unwrap().push(format!("{} panicked: {message}", task.name().unwrap()));
    }

    fn shutdown_started(&self, in_flight: usize) {
        self.0.lock().unwrap().push(format!("shutdown with {in_flight} in flight"));
    }
}

#[test]
fn it_begins_before_the_count_is_given_back_and_after_the_loss_was_told() {
    let (spawner, order) = (Manual::default(), Arc::new(Order::default()));
    let registry = Registry::builder(spawner.clone()).observer(order.clone()).shutdown_on_panic().build();
    registry.named("lease").run(async { panic!("lost") });
    assert!(poll_once(&mut spawner.take()).is_ready());
    assert_eq!(*order.0.lock().unwrap(), ["lease panicked: lost", "shutdown with 1 in flight"]);
    assert!(registry.is_drained());
}

fn the_others_are_told_and_drained<S: Spawner>(registry: &Registry<S>) {
    let signal = registry.signal();
    registry.run(signal);
    registry.critical().run(async { panic!("a panic, as planned") });
    let summary = registry.wait_until_drained();
    assert_eq!((summary.completed, summary.panicked), (1, 1));
}

trait WaitUntilDrained {
    fn wait_until_drained(&self) -> background_tasks::Summary;
}

impl<S> WaitUntilDrained for Registry<S> {
    /// Without beginning the shutdown: that is what the task does.
    fn wait_until_drained(&self) -> background_tasks::Summary {
        futures_lite::future::block_on(self.signal());
        self.shutdown().wait_timeout(HANG).unwrap()
    }
}

on_every_runtime!(the_others_are_told_and_drained);
