//! Checks the invariants S5 and S12 with random sequences of steps. After each step, a tree of registries must agree with a simple model.
//! The registries have guards, tasks, tasks with handles, and services.
use super::{Behavior, CountingLosses, FAILURE, NAMES, PANIC, Script, TaskOptions, Work, builder, call, check_output, new_script};
use crate::common::{BoxFuture, Counts, Fake, Outcome, counts, poll_once};
use background_tasks::{AbortReport, Guard, JoinHandle, Loss, Registry, RejectReason, Restart, ServiceInfo, TaskKind};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use std::cell::RefCell;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// The delay before each restart of a service. Each step in time has the same length.
const SECOND: Duration = Duration::from_secs(1);

/// One step of a sequence. An index is taken modulo the number of candidates. A step without candidates does nothing.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Creates a child of a registry. If the second value is not `None`, the child has this limit.
    Child(usize, Option<usize>),
    Guard(usize, TaskOptions),
    Run(usize, TaskOptions),
    Spawn(usize, TaskOptions),
    /// Starts a service. If the flag is true, the service also restarts after a completed run.
    Service(usize, TaskOptions, bool),
    Poll(usize, Behavior),
    Drop(usize),
    Abort(usize),
    /// Aborts a task through its own handle.
    AbortJoined(usize),
    /// Drops the handle of a task.
    Detach(usize),
    /// Advances the time, so that the delays of all services elapse.
    PassTime,
    Shutdown(usize),
    /// Drops the handle of a child.
    DropHandle(usize),
}

fn steps() -> impl Strategy<Value = Step> {
    let index = any::<usize>;
    let options = || {
        (prop::option::of(select(&NAMES[..])), prop::bool::weighted(0.05), prop::bool::weighted(0.2))
            .prop_map(|(name, critical, without_permit)| TaskOptions { name, critical, without_permit, follow_up: false })
    };
    let behavior = select(vec![Behavior::Pending, Behavior::Complete, Behavior::Complete, Behavior::Fail, Behavior::Panic]);
    prop_oneof![
        5 => (index(), prop::option::weighted(0.2, 1_usize..4)).prop_map(|(parent, limit)| Step::Child(parent, limit)),
        4 => (index(), options()).prop_map(|(node, options)| Step::Guard(node, options)),
        6 => (index(), options()).prop_map(|(node, options)| Step::Run(node, options)),
        6 => (index(), options()).prop_map(|(node, options)| Step::Spawn(node, options)),
        6 => (index(), options(), any::<bool>()).prop_map(|(node, options, always)| Step::Service(node, options, always)),
        20 => (index(), behavior).prop_map(|(work, behavior)| Step::Poll(work, behavior)),
        3 => index().prop_map(Step::Drop),
        1 => index().prop_map(Step::Abort),
        2 => index().prop_map(Step::AbortJoined),
        1 => index().prop_map(Step::Detach),
        4 => Just(Step::PassTime),
        1 => index().prop_map(Step::Shutdown),
        2 => index().prop_map(Step::DropHandle),
    ]
}

/// A registry under test, and the state that the registry should have.
#[expect(clippy::struct_excessive_bools, reason = "each is a state that the registry reports, or a condition of one")]
struct Node {
    /// The only handle of the registry. `None` after the handle has been dropped.
    registry: Option<Registry<Fake>>,
    parent: Option<usize>,
    name: Option<&'static str>,
    limit: Option<usize>,
    /// True if the child was created while its parent drained. The shutdown of the parent does not close this child.
    stays_open: bool,
    shutting_down: bool,
    /// True if the registry drains as soon as nothing is in flight. A child with `stays_open` can be shutting down without being closed.
    closed: bool,
    drained: bool,
    /// True if a critical task has started the shutdown.
    has_cause: bool,
    /// The counts of this registry. They include the counts of all descendants that have drained.
    counts: Counts,
}

/// A task, guard or service that is in flight.
struct InFlight {
    node: usize,
    options: TaskOptions,
    kind: TaskKind,
    /// The index of the registry whose permit the task holds.
    permit: Option<usize>,
    abort_requested: bool,
    script: Script,
    body: Body,
}

enum Body {
    Guard(Guard),
    Task(BoxFuture),
    Joined(BoxFuture, Option<JoinHandle<Result<(), &'static str>>>),
    Service(BoxFuture, Service),
}

struct Service {
    stage: Stage,
    restarts_after_completion: bool,
    restarts: u64,
    last_loss: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    NotPolled,
    Running,
    /// The service waits for its next run. The registry counts a completed run only when the next run starts or the service ends.
    Waiting {
        elapsed: bool,
        completed: bool,
    },
}

/// The registries under test. The parent of each registry has a lower index. The root has the index 0.
struct Tree {
    fake: Fake,
    inspected: bool,
    observer: Arc<CountingLosses>,
    nodes: Vec<Node>,
    in_flight: Vec<InFlight>,
    /// The counts of all outcomes that the steps should have caused.
    total: Counts,
}

impl Tree {
    fn new(limit: Option<usize>, inspected: bool) -> Self {
        let (fake, observer) = (Fake::default(), Arc::<CountingLosses>::default());
        let mut builder = fake.builder().observer(observer.clone());
        if let Some(limit) = limit {
            builder = builder.max_in_flight(limit);
        }
        if inspected {
            builder = builder.inspect();
        }
        let mut tree = Self { fake, inspected, observer, nodes: Vec::new(), in_flight: Vec::new(), total: [0; 6] };
        tree.add_node(builder.build(), None, None, limit);
        tree
    }

    fn add_node(&mut self, registry: Registry<Fake>, parent: Option<usize>, name: Option<&'static str>, limit: Option<usize>) {
        let (stays_open, drained) =
            parent.map_or((false, false), |parent| (self.nodes[parent].shutting_down, self.nodes[parent].drained));
        self.nodes.push(Node {
            registry: Some(registry),
            parent,
            name,
            limit,
            stays_open,
            shutting_down: stays_open,
            closed: drained,
            drained,
            has_cause: false,
            counts: [0; 6],
        });
    }

    /// Returns the index of one of the registries whose handle has not been dropped.
    fn open(&self, index: usize) -> usize {
        let open: Vec<_> = (0..self.nodes.len()).filter(|node| self.nodes[*node].registry.is_some()).collect();
        open[index % open.len()]
    }

    fn registry(&self, node: usize) -> &Registry<Fake> {
        self.nodes[node].registry.as_ref().unwrap()
    }

    fn ancestors(&self, node: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(Some(node), |node| self.nodes[*node].parent)
    }

    /// Returns whether `node` is `ancestor` or one of its descendants.
    fn is_in_subtree(&self, node: usize, ancestor: usize) -> bool {
        self.ancestors(node).any(|other| other == ancestor)
    }

    /// Returns the registry whose limit applies to the tasks of `node`.
    fn limiter(&self, node: usize) -> Option<usize> {
        self.ancestors(node).find(|node| self.nodes[*node].limit.is_some())
    }

    fn in_flight_in(&self, node: usize) -> usize {
        let works = self.in_flight.iter().filter(|work| work.node == node).count();
        works + self.nodes.iter().filter(|child| child.parent == Some(node) && !child.drained).count()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Child(parent, limit) => {
                let parent = self.open(parent);
                // The name of a child shows its limit.
                let name = limit.map(|limit| NAMES[limit]);
                let child = match (name, limit) {
                    (Some(name), Some(limit)) => self.registry(parent).named(name).child_with_limit(limit),
                    _ => self.registry(parent).child(),
                };
                if self.nodes[parent].drained {
                    self.reject(parent, false);
                }
                self.add_node(child, Some(parent), name, limit);
            }
            Step::Guard(node, options) => {
                let node = self.open(node);
                let guard = call!(self.registry(node), options, guard());
                let started = guard.map(|guard| (Body::Guard(guard), new_script())).map_err(|rejected| rejected.reason());
                self.start(node, options, TaskKind::Guard, started);
            }
            Step::Run(node, options) => {
                let (node, script) = (self.open(node), new_script());
                let started = call!(self.registry(node), options, try_run(Work(script.clone())));
                let started = started.map(|()| (Body::Task(self.fake.tasks.take()), script));
                self.start(node, options, TaskKind::Future, started.map_err(|rejected| rejected.reason()));
            }
            Step::Spawn(node, options) => {
                let (node, script) = (self.open(node), new_script());
                let started = call!(self.registry(node), options, try_spawn(Work(script.clone())));
                let started = started.map(|handle| (Body::Joined(self.fake.tasks.take(), Some(handle)), script));
                self.start(node, options, TaskKind::Future, started.map_err(|rejected| rejected.reason()));
            }
            Step::Service(node, options, restarts_after_completion) => {
                let (node, script) = (self.open(node), new_script());
                let restart = if restarts_after_completion { Restart::always() } else { Restart::on_failure() };
                let restart = restart.backoff(SECOND, SECOND).unlimited();
                let works = script.clone();
                call!(self.registry(node), options, service(restart, move || Work(works.clone())));
                let started = self.admission(node, options).map(|()| {
                    let service = Service { stage: Stage::NotPolled, restarts_after_completion, restarts: 0, last_loss: None };
                    (Body::Service(self.fake.tasks.take(), service), script)
                });
                self.start(node, options, TaskKind::Service, started);
            }
            Step::Poll(index, behavior) => {
                if let Some(index) = index.checked_rem(self.in_flight.len()) {
                    self.poll(index, behavior);
                }
            }
            Step::Drop(index) => {
                if let Some(index) = index.checked_rem(self.in_flight.len()) {
                    let outcome =
                        if self.in_flight[index].kind == TaskKind::Guard { Outcome::Completed } else { Outcome::Abandoned };
                    self.end(index, outcome, Behavior::Pending);
                }
            }
            Step::Abort(node) => self.abort(node),
            Step::AbortJoined(index) => {
                if let Some(index) = self.joined(index) {
                    let work = &mut self.in_flight[index];
                    work.abort_requested = true;
                    work.handle().as_ref().unwrap().abort();
                }
            }
            Step::Detach(index) => {
                if let Some(index) = self.joined(index) {
                    *self.in_flight[index].handle() = None;
                }
            }
            Step::PassTime => {
                self.fake.timer.advance(SECOND);
                for work in &mut self.in_flight {
                    if let Body::Service(_, Service { stage: Stage::Waiting { elapsed, .. }, .. }) = &mut work.body {
                        *elapsed = true;
                    }
                }
            }
            Step::Shutdown(node) => {
                let node = self.open(node);
                self.registry(node).start_shutdown();
                self.shut_down(node);
            }
            Step::DropHandle(node) => {
                let node = self.open(node);
                if node != 0 {
                    self.nodes[node].registry = None;
                    self.shut_down(node);
                }
            }
        }
    }

    fn admission(&self, node: usize, options: TaskOptions) -> Result<(), RejectReason> {
        let held = |limiter| self.in_flight.iter().filter(|work| work.permit == Some(limiter)).count();
        let is_full = |limiter: usize| self.nodes[limiter].limit.is_some_and(|limit| held(limiter) >= limit);
        if self.nodes[node].drained {
            Err(RejectReason::Drained)
        } else if !options.without_permit && self.limiter(node).is_some_and(is_full) {
            Err(RejectReason::Full)
        } else {
            Ok(())
        }
    }

    /// Records that a task was accepted or rejected. Asserts that the registry and the model have made the same decision.
    fn start(&mut self, node: usize, options: TaskOptions, kind: TaskKind, started: Result<(Body, Script), RejectReason>) {
        assert_eq!(started.as_ref().map(|_| ()).map_err(|reason| *reason), self.admission(node, options));
        match started {
            Ok((body, script)) => {
                let permit = if options.without_permit { None } else { self.limiter(node) };
                self.in_flight.push(InFlight { node, options, kind, permit, abort_requested: false, script, body });
            }
            Err(_) => self.reject(node, options.critical),
        }
    }

    /// Counts a rejection. A drained child has passed its counts to its parent, so the root counts the rejections of this child too.
    fn reject(&mut self, node: usize, critical: bool) {
        self.count(node, Outcome::Rejected);
        if self.nodes[node].drained && node != 0 {
            self.nodes[0].counts[Outcome::Rejected as usize] += 1;
        }
        if critical {
            self.shut_down_after_loss(node);
        }
    }

    fn count(&mut self, node: usize, outcome: Outcome) {
        self.nodes[node].counts[outcome as usize] += 1;
        self.total[outcome as usize] += 1;
    }

    fn shut_down_after_loss(&mut self, node: usize) {
        self.nodes[node].has_cause |= !self.nodes[node].shutting_down;
        self.shut_down(node);
    }

    /// Closes a registry and its descendants, except children with `stays_open`.
    fn shut_down(&mut self, node: usize) {
        let mut closed = vec![node];
        for child in node..self.nodes.len() {
            let is_reached = |parent: usize| closed.contains(&parent) && !self.nodes[child].stays_open;
            if child == node || self.nodes[child].parent.is_some_and(is_reached) {
                closed.push(child);
                (self.nodes[child].shutting_down, self.nodes[child].closed) = (true, true);
            }
        }
        self.drain();
    }

    /// Marks each closed registry without a task in flight as drained, and adds its counts to its parent.
    fn drain(&mut self) {
        for node in (0..self.nodes.len()).rev() {
            if self.nodes[node].closed && !self.nodes[node].drained && self.in_flight_in(node) == 0 {
                self.nodes[node].drained = true;
                let counts = self.nodes[node].counts;
                if let Some(parent) = self.nodes[node].parent {
                    self.nodes[parent].counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
                }
            }
        }
    }

    /// Ends a task with this outcome, and drops its body. The body may already have finished.
    fn end(&mut self, index: usize, outcome: Outcome, behavior: Behavior) {
        let InFlight { node, options, body, .. } = self.in_flight.remove(index);
        match body {
            Body::Guard(guard) => drop(guard),
            Body::Task(task) => drop(task),
            Body::Joined(task, handle) => {
                drop(task);
                let text = if outcome == Outcome::Panicked { PANIC } else { "" };
                if let Some(handle) = handle {
                    check_output(handle, outcome, text, behavior == Behavior::Fail);
                }
            }
            Body::Service(task, service) => {
                drop(task);
                let completed_run = matches!(service.stage, Stage::Waiting { completed: true, .. });
                if completed_run && outcome != Outcome::Completed {
                    self.count(node, Outcome::Completed);
                }
            }
        }
        self.count(node, outcome);
        if options.critical && outcome != Outcome::Completed {
            self.shut_down_after_loss(node);
        }
        self.drain();
    }

    fn poll(&mut self, index: usize, behavior: Behavior) {
        let InFlight { node, script, body, abort_requested, .. } = &mut self.in_flight[index];
        let (node, is_aborted, has_handle) = (*node, *abort_requested, matches!(body, Body::Joined(..)));
        *script.lock().unwrap() = behavior;
        let (task, ended) = match body {
            Body::Guard(_) if behavior == Behavior::Pending => return,
            Body::Guard(_) => return self.end(index, Outcome::Completed, behavior),
            Body::Task(task) | Body::Joined(task, _) => (task, outcome(behavior)),
            Body::Service(..) => return self.poll_service(index, behavior),
        };
        let ended = match ended {
            _ if is_aborted => Some(Outcome::Aborted),
            Some(Outcome::Failed) if has_handle => Some(Outcome::Completed),
            ended => ended,
        };
        assert_eq!(poll_once(task).is_ready(), ended.is_some(), "in the registry {node}");
        if let Some(outcome) = ended {
            self.end(index, outcome, behavior);
        }
    }

    fn poll_service(&mut self, index: usize, behavior: Behavior) {
        let InFlight { node, body, abort_requested, .. } = &mut self.in_flight[index];
        let Body::Service(task, service) = body else { unreachable!("the caller has matched a service") };
        let (node, stops) = (*node, self.nodes[*node].shutting_down);
        let polled = poll_once(task);
        let ended = if *abort_requested {
            Some(Outcome::Aborted)
        } else {
            match service.stage {
                // After the shutdown has started, no new run starts.
                Stage::NotPolled | Stage::Waiting { .. } if stops => Some(Outcome::Completed),
                Stage::Waiting { elapsed: false, .. } => None,
                stage => {
                    if let Stage::Waiting { completed, .. } = stage {
                        service.restarts += 1;
                        if completed {
                            (self.nodes[node].counts[0], self.total[0]) = (self.nodes[node].counts[0] + 1, self.total[0] + 1);
                        }
                    }
                    service.stage = Stage::Running;
                    match outcome(behavior) {
                        None => None,
                        Some(outcome) if stops => Some(outcome),
                        Some(Outcome::Completed) if !service.restarts_after_completion => Some(Outcome::Completed),
                        Some(outcome) => {
                            service.stage = Stage::Waiting { elapsed: false, completed: outcome == Outcome::Completed };
                            if outcome != Outcome::Completed {
                                let panicked = outcome == Outcome::Panicked;
                                let loss = if panicked { Loss::Panicked(PANIC) } else { Loss::Failed(FAILURE) };
                                service.last_loss = Some(loss.to_string());
                                self.count(node, outcome);
                            }
                            None
                        }
                    }
                }
            }
        };
        assert_eq!(polled.is_ready(), ended.is_some(), "in the registry {node}");
        if let Some(outcome) = ended {
            self.end(index, outcome, behavior);
        }
    }

    fn abort(&mut self, node: usize) {
        let node = self.open(node);
        let AbortReport { aborted, not_abortable, .. } = self.registry(node).abort();
        let (inspected, mut expected) = (self.inspected, (0, 0));
        for index in 0..self.in_flight.len() {
            if self.is_in_subtree(self.in_flight[index].node, node) {
                if inspected && self.in_flight[index].kind.is_abortable() {
                    self.in_flight[index].abort_requested = true;
                    expected.0 += 1;
                } else {
                    expected.1 += 1;
                }
            }
        }
        assert_eq!((aborted, not_abortable), expected);
    }

    /// Returns one of the tasks that still have a handle.
    fn joined(&self, index: usize) -> Option<usize> {
        let is_joined = |work: &InFlight| matches!(work.body, Body::Joined(_, Some(_)));
        let joined: Vec<_> = (0..self.in_flight.len()).filter(|index| is_joined(&self.in_flight[*index])).collect();
        Some(joined[index.checked_rem(joined.len())?])
    }

    /// Asserts that all values which the registries report agree with the model.
    fn check(&mut self) {
        let losses = self.observer.counts();
        assert_eq!(losses[1..], self.total[1..], "the observer of the root receives each loss once");
        for work in &mut self.in_flight {
            if let Body::Joined(_, Some(handle)) = &mut work.body {
                assert!(!handle.is_finished() && poll_once(handle).is_pending());
            }
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].registry.is_some() {
                self.check_node(node);
            }
        }
    }

    fn check_node(&self, node: usize) {
        let (registry, model) = (self.registry(node), &self.nodes[node]);
        let in_flight = self.in_flight_in(node);
        assert_eq!((registry.is_shutting_down(), registry.is_drained()), (model.shutting_down, model.drained));
        assert_eq!(registry.signal().is_triggered(), model.shutting_down);
        assert_eq!(registry.shutdown_cause().is_some(), model.has_cause);
        assert_eq!(registry.in_flight(), in_flight);
        let (actual, expected) = (counts(registry.summary()), model.counts);
        assert_eq!(actual[1..], expected[1..]);
        // The number `completed` may be too low while a task of a descendant holds a permit of this registry.
        if self.in_flight.iter().any(|work| work.permit == Some(node) && work.node != node) {
            assert!(actual[0] <= expected[0]);
        } else {
            assert_eq!(actual[0], expected[0]);
        }
        let own_services = self.in_flight.iter().filter(|work| work.node == node && work.kind == TaskKind::Service).count();
        assert_eq!(poll_once(&mut registry.wait_idle()).is_ready(), in_flight == own_services);
        if model.closed {
            let drained = poll_once(&mut registry.shutdown()).map(counts);
            assert_eq!(drained, if model.drained { Poll::Ready(model.counts) } else { Poll::Pending });
        }
        self.check_lists(node);
    }

    fn check_lists(&self, node: usize) {
        let works = || self.in_flight.iter().filter(|work| self.is_in_subtree(work.node, node));
        let mut services: Vec<_> = self.registry(node).services().iter().map(describe).collect();
        let mut expected: Vec<_> = works().filter_map(InFlight::describe_service).collect();
        services.sort_unstable();
        expected.sort_unstable();
        assert_eq!(services, expected);

        let mut tasks: Vec<_> =
            self.registry(node).tasks().iter().map(|task| (task.name(), task.kind().unwrap().to_string())).collect();
        let children = (node + 1..self.nodes.len()).filter(|child| !self.nodes[*child].drained && self.is_in_subtree(*child, node));
        let children = children.map(|child| (self.nodes[child].name, TaskKind::Child.to_string()));
        let all = works().map(|work| (work.options.name, work.kind.to_string())).chain(children);
        let mut expected: Vec<_> = all.filter(|_| self.inspected).collect();
        tasks.sort_unstable();
        expected.sort_unstable();
        assert_eq!(tasks, expected);
    }

    /// Ends all tasks and drains the root. Returns the final counts.
    fn finish(mut self) -> Counts {
        self.step(Step::Shutdown(0));
        for node in (1..self.nodes.len()).rev() {
            self.nodes[node].registry = None;
            self.shut_down(node);
            self.check();
        }
        while !self.in_flight.is_empty() {
            self.poll(0, Behavior::Complete);
            self.check();
        }
        let summary = counts(self.registry(0).shutdown().wait());
        assert_eq!(summary, self.total, "the root has counted each outcome of its descendants once");
        self.total
    }
}

impl InFlight {
    fn handle(&mut self) -> &mut Option<JoinHandle<Result<(), &'static str>>> {
        let Body::Joined(_, handle) = &mut self.body else { unreachable!("the caller has chosen a task with a handle") };
        handle
    }

    fn describe_service(&self) -> Option<(Option<&'static str>, bool, u64, Option<String>)> {
        let Body::Service(_, service) = &self.body else { return None };
        let is_running = !matches!(service.stage, Stage::Waiting { .. });
        Some((self.options.name, is_running, service.restarts, service.last_loss.clone()))
    }
}

fn describe(service: &ServiceInfo) -> (Option<&'static str>, bool, u64, Option<String>) {
    (service.task.name(), service.is_running, service.restarts, service.last_loss.clone())
}

/// Returns the outcome of a future with this behavior. Returns `None` if the future is pending.
fn outcome(behavior: Behavior) -> Option<Outcome> {
    match behavior {
        Behavior::Pending => None,
        Behavior::Complete => Some(Outcome::Completed),
        Behavior::Fail => Some(Outcome::Failed),
        Behavior::Panic => Some(Outcome::Panicked),
        Behavior::PanicInDrop => unreachable!("not a behavior of these steps"),
    }
}

#[test]
fn tree_of_registries_agrees_with_the_model_after_every_step() {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    config.cases = config.cases.max(512);
    let totals = RefCell::new([0; 6]);
    let setups = (prop::option::of(1_usize..6), any::<bool>());
    let sequences = (setups, prop::collection::vec(steps(), 0..80));
    let result = TestRunner::new(config).run(&sequences, |((limit, inspected), steps)| {
        let mut tree = Tree::new(limit, inspected);
        for step in steps {
            tree.step(step);
            tree.check();
        }
        for (total, count) in totals.borrow_mut().iter_mut().zip(tree.finish()) {
            *total += count;
        }
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
    let totals = totals.into_inner();
    assert!(totals.iter().all(|count| *count > 100), "every outcome occurs often enough: {totals:?}");
}
