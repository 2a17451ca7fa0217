//! What the tests demand of the processes.

use crate::postgres::Postgres;
use crate::process::{Process, until};
use crate::programs::Work;
use crate::record::{explained, now, once};
use crate::site::{Engine, Site, jobs};
use background_tasks_durable::{JobId, Status};
use fastrand::Rng;
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::env;
use std::fs::File;
use std::ops::Range;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// Returns what it has to tell.
type Test = fn(Engine<'_>, Rng) -> String;

const TESTS: &[(&str, Test)] = &[
    ("two_workers_killed", |engine, rng| workers_killed(engine, rng, 2)),
    ("four_workers_killed", |engine, rng| workers_killed(engine, rng, 4)),
    ("rolling_restarts", rolling_restarts),
    ("a_worker_that_hangs", a_worker_that_hangs),
    ("a_handler_that_hangs", a_handler_that_hangs),
    ("a_poison_job", a_poison_job),
];

/// Runs those whose name has one of the arguments in it, those of one database at once.
pub(crate) fn run() -> ExitCode {
    let seed = env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("SEED is a number"));
    println!("SEED={seed} JOBS={}", jobs());
    let mut failed = together("sqlite", TESTS, Engine::Sqlite, seed);
    match Postgres::start() {
        Ok(server) => {
            let tests = [TESTS, &[("a_server_killed", a_server_killed)]].concat();
            failed += together("postgres", &tests, Engine::Postgres(&server), seed);
        }
        Err(why) => println!("postgres skipped: {why}"),
    }
    ExitCode::from(u8::from(failed > 0))
}

/// Returns how many have failed.
fn together(database: &str, tests: &[(&str, Test)], engine: Engine<'_>, seed: u64) -> usize {
    let wanted: Vec<_> = env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    thread::scope(|scope| {
        let named = tests.iter().map(|&(name, test)| (format!("{database}::{name}"), test));
        let wanted = named.filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|part| name.contains(part)));
        let running = wanted.map(|(name, test)| {
            let thread = thread::Builder::new().name(name.clone());
            (name, thread.spawn_scoped(scope, move || timed(|| test(engine, Rng::with_seed(seed)))).unwrap())
        });
        let mut failed = 0;
        for (name, test) in running.collect::<Vec<_>>() {
            let told = test.join().map_or_else(|_| "FAILED".to_owned(), |told| format!("ok ({told})"));
            println!("test {name} ... {told}");
            failed += usize::from(told == "FAILED");
        }
        failed
    })
}

fn timed(test: impl FnOnce() -> String) -> String {
    let began = Instant::now();
    let told = test();
    format!("{told}; {:.1} s", began.elapsed().as_secs_f64())
}

/// Two enqueuers, each of them killed twice, and workers that are killed while they work. Each is started again.
fn workers_killed(engine: Engine<'_>, mut rng: Rng, workers: usize) -> String {
    let mut site = Site::new(engine);
    let count = jobs();
    let kills = count / 200 + 5;
    let halves = [0..count / 2, count / 2..count];
    let mut enqueuers = halves.map(|jobs| Enqueuer::start(&mut site, &mut rng, jobs));
    site.start_workers(workers);

    // Not by the clock: on a slow machine they are hit as well.
    let mut instants: Vec<_> = (0..kills).map(|_| rng.usize(1..count * 9 / 10)).collect();
    instants.sort_unstable();
    let mut more = Vec::new();
    for instant in instants {
        let which = rng.usize(..workers);
        until("there is work to be cut off", || {
            for each in &mut enqueuers {
                each.kill_at_its_time(&mut site);
            }
            site.begun() >= instant && site.is_busy(which, &mut more)
        });
        thread::sleep(Duration::from_micros(rng.u64(..20_000)));
        site.kill(which);
    }
    let told: Vec<_> = enqueuers.into_iter().flat_map(|each| each.finish(&mut site)).collect();
    // What was asked for twice is one job: there are as many as numbers.
    let all: BTreeSet<_> = told.into_iter().chain(more).collect();
    site.all_done(all.len());
    site.none_is_lost(&all);
    site.terminate();
    let again = explained(&site.runs(), &site.deaths);
    assert!(again > 0, "no kill has hit anything");
    format!("{} jobs, {kills} kills, 0 lost, {again} run again", all.len())
}

/// An enqueuer that goes on where the last of its kind was killed.
struct Enqueuer {
    process: Process,
    to: usize,
    /// After how many jobs of each.
    kills: Vec<usize>,
    told: Vec<(usize, JobId)>,
}

impl Enqueuer {
    fn start(site: &mut Site, rng: &mut Rng, jobs: Range<usize>) -> Self {
        let most = (jobs.end - jobs.start) / 4;
        let kills = (0..2).map(|_| rng.usize(1..=most)).collect();
        Self { process: process(site, &jobs), to: jobs.end, kills, told: Vec::new() }
    }

    /// What its process was told to be in.
    fn news(&self) -> Vec<(usize, JobId)> {
        let lines = self.process.lines().into_iter();
        lines.map(|words| (words[1].parse().unwrap(), words[2].parse().unwrap())).collect()
    }

    fn kill_at_its_time(&mut self, site: &mut Site) {
        if self.kills.last().is_none_or(|jobs| self.news().len() < *jobs) {
            return;
        }
        self.kills.pop();
        self.process.kill();
        self.told.extend(self.news());
        // The last is asked for once more, and the next may be in without that it was told.
        let from = self.told.last().expect("it has got somewhere").0;
        self.process = process(site, &(from..self.to));
    }

    /// All that was told to be in.
    fn finish(mut self, site: &mut Site) -> Vec<JobId> {
        until("an enqueuer is done", || {
            self.kill_at_its_time(site);
            !self.process.is_alive()
        });
        self.process.ends_in_order();
        self.told.extend(self.news());
        self.told.into_iter().map(|(_, id)| id).collect()
    }
}

fn process(site: &mut Site, jobs: &Range<usize>) -> Process {
    site.with("FROM", jobs.start);
    site.with("TO", jobs.end);
    site.start_enqueuer()
}

fn rolling_restarts(engine: Engine<'_>, mut rng: Rng) -> String {
    const RESTARTS: usize = 10;
    let mut site = Site::new(engine);
    let count = jobs();
    let mut ids = site.enqueue_all((0..count).map(|_| Work::Takes(rng.u64(10..80))));
    site.start_workers(2);
    let mut told = Vec::new();
    for restart in 0..RESTARTS {
        let which = restart % 2;
        until("there is work to be waited for", || site.begun() > count * restart / RESTARTS && site.is_busy(which, &mut ids));
        told.push((site.worker(which).name.clone(), now()));
        site.worker(which).terminate();
        site.replace(which);
    }
    site.all_done(ids.len());
    site.none_is_lost(&ids);
    site.terminate();
    let runs = site.runs();
    once(&runs);
    let at_the_time = runs.values().flatten().filter(|run| {
        let told = told.iter().find(|(process, _)| *process == run.process);
        told.is_some_and(|(_, at)| run.began < *at && run.ended > Some(*at))
    });
    let at_the_time = at_the_time.count();
    assert!(at_the_time > 0, "no restart has met any work");
    format!("{} jobs, {RESTARTS} restarts with {at_the_time} in flight, 0 lost, 0 run again", ids.len())
}

/// Postgres is killed, each of its processes, and started again. Nobody starts the workers again.
fn a_server_killed(_: Engine<'_>, mut rng: Rng) -> String {
    let mut server = Postgres::start().unwrap();
    let mut site = Site::new(Engine::Postgres(&server));
    // Longer than the server is away: who lives keeps what it has.
    site.with("LEASE", 20);
    let count = jobs();
    let mut ids = site.enqueue_all((0..count).map(|_| Work::Takes(rng.u64(10..80))));
    site.start_workers(2);
    let instant = rng.usize(1..count / 2);
    until("there is work to be cut off", || site.begun() >= instant && site.is_busy(0, &mut ids) && site.is_busy(1, &mut ids));
    thread::sleep(Duration::from_micros(rng.u64(..20_000)));
    let killed = now();
    server.kill();
    server.restart();
    site.all_done(ids.len());
    site.none_is_lost(&ids);
    site.terminate();

    let runs = site.runs();
    let mut again = 0;
    for (job, runs) in &runs {
        for pair in runs.windows(2) {
            // A second is for what has ended and waits for its outcome to be written.
            let open = pair[0].ended.is_none_or(|ended| ended + 1_000_000_000 > killed);
            assert!(pair[0].began < killed && open, "{job} runs again, though it was not in flight: {runs:#?}");
            assert!(pair[0].ended.is_some_and(|ended| ended < pair[1].began), "{job} runs twice at once: {runs:#?}");
            again += 1;
        }
    }
    format!("{} jobs, 0 lost, {again} run again", ids.len())
}

/// It is stopped for longer than its lease. Its job goes to another, and what it makes of it later counts for nothing.
fn a_worker_that_hangs(engine: Engine<'_>, _: Rng) -> String {
    let mut site = Site::new(engine);
    let gate = site.path("go on, ").to_str().unwrap().to_owned();
    let go_on = |process: &str| drop(File::create(format!("{gate}{process}")).unwrap());
    site.start_workers(2);
    let held = site.enqueue(Work::Held(gate.clone()));
    let job = held.to_string();
    until("the job has begun", || site.begun() == 1);
    let hanging = site.runs()[&job][0].process.clone();
    let (hangs, other) = if site.worker(0).name == hanging { (0, 1) } else { (1, 0) };
    until("it is stopped with nothing locked", || {
        site.worker(hangs).signal(Signal::STOP);
        let free = site.is_free(held);
        if !free {
            site.worker(hangs).signal(Signal::CONT);
        }
        free
    });
    let stopped = now();
    let meanwhile = site.enqueue_all((0..20).map(|_| Work::Takes(5)));
    until("another has begun with the job", || site.begun_with(held) == 2);
    let taken = Duration::from_nanos(site.runs()[&job][1].began - stopped);
    assert!(taken >= Duration::from_secs(3), "it was taken from a worker that may be well: {taken:?}");

    // It goes on with what is not its own any more, and then takes other jobs.
    site.worker(hangs).signal(Signal::CONT);
    go_on(&hanging);
    until("the late one has ended", || site.runs()[&job][0].ended.is_some());
    let mut later = Vec::new();
    until("it is given jobs again", || {
        later.push(site.enqueue(Work::Takes(5)));
        let ids: Vec<_> = later.iter().map(ToString::to_string).collect();
        site.runs().iter().any(|(job, runs)| ids.contains(job) && runs[0].process == hanging)
    });
    // What it had to tell it has told, when it is gone. The other has the job all the while.
    site.worker(hangs).terminate();
    assert_eq!(site.info(held).status(), Status::Running);
    let name = site.worker(other).name.clone();
    go_on(&name);
    site.all_done(1 + meanwhile.len() + later.len());
    site.none_is_lost(meanwhile.iter().chain(&later).chain([&held]));
    assert_eq!(site.info(held).result::<String>().unwrap().unwrap(), name);
    site.worker(other).terminate();
    let mut runs = site.runs();
    let its = runs.remove(&job).unwrap();
    assert_eq!((its.len(), its[1].attempt), (2, 2), "{its:#?}");
    once(&runs);
    format!("its job went to another after {:.1} s", taken.as_secs_f64())
}

/// Its place is given to others when its time is over, and it is tried again.
fn a_handler_that_hangs(engine: Engine<'_>, _: Rng) -> String {
    let mut site = Site::new(engine);
    site.with("TIMEOUT", 1);
    site.with("CONCURRENCY", 1);
    let hangs = site.enqueue(Work::HangsOnce);
    let others = site.enqueue_all((0..5).map(|_| Work::Takes(5)));
    site.start_workers(1);
    site.all_done(1 + others.len());
    site.none_is_lost(others.iter().chain([&hangs]));
    site.terminate();
    let mut runs = site.runs();
    let its = runs.remove(&hangs.to_string()).unwrap();
    assert!(matches!(&its[..], [first, second] if first.ended.is_none() && second.attempt == 2), "{its:#?}");
    let between = Duration::from_nanos(its[1].began - its[0].began);
    assert!(between >= Duration::from_secs(1), "it had {between:?}");
    once(&runs);
    format!("tried again after {:.1} s", between.as_secs_f64())
}

/// It ends its process each time, until it is given up. The others of its process are charged with that too, and are done all the same.
fn a_poison_job(engine: Engine<'_>, _: Rng) -> String {
    const STARTS: usize = 3;
    let mut site = Site::new(engine);
    // There is nobody to take a job from one that lives.
    site.with("LEASE", 3);
    site.with("ATTEMPTS", 1);
    site.with("CRASHES", STARTS - 1);
    site.with("CONCURRENCY", 2);
    let gate = site.path("die, ").to_str().unwrap().to_owned();
    let poison = site.enqueue(Work::Poison(gate.clone()));
    let others = site.enqueue_all((0..40).map(|_| Work::Takes(20)));
    site.start_workers(1);
    for start in 1..=STARTS {
        // The first time there are some beside it, which are charged with its end once: had they been there each time, they would
        // have been given up too.
        let done = if start == 1 { 10 } else { others.len() as u64 };
        until("others are done beside it", || site.counts().done >= done && site.begun_with(poison) == start);
        let name = site.worker(0).name.clone();
        drop(File::create(format!("{gate}{name}")).unwrap());
        site.worker(0).aborts();
        site.abandon(0);
    }
    until("it is given up", || site.info(poison).status() == Status::Dead);
    until("the others are done", || site.counts().done == others.len() as u64);
    site.none_is_lost(&others);
    let info = site.info(poison);
    assert!(info.error().is_some_and(|error| error.contains("3 times")), "{info:?}");
    site.terminate();
    let mut runs = site.runs();
    let its = runs.remove(&poison.to_string()).unwrap();
    assert_eq!(its.iter().map(|run| run.attempt).collect::<Vec<_>>(), [1, 2, 3], "{its:#?}");
    let again = explained(&runs, &site.deaths);
    format!("given up after {STARTS} starts, {again} of the others run again")
}
