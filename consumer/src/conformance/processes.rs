//! Checks a source with worker processes.

use super::{Broker, Violation};
use crate::consumer::consumer;
use crate::delivery::Delivery;
use crate::source::Source;
use background_tasks::{Registry, Spawner, Timer};
use futures_timer::Delay;
use std::collections::HashMap;
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Sets how many messages [`processes`] sends, and how many workers it kills, stops, aborts and freezes.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Plan {
    messages: usize,
    kills: usize,
    stops: usize,
    aborts: usize,
    freezes: usize,
    broker_fails: bool,
}

/// The result of [`processes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The number of messages that were sent. The workers have handled all these messages.
    pub messages: usize,
    /// The number of repeated attempts, without the first attempt of each message. Each repeated attempt was caused by a kill, a freeze, an
    /// abort or an outage.
    pub repeated: usize,
    /// The longest time from the start of a worker's shutdown until its process exited. This number does not include workers that abort
    /// their handlers or that were frozen.
    pub longest_stop: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { messages, repeated, longest_stop } = self;
        write!(f, "{messages} messages, 0 lost, {repeated} repeated, longest stop {longest_stop:?}")
    }
}

impl Plan {
    /// Creates a plan that sends this number of messages, and kills, stops, aborts and freezes no workers.
    pub const fn new(messages: usize) -> Self {
        Self { messages, kills: 0, stops: 0, aborts: 0, freezes: 0, broker_fails: false }
    }

    /// Creates a plan that sends 100 messages, kills 2 workers, stops 2, aborts 1 and freezes 1.
    pub const fn brief() -> Self {
        Self::new(100).kills(2).stops(2).aborts(1).freezes(1)
    }

    /// Creates a plan that sends 500 messages, kills 5 workers, stops 5, aborts 2 and freezes 2.
    pub const fn long() -> Self {
        Self::new(500).kills(5).stops(5).aborts(2).freezes(2)
    }

    /// Sets how many workers the test kills. Default: 0.
    pub const fn kills(mut self, workers: usize) -> Self {
        self.kills = workers;
        self
    }

    /// Sets how many workers the test stops gracefully while messages remain in the queue. Default: 0.
    pub const fn stops(mut self, workers: usize) -> Self {
        self.stops = workers;
        self
    }

    /// Sets how many workers the test stops as if their grace period had expired: each of these workers aborts its handlers.
    /// Default: 0.
    pub const fn aborts(mut self, workers: usize) -> Self {
        self.aborts = workers;
        self
    }

    /// Sets how many workers the test freezes for one second longer than the lease. Default: 0.
    pub const fn freezes(mut self, workers: usize) -> Self {
        self.freezes = workers;
        self
    }

    /// Accepts repeated attempts of every message, even without a kill, a freeze or an abort of its worker. Use this method if you kill or
    /// freeze the broker during the call to [`processes`].
    pub const fn broker_fails(mut self) -> Self {
        self.broker_fails = true;
        self
    }
}

/// What happened to a worker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    Stopped,
    Aborted,
    Frozen,
}

/// A line of a worker's output. It says that a handler has started or completed.
struct Event {
    message: usize,
    worker: usize,
    is_end: bool,
}

type Events = Arc<Mutex<Vec<Event>>>;

/// Handles the messages of a source until stdin closes. Then drains the registry and returns. Each worker process that [`processes`] starts
/// must call this function.
///
/// The registry must have [inspection](background_tasks::RegistryBuilder::inspect), because [`processes`] makes some workers abort their
/// handlers. The worker handles 16 messages at a time. It reports to [`processes`] over stdout. The process must therefore not write
/// anything else to stdout.
///
/// # Panics
///
/// Panics if the registry has drained.
pub async fn worker<P, S>(registry: &Registry<P>, source: S)
where
    P: Spawner + Timer<Sleep: Send> + Clone + Send + Sync + 'static,
    S: Source,
{
    let (spawner, stopping) = (registry.spawner().clone(), registry.clone());
    let handler = move |delivery: Delivery| {
        let spawner = spawner.clone();
        async move {
            let payload = String::from_utf8_lossy(delivery.payload()).into_owned();
            let (message, duration) = payload.split_once(' ').ok_or("the payload differs")?;
            print_line("start", message);
            spawner.sleep(Duration::from_millis(duration.parse().map_err(|_| "the payload differs")?)).await;
            print_line("end", message);
            Ok::<_, &str>(())
        }
    };
    let backoff = Duration::from_millis(100);
    let consumer = consumer(source).concurrency(16).max_attempts(1000).backoff(backoff, backoff);
    consumer.serve(registry, "conformance", handler).expect("the registry is open");
    thread::spawn(move || {
        let mut input = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut input);
        stopping.start_shutdown();
        while !input.is_empty() && !stopping.is_drained() {
            stopping.abort();
            thread::sleep(Duration::from_millis(10));
        }
    });
    registry.signal().await;
    registry.shutdown().await;
}

fn print_line(event: &str, message: &str) {
    // Writes the line with one call, so that lines of several threads do not mix. The call fails only if the suite has ended.
    let _ = std::io::stdout().write_all(format!("{event} {message}\n").as_bytes());
}

struct Worker {
    process: Child,
    /// Records the events of the process until its stdout closes.
    reader: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(command: &mut Command, number: usize, events: &Events) -> Result<Self, String> {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
        let stdout = process.stdout.take().ok_or("no stdout")?;
        let events = events.clone();
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Some((event, message)) = line.split_once(' ') else { continue };
                let Ok(message) = message.parse() else { continue };
                let event = Event { message, worker: number, is_end: event == "end" };
                events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        });
        Ok(Self { process, reader: Some(reader) })
    }

    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.read_all();
    }

    /// Waits until the events of the exited process are recorded, so that the events of the next worker follow them.
    fn read_all(&mut self) {
        let _ = self.reader.take().map(JoinHandle::join);
    }

    fn signal(&self, signal: &str) {
        let _ = Command::new("kill").args([signal, &self.process.id().to_string()]).status();
    }

    /// Stops the worker, and waits until the process exits. If `input` is not empty, the worker aborts its handlers.
    async fn stop(&mut self, input: &[u8]) -> Result<Duration, String> {
        let start = Instant::now();
        if let Some(mut stdin) = self.process.stdin.take() {
            stdin.write_all(input).map_err(|error| error.to_string())?;
        }
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) if status.success() => {
                    let elapsed = start.elapsed();
                    self.read_all();
                    return Ok(elapsed);
                }
                Ok(Some(status)) => return Err(format!("a worker ended with {status}")),
                Ok(None) if start.elapsed() > Duration::from_secs(60) => return Err("a worker did not stop within 60 s".into()),
                Ok(None) => Delay::new(Duration::from_millis(10)).await,
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends messages to an empty queue. Then starts worker processes, and kills, freezes and stops them as the plan says. Makes some of the
/// stopped workers abort their handlers. Finally starts one more worker, and waits until each message has been handled.
///
/// `command` returns a command that starts a worker process. This process must call [`worker`]. To freeze workers, this function runs the
/// program `kill`, so a plan with freezes needs Unix. The workers must handle all messages within two minutes after the start of the last
/// worker.
///
/// # Errors
///
/// Returns the first promise that the source breaks. Examples: a message is lost, is repeated without a reason, or a worker does not stop.
pub async fn processes<B: Broker>(broker: &B, mut command: impl FnMut() -> Command, plan: Plan) -> Result<Report, Violation> {
    let violation = |promise| move |observed: String| Violation { promise, observed };
    let runs = violation("a worker runs until it is stopped, and then exits");
    for n in 0..plan.messages {
        // The handlers of some messages take longer than a short lease.
        let duration = if n % 50 == 7 { 5000 } else { 50 + n * 37 % 250 };
        broker.send(format!("{n} {duration}")).await;
    }
    let events = Events::default();
    let mut ends = Vec::new();
    let mut report = Report { messages: plan.messages, ..Report::default() };
    for round in 0..plan.kills.max(plan.stops).max(plan.aborts).max(plan.freezes) {
        let counts =
            [(End::Killed, plan.kills), (End::Stopped, plan.stops), (End::Aborted, plan.aborts), (End::Frozen, plan.freezes)];
        for (end, count) in counts {
            if round >= count {
                continue;
            }
            let mut worker = Worker::start(&mut command(), ends.len(), &events).map_err(runs)?;
            ends.push(end);
            started(&events, ends.len() - 1).await;
            // The time is random, so that the kill or stop can happen at any step of the consumer's loop.
            Delay::new(Duration::from_millis(fastrand::u64(200..1200))).await;
            match end {
                End::Killed => worker.kill(),
                End::Stopped => report.longest_stop = report.longest_stop.max(worker.stop(b"").await.map_err(runs)?),
                End::Aborted => drop(worker.stop(b"abort").await.map_err(runs)?),
                End::Frozen => {
                    worker.signal("-STOP");
                    // Starts another worker, which receives the messages of the frozen worker.
                    let mut other = Worker::start(&mut command(), ends.len(), &events).map_err(runs)?;
                    ends.push(End::Stopped);
                    Delay::new(broker.connect().await.lease().unwrap_or_default() + Duration::from_secs(1)).await;
                    worker.signal("-CONT");
                    worker.stop(b"").await.map_err(runs)?;
                    other.stop(b"").await.map_err(runs)?;
                }
            }
        }
    }
    let mut worker = Worker::start(&mut command(), ends.len(), &events).map_err(runs)?;
    ends.push(End::Stopped);
    let start = Instant::now();
    let mut missing = plan.messages;
    while missing > 0 && start.elapsed() < Duration::from_secs(120) {
        Delay::new(Duration::from_millis(50)).await;
        let events = events.lock().unwrap_or_else(PoisonError::into_inner);
        let mut handled = vec![false; plan.messages];
        events.iter().filter(|event| event.is_end).for_each(|event| handled[event.message] = true);
        missing = handled.iter().filter(|handled| !**handled).count();
    }
    report.longest_stop = report.longest_stop.max(worker.stop(b"").await.map_err(runs)?);
    if missing > 0 {
        let promise = "each message is handled";
        return Err(Violation { promise, observed: format!("{missing} of {} messages are lost", plan.messages) });
    }
    let events = events.lock().unwrap_or_else(PoisonError::into_inner);
    let mut last_worker = HashMap::new();
    for event in events.iter().filter(|event| !event.is_end) {
        let Some(earlier) = last_worker.insert(event.message, event.worker) else { continue };
        report.repeated += 1;
        let has_ended = events.iter().any(|other| other.is_end && (other.message, other.worker) == (event.message, earlier));
        let is_explained = match ends[earlier] {
            End::Killed | End::Frozen => true,
            End::Aborted => !has_ended,
            // A frozen worker can start a message late: it has received the message before a later worker has.
            End::Stopped => ends[event.worker] == End::Frozen && event.worker < earlier,
        };
        if !is_explained && !plan.broker_fails {
            let promise = "a message that was handled before the end of a drain does not return";
            return Err(Violation { promise, observed: format!("message {} was repeated", event.message) });
        }
    }
    Ok(report)
}

/// Waits until a worker has started to handle a message. Waits for at most ten seconds, because the queue may be empty.
async fn started(events: &Events, worker: usize) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if events.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|event| event.worker == worker) {
            return;
        }
        Delay::new(Duration::from_millis(10)).await;
    }
}
