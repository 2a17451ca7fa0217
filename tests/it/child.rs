//! Tests child registries: their own drain, and how the parent shuts down, drains, counts and lists them.

use crate::common::{Counts, Fake, HANG, Manual, counting_waker, counts, inspected, poll, poll_once, waker_fn};
use background_tasks::{AbortError, Loss, Observer, Registry, RegistryBuilder, RejectReason, Restart, Spawner, TaskInfo, TaskKind};
use futures_lite::future::block_on;
use std::future::{pending, ready};
use std::sync::{Arc, Mutex};
use std::task::Poll;

/// An observer that stores the name of each lost task, and all other events.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<String>>>);

impl Observer for Events {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        let (name, kind) = (task.name().unwrap_or("-"), loss.outcome());
        self.0.lock().unwrap().push(format!("{name} {kind}"));
    }

    fn shutdown_started(&self, in_flight: usize) {
        self.0.lock().unwrap().push(format!("started with {in_flight}"));
    }

    fn drained(&self, _: &background_tasks::Summary, _: std::time::Duration) {
        self.0.lock().unwrap().push("drained".into());
    }
}

impl Events {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn child_drains_alone_and_counts_in_its_parent<S: Spawner + Clone>(registry: &Registry<S>) {
    let child = registry.named("tenant").child();
    child.run(async {});
    child.run(async { Err::<(), _>("intentional failure") });
    assert_eq!(counts(child.shutdown().wait()), [1, 1, 0, 0, 0, 0]);
    assert!(!registry.is_shutting_down());
    drop(child);
    registry.run(async {});
    assert_eq!(counts(registry.shutdown().wait()), [2, 1, 0, 0, 0, 0]);
}

fn shutdown_of_a_parent_signals_its_descendants_and_waits_for_them<S: Spawner + Clone>(registry: &Registry<S>) {
    let child = registry.child();
    let grandchild = child.child();
    let (signal, guard) = (grandchild.signal(), child.guard().unwrap());
    grandchild.run(signal.clone());
    let mut shutdown = registry.shutdown();
    assert!(signal.is_triggered());
    assert!(poll_once(&mut shutdown).is_pending());
    drop(guard);
    assert_eq!(counts(shutdown.wait()), [2, 0, 0, 0, 0, 0]);
    assert!(child.is_drained() && grandchild.is_drained());
}

fn dropped_children_fold_into_the_root<S: Spawner + Clone>(registry: &Registry<S>) {
    for _ in 0..20 {
        let child = registry.child();
        let grandchild = child.child();
        (0..3).for_each(|_| child.run(async {}));
        grandchild.run(async {});
    }
    block_on(registry.wait_idle());
    assert_eq!(counts(registry.summary()), [80, 0, 0, 0, 0, 0]);
    assert_eq!(counts(registry.shutdown().wait()), [80, 0, 0, 0, 0, 0]);
}

on_every_runtime!(
    child_drains_alone_and_counts_in_its_parent,
    shutdown_of_a_parent_signals_its_descendants_and_waits_for_them,
    dropped_children_fold_into_the_root,
);

#[test]
fn open_child_is_one_piece_of_work_in_its_parent() {
    let (_, registry) = inspected();
    let child = registry.named("tenant").child();
    let _guards = [child.guard().unwrap(), child.guard().unwrap()];
    assert_eq!((registry.in_flight(), child.in_flight()), (1, 2));
    let tasks = registry.tasks();
    let piece = tasks.iter().find(|task| task.kind() == Some(TaskKind::Child)).unwrap();
    assert_eq!((piece.name(), piece.location().file(), piece.is_abortable()), (Some("tenant"), file!(), false));
    assert_eq!(registry.abort_task(piece.id().unwrap()), Err(AbortError::NotAbortable));
    assert_eq!(tasks.len(), 3, "the list includes the tasks of the child");
    assert!(poll_once(&mut registry.wait_idle()).is_pending());
}

#[test]
fn listed_tasks_have_the_id_of_their_child() {
    let (_, registry) = inspected();
    let tenant = registry.named("tenant").child();
    let connection = tenant.named("connection").child();
    let guards = [("own", &registry), ("import", &tenant), ("read", &connection)];
    let _guards = guards.map(|(name, registry)| registry.named(name).guard().unwrap());
    let tasks = registry.tasks();
    let find = |name| tasks.iter().find(|task| task.name() == Some(name)).unwrap();
    let parent = |name| find(name).parent().map(|id| tasks.iter().find(|task| task.id() == Some(id)).unwrap().name().unwrap());
    let parents = ["own", "tenant", "import", "connection", "read"].map(parent);
    assert_eq!(parents, [None, None, Some("tenant"), Some("tenant"), Some("connection")]);
    let mut shutdown = registry.shutdown();
    assert!(poll_once(&mut shutdown).is_pending());
    let stragglers = shutdown.wait_timeout(std::time::Duration::ZERO).unwrap_err();
    assert!(stragglers.tasks().iter().any(|task| task.name() == Some("read") && task.parent() == find("connection").id()));
}

#[test]
fn listed_services_have_the_id_of_their_child() {
    let fake = Fake::default();
    let registry = fake.builder().inspect().build();
    let tenant = registry.named("tenant").child();
    for (name, registry) in [("own", &registry), ("outbox", &tenant)] {
        registry.named(name).service(Restart::on_failure(), pending::<()>);
    }
    let id = registry.tasks().into_iter().find(|task| task.name() == Some("tenant")).unwrap().id();
    let services: Vec<_> = registry.services().iter().map(|service| (service.task.name(), service.task.parent())).collect();
    assert_eq!(services, [(Some("own"), None), (Some("outbox"), id)]);
}

#[test]
fn forgotten_map_of_children_does_not_delay_the_drain() {
    let registry = Registry::new(());
    let tenants: Vec<_> = (0..100).map(|_| registry.child()).collect();
    let mut shutdown = registry.shutdown();
    assert!(poll_once(&mut shutdown).is_ready());
    assert!(tenants.iter().all(Registry::is_drained));
}

#[test]
fn child_made_while_its_parent_drains_is_open() {
    let registry = Registry::new(());
    let guard = registry.guard().unwrap();
    let mut shutdown = registry.shutdown();
    let (child, other) = (registry.child(), registry.child());
    let signal = child.signal();
    assert!(signal.is_triggered() && child.is_shutting_down() && !child.is_drained());
    drop(child.guard().unwrap());
    registry.start_shutdown();
    drop(child.guard().expect("a second start of the shutdown does not close the child"));
    drop(guard);
    drop(other.child().guard().expect("a child of such a child is open too"));
    assert!(poll_once(&mut other.shutdown()).is_ready(), "its own shutdown closes it");
    assert!(poll_once(&mut shutdown).is_pending());
    drop(child);
    assert_eq!(counts(shutdown.wait_timeout(HANG).unwrap()), [4, 0, 0, 0, 0, 0]);
}

#[test]
fn critical_loss_closes_a_child_that_was_made_while_its_parent_drains() {
    for configure in [|builder: RegistryBuilder<Manual>| builder, RegistryBuilder::shutdown_on_failure] {
        let spawner = Manual::default();
        let registry = configure(Registry::builder(spawner.clone())).build();
        let guard = registry.guard().unwrap();
        let shutdown = registry.shutdown();
        let child = registry.child();
        child.critical().run(ready(Err::<(), _>("intentional failure")));
        spawner.poll_all();
        assert!(child.is_drained());
        drop(guard);
        assert_eq!(counts(shutdown.wait_timeout(HANG).unwrap()), [1, 1, 0, 0, 0, 0]);
    }
}

#[test]
fn child_of_a_drained_registry_is_drained() {
    let events = Events::default();
    let registry = Registry::builder(()).observer(events.clone()).build();
    assert_eq!(counts(registry.shutdown().wait()), Counts::default());
    let child = registry.named("late").child();
    assert!(child.is_drained() && child.signal().is_triggered());
    assert_eq!(child.named("work").guard().unwrap_err().reason(), RejectReason::Drained);
    assert_eq!(events.take(), ["started with 0", "drained", "late rejected", "work rejected"]);
    assert_eq!(counts(registry.summary()), [0, 0, 0, 0, 0, 2]);
}

#[test]
fn abort_of_one_child_leaves_the_others() {
    let (queue, registry) = inspected();
    let (first, second) = (registry.named("first").child(), registry.named("second").child());
    for registry in [&first, &second, &second.child(), &registry] {
        registry.run(pending::<()>());
    }
    assert_eq!(first.abort().aborted, 1);
    queue.poll_all();
    assert_eq!(counts(first.shutdown().wait()), [0, 0, 0, 0, 1, 0]);
    let report = registry.abort();
    assert_eq!((report.aborted, report.not_abortable), (3, 0), "the children themselves are not counted");
    queue.poll_all();
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 0, 0, 4, 0]);
}

#[test]
fn abort_without_inspection_counts_no_children() {
    let registry = Registry::new(());
    let child = registry.child();
    let _guards = (registry.guard().unwrap(), child.guard().unwrap(), child.child().guard().unwrap());
    assert_eq!(registry.abort().not_abortable, 3);
}

#[test]
fn abort_task_reaches_a_grandchild() {
    let (queue, registry) = inspected();
    let child = registry.child();
    let grandchild = child.child();
    grandchild.named("deep").run(pending::<()>());
    let id = registry.tasks().iter().find(|task| task.name() == Some("deep")).unwrap().id().unwrap();
    assert_eq!(registry.abort_task(id), Ok(()));
    queue.poll_all();
    assert_eq!(counts(grandchild.summary()), [0, 0, 0, 0, 1, 0]);
}

#[test]
fn or_abort_reaches_tasks_that_start_in_children_later() {
    let (queue, registry) = inspected();
    let guard = registry.guard().unwrap();
    let child = registry.child();
    let held = child.guard().unwrap();
    let mut waiting = Box::pin(registry.shutdown().or_abort(async {}, pending::<()>));
    assert!(poll_once(&mut waiting).is_pending());
    let late = registry.child();
    child.run(pending::<()>());
    late.child().run(pending::<()>());
    queue.poll_all();
    drop((guard, held, late));
    assert_eq!(counts(block_on(waiting).unwrap()), [2, 0, 0, 0, 2, 0]);
}

#[test]
fn stragglers_list_the_tasks_of_children() {
    let (_queue, registry) = inspected();
    let child = registry.named("tenant").child();
    child.named("slow").run(pending::<()>());
    let stragglers = registry.shutdown().wait_timeout(std::time::Duration::ZERO).unwrap_err();
    let mut names: Vec<_> = stragglers.tasks().iter().filter_map(TaskInfo::name).collect();
    names.sort_unstable();
    assert_eq!(names, ["slow", "tenant"]);
}

#[test]
fn observers_of_the_root_hear_of_losses_in_the_subtree() {
    let events = Events::default();
    let registry = Registry::builder(()).observer(events.clone()).build();
    let child = registry.child();
    let grandchild = child.child();
    drop(grandchild.named("export").track(pending::<()>()).unwrap());
    assert_eq!(counts(grandchild.shutdown().wait()), [0, 0, 0, 1, 0, 0]);
    drop(grandchild.named("late").guard());
    assert_eq!(counts(grandchild.summary()), [0, 0, 0, 1, 0, 1]);
    assert_eq!(events.take(), ["export abandoned", "late rejected"], "start and drain of children are not reported");
    drop((child, grandchild));
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 0, 1, 0, 1]);
    assert_eq!(events.take(), ["started with 0", "drained"]);
}

#[test]
fn child_keeps_the_observers_of_its_root_after_the_drain() {
    let events = Events::default();
    let registry = Registry::builder(()).observer(events.clone()).build();
    let child = registry.child();
    drop(registry);
    assert!(child.is_drained());
    drop(Registry::new(()));
    assert!(child.named("late").guard().is_err());
    assert_eq!(events.take(), ["started with 1", "drained", "late rejected"]);
    drop(child);
    assert_eq!(Arc::strong_count(&events.0), 1, "the state of the root has returned to the pool");
}

#[test]
fn critical_task_of_a_child_shuts_the_child_down() {
    let registry = Registry::new(Manual::default());
    let child = registry.child();
    child.named("leader").critical().run(async { Err::<(), _>("intentional failure") });
    child.spawner().poll_all();
    assert!(child.is_shutting_down() && !registry.is_shutting_down());
    assert_eq!(child.shutdown_cause().unwrap().name(), Some("leader"));
    assert!(registry.shutdown_cause().is_none());
}

#[test]
fn each_loss_of_a_critical_task_shuts_the_child_down() {
    let registry = Registry::builder(Manual::default()).max_in_flight(1).build();
    let losses: [fn(&Registry<Manual>); 3] = [
        |child| child.named("leader").critical().spawn(pending::<()>()).abort(),
        |child| drop(child.named("leader").critical().track(pending::<()>())),
        |child| {
            let _guard = child.guard().unwrap();
            child.named("leader").critical().run(async {});
        },
    ];
    for lose in losses {
        let child = registry.child();
        lose(&child);
        registry.spawner().poll_all();
        assert_eq!(child.shutdown_cause().unwrap().name(), Some("leader"));
        assert!(!registry.is_shutting_down());
    }
    assert_eq!(counts(registry.summary()), [1, 0, 0, 1, 1, 1]);
}

/// Checks invariant S7: the end of a task with a handle releases a permit and wakes a waiter. The waker of this waiter may use the
/// handle.
#[test]
fn end_of_a_task_with_a_handle_releases_the_permit_of_an_ancestor() {
    let registry = limited(Manual::default());
    let child = registry.child();
    let handles = [child.spawn(async { 1 }), child.spawn(async { 2 })].map(|handle| Arc::new(Mutex::new(handle)));
    let mut waiting = registry.run_when_ready(async {});
    let first = handles[0].clone();
    let waker = waker_fn(move || assert!(first.lock().unwrap().is_finished()));
    assert!(poll(&mut waiting, &waker).is_pending());
    registry.spawner().poll_all();
    assert_eq!(poll_once(&mut *handles[1].lock().unwrap()).map(Result::unwrap), Poll::Ready(2));
    assert!(poll_once(&mut waiting).is_ready(), "a caller that has the output finds the permit free");
    registry.spawner().poll_all();
    drop(child);
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [3, 0, 0, 0, 0, 0]);
}

#[test]
fn services_of_children_are_listed_and_end_with_their_child() {
    let second = std::time::Duration::from_secs(1);
    let fake = Fake::default();
    let registry = fake.builder().max_in_flight(2).build();
    let child = registry.named("tenant").child();
    registry.named("sweep").every(second, || async {});
    let restart = Restart::on_failure().backoff(second, second).unlimited();
    child.named("outbox").critical().service(restart, || async { Err::<(), _>("no connection") });
    fake.tasks.poll_all();
    fake.advance(second);
    let services = registry.services();
    let listed: Vec<_> = services.iter().map(|service| (service.task.name().unwrap(), service.restarts)).collect();
    assert_eq!(listed, [("sweep", 1), ("outbox", 1)]);
    assert_eq!(child.services().len(), 1);
    assert_eq!(registry.guard().unwrap_err().reason(), RejectReason::Full, "each service holds a permit");
    assert!(poll_once(&mut child.wait_idle()).is_ready());
    assert!(poll_once(&mut registry.wait_idle()).is_pending(), "an open child counts as a task");

    let drained = child.shutdown();
    fake.tasks.poll_all();
    let summary = drained.wait_timeout(HANG).unwrap();
    assert_eq!((summary.failed, summary.completed), (2, 1), "the service ended while it waited");
    assert!(!registry.is_shutting_down() && registry.guard().is_ok());
    assert!(poll_once(&mut registry.wait_idle()).is_ready());
}

#[test]
fn shutdown_on_failure_concerns_the_root() {
    let registry = Registry::builder(Manual::default()).shutdown_on_failure().build();
    let middle = registry.child();
    let child = middle.child();
    let line = line!() + 1;
    child.run(async { Err::<(), _>("intentional failure") });
    child.spawner().poll_all();
    assert!(child.is_shutting_down() && registry.is_shutting_down());
    assert_eq!(registry.shutdown_cause().unwrap().location().line(), line);
}

/// The shutdown and the drain of nested registries use a loop instead of recursion, so deep nesting does not need more stack.
#[test]
fn deep_chain_drains_without_recursion() {
    let registry = Registry::new(());
    let mut chain = vec![registry.clone()];
    for _ in 0..if cfg!(miri) { 100 } else { 20_000 } {
        chain.push(chain.last().unwrap().child());
    }
    let guard = chain.last().unwrap().guard().unwrap();
    let mut shutdown = registry.shutdown();
    assert!(chain.last().unwrap().is_shutting_down());
    assert!(poll_once(&mut shutdown).is_pending());
    drop(guard);
    assert_eq!(counts(shutdown.wait_timeout(HANG).unwrap()), [1, 0, 0, 0, 0, 0]);
    assert!(chain.iter().all(Registry::is_drained));
}

/// Returns a registry that allows at most two tasks in flight. The limit also counts the tasks of all descendants.
fn limited<S>(spawner: S) -> Registry<S> {
    Registry::builder(spawner).max_in_flight(2).build()
}

#[test]
fn tasks_of_descendants_take_permits_of_the_root() {
    let registry = limited(());
    let child = registry.child();
    let grandchild = child.child();
    let first = child.guard().unwrap();
    let second = grandchild.guard().unwrap();
    for full in [&registry, &child, &grandchild] {
        assert_eq!(full.guard().unwrap_err().reason(), RejectReason::Full);
        drop(full.without_permit().guard().expect("work without a permit is not limited"));
    }
    assert_eq!((registry.in_flight(), child.in_flight(), grandchild.in_flight()), (1, 2, 1));
    drop(first);
    drop(registry.guard().expect("the child's task has released its permit"));
    drop(second);
    drop((child, grandchild));
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    assert_eq!(counts(summary), [6, 0, 0, 0, 0, 3]);
}

#[test]
fn child_with_its_own_limit_takes_no_permits_of_its_parent() {
    let registry = limited(());
    let child = registry.child_with_limit(1);
    let grandchild = child.child();
    let guard = grandchild.guard().unwrap();
    assert_eq!(child.guard().unwrap_err().reason(), RejectReason::Full);
    let guards = [registry.guard().unwrap(), registry.guard().unwrap()];
    assert_eq!(registry.guard().unwrap_err().reason(), RejectReason::Full);
    drop(guard);
    drop(child.guard().unwrap());
    drop((guards, child, grandchild));
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [4, 0, 0, 0, 0, 2]);
}

#[test]
#[should_panic = "child_with_limit(0) would reject every task"]
fn child_with_limit_zero_panics() {
    drop(Registry::new(()).child_with_limit(0));
}

/// Checks invariant S10: the waiters of a registry and of its children wait in the same queue.
#[test]
fn waiters_of_relatives_take_turns() {
    let registry = limited(Manual::default());
    let child = registry.child();
    let guards = [registry.guard().unwrap(), child.guard().unwrap()];
    let mut first = child.run_when_ready(ready(()));
    let mut second = registry.run_when_ready(ready(()));
    assert!(poll_once(&mut first).is_pending() && poll_once(&mut second).is_pending());
    let [own, lent] = guards;
    drop(own);
    assert_eq!(child.guard().unwrap_err().reason(), RejectReason::Full, "the permit belongs to the first waiter");
    assert!(poll_once(&mut second).is_pending());
    assert!(poll_once(&mut first).is_ready());
    drop(lent);
    assert!(poll_once(&mut second).is_ready());
    assert_eq!((registry.in_flight(), child.in_flight()), (2, 1));
    registry.spawner().poll_all();
    drop((first, second));
    drop(child);
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [4, 0, 0, 0, 0, 1]);
}

/// Checks invariant L4: the shutdown of a child wakes and rejects only the waiters of this child.
#[test]
fn shutdown_of_a_child_removes_only_its_waiters() {
    let registry = limited(Manual::default());
    let (child, sibling) = (registry.child(), registry.child());
    let guards = [registry.guard().unwrap(), sibling.guard().unwrap()];
    let piece = child.without_permit().guard().unwrap();
    let mut waiters = [child.run_when_ready(ready(())), sibling.run_when_ready(ready(())), registry.run_when_ready(ready(()))];
    let mut follow_up = child.follow_up().run_when_ready(ready(()));
    let (wake_count, waker) = counting_waker();
    assert!(waiters.iter_mut().chain([&mut follow_up]).all(|waiter| poll(waiter, &waker).is_pending()));
    child.start_shutdown();
    // If the shutdown removed another waiter, this waiter would enter the queue again at its next poll. Until then, other waiters could
    // overtake it, which violates invariant S10.
    assert_eq!(wake_count.get(), 1, "only the waiter of the child is woken");
    let [rejected, sibling_waits, parent_waits] = &mut waiters;
    let Poll::Ready(Err(rejected)) = poll_once(rejected) else { panic!("the waiter of the child must be rejected") };
    assert_eq!(rejected.reason(), RejectReason::ShuttingDown);
    assert!(poll_once(&mut follow_up).is_pending());
    drop(piece);
    let Poll::Ready(Err(rejected)) = poll_once(&mut follow_up) else { panic!("the child has drained") };
    assert_eq!(rejected.reason(), RejectReason::Drained);
    assert!(poll_once(sibling_waits).is_pending() && poll_once(parent_waits).is_pending());
    drop(guards);
    assert!(poll_once(sibling_waits).is_ready() && poll_once(parent_waits).is_ready());
    registry.spawner().poll_all();
    drop((waiters, follow_up));
    drop((child, sibling));
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [5, 0, 0, 0, 0, 2]);
}

fn limit_holds_for_tasks_of_children<S: Spawner + Clone>(registry: &Registry<S>) {
    let running = Arc::new(Mutex::new((0, 0)));
    let children = [registry.child(), registry.child()];
    block_on(async {
        for i in 0..40 {
            let running = running.clone();
            let task = async move {
                {
                    let mut counts = running.lock().unwrap();
                    counts.0 += 1;
                    counts.1 = counts.1.max(counts.0);
                }
                futures_lite::future::yield_now().await;
                running.lock().unwrap().0 -= 1;
            };
            children[i % 2].run_when_ready(task).await.unwrap();
        }
    });
    drop(children);
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().completed, 40);
    assert!(running.lock().unwrap().1 <= 2);
}

mod with_limit {
    use super::limit_holds_for_tasks_of_children;
    on_every_runtime!(with |spawner| Registry::builder(spawner).max_in_flight(2).build(); limit_holds_for_tasks_of_children);
}
