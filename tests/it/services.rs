//! Tests services. A service is a task that runs again after each end, or after each period.
//!
//! Most tests control the time and the polls, so their results do not depend on a real clock.

use crate::common::{Fake, HANG, Owns, PanicDrop, counting_waker, counts, panic_quietly, poll, poll_once};
use background_tasks::{
    AsyncStdSpawner, Loss, Observer, Registry, Restart, SmolSpawner, Spawner, TaskInfo, TaskKind, ThreadsSpawner, Timer,
    TokioSpawner, WithTimer,
};
use futures_lite::future::block_on;
use std::future::{Future, pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// Returns a closure for a service, and a counter of the started runs. The closure passes the number of the run to `run`, and returns the
/// result of `run`.
fn counted<T>(run: impl Fn(usize) -> T + Send + 'static) -> (impl FnMut() -> T + Send + 'static, Arc<AtomicUsize>) {
    let started = Arc::new(AtomicUsize::new(0));
    let count = started.clone();
    (move || run(count.fetch_add(1, Ordering::Relaxed)), started)
}

async fn failure() -> Result<(), &'static str> {
    Err("no connection")
}

/// Returns a policy with an unlimited number of restarts. The delay before each restart is one second, reduced by a random part.
fn each_second() -> Restart {
    Restart::on_failure().backoff(SECOND, SECOND).unlimited()
}

/// An observer that records each loss.
#[derive(Clone, Default)]
struct Losses(Arc<Mutex<Vec<String>>>);

impl Observer for Losses {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        self.0.lock().unwrap().push(format!("{} {loss}", task.name().unwrap_or("task")));
    }
}

impl Losses {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// A spawner that panics when a service clones it.
struct Unclonable;

impl Clone for Unclonable {
    fn clone(&self) -> Self {
        panic_quietly("clone")
    }
}

impl Spawner for Unclonable {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, _: F) {
        unreachable!("the service does not start")
    }
}

impl Timer for Unclonable {
    type Sleep = std::future::Pending<()>;

    fn sleep(&self, _: Duration) -> Self::Sleep {
        pending()
    }
}

#[test]
fn service_whose_spawner_panics_is_not_in_flight() {
    let registry = Registry::new(Unclonable);
    let started = catch_unwind(AssertUnwindSafe(|| registry.service(Restart::on_failure(), || ready(()))));
    assert_eq!((started.is_err(), registry.in_flight()), (true, 0));
    assert!(registry.shutdown().wait().is_clean());
}

#[test]
fn lost_runs_are_reported_and_start_again_until_the_limit() {
    let (fake, losses) = (Fake::default(), Losses::default());
    let registry = fake.builder().observer(losses.clone()).build();
    let (make, started) = counted(|n| async move { if n % 2 == 0 { failure().await } else { panic_quietly("odd") } });
    let restart = Restart::on_failure().backoff(SECOND, SECOND).at_most(3, SECOND * 60);
    registry.named("outbox").critical().service(restart, make);
    for runs in 1..=3 {
        fake.advance(SECOND);
        assert_eq!((started.load(Ordering::Relaxed), registry.in_flight(), registry.is_shutting_down()), (runs, 1, false));
    }
    fake.advance(SECOND);
    // The fourth run is the last one, and its loss is the loss of the critical service.
    assert_eq!(started.load(Ordering::Relaxed), 4);
    let (failed, panicked) = ("outbox failed: no connection", "outbox panicked: odd");
    assert_eq!(losses.take(), [failed, panicked, failed, panicked]);
    assert_eq!(registry.shutdown_cause().unwrap().name(), Some("outbox"));
    assert!(registry.is_drained());
    assert_eq!(counts(registry.summary()), [0, 2, 2, 0, 0, 0]);
}

#[test]
fn service_whose_last_run_fails_counts_that_failure_once() {
    let fake = Fake::default();
    let registry = fake.registry();
    registry.service(Restart::on_failure().at_most(0, SECOND), failure);
    fake.tasks.poll_all();
    assert_eq!((counts(registry.summary()), registry.in_flight()), ([0, 1, 0, 0, 0, 0], 0));
}

#[test]
fn completed_run_ends_a_service_that_restarts_on_failure() {
    let fake = Fake::default();
    let registry = fake.registry();
    let (make, started) = counted(|n| async move { if n == 0 { failure().await } else { Ok(()) } });
    registry.service(each_second(), make);
    fake.tasks.poll_all();
    fake.advance(SECOND);
    assert_eq!((started.load(Ordering::Relaxed), registry.in_flight(), registry.is_shutting_down()), (2, 0, false));
    assert_eq!(counts(registry.summary()), [1, 1, 0, 0, 0, 0]);
}

#[test]
fn service_that_completes_too_often_counts_as_failed() {
    let (fake, losses) = (Fake::default(), Losses::default());
    let registry = fake.builder().observer(losses.clone()).build();
    registry.critical().service(Restart::always().backoff(SECOND, SECOND).at_most(1, SECOND * 60), || async {});
    fake.tasks.poll_all();
    assert!(!registry.is_shutting_down());
    fake.advance(SECOND);
    assert_eq!(losses.take(), ["task failed: the service completed more often than its limit on restarts allows"]);
    assert_eq!((counts(registry.summary()), registry.is_drained()), ([1, 1, 0, 0, 0, 0], true));
}

#[test]
fn delays_double_up_to_the_maximum_and_start_again_after_a_long_run() {
    let fake = Fake::default();
    let registry = fake.registry();
    let finish = Arc::new(AtomicBool::new(false));
    let long_run = finish.clone();
    let (make, started) = counted(move |n| {
        let finish = if n == 5 { long_run.clone() } else { Arc::new(AtomicBool::new(true)) };
        poll_fn(move |_| if finish.load(Ordering::Relaxed) { Poll::Ready(Err::<(), _>("lost")) } else { Poll::Pending })
    });
    registry.service(Restart::on_failure().backoff(SECOND, SECOND * 8).unlimited(), make);
    // Each run starts two timers. The first timer shows whether the run lasts as long as the maximum of the backoff. The second timer is
    // the delay before the next run.
    let delay = || match fake.timer.take_durations()[..] {
        [max, delay] if max == SECOND * 8 => delay,
        ref durations => panic!("{durations:?}"),
    };
    fake.tasks.poll_all();
    for seconds in [1, 2, 4, 8, 8] {
        let delay = delay();
        assert!(SECOND * seconds / 2 <= delay && delay <= SECOND * seconds, "{delay:?} of {seconds} s");
        fake.advance(delay);
    }
    assert_eq!((started.load(Ordering::Relaxed), fake.timer.take_durations()), (6, vec![SECOND * 8]));
    finish.store(true, Ordering::Relaxed);
    fake.advance(SECOND * 8);
    let durations = fake.timer.take_durations();
    assert!(durations.len() == 1 && durations[0] <= SECOND, "the long run resets the delay: {durations:?}");
}

#[test]
fn shortest_delay_and_period_are_one_millisecond() {
    let fake = Fake::default();
    let registry = fake.registry();
    registry.service(Restart::on_failure().backoff(Duration::ZERO, Duration::ZERO).unlimited(), failure);
    fake.tasks.poll_all();
    let durations = fake.timer.take_durations();
    let millisecond = Duration::from_millis(1);
    assert!(durations[0] == millisecond && millisecond / 2 <= durations[1] && durations[1] <= millisecond, "{durations:?}");
    registry.every(Duration::ZERO, || async {});
    fake.tasks.poll_all();
    assert_eq!(fake.timer.take_durations(), [millisecond]);
    registry.every(Duration::MAX, || async {});
    registry.service(Restart::always().backoff(Duration::MAX, Duration::MAX).at_most(1, Duration::MAX), || async {});
    fake.tasks.poll_all();
    assert_eq!(registry.in_flight(), 4);
}

/// Tokio limits the work of one poll. After a run has used up this limit, the timer is not ready until the next poll.
#[test]
fn long_run_that_uses_up_its_poll_may_restart_without_a_long_delay() {
    let (fake, is_used_up) = (Fake::default(), Arc::new(AtomicBool::new(false)));
    let (timer, is_late) = (fake.timer.clone(), is_used_up.clone());
    let spawner = WithTimer(fake.tasks.clone(), move |duration| {
        let (mut sleep, is_late) = (timer.sleep(duration), is_late.clone());
        poll_fn(move |cx| if is_late.load(Ordering::Relaxed) { Poll::Pending } else { poll(&mut sleep, cx.waker()) })
    });
    let registry = Registry::new(spawner);
    let uses_up = is_used_up.clone();
    let (make, started) = counted(move |n| {
        let (uses_up, mut polls) = (uses_up.clone(), n);
        poll_fn(move |_| {
            if n == 1 && std::mem::replace(&mut polls, 0) > 0 {
                return Poll::Pending;
            }
            uses_up.store(n == 1, Ordering::Relaxed);
            Poll::Ready(Err::<(), _>("no connection"))
        })
    });
    registry.service(Restart::on_failure().backoff(SECOND, SECOND * 8).at_most(1, SECOND * 60), make);
    fake.tasks.poll_all();
    fake.advance(SECOND); // the second run starts
    fake.advance(SECOND * 70); // the second run ends
    is_used_up.store(false, Ordering::Relaxed);
    fake.tasks.poll_all();
    assert_eq!((started.load(Ordering::Relaxed), registry.in_flight()), (2, 1));
    fake.advance(SECOND);
    assert_eq!(started.load(Ordering::Relaxed), 3);
}

#[test]
fn limit_counts_only_restarts_within_the_window() {
    let fake = Fake::default();
    let registry = fake.registry();
    let (make, started) = counted(|_| failure());
    registry.service(Restart::on_failure().backoff(SECOND, SECOND).at_most(2, SECOND * 10), make);
    // The service restarts at 0, 9, 18, 27 and 36 seconds. These are never more than two restarts within ten seconds.
    fake.tasks.poll_all();
    for runs in 2..=5 {
        fake.advance(SECOND * 9);
        assert_eq!((started.load(Ordering::Relaxed), registry.in_flight()), (runs, 1));
    }
    // The run at 37 seconds may restart, because the restart at 27 seconds is not in the last ten seconds. The run at 38 seconds may not
    // restart.
    fake.advance(SECOND);
    assert_eq!((started.load(Ordering::Relaxed), registry.in_flight()), (6, 1));
    fake.advance(SECOND);
    assert_eq!((started.load(Ordering::Relaxed), registry.in_flight()), (7, 0));
}

/// An error whose destructor panics.
struct PanicError(PanicDrop);

impl std::fmt::Display for PanicError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let _ = &self.0;
        f.write_str("an error")
    }
}

#[test]
fn panics_in_each_part_of_a_run_end_only_the_run() {
    let (fake, losses) = (Fake::default(), Losses::default());
    let registry = fake.builder().observer(losses.clone()).build();
    let (make, _) = counted(|n| {
        assert!(n != 0, "in the factory");
        let in_future = (n == 2).then(|| PanicDrop);
        async move {
            let _in_future = in_future;
            match n {
                1 => panic!("in a poll"),
                3 => Err(PanicError(PanicDrop)),
                4 => Ok(()),
                _ => poll_fn(|_| Poll::Ready(Ok(()))).await,
            }
        }
    });
    registry.service(each_second(), make);
    for _ in 0..5 {
        fake.advance(SECOND);
    }
    let destructor = "task panicked: intentional panic in a destructor";
    assert_eq!(losses.take(), ["task panicked: in the factory", "task panicked: in a poll", destructor, destructor]);
    assert_eq!((counts(registry.summary()), registry.in_flight()), ([1, 0, 4, 0, 0, 0], 0));
}

/// Checks the invariants S2 and S6 of `docs/invariants.md`.
#[test]
fn panic_in_the_destructor_of_a_finished_run_ends_only_the_run() {
    let (fake, losses) = (Fake::default(), Losses::default());
    let registry = fake.builder().observer(losses.clone()).build();
    let (make, started) = counted(|n| {
        let panics = (n == 0).then(|| PanicDrop);
        Owns(panics, ready(Ok::<(), &str>(())))
    });
    registry.service(each_second(), make);
    fake.tasks.poll_all();
    assert_eq!(losses.take(), ["task panicked: intentional panic in a destructor"]);
    fake.advance(SECOND);
    assert_eq!((started.load(Ordering::Relaxed), counts(registry.summary())), (2, [1, 0, 1, 0, 0, 0]));
}

#[test]
fn shutdown_ends_a_waiting_service_and_lets_a_run_finish() {
    let fake = Fake::default();
    let registry = fake.registry();
    let signal = registry.signal();
    let (make, started) = counted(move |_| {
        let signal = signal.clone();
        async move {
            signal.await;
            failure().await
        }
    });
    registry.service(each_second(), make);
    registry.service(each_second(), failure);
    fake.tasks.poll_all();
    assert_eq!(registry.in_flight(), 2);
    registry.start_shutdown();
    fake.tasks.poll_all();
    assert!(registry.is_drained());
    // The run that the signal ended has failed. The other service failed one time, and ended while it waited for its next run.
    assert_eq!((started.load(Ordering::Relaxed), counts(registry.summary())), (1, [1, 2, 0, 0, 0, 0]));
}

#[test]
fn nothing_runs_after_the_signal_even_if_the_delay_has_elapsed() {
    let fake = Fake::default();
    let registry = fake.registry();
    let (restarted, restarts) = counted(|_| failure());
    let (ticked, ticks) = counted(|_| async {});
    registry.service(each_second(), restarted);
    registry.every(SECOND, ticked);
    fake.tasks.poll_all();
    registry.start_shutdown();
    fake.advance(SECOND);
    assert_eq!((restarts.load(Ordering::Relaxed), ticks.load(Ordering::Relaxed), registry.is_drained()), (1, 1, true));
}

#[test]
fn service_that_starts_during_the_drain_ends_without_a_run() {
    let fake = Fake::default();
    let registry = fake.registry();
    let guard = registry.guard().unwrap();
    registry.start_shutdown();
    let (make, started) = counted(|_| async {});
    registry.every(SECOND, make);
    registry.service(each_second(), || async { unreachable!("the shutdown has started") });
    fake.tasks.poll_all();
    drop(guard);
    assert_eq!((started.load(Ordering::Relaxed), counts(registry.summary())), (0, [3, 0, 0, 0, 0, 0]));
    assert!(registry.is_drained());
    // The registry drops a service that it rejects.
    let owned = Arc::new(());
    let kept = owned.clone();
    registry.every(SECOND, move || {
        let _ = &kept;
        async {}
    });
    assert_eq!((registry.summary().rejected, Arc::strong_count(&owned)), (1, 1));
}

#[test]
fn abort_ends_a_service_in_a_run_and_between_two_runs() {
    let fake = Fake::default();
    let registry = fake.builder().inspect().build();
    registry.service(each_second(), pending::<()>);
    registry.every(SECOND, || async {});
    registry.service(each_second(), failure);
    fake.tasks.poll_all();
    fake.advance(SECOND);
    assert_eq!(registry.tasks().iter().filter(|task| task.kind() == Some(TaskKind::Service)).count(), 3);
    assert_eq!(registry.abort().aborted, 3);
    fake.tasks.poll_all();
    // The periodic service has completed two runs, and two runs of the failing service have failed.
    assert_eq!((counts(registry.summary()), registry.in_flight()), ([2, 2, 0, 0, 3, 0], 0));
    assert!(registry.services().is_empty());
}

#[test]
fn dropped_service_counts_as_abandoned() {
    let fake = Fake::default();
    let registry = fake.registry();
    registry.critical().every(SECOND, || async {});
    fake.tasks.poll_all();
    fake.advance(SECOND);
    drop(fake.tasks.take());
    assert_eq!((counts(registry.summary()), registry.is_drained()), ([2, 0, 0, 1, 0, 0], true));
}

#[test]
fn periodic_work_runs_immediately_and_at_each_tick() {
    let fake = Fake::default();
    let registry = fake.registry();
    let (make, started) = counted(|n| async move { if n == 1 { failure().await } else { Ok(()) } });
    registry.every(SECOND * 10, make);
    fake.tasks.poll_all();
    assert_eq!(started.load(Ordering::Relaxed), 1);
    fake.advance(SECOND * 9);
    assert_eq!(started.load(Ordering::Relaxed), 1);
    fake.advance(SECOND);
    fake.advance(SECOND * 10);
    assert_eq!((started.load(Ordering::Relaxed), counts(registry.summary())), (3, [1, 1, 0, 0, 0, 0]));
    registry.start_shutdown();
    fake.tasks.poll_all();
    assert_eq!(counts(registry.shutdown().wait()), [2, 1, 0, 0, 0, 0], "one outcome for each run");
}

#[test]
fn periodic_work_skips_the_ticks_that_come_during_a_run() {
    let fake = Fake::default();
    let registry = fake.registry();
    let timer = fake.timer.clone();
    let (make, started) = counted(move |n| timer.sleep(if n == 0 { SECOND * 25 } else { Duration::ZERO }));
    registry.every(SECOND * 10, make);
    // The first run lasts until second 25, so the ticks at 10 and 20 seconds happen during this run.
    let mut second = 0;
    let mut runs_at = |until: u64| {
        while second < until {
            second += 5;
            fake.advance(SECOND * 5);
        }
        started.load(Ordering::Relaxed)
    };
    fake.tasks.poll_all();
    assert_eq!([runs_at(25), runs_at(30), runs_at(35), runs_at(40)], [1, 2, 2, 3]);
    assert_eq!(registry.in_flight(), 1);
}

#[test]
fn services_are_listed_with_their_state() {
    let fake = Fake::default();
    let registry = fake.builder().inspect().build();
    let (make, _) = counted(|n| async move {
        if n == 1 {
            pending::<()>().await;
        }
        failure().await
    });
    registry.named("outbox").service(each_second(), make);
    registry.every(SECOND, || async {});
    let [outbox, sweep] = &registry.services()[..] else { panic!() };
    assert!(outbox.is_running && outbox.restarts == 0 && outbox.last_loss.is_none());
    assert_eq!((outbox.task.name(), sweep.task.name()), (Some("outbox"), None));
    assert_eq!(outbox.task.id(), registry.tasks().iter().find(|task| task.name() == Some("outbox")).unwrap().id());
    fake.tasks.poll_all();
    let [outbox, sweep] = &registry.services()[..] else { panic!() };
    assert_eq!((outbox.is_running, outbox.restarts, outbox.last_loss.as_deref()), (false, 0, Some("failed: no connection")));
    assert_eq!((sweep.is_running, sweep.restarts, sweep.last_loss.as_deref()), (false, 0, None));
    fake.advance(SECOND);
    let [outbox, sweep] = &registry.services()[..] else { panic!() };
    assert_eq!((outbox.is_running, outbox.restarts, outbox.last_loss.as_deref()), (true, 1, Some("failed: no connection")));
    assert_eq!((sweep.is_running, sweep.restarts), (false, 1));
    let text = outbox.to_string();
    assert!(text.starts_with("outbox at ") && text.ends_with(" runs, restarts: 1, last loss: failed: no connection"), "{text}");
    registry.abort();
    fake.tasks.poll_all();
    assert!(registry.services().is_empty());
}

#[test]
fn services_are_listed_in_a_registry_without_inspection() {
    let fake = Fake::default();
    let registry = fake.registry();
    registry.named("outbox").service(each_second(), || async { failure().await });
    fake.tasks.poll_all();
    let services = registry.services();
    assert_eq!((services.len(), services[0].task.name(), services[0].task.id()), (1, Some("outbox"), None));
    assert_eq!(services[0].last_loss.as_deref(), Some("failed: no connection"), "the text needs no observer");
    assert!(registry.tasks().is_empty());
}

/// Calls `check` with a registry that has no limit, and with registries that have a limit. With one of them, the services hold no permit.
fn each_kind(check: impl Fn(&Fake, Registry<Fake>, bool)) {
    for without_permit in [false, true] {
        let fake = Fake::default();
        check(&fake, fake.builder().max_in_flight(10).build(), without_permit);
    }
    let fake = Fake::default();
    check(&fake, fake.registry(), false);
}

#[test]
fn wait_for_idleness_leaves_services_out() {
    each_kind(|fake, registry, without_permit| {
        let start = |registry: &Registry<Fake>| {
            let task = registry.named("service");
            if without_permit { task.without_permit() } else { task }.every(SECOND, pending::<()>);
        };
        start(&registry);
        fake.tasks.poll_all();
        assert!(poll_once(&mut registry.wait_idle()).is_ready());

        let (wake_count, waker) = counting_waker();
        let (first, second) = (registry.guard().unwrap(), registry.guard().unwrap());
        let mut idle = registry.wait_idle();
        assert!(poll(&mut idle, &waker).is_pending());
        start(&registry);
        drop(first);
        assert!(poll(&mut idle, &waker).is_pending(), "a task is in flight");
        let woken = wake_count.get();
        drop(second);
        assert!(wake_count.get() > woken && poll(&mut idle, &waker).is_ready());
        assert_eq!(registry.in_flight(), 2);
    });
}

#[test]
fn lost_critical_service_that_is_rejected_starts_the_shutdown() {
    let fake = Fake::default();
    let registry = fake.builder().max_in_flight(1).build();
    let _guard = registry.guard().unwrap();
    registry.named("outbox").critical().service(each_second(), failure);
    assert_eq!((registry.summary().rejected, registry.shutdown_cause().unwrap().name()), (1, Some("outbox")));
}

/// With a real timer, runs a service that restarts two times, and a periodic service that ticks three times. The periodic service stops
/// at the signal. The time limit expires only if one of them hangs.
fn services_run_on<S: Spawner + Timer<Sleep: Send> + Clone + Send + 'static>(
    spawner: S,
    block_on: impl Fn(std::pin::Pin<Box<dyn Future<Output = ()>>>),
) {
    block_on(Box::pin(async move {
        let registry = Registry::new(spawner);
        let millisecond = Duration::from_millis(1);
        let (event, events) = channel();
        let tick = event.clone();
        registry.every(millisecond, move || {
            tick.send("tick").unwrap_or(());
            async {}
        });
        registry.service(Restart::on_failure().backoff(millisecond, millisecond).at_most(2, HANG), move || {
            event.send("run").unwrap_or(());
            failure()
        });
        let mut seen = (0, 0);
        while seen.0 < 3 || seen.1 < 3 {
            match events.try_recv() {
                Ok("run") => seen.0 += 1,
                Ok(_) => seen.1 += 1,
                Err(_) => {
                    registry.spawner().sleep(millisecond).await;
                }
            }
        }
        let summary = registry.shutdown_within(HANG).await.unwrap();
        assert_eq!((summary.failed, summary.rejected), (3, 0), "{summary}");
        assert!(summary.completed >= 3, "{summary}");
    }));
}

#[test]
fn services_run_on_each_runtime() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    services_run_on(TokioSpawner, |main| runtime().block_on(main));
    let current_thread = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    services_run_on(TokioSpawner, |main| current_thread.block_on(main));
    let other_runtime = runtime();
    services_run_on(other_runtime.handle().clone(), block_on);
    services_run_on(SmolSpawner, block_on);
    services_run_on(AsyncStdSpawner, block_on);
    services_run_on(WithTimer(ThreadsSpawner::new(1).unwrap(), smol::Timer::after), block_on);
}
