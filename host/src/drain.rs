//! The end of the program, on a thread of its own, which an executor that is blocked cannot hold.

use crate::host::{FAILED, Stage};
use crate::signals::AtSecond;
use crate::systemd;
use crate::terminal::{Level, bar, tell};
use crate::voice::{TELL, Voice, leave};
use background_tasks::{Registry, Shutdown, ShutdownSignal, Stragglers, Summary};
use futures_lite::future::block_on;
use std::fmt::Display;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

/// How long what was aborted may take to be gone.
const SETTLE: Duration = Duration::from_millis(500);
/// How long `main` may take to return then.
const LEAVE: Duration = Duration::from_millis(250);
/// How long the last line and the last flush may take at a second signal.
const SECOND: Duration = Duration::from_secs(1);
/// Between two lines.
const LINES: Duration = Duration::from_secs(2);
/// The longest that systemd is asked for at once: if nobody ends for so long, it is for systemd to decide.
const EXTEND: Duration = Duration::from_secs(30);

/// Has the second signal end the process at once.
pub(crate) fn leave_at_second(registries: &[Registry<()>]) -> AtSecond {
    let registries = registries.to_vec();
    AtSecond::new(move || {
        let left = in_flight(&registries);
        leave(130, SECOND, move || tell(Level::Warn, format_args!("left at once, {left} in flight")));
    })
}

/// Starts the thread that waits for the end's beginning and does it.
pub(crate) fn start(registries: Vec<Registry<()>>, grace: Duration, asked: ShutdownSignal, stage: Arc<Stage>) -> io::Result<()> {
    let end = move || {
        let signals = registries.iter().map(Registry::signal).chain([asked.clone(), stage.ended()]);
        block_on(any(signals.collect()));
        if stage.is_awaited() {
            End::new(registries, grace, asked, stage).run();
        }
    };
    thread::Builder::new().name("drain".into()).spawn(end).map(drop)
}

/// Waits for the first of them.
async fn any(mut signals: Vec<ShutdownSignal>) {
    let mut poll = |cx: &mut Context<'_>| signals.iter_mut().any(|signal| Pin::new(signal).poll(cx).is_ready());
    poll_fn(|cx| if poll(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
}

fn in_flight(registries: &[Registry<()>]) -> usize {
    registries.iter().map(Registry::in_flight).sum()
}

fn total(registries: &[Registry<()>]) -> Summary {
    let mut total = Summary::default();
    for Summary { completed, failed, panicked, abandoned, aborted, rejected, .. } in registries.iter().map(Registry::summary) {
        total.completed += completed;
        total.failed += failed;
        total.panicked += panicked;
        total.abandoned += abandoned;
        total.aborted += aborted;
        total.rejected += rejected;
    }
    total
}

/// How many were in flight and are not any more.
fn ended(summary: &Summary) -> u64 {
    summary.completed + summary.failed + summary.panicked + summary.abandoned + summary.aborted
}

struct End {
    registries: Vec<Registry<()>>,
    stage: Arc<Stage>,
    /// The process has been asked to stop.
    asked: ShutdownSignal,
    grace: Duration,
    began: Instant,
    /// `None` is never.
    deadline: Option<Instant>,
    /// How many had ended before.
    before: u64,
    /// How many had when systemd was told.
    known: Option<u64>,
    /// When the last line was told.
    told: Instant,
    /// Whether critical work that is lost has been told of.
    lost: bool,
    voice: Voice,
}

impl End {
    fn new(registries: Vec<Registry<()>>, grace: Duration, asked: ShutdownSignal, stage: Arc<Stage>) -> Self {
        let before = ended(&total(&registries));
        let began = Instant::now();
        let deadline = began.checked_add(grace);
        let voice = Voice::start();
        Self { registries, stage, asked, grace, began, deadline, before, known: None, told: began, lost: false, voice }
    }

    fn run(mut self) {
        let (drained, in_time) = channel();
        self.enforce(in_time);
        let own = self.stage.hold(&self.registries[0]);
        let in_flight = in_flight(&self.registries) + usize::from(own.is_some());
        let quiet = !self.asked.is_triggered() && in_flight == 0;
        self.registries[0].shutdown();
        if let Some(own) = own {
            self.registries.insert(0, own);
        }
        self.inform(systemd::stopping());
        self.blame();
        if !quiet {
            self.begin(in_flight);
        }
        let is_in_time = self.drain();
        self.voice.say(bar::finish);
        self.blame();
        if !is_in_time {
            self.stage.exit_with(1);
            self.abort();
        } else if self.stage.is_awaited() && !quiet {
            self.tell(Level::Info, format!("drained in {}: {}", self.time(), total(&self.registries)));
        }
        self.voice.hush(self.left().clamp(LEAVE, LINES));
        self.stage.finish();
        if is_in_time {
            let _ = drained.send(());
        } else {
            // Dropped, it would say that this thread has panicked, and the process would end before `main` has had its time.
            std::mem::forget(drained);
        }
    }

    /// Tells what has ended the program, if it was not a signal.
    fn blame(&mut self) {
        if let Some(error) = self.stage.error() {
            self.tell(Level::Error, format!("the program failed: {error}"));
        }
        if let (false, Some(lost)) = (self.lost, self.registries.iter().find_map(Registry::shutdown_cause)) {
            self.lost = true;
            self.stage.exit_with(FAILED);
            self.tell(Level::Error, format!("ending, as the program cannot go on without {lost}"));
        }
    }

    fn tell(&self, level: Level, line: String) {
        self.voice.say(move || tell(level, line));
    }

    fn inform(&self, systemd: io::Result<()>) {
        if let Err(error) = systemd {
            self.voice.say(move || systemd::failed(&error));
        }
    }

    /// Has the process end soon after the grace, whatever holds this thread, the executor or `main`.
    ///
    /// If all has drained in time, that is so once it has been asked to stop, which may come later.
    fn enforce(&self, in_time: Receiver<()>) {
        let Some(last) = self.deadline.and_then(|deadline| deadline.checked_add(SETTLE + LEAVE)) else { return };
        let (stage, asked) = (self.stage.clone(), self.asked.clone());
        let left = move || last.saturating_duration_since(Instant::now());
        let enforce = move || {
            let is_in_time = in_time.recv_timeout(left()).is_ok();
            if is_in_time {
                block_on(asked);
                thread::sleep(left());
            } else if !stage.is_over() {
                stage.exit_with(1);
            }
            if stage.is_awaited() {
                leave(stage.finish(), TELL, move || {
                    if is_in_time {
                        tell(Level::Error, "the grace is over, and `main` has not returned");
                    }
                });
            }
        };
        if let Err(error) = thread::Builder::new().name("deadline".into()).spawn(enforce) {
            self.tell(Level::Warn, format!("what hangs may hold the process: {error}"));
        }
    }

    fn begin(&self, in_flight: usize) {
        if self.voice.has_bar {
            let grace = self.grace;
            self.voice.say(move || bar::begin(grace));
        } else {
            self.tell(Level::Info, format!("draining: {in_flight} in flight"));
        }
    }

    /// Shuts down and waits for one registry after the other; returns whether all have drained, or nobody waits for that any more.
    fn drain(&mut self) -> bool {
        for registry in &self.registries.clone() {
            // At once, so that systemd knows from the beginning how many are in flight.
            let mut tick = Duration::ZERO;
            while let Err(stragglers) = registry.shutdown().wait_timeout(tick) {
                if !self.stage.is_awaited() {
                    return true;
                }
                if self.left() == Duration::ZERO {
                    return false;
                }
                self.show(&stragglers);
                tick = self.tick();
            }
        }
        true
    }

    fn left(&self) -> Duration {
        self.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn tick(&self) -> Duration {
        self.left().min(Duration::from_millis(if self.voice.has_bar { 100 } else { 1000 }))
    }

    /// Shows how it goes on.
    fn show(&mut self, stragglers: &Stragglers) {
        let in_flight = in_flight(&self.registries);
        let ended = ended(&total(&self.registries)).saturating_sub(self.before);
        let progress = self.known.replace(ended) != Some(ended);
        self.inform(systemd::draining(in_flight, progress.then(|| self.left().min(EXTEND) + SETTLE + LEAVE)));
        if self.voice.has_bar {
            let stragglers = stragglers.clone();
            self.voice.say(move || bar::show(ended, in_flight, &stragglers));
        } else if self.told.elapsed() >= LINES {
            self.told = Instant::now();
            self.tell(Level::Info, format!("draining: {in_flight} in flight"));
        }
    }

    /// The grace is over: names who is left, ends those who can be, and names who is left then.
    fn abort(&self) {
        for stragglers in self.stragglers(Duration::ZERO) {
            self.tell(Level::Warn, format!("the grace of {:?} is over: {stragglers:#}", self.grace));
        }
        // So that observers tell of those whom it aborts after this.
        self.voice.hush(TELL);
        for registry in &self.registries {
            registry.abort();
        }
        self.stage.abort();
        let left = self.stragglers(SETTLE);
        for stragglers in &left {
            self.tell(Level::Error, format!("gave up after {}: {stragglers:#}", self.time()));
        }
        if left.is_empty() {
            self.tell(Level::Warn, format!("aborted the last after {}: {}", self.time(), total(&self.registries)));
        }
    }

    /// Shuts all registries down and returns who is left in each after this time.
    fn stragglers(&self, time: Duration) -> Vec<Stragglers> {
        let until = Instant::now() + time;
        let shutdowns: Vec<_> = self.registries.iter().map(Registry::shutdown).collect();
        let left = |shutdown: Shutdown| shutdown.wait_timeout(until.saturating_duration_since(Instant::now())).err();
        shutdowns.into_iter().filter_map(left).collect()
    }

    fn time(&self) -> impl Display {
        format!("{:.2} s", self.began.elapsed().as_secs_f64())
    }
}
