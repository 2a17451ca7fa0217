//! S5: random lives of a registry, step by step beside a plain count of what should have happened. `PROPTEST_CASES` raises their number.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

mod common;

use background_tasks::{
    AbortError, AbortReport, Guard, Observer, Registry, RejectReason, Summary, TaskId, TaskInfo, TaskKind, Tracked,
};
use common::{BoxFuture, Counts, Manual, Outcome, counts, panic_quietly, poll_once, waker_fn};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use std::any::Any;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What the registry is asked for.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a method of the builder")]
struct Setup {
    limit: Option<usize>,
    inspected: bool,
    observed: bool,
    shutdown_on_panic: bool,
    shutdown_on_failure: bool,
}

#[derive(Debug, Clone, Copy)]
struct Call {
    name: Option<&'static str>,
    critical: bool,
}

/// An index is taken modulo what there is, and a step that finds nothing does nothing.
#[derive(Debug, Clone, Copy)]
enum Step {
    Run(Call),
    TryRun(Call),
    Track(Call),
    Guard(Call),
    RunWhenReady(Call),
    PollWaiting(usize),
    Cancel(usize),
    Poll(usize, End),
    /// Drops a task or what is tracked before its end; its destructor may panic.
    Drop(usize, bool),
    Abort,
    AbortOne(usize),
    AbortEnded(usize),
    CloneHandle,
    DropHandle,
    Shutdown,
}

/// What a piece of work does when it is polled next, or how a guard is dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Pending,
    Complete,
    Fail,
    Panic,
    /// It completes, and its destructor panics.
    PanicInDrop,
}

/// So many that some meet in the tables by which a registry finds a task's place.
const NAMES: [&str; 16] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];

fn setups() -> impl Strategy<Value = Setup> {
    let limit = prop_oneof![1 => Just(None), 1 => (1_usize..5).prop_map(Some)];
    (limit, any::<bool>(), prop::bool::weighted(0.8), prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(
        |(limit, inspected, observed, shutdown_on_panic, shutdown_on_failure)| Setup {
            limit,
            inspected,
            observed,
            shutdown_on_panic,
            shutdown_on_failure,
        },
    )
}

fn steps() -> impl Strategy<Value = Step> {
    let call =
        || (prop::option::of(select(&NAMES[..])), prop::bool::weighted(0.02)).prop_map(|(name, critical)| Call { name, critical });
    let end = select(vec![End::Pending, End::Pending, End::Complete, End::Complete, End::Fail, End::Panic, End::PanicInDrop]);
    prop_oneof![
        8 => call().prop_map(Step::Run),
        4 => call().prop_map(Step::TryRun),
        3 => call().prop_map(Step::Track),
        3 => call().prop_map(Step::Guard),
        8 => call().prop_map(Step::RunWhenReady),
        6 => any::<usize>().prop_map(Step::PollWaiting),
        2 => any::<usize>().prop_map(Step::Cancel),
        16 => (any::<usize>(), end).prop_map(|(which, end)| Step::Poll(which, end)),
        4 => (any::<usize>(), prop::bool::weighted(0.2)).prop_map(|(which, panics)| Step::Drop(which, panics)),
        1 => Just(Step::Abort),
        2 => any::<usize>().prop_map(Step::AbortOne),
        1 => any::<usize>().prop_map(Step::AbortEnded),
        1 => Just(Step::CloneHandle),
        1 => Just(Step::DropHandle),
        1 => Just(Step::Shutdown),
    ]
}

/// What an observer is told.
#[derive(Debug, Clone, PartialEq)]
enum News {
    /// A loss, with what is said of it.
    Lost(Outcome, Named, String),
    Begun(usize),
    Drained(Counts),
}

/// What a task is known by: its name, and its id and kind where the registry is inspected.
type Named = (Option<&'static str>, Option<TaskId>, Option<TaskKind>);

#[derive(Default)]
struct Told(Mutex<Vec<News>>);

impl Told {
    fn lost(&self, fate: Outcome, task: &TaskInfo, what: &str) {
        assert_eq!(task.location().file(), file!());
        self.0.lock().unwrap().push(News::Lost(fate, named(task), what.into()));
    }
}

fn named(task: &TaskInfo) -> Named {
    (task.name(), task.id(), task.kind())
}

impl Observer for Told {
    fn failed(&self, task: &TaskInfo, error: &str) {
        self.lost(Outcome::Failed, task, error);
    }

    fn panicked(&self, task: &TaskInfo, message: &str) {
        self.lost(Outcome::Panicked, task, message);
    }

    fn abandoned(&self, task: &TaskInfo) {
        self.lost(Outcome::Abandoned, task, "");
    }

    fn aborted(&self, task: &TaskInfo) {
        self.lost(Outcome::Aborted, task, "");
    }

    fn rejected(&self, task: &TaskInfo, reason: RejectReason) {
        self.lost(Outcome::Rejected, task, &reason.to_string());
    }

    fn shutdown_started(&self, in_flight: usize) {
        self.0.lock().unwrap().push(News::Begun(in_flight));
    }

    fn drained(&self, summary: &Summary, _: Duration) {
        self.0.lock().unwrap().push(News::Drained(counts(*summary)));
    }
}

const FAILURE: &str = "a failure, as planned";
const PANIC: &str = "a panic, as planned";
const DROP_PANIC: &str = "a destructor's panic, as planned";

/// Does what its script says.
struct Work(Script);

type Script = Arc<Mutex<End>>;

impl Future for Work {
    type Output = Result<(), &'static str>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let end = *self.0.lock().unwrap();
        match end {
            End::Pending => Poll::Pending,
            End::Complete | End::PanicInDrop => Poll::Ready(Ok(())),
            End::Fail => Poll::Ready(Err(FAILURE)),
            End::Panic => panic_quietly(PANIC),
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let end = *self.0.lock().unwrap();
        if end == End::PanicInDrop {
            panic_quietly(DROP_PANIC);
        }
    }
}

/// A waker, how often it has been called, and how often it should have been.
struct Bell {
    waker: Waker,
    rung: Arc<AtomicUsize>,
    expected: usize,
    /// Somebody has it, who is to call it once.
    kept: bool,
}

impl Bell {
    fn new() -> Self {
        let rung = Arc::new(AtomicUsize::new(0));
        let own = rung.clone();
        let waker = waker_fn(move || {
            own.fetch_add(1, Ordering::Relaxed);
        });
        Self { waker, rung, expected: 0, kept: false }
    }

    fn expect(&mut self) -> bool {
        self.expected += usize::from(self.kept);
        mem::replace(&mut self.kept, false)
    }

    fn check(&self) {
        assert_eq!(self.rung.load(Ordering::Relaxed), self.expected, "woken as often as there was something to do");
    }
}

/// Some work in flight.
struct Piece {
    call: Call,
    kind: TaskKind,
    id: Option<TaskId>,
    told_to_abort: bool,
    script: Script,
    bell: Bell,
    body: Body,
}

enum Body {
    Task(BoxFuture),
    Tracked(Tracked<Work>),
    Guard(Guard),
}

/// Somebody who waits for a place, as its owner holds it.
struct Waiting {
    call: Call,
    script: Script,
    bell: Bell,
    future: Pin<Box<dyn Future<Output = Result<(), RejectReason>>>>,
}

/// A registry and what should be known of it.
struct Life {
    setup: Setup,
    manual: Manual,
    told: Arc<Told>,
    handles: Vec<Registry<Manual>>,
    /// In the order in which they were let in.
    pieces: Vec<Piece>,
    /// In the order of the queue; after the shutdown's beginning, those who have not come to know of it.
    waiting: Vec<Waiting>,
    ended: Vec<TaskId>,
    accepted: u64,
    counts: Counts,
    shutting_down: bool,
    news: Vec<News>,
}

/// Calls a method of a registry, through a `TaskBuilder` where there is something to say.
macro_rules! call {
    ($registry:expr, $call:expr, $method:ident($($work:expr)?)) => {
        match ($call.name, $call.critical) {
            (None, false) => $registry.$method($($work)?),
            (None, true) => $registry.critical().$method($($work)?),
            (Some(name), false) => $registry.named(name).$method($($work)?),
            (Some(name), true) => $registry.critical().named(name).$method($($work)?),
        }
    };
}

impl Life {
    fn new(setup: Setup) -> Self {
        let (manual, told) = (Manual::default(), Arc::new(Told::default()));
        let mut builder = Registry::builder(manual.clone());
        if let Some(limit) = setup.limit {
            builder = builder.max_in_flight(limit);
        }
        if setup.inspected {
            builder = builder.inspect();
        }
        if setup.observed {
            builder = builder.observer(told.clone());
        }
        if setup.shutdown_on_panic {
            builder = builder.shutdown_on_panic();
        }
        if setup.shutdown_on_failure {
            builder = builder.shutdown_on_failure();
        }
        Self {
            setup,
            manual,
            told,
            handles: vec![builder.build()],
            pieces: Vec::new(),
            waiting: Vec::new(),
            ended: Vec::new(),
            accepted: 0,
            counts: [0; 6],
            shutting_down: false,
            news: Vec::new(),
        }
    }

    fn registry(&self) -> &Registry<Manual> {
        &self.handles[0]
    }

    fn is_drained(&self) -> bool {
        self.shutting_down && self.pieces.is_empty()
    }

    fn has_places(&self, needed: usize) -> bool {
        self.setup.limit.is_none_or(|limit| self.pieces.len() + needed <= limit)
    }

    /// Whether a newcomer is let in: if there is a place beside those for all who wait.
    fn verdict(&self) -> Result<(), RejectReason> {
        let ahead = if self.shutting_down { 0 } else { self.waiting.len() };
        if self.is_drained() {
            Err(RejectReason::Drained)
        } else if self.has_places(ahead + 1) {
            Ok(())
        } else {
            Err(RejectReason::Full)
        }
    }

    fn tell(&mut self, news: News) {
        if self.setup.observed {
            self.news.push(news);
        }
    }

    fn reject(&mut self, call: Call, kind: TaskKind, reason: RejectReason) {
        self.counts[Outcome::Rejected as usize] += 1;
        let kind = self.setup.inspected.then_some(kind);
        self.tell(News::Lost(Outcome::Rejected, (call.name, None, kind), reason.to_string()));
    }

    fn accept(&mut self, call: Call, kind: TaskKind, script: Script, body: Body) {
        self.accepted += 1;
        let ids = self.registry().tasks().into_iter().filter_map(|task| task.id());
        let news: Vec<_> = ids.filter(|id| self.pieces.iter().all(|piece| piece.id != Some(*id))).collect();
        assert_eq!(news.len(), usize::from(self.setup.inspected));
        let id = news.first().copied();
        assert!(id.is_none_or(|id| !self.ended.contains(&id)), "an id has one task");
        let told_to_abort = false;
        self.pieces.push(Piece { call, kind, id, told_to_abort, script, bell: Bell::new(), body });
    }

    fn begin_shutdown(&mut self) {
        if mem::replace(&mut self.shutting_down, true) {
            return;
        }
        for waiting in &mut self.waiting {
            waiting.bell.expect();
        }
        self.tell(News::Begun(self.pieces.len()));
        self.tell_if_drained();
    }

    fn tell_if_drained(&mut self) {
        if self.is_drained() {
            self.tell(News::Drained(self.counts));
        }
    }

    /// Takes a piece out that has just ended so.
    fn end(&mut self, which: usize, fate: Outcome, what: &str) {
        let Piece { call, kind, id, .. } = self.pieces[which];
        self.counts[fate as usize] += 1;
        if fate != Outcome::Completed {
            let known = if self.setup.inspected { (call.name, id, Some(kind)) } else { (call.name, None, None) };
            self.tell(News::Lost(fate, known, what.into()));
        }
        let Setup { shutdown_on_panic, shutdown_on_failure, .. } = self.setup;
        match fate {
            Outcome::Panicked if shutdown_on_panic || call.critical => self.begin_shutdown(),
            Outcome::Failed if shutdown_on_failure || call.critical => self.begin_shutdown(),
            _ => {}
        }
        let piece = self.pieces.remove(which);
        piece.bell.check();
        self.ended.extend(piece.id);
        self.tell_if_drained();
        self.wake_next();
    }

    /// A place has come free: the first in the queue is woken, if that has not been done.
    fn wake_next(&mut self) {
        if let Some(first) = self.waiting.first_mut().filter(|_| !self.shutting_down) {
            first.bell.expect();
        }
    }

    /// Somebody has left the queue: the first is woken if there is a place.
    fn settle(&mut self) {
        if self.has_places(1) {
            self.wake_next();
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Run(call) => self.run(call, |registry, work| {
                call!(registry, call, run(work));
                None
            }),
            Step::TryRun(call) => {
                self.run(call, |registry, work| Some(call!(registry, call, try_run(work)).map_err(|back| back.reason())));
            }
            Step::Track(call) => self.track(call),
            Step::Guard(call) => self.guard(call),
            Step::RunWhenReady(call) => self.run_when_ready(call),
            Step::PollWaiting(which) => {
                if let Some(which) = which.checked_rem(self.waiting.len()) {
                    self.poll_waiting(which);
                }
            }
            Step::Cancel(which) => {
                if let Some(which) = which.checked_rem(self.waiting.len()) {
                    self.cancel(which);
                }
            }
            Step::Poll(which, end) => {
                if let Some(which) = which.checked_rem(self.pieces.len()) {
                    self.poll(which, end);
                }
            }
            Step::Drop(which, panics) => {
                if let Some(which) = which.checked_rem(self.pieces.len()) {
                    self.drop(which, panics);
                }
            }
            Step::Abort => self.abort(),
            Step::AbortOne(which) => {
                if let Some(which) = which.checked_rem(self.pieces.len()) {
                    self.abort_one(which);
                }
            }
            Step::AbortEnded(which) => {
                if let Some(which) = which.checked_rem(self.ended.len()) {
                    assert_eq!(self.registry().abort_task(self.ended[which]), Err(AbortError::NotInFlight));
                }
            }
            Step::CloneHandle => self.handles.push(self.registry().clone()),
            Step::DropHandle => {
                if self.handles.len() > 1 {
                    self.handles.remove(0);
                }
            }
            Step::Shutdown => {
                self.begin_shutdown();
                drop(self.registry().shutdown());
            }
        }
    }

    fn run(&mut self, call: Call, run: impl FnOnce(&Registry<Manual>, Work) -> Option<Result<(), RejectReason>>) {
        let script = Script::new(Mutex::new(End::Pending));
        let verdict = self.verdict();
        let told = run(self.registry(), Work(script.clone()));
        assert!(told.is_none_or(|told| told == verdict), "{told:?} and not {verdict:?}");
        match verdict {
            Ok(()) => {
                let task = self.manual.take();
                self.accept(call, TaskKind::Future, script, Body::Task(task));
            }
            Err(reason) => self.reject(call, TaskKind::Future, reason),
        }
    }

    fn track(&mut self, call: Call) {
        let script = Script::new(Mutex::new(End::Pending));
        let verdict = self.verdict();
        match call!(self.registry(), call, track(Work(script.clone()))) {
            Ok(tracked) => {
                assert_eq!(verdict, Ok(()));
                self.accept(call, TaskKind::Tracked, script, Body::Tracked(tracked));
            }
            Err(back) => {
                assert_eq!(verdict, Err(back.reason()));
                self.reject(call, TaskKind::Tracked, back.reason());
            }
        }
    }

    fn guard(&mut self, call: Call) {
        let verdict = self.verdict();
        match call!(self.registry(), call, guard()) {
            Ok(guard) => {
                assert_eq!(verdict, Ok(()));
                self.accept(call, TaskKind::Guard, Script::new(Mutex::new(End::Pending)), Body::Guard(guard));
            }
            Err(back) => {
                assert_eq!(verdict, Err(back.reason()));
                self.reject(call, TaskKind::Guard, back.reason());
            }
        }
    }

    fn run_when_ready(&mut self, call: Call) {
        let script = Script::new(Mutex::new(End::Pending));
        let (registry, work) = (self.registry().clone(), Work(script.clone()));
        let future = Box::pin(async move { call!(registry, call, run_when_ready(work)).await.map_err(|back| back.reason()) });
        let verdict = match self.verdict() {
            Err(RejectReason::Full) if self.shutting_down => Some(Err(RejectReason::ShuttingDown)),
            Err(RejectReason::Full) => None,
            done => Some(done),
        };
        self.poll_for_place(Waiting { call, script, bell: Bell::new(), future }, self.waiting.len(), verdict);
    }

    fn poll_waiting(&mut self, which: usize) {
        let verdict = if self.shutting_down {
            Some(Err(RejectReason::ShuttingDown))
        } else {
            (which == 0 && self.has_places(1)).then_some(Ok(()))
        };
        let waiting = self.waiting.remove(which);
        self.poll_for_place(waiting, which, verdict);
        if verdict == Some(Ok(())) {
            self.settle();
        }
    }

    /// Polls somebody who stands there in the queue, who is told so, or goes on waiting.
    fn poll_for_place(&mut self, mut waiting: Waiting, which: usize, verdict: Option<Result<(), RejectReason>>) {
        waiting.bell.check();
        let polled = waiting.future.as_mut().poll(&mut Context::from_waker(&waiting.bell.waker));
        assert_eq!(polled, verdict.map_or(Poll::Pending, Poll::Ready));
        let Waiting { call, script, .. } = waiting;
        match verdict {
            Some(Ok(())) => {
                let task = self.manual.take();
                self.accept(call, TaskKind::Future, script, Body::Task(task));
            }
            Some(Err(reason)) => self.reject(call, TaskKind::Future, reason),
            None => {
                waiting.bell.kept = true;
                self.waiting.insert(which, Waiting { call, script, ..waiting });
            }
        }
    }

    /// Drops somebody who waits; if a place was meant for them, the next is told.
    fn cancel(&mut self, which: usize) {
        drop(self.waiting.remove(which).future);
        self.settle();
    }

    fn poll(&mut self, which: usize, end: End) {
        let Piece { script, bell, body, told_to_abort, .. } = &mut self.pieces[which];
        let panics = match end {
            End::Panic => Some(PANIC),
            End::PanicInDrop => Some(DROP_PANIC),
            _ => None,
        };
        let mut cx = Context::from_waker(&bell.waker);
        let (fate, what) = match body {
            Body::Guard(_) => return self.drop_guard(which, end),
            Body::Task(task) => {
                *script.lock().unwrap() = end;
                let polled = task.as_mut().poll(&mut cx);
                if end == End::Pending && !*told_to_abort {
                    assert_eq!(polled, Poll::Pending);
                    bell.kept = self.setup.inspected;
                    return;
                }
                assert_eq!(polled, Poll::Ready(()));
                match end {
                    End::PanicInDrop => (Outcome::Panicked, DROP_PANIC),
                    _ if *told_to_abort => (Outcome::Aborted, ""),
                    End::Panic => (Outcome::Panicked, PANIC),
                    End::Fail => (Outcome::Failed, FAILURE),
                    _ => (Outcome::Completed, ""),
                }
            }
            Body::Tracked(tracked) => {
                *script.lock().unwrap() = end;
                match catch_unwind(AssertUnwindSafe(|| Pin::new(tracked).poll(&mut cx))) {
                    Ok(Poll::Pending) => return assert_eq!(end, End::Pending),
                    Ok(Poll::Ready(output)) => {
                        assert_eq!(output, if end == End::Fail { Err(FAILURE) } else { Ok(()) });
                        assert_eq!(panics, None);
                        (Outcome::Completed, "")
                    }
                    Err(payload) => (Outcome::Panicked, says(&*payload, panics)),
                }
            }
        };
        self.end(which, fate, what);
    }

    fn drop_guard(&mut self, which: usize, end: End) {
        if end == End::Pending {
            return;
        }
        let Body::Guard(guard) = mem::replace(&mut self.pieces[which].body, Body::Task(Box::pin(async {}))) else { unreachable!() };
        if end == End::Panic {
            let payload = catch_unwind(AssertUnwindSafe(|| {
                let _guard = guard;
                panic_quietly(PANIC)
            }));
            says(&*payload.unwrap_err(), Some(PANIC));
            self.end(which, Outcome::Panicked, "dropped by a panic");
        } else {
            drop(guard);
            self.end(which, Outcome::Completed, "");
        }
    }

    fn drop(&mut self, which: usize, panics: bool) {
        let Piece { script, body, .. } = &mut self.pieces[which];
        if panics {
            *script.lock().unwrap() = End::PanicInDrop;
        }
        let goes_on = catch_unwind(AssertUnwindSafe(|| match mem::replace(body, Body::Task(Box::pin(async {}))) {
            Body::Task(task) => {
                drop(task);
                false
            }
            Body::Tracked(tracked) => {
                drop(tracked);
                false
            }
            Body::Guard(guard) => {
                drop(guard);
                true
            }
        }));
        match goes_on {
            Ok(true) => self.end(which, Outcome::Completed, ""),
            Ok(false) if panics => {
                assert_eq!(self.pieces[which].kind, TaskKind::Future, "what is contained was a task's");
                self.end(which, Outcome::Panicked, DROP_PANIC);
            }
            Ok(false) => self.end(which, Outcome::Abandoned, ""),
            Err(payload) => {
                assert_eq!(self.pieces[which].kind, TaskKind::Tracked, "what goes on to its owner was tracked");
                let what = says(&*payload, panics.then_some(DROP_PANIC));
                self.end(which, Outcome::Panicked, what);
            }
        }
    }

    fn abort(&mut self) {
        let AbortReport { aborted, not_abortable, .. } = self.registry().abort();
        let abortable = self.pieces.iter().filter(|piece| piece.kind.is_abortable()).count();
        let expected = if self.setup.inspected { abortable } else { 0 };
        assert_eq!((aborted, not_abortable), (expected, self.pieces.len() - expected));
        if self.setup.inspected {
            self.pieces.iter_mut().for_each(Piece::tell_to_abort);
        }
    }

    fn abort_one(&mut self, which: usize) {
        let Piece { id, kind, .. } = self.pieces[which];
        let told = self.registry().abort_task(id.unwrap_or_else(|| "1-1".parse().unwrap()));
        if id.is_some() {
            assert_eq!(told, if kind.is_abortable() { Ok(()) } else { Err(AbortError::NotAbortable) });
            self.pieces[which].tell_to_abort();
        } else {
            assert_eq!(told, Err(AbortError::NotInFlight));
        }
    }

    /// The registry says what should be known of it, in every way.
    fn check(&mut self) {
        self.check_news();
        self.waiting.iter().for_each(|waiting| waiting.bell.check());
        self.pieces.iter().for_each(|piece| piece.bell.check());
        let registry = self.registry();
        let in_flight = self.pieces.len();
        assert_eq!(counts(registry.summary()), self.counts);
        assert_eq!(registry.in_flight(), in_flight);
        assert_eq!(self.accepted, in_flight as u64 + self.counts[..Outcome::Rejected as usize].iter().sum::<u64>());
        assert_eq!((registry.is_shutting_down(), registry.is_drained()), (self.shutting_down, self.is_drained()));
        assert_eq!(poll_once(&mut registry.wait_idle()).is_ready(), in_flight == 0);
        assert_eq!(registry.signal().is_triggered(), self.shutting_down);
        if self.shutting_down {
            let drained = poll_once(&mut registry.shutdown()).map(counts);
            assert_eq!(drained, if self.is_drained() { Poll::Ready(self.counts) } else { Poll::Pending });
        }
        let mut tasks = registry.tasks();
        assert!(tasks.is_sorted_by_key(|task| Reverse(task.age())), "oldest first");
        // Those that began at one reading of the clock are in any order.
        tasks.sort_by_key(|task| (Reverse(task.age()), self.pieces.iter().position(|piece| piece.id == task.id())));
        let tasks: Vec<_> = tasks.iter().map(|task| (named(task), task.abort_requested())).collect();
        let inspected = self.pieces.iter().filter(|_| self.setup.inspected);
        let expected: Vec<_> =
            inspected.map(|piece| ((piece.call.name, piece.id, Some(piece.kind)), piece.told_to_abort)).collect();
        assert_eq!(tasks, expected);
    }

    fn check_news(&mut self) {
        assert_eq!(*self.told.0.lock().unwrap(), self.news, "told once each, in turn");
    }

    /// Lets it drain, with its handles or after they are gone.
    fn finish(mut self, drop_handles: bool) -> Counts {
        while !self.waiting.is_empty() {
            self.cancel(0);
        }
        if drop_handles {
            self.begin_shutdown();
            self.handles.clear();
            self.check_news();
        } else {
            self.step(Step::Shutdown);
            self.check();
        }
        while !self.pieces.is_empty() {
            self.poll(0, End::Complete);
            if drop_handles {
                self.check_news();
            } else {
                self.check();
            }
        }
        if !drop_handles {
            self.step(Step::TryRun(Call { name: Some("late"), critical: false }));
            self.check();
            assert_eq!(self.registry().shutdown().wait().rejected, self.counts[Outcome::Rejected as usize]);
        }
        let ends = self.news.iter().filter(|news| matches!(news, News::Begun(_) | News::Drained(_)));
        assert_eq!(ends.count(), if self.setup.observed { 2 } else { 0 });
        self.counts
    }
}

impl Piece {
    fn tell_to_abort(&mut self) {
        self.told_to_abort = true;
        self.bell.expect();
    }
}

/// What a panic says, which is what was planned.
fn says(payload: &(dyn Any + Send), planned: Option<&'static str>) -> &'static str {
    let message = payload.downcast_ref::<&str>().copied();
    assert_eq!(message, planned);
    message.unwrap()
}

#[test]
fn whatever_happens_to_a_registry_it_accounts_for_each_task_and_tells_each_loss_once() {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    config.cases = config.cases.max(256);
    let seen = RefCell::new([0; 6]);
    let lives = (setups(), prop::collection::vec(steps(), 0..80), any::<bool>());
    let tried = TestRunner::new(config).run(&lives, |(setup, steps, drop_handles)| {
        let mut life = Life::new(setup);
        for step in steps {
            life.step(step);
            life.check();
        }
        for (seen, count) in seen.borrow_mut().iter_mut().zip(life.finish(drop_handles)) {
            *seen += count;
        }
        Ok(())
    });
    tried.unwrap_or_else(|failed| panic!("{failed}"));
    let seen = seen.into_inner();
    assert!(seen.iter().all(|count| *count > 100), "each fate is met often: {seen:?}");
}
