//! A worker: the engine's intake, the jobs' outcomes, and the sign that it lives.
//!
//! It is tracked by the registry, and not to be aborted: when the others are, it still gives their jobs back.

use crate::intake::{Gate, Permit, Polls, Start, lock};
use crate::job::Next;
use crate::store::{Batch, RawTask, Terms, VERSION, id};
use crate::{Durable, Error, Failure, Job, JobId, Options, Queue};
use apalis_core::backend::TaskResult;
use apalis_core::task::status::Status;
use background_tasks::{Registry, RejectReason, ShutdownSignal, Spawner};
use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_channel::oneshot;
use futures_timer::Delay;
use futures_util::future::{Either, FutureExt, join, ready, select};
use futures_util::{StreamExt, pin_mut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use ulid::Ulid;

/// How long starts alone wait for company: a job that is over by then costs one transaction, not two.
const LINGER: Duration = Duration::from_millis(20);

/// Soon after a commit, outcomes wait for others: a commit of many costs what one of a single one does.
const GROUP: Duration = Duration::from_millis(2);
const BUSY: Duration = Duration::from_millis(10);

/// After a failure of the store, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long the store may take to answer before it is asked again, and so on another connection: at first, and at most.
pub(crate) const ANSWER: Duration = Duration::from_secs(15);
const ANSWER_AT_MOST: Duration = Duration::from_mins(10);

/// More of a result than this, or deeper ones, not every database takes or gives back; and what is not taken would stand in the way of all others.
const LARGEST: usize = 32 << 20;
const DEEPEST: usize = 100;

const FIRST_UPKEEP: Duration = Duration::from_secs(5);

/// How long a worker that has met a version that it does not know lets others look first.
const SHY_AT_MOST: Duration = Duration::from_mins(5);

/// An engine that has lived for so long was well. One that finds no store, or a silent one, can take most of it to say so.
const WELL: Duration = Duration::from_mins(1);

impl<T> Queue<T> {
    /// Starts a worker: jobs of this queue run as tasks of the registry, named after the queue, until it shuts down. The future ends when
    /// the worker stands in the registry.
    ///
    /// A job's task is over when what became of it is committed. One that fails counts as failed, and comes again; one that panics
    /// counts as panicked, and comes again too. When the registry shuts down, the worker takes no more jobs at once; those that it has go
    /// on, with its heartbeats, and end before the registry is drained. What the engine has fetched and not started goes back to the queue, and so
    /// does what a [`Registry::abort`] cuts then; neither is charged with an attempt. At any other time an abort is a failed attempt.
    /// What still runs when the process ends without an abort goes to others when the worker's [lease](Options::lease) is over, and
    /// is charged with an attempt. Only a registry that is [inspected](background_tasks::RegistryBuilder::inspect) can abort.
    ///
    /// It never gives up: while the database is away it tries again, up to every 5 seconds, and keeps the outcomes that it could not
    /// tell; a shutdown waits for them, so give it an end of its own, as a host does. Each outage is told to the registry's observer, as a failed task of the name `QUEUE worker`; one that comes and goes within a minute, once.
    ///
    /// The worker is in flight until the shutdown, so [`wait_idle`](Registry::wait_idle) waits for that. It is two tasks, with its upkeep:
    /// a registry with a [bound](background_tasks::RegistryBuilder::max_in_flight) needs room for these, and for jobs beside them, which wait
    /// for it.
    ///
    /// # Errors
    ///
    /// Those of the store, which is asked once, and [`Error::Refused`] if the registry does not take the worker.
    ///
    /// # Panics
    ///
    /// Where the registry's spawner panics, as tokio's does outside its runtime.
    #[track_caller]
    pub fn serve<S, H, F, R, E>(
        &self,
        registry: &Registry<S>,
        options: Options,
        handler: H,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<T, S, H, F, R, E>
    where
        S: Spawner + Clone + Send + Sync + 'static,
        T: DeserializeOwned + Send + 'static,
        H: Fn(Job<T>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<R, E>> + Send + 'static,
        R: Serialize + Send + 'static,
        E: Display + Send + 'static,
    {
        let at = Location::caller();
        let (queue, registry) = (self.clone(), registry.clone());
        async move {
            queue.info(JobId(Ulid::nil())).await?; // is it there?
            let jobs = queue.jobs.clone();
            let (name, place) = (queue.name, Place::new(&registry, queue.name, at));
            let (told, words) = unbounded();
            let desk = Arc::new(Desk { told, held: Mutex::default() });
            let shift = Shift {
                terms: terms(name, &options),
                gate: Gate::new(options.concurrency),
                poll: options.poll,
                signal: registry.signal(),
                desk: desk.clone(),
                jobs: jobs.clone(),
                report: place.report(),
            };
            let upkeep = upkeep(jobs.clone(), name, options.clone(), place.report());
            let work = Arc::new(Work { queue, options, handler, desk, registry: registry.clone(), at });
            let work = jobs.runtime.within(shift.work(words, move |worker| start(&work, worker)));
            let signal = registry.signal();
            let upkeep = jobs.runtime.within(async move { signal.run_until_shutdown(upkeep).await.unwrap_or_default() });
            // A registry that has begun to shut down still takes tasks.
            if registry.is_shutting_down() && !registry.is_drained() {
                return Err(Error::Refused(RejectReason::ShuttingDown));
            }
            // Tracked: an abort that is no shutdown's cuts jobs, and not what serves them.
            let work = registry.named(place.worker).location(at).track(work).map_err(|refused| Error::Refused(refused.reason()))?;
            let upkeep =
                registry.named(place.upkeep).location(at).track(upkeep).map_err(|refused| Error::Refused(refused.reason()))?;
            registry.spawner().spawn(work);
            registry.spawner().spawn(upkeep);
            Ok(())
        }
    }
}

fn terms(queue: &'static str, options: &Options) -> Terms {
    let lease = options.lease.as_secs() + u64::from(options.lease.subsec_nanos() > 0);
    let beat = (lease / 5).max(1);
    // SQLite notes when a worker was seen in whole seconds, so that a second less may have passed.
    let beats = usize::try_from((lease + 1).div_ceil(beat)).unwrap_or(usize::MAX);
    Terms { queue, batch: options.batch, beat: Duration::from_secs(beat), beats }
}

/// Under which names a worker's own tasks stand in the registry. They are a few for each worker, and for the whole life of the process.
struct Place<S> {
    registry: Registry<S>,
    worker: &'static str,
    upkeep: &'static str,
    at: &'static Location<'static>,
}

type Report = Box<dyn Fn(Error) + Send + Sync>;

impl<S: Spawner + Clone + Send + Sync + 'static> Place<S> {
    fn new(registry: &Registry<S>, queue: &str, at: &'static Location<'static>) -> Self {
        let name = |of| &*Box::leak(format!("{queue} {of}").into_boxed_str());
        Self { registry: registry.clone(), worker: name("worker"), upkeep: name("upkeep"), at }
    }

    /// What went wrong beside any job is told as any other failure.
    fn report(&self) -> Report {
        let (registry, name, at) = (self.registry.clone(), self.worker, self.at);
        Box::new(move |error| registry.named(name).location(at).run(async move { Err::<(), _>(error) }))
    }
}

/// What a job's task tells the worker.
enum Word {
    Started,
    /// When it comes again, and how large the result is.
    Ended(TaskResult<Value>, Option<Duration>, usize),
    Returned,
    Deferred(Duration, String),
    /// No more jobs come.
    Closed,
}

struct Told {
    id: Ulid,
    run: u64,
    word: Word,
    committed: oneshot::Sender<()>,
}

/// Where jobs are handed out and outcomes handed in.
struct Desk {
    told: UnboundedSender<Told>,
    held: Mutex<HashMap<Ulid, Held>>,
}

/// A job that was handed out and is not settled.
struct Held {
    /// The name of the engine that has fetched it, last.
    by: Arc<str>,
    /// Which run of it this is, in this worker.
    run: u64,
    /// It has ended. It can come again from the moment in which that is committed, so before anybody here is told that it was.
    over: bool,
}

impl Desk {
    fn held<R>(&self, look: impl FnOnce(&mut HashMap<Ulid, Held>) -> R) -> R {
        look(&mut lock(&self.held))
    }

    fn ids(&self) -> Vec<String> {
        self.held(|held| held.keys().map(Ulid::to_string).collect())
    }

    /// The last run of a job that is not settled.
    fn run(&self, id: Ulid) -> Option<u64> {
        self.held(|held| held.get(&id).map(|held| held.run))
    }

    /// Hands a job out. `None` if it still runs here: the others took it for lost while this process hung, and it has come back.
    fn hand_out(&self, id: Ulid, by: Arc<str>) -> Option<u64> {
        self.held(|held| match held.get_mut(&id) {
            Some(held) if !held.over => {
                held.by = by;
                None
            }
            before => {
                let run = before.map_or(0, |before| before.run + 1);
                held.insert(id, Held { by, run, over: false });
                Some(run)
            }
        })
    }

    /// Ends when it is committed, or is `false` if it never will be: the worker is gone, with its executor.
    fn tell(&self, id: Ulid, run: u64, word: Word) -> impl Future<Output = bool> + use<> {
        let (committed, done) = oneshot::channel();
        let _ = self.told.unbounded_send(Told { id, run, word, committed });
        done.map(|committed| committed.is_ok())
    }
}

/// A job that was handed out, and of which something will be told, whatever becomes of its task.
struct Claim {
    desk: Arc<Desk>,
    id: Ulid,
    run: u64,
    attempt: u32,
    /// A failure of it is the last.
    last: bool,
    state: State,
    signal: ShutdownSignal,
    pause: Duration,
}

#[derive(PartialEq)]
enum State {
    Fetched,
    Started,
    Told,
}

impl Claim {
    fn start(&mut self) {
        self.state = State::Started;
        drop(self.desk.tell(self.id, self.run, Word::Started));
    }

    fn tell(&mut self, word: Word) -> impl Future<Output = bool> + use<> {
        self.state = State::Told;
        self.desk.held(|held| held.get_mut(&self.id).into_iter().for_each(|held| held.over |= held.run == self.run));
        self.desk.tell(self.id, self.run, word)
    }

    fn ended(&self, status: Status, result: Result<Value, String>, again: Option<Duration>) -> Word {
        let (result, size) = storable(result);
        Word::Ended(TaskResult { task_id: self.id.into(), attempt: self.attempt as usize, status, result }, again, size)
    }

    fn failed(&self, failure: &Failure) -> Word {
        let pause = match failure.next {
            Next::Dead => None,
            _ if self.last => None,
            Next::After(pause) => Some(pause),
            Next::Backoff => Some(self.pause),
        };
        let status = if pause.is_some() { Status::Failed } else { Status::Killed };
        self.ended(status, Err(failure.to_string()), pause)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let word = match self.state {
            State::Told => return,
            State::Started if !self.signal.is_triggered() => self.failed(&Failure::retry("it was aborted")),
            _ => Word::Returned,
        };
        drop(self.tell(word));
    }
}

/// What all tasks of a worker share.
struct Work<T, S, H> {
    queue: Queue<T>,
    options: Options,
    handler: H,
    desk: Arc<Desk>,
    registry: Registry<S>,
    at: &'static Location<'static>,
}

/// How jobs that the engine has fetched under this name become tasks.
fn start<T, S, H, F, R, E>(work: &Arc<Work<T, S, H>>, worker: Arc<str>) -> Arc<Start>
where
    S: Spawner + Clone + Send + Sync + 'static,
    T: DeserializeOwned + Send + 'static,
    H: Fn(Job<T>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<R, E>> + Send + 'static,
    R: Serialize + Send + 'static,
    E: Display + Send + 'static,
{
    let work = work.clone();
    Arc::new(move |task: RawTask, permit: Permit| {
        let id = id(&task);
        let Some(run_number) = work.desk.hand_out(id, worker.clone()) else { return ready(()).boxed() };
        let attempt = u32::try_from(task.attempt()).unwrap_or(u32::MAX).saturating_add(1);
        let (desk, signal, pause) = (work.desk.clone(), work.registry.signal(), work.options.pause(attempt));
        let last = attempt >= work.options.attempts;
        let claim = Claim { desk, id, run: run_number, attempt, last, state: State::Fetched, signal, pause };
        let work = work.clone();
        async move {
            if !claim.signal.is_triggered() {
                let job = run(work.clone(), claim, task, permit);
                // A refusal drops the claim, which gives the job back.
                let _ = work.registry.named(work.queue.name).location(work.at).run_when_ready(job).await;
            }
        }
        .boxed()
    })
}

/// A job's task.
async fn run<T, S, H, F, R, E>(shared: Arc<Work<T, S, H>>, mut claim: Claim, task: RawTask, permit: Permit) -> Result<(), Failure>
where
    T: DeserializeOwned,
    H: Fn(Job<T>) -> F,
    F: Future<Output = Result<R, E>>,
    R: Serialize,
    E: Display + 'static,
{
    claim.start();
    let ended = AssertUnwindSafe(attempt(&shared, &claim, &task)).catch_unwind().await;
    let defer = shared.options.defer;
    if let Ok(Err(Stop::Unknown(_))) = ended {
        permit.0.be_shy(Instant::now() + (defer * 2).min(SHY_AT_MOST));
    }
    drop(permit);
    let (word, outcome) = match ended {
        Ok(Ok(value)) => (claim.ended(Status::Done, Ok(value), None), Ok(Ok(()))),
        Ok(Err(Stop::Failed(failure))) => (claim.failed(&failure), Ok(Err(failure))),
        Ok(Err(Stop::Unknown(text))) => (Word::Deferred(defer, text.clone()), Ok(Err(Failure::dead(text)))),
        Err(payload) => {
            let failure = Failure::retry(format_args!("it panicked: {}", said(&*payload)));
            (claim.failed(&failure), Err(payload))
        }
    };
    let committed = claim.tell(word).await;
    match outcome {
        Err(payload) => resume_unwind(payload),
        Ok(_) if !committed => Err(Failure::dead("what became of it is not committed: its worker is gone")),
        Ok(outcome) => outcome,
    }
}

enum Stop {
    Failed(Failure),
    /// Another worker may know its version.
    Unknown(String),
}

async fn attempt<T, S, H, F, R, E>(work: &Work<T, S, H>, claim: &Claim, task: &RawTask) -> Result<Value, Stop>
where
    T: DeserializeOwned,
    H: Fn(Job<T>) -> F,
    F: Future<Output = Result<R, E>>,
    R: Serialize,
    E: Display + 'static,
{
    let options = &work.options;
    if claim.attempt > options.attempts.saturating_add(options.crashes) {
        return Err(Stop::Failed(Failure::dead(format_args!("given up: its process died {} times", claim.attempt - 1))));
    }
    let payload = read(&work.queue, task)?;
    let done = (work.handler)(Job { payload, id: JobId(claim.id), attempt: claim.attempt });
    let done = match options.timeout {
        None => done.await,
        Some(most) => {
            pin_mut!(done);
            match select(done, Delay::new(most)).await {
                Either::Left((done, _)) => done,
                Either::Right(_) => return Err(Stop::Failed(Failure::retry(format_args!("it took longer than {most:?}")))),
            }
        }
    };
    let value = done.map_err(|error| Stop::Failed(Failure::of(&error)))?;
    // The work is done, and doing it again would not make its result any better.
    let written = catch_unwind(AssertUnwindSafe(|| serde_json::to_value(value)));
    let why = match written {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(payload) => format!("it panicked: {}", said(&*payload)),
    };
    Ok(Value::String(format!("its result cannot be written as JSON: {why}")))
}

fn read<T: DeserializeOwned>(queue: &Queue<T>, task: &RawTask) -> Result<T, Stop> {
    let version = task.metadata().get(VERSION).map_or(Ok(1), str::parse).unwrap_or(u32::MAX);
    let read = match queue.upgrades.get(&version) {
        _ if version == queue.version => serde_json::from_slice(&task.args),
        Some(upgrade) => serde_json::from_slice(&task.args).and_then(|payload| upgrade(payload)),
        None => {
            let known: Vec<_> = queue.upgrades.keys().chain([&queue.version]).map(u32::to_string).collect();
            let text = format!("version {version} of its payload is not known to this worker, which knows {}", known.join(", "));
            return Err(Stop::Unknown(text));
        }
    };
    read.map_err(|error| Stop::Failed(Failure::dead(format_args!("its payload cannot be read: {error}"))))
}

/// What a database takes for certain, and its size.
fn storable(result: Result<Value, String>) -> (Result<Value, String>, usize) {
    let result = match result {
        Ok(value) => match measure(&value) {
            (_, size) if size > LARGEST => Ok(Value::String(format!("its result cannot be stored: it has {size} bytes"))),
            (depth, _) if depth > DEEPEST => Ok(Value::String(format!("its result cannot be stored: it is nested {depth} deep"))),
            (_, size) => return (Ok(value), size),
        },
        Err(mut text) => {
            text.truncate(text.floor_char_boundary(LARGEST));
            Err(text)
        }
    };
    let size = result.as_ref().map_or_else(String::len, |_| 0);
    (result, size)
}

/// How deep it is nested, and about how many bytes it has.
fn measure(value: &Value) -> (usize, usize) {
    let within = |(depth, size): (usize, usize), (deeper, more): (usize, usize)| (depth.max(deeper + 1), size + more);
    match value {
        Value::String(text) => (0, text.len() + 8),
        Value::Array(values) => values.iter().map(measure).fold((1, 8), within),
        Value::Object(fields) => {
            fields.iter().fold((1, 8), |all, (name, value)| within(within(all, (0, name.len())), measure(value)))
        }
        _ => (0, 8),
    }
}

pub(crate) fn said(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("it did not say why")
}

/// The worker itself.
struct Shift {
    terms: Terms,
    gate: Arc<Gate>,
    poll: Duration,
    signal: ShutdownSignal,
    desk: Arc<Desk>,
    jobs: Durable,
    report: Report,
}

impl Shift {
    async fn work(self, words: UnboundedReceiver<Told>, start: impl Fn(Arc<str>) -> Arc<Start> + Send) {
        let name = Mutex::new(self.name());
        let told = async {
            self.fetch(&name, start).await;
            drop(self.desk.tell(Ulid::nil(), 0, Word::Closed));
        };
        let told = join(told, self.tell(words));
        let beats = self.beat(&name);
        pin_mut!(told, beats);
        select(told, beats).await;
        let _ = in_time(ANSWER, self.jobs.store.sign_off(&current(&name))).await;
    }

    /// The engine refuses a name that was seen of late.
    fn name(&self) -> Arc<str> {
        format!("{} {} {}", self.terms.queue, std::process::id(), Ulid::generate()).into()
    }

    /// Runs the engine until the shutdown, and another one when it fails: its state is dead then.
    async fn fetch(&self, name: &Mutex<Arc<str>>, start: impl Fn(Arc<str>) -> Arc<Start>) {
        let mut pause = PAUSES.0;
        while !self.signal.is_triggered() {
            let since = Instant::now();
            let worker = current(name);
            let polls = Polls::new(self.poll, self.jobs.bell(self.terms.queue), self.gate.clone());
            let engine =
                self.jobs.store.engine(worker.to_string(), self.terms.clone(), polls, start(worker.clone()), self.signal.clone());
            let mut failed = engine.await;
            if since.elapsed() > WELL {
                pause = PAUSES.0;
            }
            loop {
                if let Some(error) = failed.take() {
                    if pause == PAUSES.0 {
                        (self.report)(error);
                    }
                    self.signal.run_until_shutdown(Delay::new(pause)).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                // What it had fetched and not handed out; its jobs that run go on under its name.
                match in_time(ANSWER, self.jobs.store.give_back(&worker, &self.desk.ids())).await {
                    Err(error) if !self.signal.is_triggered() => failed = Some(error),
                    // If it failed, the next beat does it.
                    _ => break,
                }
            }
            if !self.signal.is_triggered() {
                *lock(name) = self.name();
            }
        }
    }

    /// Commits what is told, and does not give up: until then it is nowhere else.
    async fn tell(&self, mut words: UnboundedReceiver<Told>) {
        let (mut closed, mut busy) = (false, None);
        while let Some(first) = words.next().await {
            let all = gather(first, &mut words, busy.is_some_and(|since: Instant| since.elapsed() < BUSY)).await;
            closed |= all.iter().any(|told| matches!(told.word, Word::Closed));
            let over: Vec<_> = all
                .iter()
                .filter(|told| !matches!(told.word, Word::Started | Word::Closed))
                .map(|told| (told.id, told.run))
                .collect();
            let (mut pause, mut most) = (PAUSES.0, ANSWER);
            let (batches, committed) = self.batches(all);
            for (worker, mut batch) in batches {
                while let Err(error) = in_more_time(&mut most, self.jobs.store.settle(&worker, &batch)).await {
                    if pause == PAUSES.0 {
                        (self.report)(error);
                    }
                    Delay::new(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                    // What runs again here was committed, though nobody said so, and is another run's now.
                    let is_later =
                        |&&(id, run): &&(Ulid, u64)| self.desk.run(id).is_some_and(|now| now != run && !over.contains(&(id, now)));
                    batch.leave_out(&over.iter().filter(is_later).map(|(id, _)| id.to_string()).collect());
                }
            }
            let any = !over.is_empty();
            let none = self.desk.held(|held| {
                for (id, run) in over {
                    if held.get(&id).is_some_and(|held| held.run == run) {
                        held.remove(&id);
                    }
                }
                held.is_empty()
            });
            for committed in committed {
                let _ = committed.send(());
            }
            if any {
                self.jobs.settled.notify(usize::MAX);
            }
            busy = Some(Instant::now());
            if closed && none {
                break;
            }
        }
    }

    /// By the names under which they were fetched, as the store asks for. A start is left out where the job is over by now, and so is what is said of
    /// a run that the store took for lost, as there is a later one.
    fn batches(&self, all: Vec<Told>) -> (HashMap<Arc<str>, Batch>, Vec<oneshot::Sender<()>>) {
        let over: HashSet<Ulid> = all.iter().filter(|told| !matches!(told.word, Word::Started)).map(|told| told.id).collect();
        let mut batches = HashMap::<Arc<str>, Batch>::new();
        let mut committed = Vec::new();
        for told in all {
            committed.push(told.committed);
            let by = |held: &Held| (held.run == told.run).then(|| held.by.clone());
            let Some(worker) = self.desk.held(|held| held.get(&told.id).and_then(by)) else { continue };
            let (id, batch) = (told.id.to_string(), batches.entry(worker).or_default());
            match told.word {
                Word::Started if over.contains(&told.id) => {}
                Word::Started => batch.started.push(id),
                Word::Ended(result, again, _) => {
                    batch.ended.push(result);
                    batch.again.extend(again.map(|after| (id, after)));
                }
                Word::Returned => batch.returned.push(id),
                Word::Deferred(after, why) => batch.deferred.push((id, after, why)),
                Word::Closed => {}
            }
        }
        (batches, committed)
    }

    /// The engine beats as well, but not while it fetches, nor while what it has fetched waits for its turn, nor when it has failed; and it
    /// is gone while the last jobs end.
    async fn beat(&self, name: &Mutex<Arc<str>>) {
        let (mut well, mut took) = (true, Duration::ZERO);
        loop {
            Delay::new(self.terms.beat.saturating_sub(took)).await;
            let since = Instant::now();
            let now = current(name);
            let mut workers: HashSet<Arc<str>> = self.desk.held(|held| held.values().map(|held| held.by.clone()).collect());
            workers.insert(now.clone());
            // A fetch can be committed after its engine is gone, and then nobody would ever start those jobs while we beat for its name.
            // Asked in this order: what is not current any more hands out nothing, and what is handed out after the signal is not started.
            let (ending, ids) = (self.signal.is_triggered(), self.desk.ids());
            let names: Vec<_> = workers.iter().map(ToString::to_string).collect();
            // Of the five in a lease, two: so that there is time for others.
            match in_time(self.terms.beat * 2, self.jobs.store.beat(&names)).await {
                Ok(()) => well = true,
                Err(error) if well => {
                    well = false;
                    (self.report)(error);
                }
                Err(_) => {}
            }
            let given_back = async {
                for gone in workers.iter().filter(|worker| ending || **worker != now) {
                    self.jobs.store.give_back(gone, &ids).await?;
                }
                Ok(())
            };
            let _ = in_time(self.terms.beat, given_back).await;
            took = since.elapsed();
        }
    }
}

pub(crate) async fn in_time<T>(most: Duration, asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match select(pin!(asked), Delay::new(most)).await {
        Either::Left((answer, _)) => answer,
        Either::Right(_) => Err(Error::Missing(format!("the database has not answered for {most:?}"))),
    }
}

/// As [`in_time`], and has twice as long the next time if that was not enough: it may have much to do.
async fn in_more_time<T>(most: &mut Duration, asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let since = Instant::now();
    let answer = in_time(*most, asked).await;
    if answer.is_err() && since.elapsed() >= *most {
        *most = (*most * 2).min(ANSWER_AT_MOST);
    }
    answer
}

/// What is committed together.
async fn gather(first: Told, words: &mut UnboundedReceiver<Told>, busy: bool) -> Vec<Told> {
    let mut all = vec![first];
    let mut linger = Delay::new(LINGER);
    while matches!(all[all.len() - 1].word, Word::Started) {
        let Either::Left((Some(next), _)) = select(words.next(), &mut linger).await else { break };
        all.push(next);
    }
    if busy {
        Delay::new(GROUP).await;
    }
    let size = |told: &Told| if let Word::Ended(_, _, size) = told.word { size } else { 0 };
    let mut sizes: usize = all.iter().map(size).sum();
    while all.len() < 1000 && sizes < LARGEST {
        let Ok(next) = words.try_recv() else { break };
        sizes += size(&next);
        all.push(next);
    }
    all
}

fn current(name: &Mutex<Arc<str>>) -> Arc<str> {
    lock(name).clone()
}

/// Keeps the store small and its planner informed: at once, soon after, as a queue that was empty may be full then, and then now and then.
async fn upkeep(jobs: Durable, queue: &'static str, options: Options, report: Report) {
    let (mut well, mut pause, mut most) = (true, FIRST_UPKEEP, ANSWER);
    loop {
        let kept = async {
            while in_more_time(&mut most, jobs.store.prune(queue, options.retain)).await? > 0 {}
            in_more_time(&mut most, jobs.store.tidy(queue)).await
        };
        match kept.await {
            Ok(()) => (well, most) = (true, ANSWER),
            Err(error) if well => {
                well = false;
                report(error);
            }
            Err(_) => {}
        }
        Delay::new(pause.min(options.upkeep)).await;
        pause = (pause * 2).min(options.upkeep);
    }
}
