//! Tests behaviours that the tests of similar crates also check. User code calls the registry during a wake-up, the start of a task, a
//! destructor or a report. Futures and guards outlive their registry.
use crate::common::{BoxFuture, HANG, Manual, Owns, counting_waker, inspected, poll, poll_once, waker_fn};
use background_tasks::{Guard, Loss, Observer, Registry, ShutdownGuard, Spawner, Summary, TaskInfo};
use std::future::{pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

/// An observer that records the name of each event.
#[derive(Default)]
struct EventLog(Mutex<Vec<String>>);

impl EventLog {
    fn push(&self, event: &str) {
        self.0.lock().unwrap().push(event.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Observer for EventLog {
    fn lost(&self, _: &TaskInfo, loss: &Loss<'_>) {
        self.push(loss.outcome());
    }

    fn shutdown_started(&self, in_flight: usize) {
        self.push(&format!("shutdown with {in_flight}"));
    }

    fn drained(&self, _: &Summary, _: Duration) {
        self.push("drained");
    }
}

/// A kind of future that waits for an event of the registry. The fields create the future and trigger the event.
struct WaiterKind {
    name: &'static str,
    wait: fn(&Registry<Manual>) -> BoxFuture,
    /// Triggers the event. The registry accepts only one task, and the guard is this task.
    trigger: fn(&Registry<Manual>, Guard),
}

const SIGNAL: WaiterKind = WaiterKind {
    name: "signal",
    wait: |registry| Box::pin(registry.signal()),
    trigger: |registry, guard| {
        drop(registry.shutdown());
        drop(guard);
    },
};

const DRAIN: WaiterKind = WaiterKind {
    name: "drain",
    wait: |registry| {
        let shutdown = registry.shutdown();
        Box::pin(async move { _ = shutdown.await })
    },
    trigger: |_, guard| drop(guard),
};

const IDLENESS: WaiterKind =
    WaiterKind { name: "idleness", wait: |registry| Box::pin(registry.wait_idle()), trigger: |_, guard| drop(guard) };

const PERMIT: WaiterKind = WaiterKind {
    name: "permit",
    wait: |registry| {
        let registry = registry.clone();
        Box::pin(async move { drop(registry.run_when_ready(pending::<()>()).await) })
    },
    trigger: |_, guard| drop(guard),
};

const KINDS: [WaiterKind; 4] = [SIGNAL, DRAIN, IDLENESS, PERMIT];

/// Returns a full registry that accepts one task, and the guard that takes its only permit.
fn full() -> (Registry<Manual>, Guard) {
    let registry = Registry::builder(Manual::default()).max_in_flight(1).build();
    let guard = registry.guard().unwrap();
    (registry, guard)
}

/// Polls a waiter one time. The waker of this poll passes the waiter to `act`.
fn poll_with_waker(mut waiter: BoxFuture, act: impl Fn(BoxFuture) + Send + Sync + 'static) {
    let parked = Arc::new(Mutex::new(None));
    let own = parked.clone();
    let waker = waker_fn(move || {
        let waiter = own.lock().unwrap().take();
        act(waiter.expect("the waiter is woken once"));
    });
    assert!(poll(&mut waiter, &waker).is_pending());
    *parked.lock().unwrap() = Some(waiter);
}

#[test]
fn waiter_polled_inside_its_own_waker_is_ready() {
    for kind in KINDS {
        let (registry, guard) = full();
        let (polled, polls) = channel();
        poll_with_waker((kind.wait)(&registry), move |mut waiter| polled.send(poll_once(&mut waiter).is_ready()).unwrap());
        let mut other = (kind.wait)(&registry);
        let (other_woken, waker) = counting_waker();
        assert!(poll(&mut other, &waker).is_pending());
        (kind.trigger)(&registry, guard);
        assert_eq!(polls.try_iter().collect::<Vec<_>>(), [true], "{}", kind.name);
        // If the kind is `PERMIT`, the first waiter has taken the only permit.
        assert_eq!(other_woken.get(), usize::from(kind.name != PERMIT.name), "{}", kind.name);
    }
}

#[test]
fn waiter_dropped_inside_its_own_waker_leaves_the_next_waiter_woken() {
    for kind in KINDS {
        let (registry, guard) = full();
        let (dropped, drops) = channel();
        poll_with_waker((kind.wait)(&registry), move |waiter| {
            drop(waiter);
            dropped.send(()).unwrap();
        });
        let mut other = (kind.wait)(&registry);
        let (other_woken, waker) = counting_waker();
        assert!(poll(&mut other, &waker).is_pending());
        (kind.trigger)(&registry, guard);
        assert_eq!((drops.try_iter().count(), other_woken.get()), (1, 1), "{}", kind.name);
        assert!(poll_once(&mut other).is_ready(), "{}", kind.name);
    }
}

#[test]
fn shutdown_started_inside_a_waker_drains_once() {
    for (kind, in_flight) in KINDS.into_iter().zip([1, 1, 0, 0]) {
        let log = Arc::new(EventLog::default());
        let registry = Registry::builder(Manual::default()).max_in_flight(1).observer(log.clone()).build();
        let guard = registry.guard().unwrap();
        let handle = registry.clone();
        poll_with_waker((kind.wait)(&registry), move |_| drop(handle.shutdown()));
        (kind.trigger)(&registry, guard);
        assert_eq!(log.take(), [format!("shutdown with {in_flight}"), "drained".into()], "{}", kind.name);
        assert!(registry.is_drained() && poll_once(&mut registry.shutdown()).is_ready(), "{}", kind.name);
    }
}

/// Checks invariant S3 for a child. The end of its drain returns its state to a pool.
#[test]
fn shutdown_of_a_child_started_inside_a_waker_drains_once() {
    let root = Registry::new(Manual::default());
    for kind in KINDS {
        let child = root.child_with_limit(1);
        let guard = child.guard().unwrap();
        let handle = child.clone();
        poll_with_waker((kind.wait)(&child), move |_| drop(handle.shutdown()));
        (kind.trigger)(&child, guard);
        assert!(child.is_drained() && root.in_flight() == 0, "{}", kind.name);
        drop(child);
        // If the state was returned two times, it serves both of these children.
        let (first, second) = (root.child(), root.child());
        let _guard = first.guard().unwrap();
        assert_eq!((first.in_flight(), second.in_flight()), (1, 0), "{}", kind.name);
    }
}

/// Checks invariant S8: the waker of a signal runs after the shutdown has started, and before the observers receive the start.
#[test]
fn work_that_ends_inside_a_signal_waker_drains_after_the_start_is_reported() {
    let log = Arc::new(EventLog::default());
    let registry = Registry::builder(()).observer(log.clone()).build();
    let (handle, guard) = (registry.clone(), Mutex::new(registry.guard().ok()));
    let (seen, was_drained) = channel();
    let waker = waker_fn(move || {
        drop(guard.lock().unwrap().take());
        seen.send((handle.in_flight(), handle.is_drained())).unwrap();
    });
    let mut signal = registry.signal();
    assert!(poll(&mut signal, &waker).is_pending());
    drop(registry.shutdown());
    assert_eq!(was_drained.try_recv(), Ok((0, false)));
    assert_eq!(log.take(), ["shutdown with 1", "drained"]);
    assert!(registry.is_drained());
}

/// Checks invariant S6 of `docs/invariants.md`.
#[test]
fn panic_in_a_waker_stops_no_other_wake_up() {
    let panicking = waker_fn(|| panic!("intentional panic in a waker"));
    for kind in KINDS {
        let (registry, guard) = full();
        let mut first = (kind.wait)(&registry);
        assert!(poll(&mut first, &panicking).is_pending());
        let mut second = (kind.wait)(&registry);
        let (woken, waker) = counting_waker();
        assert!(poll(&mut second, &waker).is_pending());
        (kind.trigger)(&registry, guard);
        drop(first); // The first waiter passes its permit to the next waiter.
        assert_eq!(woken.get(), 1, "{}", kind.name);
    }

    let (registry, _guard) = full();
    let mut waiters: Vec<_> = (0..2).map(|_| (PERMIT.wait)(&registry)).collect();
    let (woken, waker) = counting_waker();
    assert!(poll(&mut waiters[0], &panicking).is_pending() && poll(&mut waiters[1], &waker).is_pending());
    drop(registry.shutdown());
    assert_eq!(woken.get(), 1, "a waiter that the shutdown rejects");

    let (spawner, registry) = inspected();
    (0..2).for_each(|_| registry.run(pending::<()>()));
    let (mut first, mut second) = (spawner.take(), spawner.take());
    let (woken, waker) = counting_waker();
    assert!(poll(&mut first, &panicking).is_pending() && poll(&mut second, &waker).is_pending());
    assert_eq!((registry.abort().aborted, woken.get()), (2, 1), "an aborted task");
}

/// A waker whose destructor polls and drops one waiter of each kind.
struct WaitOnDrop(Registry<Manual>, Sender<()>);

impl Wake for WaitOnDrop {
    fn wake(self: Arc<Self>) {}
}

impl Drop for WaitOnDrop {
    fn drop(&mut self) {
        for kind in [SIGNAL, IDLENESS, PERMIT] {
            let _ = poll_once(&mut (kind.wait)(&self.0));
        }
        self.1.send(()).unwrap();
    }
}

/// Checks invariant S7: the destructor would hang if the registry dropped a waker while it holds the lock of a wait list, of the wait
/// queue or of the event.
#[test]
fn waker_destructor_of_a_waiter_may_call_the_registry() {
    for kind in KINDS {
        let (registry, _guard) = full();
        let (dropped, drops) = channel();
        let waker = || Waker::from(Arc::new(WaitOnDrop(registry.clone(), dropped.clone())));
        let mut waiter = (kind.wait)(&registry);
        for poll_number in 0..3 {
            assert!(poll(&mut waiter, &waker()).is_pending());
            assert_eq!(drops.try_iter().count(), usize::from(poll_number != 0), "{}", kind.name);
        }
        drop(waiter);
        assert_eq!(drops.try_iter().count(), 1, "{}", kind.name);
    }
}

/// In the first round, the shutdown starts before the signal is polled for the first time. In the other rounds, the signal has already
/// been polled.
#[test]
fn future_that_starts_the_shutdown_itself_is_ended_in_the_same_poll() {
    for polls_before in 0..3 {
        let registry = Registry::new(());
        let _in_flight = registry.guard();
        let (handle, mut polls) = (registry.clone(), 0);
        let mut run = registry.signal().run_until_shutdown(poll_fn(move |_| {
            if polls == polls_before {
                drop(handle.shutdown());
            }
            polls += 1;
            Poll::<()>::Pending
        }));
        for _ in 0..polls_before {
            assert!(poll_once(&mut run).is_pending());
        }
        assert_eq!(poll_once(&mut run), Poll::Ready(None));
    }
}

/// A spawner that starts the shutdown before it queues a task.
#[derive(Clone, Default)]
struct StoppingSpawner {
    stop: Arc<Mutex<Option<ShutdownGuard>>>,
    queue: Manual,
}

impl Spawner for StoppingSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        drop(self.stop.lock().unwrap().take());
        self.queue.spawn(task);
    }
}

#[test]
fn shutdown_started_inside_a_spawner_waits_for_the_task() {
    let (spawner, log) = (StoppingSpawner::default(), Arc::new(EventLog::default()));
    let registry = Registry::builder(spawner.clone()).observer(log.clone()).build();
    *spawner.stop.lock().unwrap() = Some(registry.shutdown_on_drop());
    let signal = registry.signal();
    registry.run(signal);
    assert_eq!((registry.is_shutting_down(), registry.in_flight(), registry.is_drained()), (true, 1, false));
    spawner.queue.poll_all();
    assert_eq!((log.take(), registry.summary().completed), (vec!["shutdown with 1".into(), "drained".into()], 1));
}

/// Checks invariant S8: the destructor of the task's future starts the shutdown, so observers receive the start of the shutdown before
/// the loss of the task.
#[test]
fn task_that_owns_a_shutdown_guard_or_the_last_handle_starts_the_shutdown_however_it_ends() {
    let ends = [None, Some("failed"), Some("panicked"), Some("abandoned"), Some("aborted")];
    for (end, owns_handle) in ends.into_iter().flat_map(|end| [(end, true), (end, false)]) {
        let (spawner, log) = (Manual::default(), Arc::new(EventLog::default()));
        let registry = Registry::builder(spawner.clone()).inspect().observer(log.clone()).build();
        let owned: Box<dyn Send> = if owns_handle { Box::new(registry.clone()) } else { Box::new(registry.shutdown_on_drop()) };
        let future = async move {
            match end {
                Some("failed") => Err("intentional failure"),
                Some("panicked") => panic!("intentional panic"),
                Some(_) => pending().await,
                None => Ok(()),
            }
        };
        registry.run(Owns(owned, Box::pin(future)));
        let mut task = spawner.take();
        if matches!(end, Some("abandoned" | "aborted")) {
            assert!(poll_once(&mut task).is_pending());
        }
        if end == Some("aborted") {
            registry.abort();
        }
        let _other_handle = (!owns_handle).then_some(registry);
        assert_eq!(log.take(), [""; 0], "the task keeps the registry open");
        if end != Some("abandoned") {
            assert!(poll_once(&mut task).is_ready());
        }
        drop(task);
        let loss = end.map(String::from);
        let expected: Vec<_> = ["shutdown with 1".into()].into_iter().chain(loss).chain(["drained".into()]).collect();
        assert_eq!(log.take(), expected, "owns_handle: {owns_handle}");
    }
}

#[test]
fn aborted_task_stops_and_drains_the_registry_that_it_owns() {
    let (outer_spawner, outer) = inspected();
    let (spawner, log) = (Manual::default(), Arc::new(EventLog::default()));
    let inner = Registry::builder(spawner.clone()).observer(log.clone()).build();
    let signal = inner.signal();
    inner.run(signal);
    spawner.poll_all();
    outer.run(async move {
        inner.wait_idle().await;
        unreachable!("the inner task waits for the shutdown of its registry");
    });
    outer_spawner.poll_all();
    outer.abort();
    outer_spawner.poll_all();
    assert_eq!((outer.summary().aborted, log.take()), (1, vec!["shutdown with 1".into()]));
    spawner.poll_all();
    assert_eq!(log.take(), ["drained"]);
}

/// An observer that drops a handle of its registry when it receives an event.
struct DropsHandle {
    on: &'static str,
    handle: Mutex<Option<Registry<Manual>>>,
    log: EventLog,
}

impl DropsHandle {
    fn receive(&self, event: &str) {
        self.log.push(event);
        if event == self.on {
            let handle = self.handle.lock().unwrap().take();
            drop(handle);
        }
    }
}

impl Observer for DropsHandle {
    fn lost(&self, _: &TaskInfo, loss: &Loss<'_>) {
        self.receive(loss.outcome());
    }

    fn shutdown_started(&self, _: usize) {
        self.receive("started");
    }

    fn drained(&self, _: &Summary, _: Duration) {
        self.receive("drained");
    }
}

#[test]
fn observer_may_drop_the_last_handle_in_each_event() {
    for on in ["failed", "started", "drained"] {
        let spawner = Manual::default();
        let observer = Arc::new(DropsHandle { on, handle: Mutex::default(), log: EventLog::default() });
        let registry = Registry::builder(spawner.clone()).observer(observer.clone()).shutdown_on_failure().build();
        registry.run(ready(Err::<(), _>("intentional failure")));
        *observer.handle.lock().unwrap() = Some(registry);
        spawner.poll_all();
        assert_eq!(observer.log.take(), ["failed", "started", "drained"], "{on}");
        assert_eq!(Arc::strong_count(&observer), 1, "{on}: the registry must drop its observers");
    }
}

#[test]
fn waiters_that_outlive_their_registry_do_not_reach_the_next_registry() {
    let registry = Registry::new(());
    let (stop, mut idle) = (registry.shutdown_on_drop(), registry.wait_idle());
    drop(registry);
    // The pool may also contain states of other tests. Of 32 new registries, at least one would reuse the state from above.
    let registries: Vec<_> = (0..32).map(|_| Registry::new(())).collect();
    let _guards: Vec<_> = registries.iter().map(Registry::guard).collect();
    assert!(poll_once(&mut idle).is_ready());
    drop((stop, idle));
    assert!(!registries.iter().any(Registry::is_shutting_down));
}

#[test]
fn panic_that_drops_a_shutdown_guard_wakes_every_signal() {
    let registry = Registry::new(());
    let panicking = waker_fn(|| panic!("intentional panic in a waker"));
    let (woken, waker) = counting_waker();
    let (mut first, mut second) = (registry.signal(), registry.signal());
    assert!(poll(&mut first, &panicking).is_pending() && poll(&mut second, &waker).is_pending());
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _stop = registry.shutdown_on_drop();
        panic!("intentional panic in main");
    }));
    assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"intentional panic in main"));
    assert_eq!((woken.get(), registry.is_drained()), (1, true));
}

/// The registry does not store that it was idle, so each poll checks the current number of tasks in flight.
#[test]
fn wait_idle_that_is_polled_after_new_work_started_waits_for_that_work() {
    let registry = Registry::new(());
    let guard = registry.guard().unwrap();
    let mut idle = registry.wait_idle();
    let (woken, waker) = counting_waker();
    assert!(poll(&mut idle, &waker).is_pending());
    drop(guard);
    assert_eq!(woken.get(), 1);
    let next = registry.guard().unwrap();
    assert!(poll(&mut idle, &waker).is_pending());
    drop(next);
    assert_eq!(woken.get(), 2);
    assert!(poll(&mut idle, &waker).is_ready());
    let _last = registry.guard().unwrap();
    assert!(poll(&mut idle, &waker).is_pending());
}

#[test]
fn waiter_added_inside_a_waker_waits_for_the_next_idle_moment() {
    let registry = Registry::new(());
    let guard = registry.guard().unwrap();
    let (added, waiters) = channel();
    let handle = registry.clone();
    let (next_woken, next_waker) = counting_waker();
    let waker = waker_fn(move || {
        let guard = handle.guard().unwrap();
        let mut next = handle.wait_idle();
        assert!(poll(&mut next, &next_waker).is_pending());
        added.send((guard, next)).unwrap();
    });
    let mut idle = registry.wait_idle();
    assert!(poll(&mut idle, &waker).is_pending());
    drop(guard);
    let (guard, mut next) = waiters.try_recv().expect("the waker adds a waiter");
    assert_eq!(next_woken.get(), 0);
    drop(guard);
    assert_eq!(next_woken.get(), 1);
    assert!(poll_once(&mut next).is_ready());
}

/// Checks the invariants L2 and S3. Each guard is created on another thread, so the guards are in different shards if the registry has
/// more than one shard.
#[test]
fn waiters_stay_pending_until_the_last_departure_wherever_the_shutdown_starts() {
    const GUARDS: usize = 5;
    for start in 0..=GUARDS {
        let registry = Registry::new(());
        let on_new_thread = |_| thread::scope(|scope| scope.spawn(|| registry.guard().unwrap()).join().unwrap());
        let guards: Vec<_> = (0..GUARDS).map(on_new_thread).collect();
        let ((idle_woken, idle_waker), (drain_woken, drain_waker)) = (counting_waker(), counting_waker());
        let (mut idle, mut drain) = (registry.wait_idle(), None);
        for (n, guard) in guards.into_iter().enumerate() {
            if n == start {
                drain = Some(registry.shutdown());
            }
            assert!(poll(&mut idle, &idle_waker).is_pending());
            assert!(drain.as_mut().is_none_or(|drain| poll(drain, &drain_waker).is_pending()));
            let before = (idle_woken.get(), drain_woken.get());
            drop(guard);
            if n == GUARDS - 1 {
                assert_eq!((idle_woken.get() - before.0, drain.is_none() || drain_woken.get() > before.1), (1, true), "{start}");
            }
        }
        assert!(poll_once(&mut idle).is_ready());
        let mut drain = drain.unwrap_or_else(|| registry.shutdown());
        for _ in 0..2 {
            assert!(matches!(poll_once(&mut drain), Poll::Ready(summary) if summary.completed == GUARDS as u64));
        }
    }
}

#[test]
fn dropped_or_abort_aborts_nothing() {
    let (spawner, registry) = inspected();
    registry.run(async {});
    let mut wait = Box::pin(registry.shutdown().or_abort(pending::<()>(), pending::<()>));
    assert!(poll_once(&mut wait).is_pending());
    drop(wait);
    assert!(!registry.tasks()[0].abort_requested());
    spawner.poll_all();
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 1);
}

struct PanickingSpawner;

impl Spawner for PanickingSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, _task: F) {
        panic!("intentional panic in a spawner");
    }
}

/// Checks the invariants S10 and L4 of `docs/invariants.md`.
#[test]
fn spawner_panic_passes_the_permit_to_the_next_waiter() {
    let registry = Registry::builder(PanickingSpawner).max_in_flight(1).build();
    let guard = registry.guard().unwrap();
    let (mut first, mut second) = (registry.run_when_ready(async {}), registry.run_when_ready(async {}));
    let (woken, waker) = counting_waker();
    assert!(poll_once(&mut first).is_pending() && poll(&mut second, &waker).is_pending());
    drop(guard);
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(&mut first).is_ready())).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"intentional panic in a spawner"));
    assert_eq!((registry.in_flight(), registry.summary().abandoned, woken.get()), (0, 1, 1));
    drop((first, second));
    assert!(registry.guard().is_ok());
}

#[test]
#[cfg(feature = "tokio")]
fn local_task_or_closure_that_tokio_cannot_start_is_abandoned() {
    let registry = Registry::new(background_tasks::TokioSpawner);
    let panics = |start: &dyn Fn()| catch_unwind(AssertUnwindSafe(start)).is_err();
    assert!(panics(&|| registry.run_local(async {})), "outside a runtime");
    assert!(panics(&|| registry.run_blocking(|| {})), "outside a runtime");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _entered = runtime.enter();
    assert!(panics(&|| registry.run_local(async {})), "in a runtime, but outside a `LocalSet`");
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().abandoned, 3);
}

#[test]
#[cfg(feature = "tokio")]
fn tokio_spawner_runs_local_tasks_on_a_local_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().build_local(tokio::runtime::LocalOptions::default()).unwrap();
    let registry = Registry::new(background_tasks::TokioSpawner);
    let shared = std::rc::Rc::new(std::cell::Cell::new(0));
    runtime.block_on(async {
        for _ in 0..3 {
            let shared = shared.clone();
            registry.run_local(async move {
                tokio::task::yield_now().await;
                shared.set(shared.get() + 1);
            });
        }
        registry.wait_idle().await;
        registry.run_local(pending::<()>());
    });
    drop(runtime);
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    assert_eq!((shared.get(), summary.completed, summary.abandoned), (3, 3, 1));
}
