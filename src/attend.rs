//! What a registry does beside counting, for those who asked its builder: tells, lists, aborts, limits, and begins the shutdown on a loss.

use crate::clock::{self, Instant};
use crate::intake::{Intake, Ticket};
use crate::panics::{discard, shield};
use crate::roster::{Label, Slot};
use crate::shards::{Lane, RegistryState};
use crate::sync::{AtomicUsize, Mutex, Ordering, const_unless_loom, lock, thread_local};
use crate::token::{Call, Loss, Token};
use crate::{AbortError, AbortReport, Observer, RejectReason, TaskId, TaskInfo};
use core::cell::Cell;
use core::cmp::Reverse;
use core::fmt;
use core::task::{Poll, Waker};
use core::time::Duration;
use std::sync::Arc;

/// What was asked of the builder.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) observers: Vec<Box<dyn Observer>>,
    pub(crate) inspect: bool,
    pub(crate) shutdown_on_panic: bool,
    pub(crate) shutdown_on_failure: bool,
    pub(crate) limit: Option<usize>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("observers", &self.observers.len())
            .field("inspect", &self.inspect)
            .field("max_in_flight", &self.limit)
            .field("shutdown_on_panic", &self.shutdown_on_panic)
            .field("shutdown_on_failure", &self.shutdown_on_failure)
            .finish()
    }
}

const OBSERVED: usize = 1;
const INSPECTED: usize = 2;
const BOUNDED: usize = 4;
const SHUTDOWN_ON_PANIC: usize = 8;
const SHUTDOWN_ON_FAILURE: usize = 16;

/// What every entry reads of it: written before the registry's first handle is there, so Relaxed.
pub(crate) struct Asked {
    flags: AtomicUsize,
    /// If `BOUNDED`.
    limit: AtomicUsize,
}

impl Asked {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self { flags: AtomicUsize::new(0), limit: AtomicUsize::new(0) }
        }
    }

    #[inline]
    fn has(&self, flag: usize) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    fn limit(&self) -> Option<usize> {
        self.has(BOUNDED).then(|| self.limit.load(Ordering::Relaxed))
    }
}

/// The rest of it.
pub(crate) struct Attended {
    watch: Mutex<Watch>,
    intake: Intake,
}

struct Watch {
    observers: Option<Arc<Vec<Box<dyn Observer>>>>,
    /// When the shutdown began, if there is a clock.
    began: Option<Instant>,
    /// Whose loss began it, if one did.
    cause: Option<TaskInfo>,
}

impl Attended {
    const_unless_loom! {
        pub(crate) const fn new() -> Self {
            Self { watch: Mutex::new(Watch { observers: None, began: None, cause: None }), intake: Intake::new() }
        }
    }
}

impl RegistryState {
    /// Whether more is to be done for all work than to count it.
    #[inline]
    pub(crate) fn attends_all(&self) -> bool {
        self.asked.has(INSPECTED | BOUNDED)
    }

    /// Takes the settings of its next registry, before that is there.
    pub(crate) fn attend(&self, settings: Settings) {
        let Settings { observers, inspect, shutdown_on_panic, shutdown_on_failure, limit } = settings;
        let flag = |asked: bool, flag| if asked { flag } else { 0 };
        let flags = flag(!observers.is_empty(), OBSERVED)
            | flag(inspect, INSPECTED)
            | flag(limit.is_some(), BOUNDED)
            | flag(shutdown_on_panic, SHUTDOWN_ON_PANIC)
            | flag(shutdown_on_failure, SHUTDOWN_ON_FAILURE);
        self.asked.flags.store(flags, Ordering::Relaxed);
        self.asked.limit.store(limit.unwrap_or(0), Ordering::Relaxed);
        let mut watch = lock(&self.attended().watch);
        watch.cause = None;
        if !observers.is_empty() {
            watch.observers = Some(Arc::new(observers));
        }
    }

    /// Lets the observers go, as the registry is no more.
    pub(crate) fn dismiss(&self) {
        if self.is_observed() {
            let observers = lock(&self.attended().watch).observers.take();
            observers.and_then(Arc::into_inner).into_iter().flatten().for_each(discard);
        }
    }

    pub(crate) fn is_observed(&self) -> bool {
        self.asked.has(OBSERVED)
    }

    pub(crate) fn is_inspected(&self) -> bool {
        self.asked.has(INSPECTED)
    }

    /// Counts some work on the shard that its limit demands, and gives it the slot that it needs.
    pub(crate) fn enter_attended(&'static self, call: Call) -> Result<Token, RejectReason> {
        let lane = match self.bound() {
            None => self.pass()?,
            Some((lane, limit)) => {
                self.attended().intake.enter(&lane.tally().gate, limit)?;
                lane
            }
        };
        Ok(self.seat(lane, call))
    }

    /// With a limit one gate counts all, so that the limit is exact.
    fn bound(&'static self) -> Option<(&'static Lane, usize)> {
        self.asked.limit().map(|limit| (&self.lanes()[0], limit))
    }

    fn seat(&self, lane: &'static Lane, call: Call) -> Token {
        let inspected = self.is_inspected();
        if inspected || call.critical || (call.name.is_some() && self.is_observed()) {
            Token::in_slot(lane.rosters().begin(Label { call, inspected }, lane.tally()))
        } else {
            Token::new(lane.post(), call.site)
        }
    }

    /// Counts some work as soon as there is a place. A refusal is not counted.
    pub(crate) fn poll_enter(
        &'static self,
        call: Call,
        ticket: &mut Option<Ticket>,
        waker: &Waker,
    ) -> Poll<Result<Token, RejectReason>> {
        let Some((lane, limit)) = self.bound() else {
            return Poll::Ready(self.enter_attended(call));
        };
        if ticket.is_none() {
            match self.enter_attended(call) {
                Err(RejectReason::Full) => {}
                done => return Poll::Ready(done),
            }
        }
        let is_open = || !self.is_shutting_down();
        let entered = self.attended().intake.poll_enter(&lane.tally().gate, limit, ticket, waker, is_open);
        entered.map(|entered| match entered {
            Some(()) => Ok(self.seat(lane, call)),
            None => Err(RejectReason::ShuttingDown),
        })
    }

    pub(crate) fn leave_queue(&'static self, ticket: Ticket) {
        if let Some((lane, limit)) = self.bound() {
            self.attended().intake.leave(&lane.tally().gate, limit, ticket);
        }
    }

    pub(crate) fn place_left(&'static self) {
        self.attended().intake.place_left();
    }

    pub(crate) fn send_queue_away(&'static self) {
        if let Some((lane, _)) = self.bound() {
            self.attended().intake.close(&lane.tally().gate);
        }
    }

    /// Tells all observers something, under no lock (S7), each for itself (S6).
    pub(crate) fn tell(&self, what: impl Fn(&dyn Observer)) {
        if self.is_observed() {
            let observers = lock(&self.attended().watch).observers.clone();
            for observer in observers.iter().flat_map(|observers| observers.iter()) {
                shield(|| what(&**observer));
            }
            discard(observers);
        }
    }

    /// Notes when the shutdown began; returns how many were in flight, if anybody wants to know.
    pub(crate) fn note_beginning(&'static self) -> usize {
        if !self.is_observed() {
            return 0;
        }
        lock(&self.attended().watch).began = clock::IS_THERE.then(Instant::now);
        self.in_flight()
    }

    /// Tells a refusal; not one that comes of telling one, which would go on for ever.
    #[allow(clippy::missing_const_for_thread_local, reason = "loom's has no const, and no shorter way in")]
    pub(crate) fn tell_refusal(&self, call: Call, reason: RejectReason) {
        thread_local!(static TELLING: Cell<bool> = Cell::new(false));
        if self.is_observed() && !TELLING.with(|telling| telling.replace(true)) {
            let kind = self.is_inspected().then_some(call.kind);
            let task = TaskInfo { kind, ..TaskInfo::new(call.site, call.name) };
            self.tell(|observer| observer.rejected(&task, reason));
            TELLING.with(|telling| telling.set(false));
        }
    }

    pub(crate) fn tell_end(&'static self) {
        if self.is_observed() {
            let began = lock(&self.attended().watch).began;
            let took = began.map_or(Duration::ZERO, |began| Instant::now().duration_since(began));
            let summary = self.summary();
            self.tell(|observer| observer.drained(&summary, took));
        }
    }

    /// Tells a loss, and begins the shutdown if it is to.
    #[expect(clippy::needless_pass_by_value, reason = "it is told once")]
    pub(crate) fn lost(&'static self, token: &Token, loss: Loss) {
        if self.is_observed() {
            let task = token.info();
            self.tell(|observer| match &loss {
                Loss::Failed(error) => observer.failed(&task, error),
                Loss::Panicked(message) => observer.panicked(&task, message),
                Loss::Abandoned => observer.abandoned(&task),
                Loss::Aborted => observer.aborted(&task),
            });
        }
        let ends_all = match loss {
            Loss::Failed(_) => self.asked.has(SHUTDOWN_ON_FAILURE) || token.is_critical(),
            Loss::Panicked(_) => self.asked.has(SHUTDOWN_ON_PANIC) || token.is_critical(),
            Loss::Abandoned | Loss::Aborted => false,
        };
        if ends_all {
            if !self.is_shutting_down() {
                lock(&self.attended().watch).cause.get_or_insert(token.info());
            }
            self.begin_shutdown();
        }
    }

    pub(crate) fn shutdown_cause(&self) -> Option<TaskInfo> {
        lock(&self.attended().watch).cause
    }

    fn slots(&'static self) -> impl Iterator<Item = &'static Slot> {
        self.lanes().iter().flat_map(|lane| lane.rosters().slots())
    }

    /// What is in flight and inspected, oldest first.
    pub(crate) fn tasks(&'static self) -> Vec<TaskInfo> {
        let now = clock::now();
        let mut tasks: Vec<_> = self.slots().filter_map(|slot| slot.task(now)).collect();
        tasks.sort_by_key(|task| Reverse(task.age));
        tasks
    }

    pub(crate) fn abort(&'static self) -> AbortReport {
        let mut swept = AbortReport { aborted: 0, not_abortable: if self.is_inspected() { 0 } else { self.in_flight() } };
        for can in self.slots().filter_map(|slot| slot.abort(None)) {
            let count = if can { &mut swept.aborted } else { &mut swept.not_abortable };
            *count += 1;
        }
        swept
    }

    pub(crate) fn abort_task(&'static self, id: TaskId) -> Result<(), AbortError> {
        match self.slots().find_map(|slot| slot.abort(Some(id))) {
            Some(true) => Ok(()),
            Some(false) => Err(AbortError::NotAbortable),
            None => Err(AbortError::NotInFlight),
        }
    }
}
