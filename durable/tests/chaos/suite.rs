//! Contains the chaos tests, and runs them in parallel.

use crate::postgres::Postgres;
use crate::process::Process;
use crate::programs::Work;
use crate::record::{check_repeated_runs, check_single_runs, now};
use crate::site::{Engine, Site, jobs};
use background_tasks_durable::{JobId, JobStatus};
use fastrand::Rng;
use std::collections::BTreeSet;
use std::env;
use std::fs::File;
use std::ops::Range;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use testing::{Signal, poll_until};

/// The type of a test. A test returns a summary of what happened.
type Test = fn(Engine<'_>, Rng) -> String;

const TESTS: &[(&str, Test)] = &[
    ("two_workers_killed", |engine, rng| workers_killed(engine, rng, 2)),
    ("four_workers_killed", |engine, rng| workers_killed(engine, rng, 4)),
    ("rolling_restarts", rolling_restarts),
    ("hung_worker", hung_worker),
    ("hung_handler", hung_handler),
    ("poison_job", poison_job),
];

/// Runs the tests whose names contain an argument, or all tests if there is no argument. The tests run in parallel.
pub(crate) fn run() -> ExitCode {
    let seed = env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("SEED is a number"));
    println!("SEED={seed} JOBS={}", jobs());
    let mut tests = of_database("sqlite", Engine::Sqlite, TESTS);
    let server = Postgres::start();
    match &server {
        Ok(server) => {
            let of_postgres = [TESTS, &[("server_killed", server_killed)]].concat();
            tests.extend(of_database("postgres", Engine::Postgres(server), &of_postgres));
        }
        Err(reason) => testing::skip("postgres", reason),
    }
    ExitCode::from(u8::from(run_in_parallel(tests, seed) > 0))
}

fn of_database<'a>(database: &str, engine: Engine<'a>, tests: &[(&str, Test)]) -> Vec<(String, Engine<'a>, Test)> {
    tests.iter().map(|&(name, test)| (format!("{database}::{name}"), engine, test)).collect()
}

/// Runs the selected tests in parallel. Returns the number of failed tests.
fn run_in_parallel(mut tests: Vec<(String, Engine<'_>, Test)>, seed: u64) -> usize {
    let wanted: Vec<_> = env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    tests.retain(|(name, ..)| wanted.is_empty() || wanted.iter().any(|part| name.contains(part)));
    thread::scope(|scope| {
        let running = tests.into_iter().map(|(name, engine, test)| {
            let thread = thread::Builder::new().name(name.clone());
            (name, thread.spawn_scoped(scope, move || timed(|| test(engine, Rng::with_seed(seed)))).unwrap())
        });
        let mut failed = 0;
        for (name, test) in running.collect::<Vec<_>>() {
            let outcome = test.join().map_or_else(|_| "FAILED".to_owned(), |summary| format!("ok ({summary})"));
            println!("test {name} ... {outcome}");
            failed += usize::from(outcome == "FAILED");
        }
        failed
    })
}

fn timed(test: impl FnOnce() -> String) -> String {
    let start = Instant::now();
    let summary = test();
    format!("{summary}; {:.1} s", start.elapsed().as_secs_f64())
}

/// Kills each of two enqueuers twice, and kills workers while they run jobs. Starts a new process in place of each killed process.
fn workers_killed(engine: Engine<'_>, mut rng: Rng, workers: usize) -> String {
    let mut site = Site::new(engine);
    let count = jobs();
    let kills = count / 200 + 5;
    let halves = [0..count / 2, count / 2..count];
    let mut enqueuers = halves.map(|jobs| Enqueuer::start(&mut site, &mut rng, jobs));
    site.start_workers(workers);

    // The test kills a worker after a number of handler calls, not after a time. A kill therefore interrupts a job on slow machines too.
    let mut instants: Vec<_> = (0..kills).map(|_| rng.usize(1..count * 9 / 10)).collect();
    instants.sort_unstable();
    let mut more = Vec::new();
    for instant in instants {
        let which = rng.usize(..workers);
        poll_until(&"no worker runs jobs", || {
            for each in &mut enqueuers {
                each.kill_when_due(&mut site);
            }
            site.starts() >= instant && site.is_busy(which, &mut more)
        });
        thread::sleep(Duration::from_micros(rng.u64(..20_000)));
        site.kill(which);
    }
    let enqueued: Vec<_> = enqueuers.into_iter().flat_map(|each| each.finish(&mut site)).collect();
    // If a job was enqueued twice, both calls returned the same ID.
    let all: BTreeSet<_> = enqueued.into_iter().chain(more).collect();
    site.all_done(all.len());
    site.check_none_lost(&all);
    site.terminate();
    let repeated = check_repeated_runs(&site.runs(), &site.deaths);
    assert!(repeated > 0, "no kill has hit a job");
    format!("{} jobs, {kills} kills, 0 lost, {repeated} repeated", all.len())
}

/// A sequence of processes that enqueue jobs. When a process is killed, the next process continues with the remaining jobs.
struct Enqueuer {
    process: Process,
    to: usize,
    /// The numbers of recorded jobs after which the processes are killed.
    kills: Vec<usize>,
    enqueued: Vec<(usize, JobId)>,
}

impl Enqueuer {
    fn start(site: &mut Site, rng: &mut Rng, jobs: Range<usize>) -> Self {
        let limit = (jobs.end - jobs.start) / 4;
        let kills = (0..2).map(|_| rng.usize(1..=limit)).collect();
        Self { process: process(site, &jobs), to: jobs.end, kills, enqueued: Vec::new() }
    }

    /// Returns the jobs that the current process has recorded.
    fn recorded(&self) -> Vec<(usize, JobId)> {
        let lines = self.process.lines().into_iter();
        lines.map(|words| (words[1].parse().unwrap(), words[2].parse().unwrap())).collect()
    }

    fn kill_when_due(&mut self, site: &mut Site) {
        if self.kills.last().is_none_or(|jobs| self.recorded().len() < *jobs) {
            return;
        }
        self.kills.pop();
        self.process.kill();
        self.enqueued.extend(self.recorded());
        // The new process starts with the last recorded job. It also enqueues the job after that, which may already be committed without
        // a record.
        let from = self.enqueued.last().expect("the process has enqueued a job").0;
        self.process = process(site, &(from..self.to));
    }

    /// Waits until all jobs have been enqueued, and returns them.
    fn finish(mut self, site: &mut Site) -> Vec<JobId> {
        poll_until(&"an enqueuer is not done", || {
            self.kill_when_due(site);
            !self.process.is_alive()
        });
        self.process.drains();
        self.enqueued.extend(self.recorded());
        self.enqueued.into_iter().map(|(_, id)| id).collect()
    }
}

fn process(site: &mut Site, jobs: &Range<usize>) -> Process {
    site.set("FROM", jobs.start);
    site.set("TO", jobs.end);
    site.start_enqueuer()
}

fn rolling_restarts(engine: Engine<'_>, mut rng: Rng) -> String {
    const RESTARTS: usize = 10;
    let mut site = Site::new(engine);
    let count = jobs();
    let mut ids = site.enqueue_all((0..count).map(|_| Work::Takes(rng.u64(10..80))));
    site.start_workers(2);
    let mut terminated = Vec::new();
    for restart in 0..RESTARTS {
        let which = restart % 2;
        poll_until(&"no worker runs jobs", || site.starts() > count * restart / RESTARTS && site.is_busy(which, &mut ids));
        terminated.push((site.worker(which).name.clone(), now()));
        site.worker(which).terminate();
        site.replace(which);
    }
    site.all_done(ids.len());
    site.check_none_lost(&ids);
    site.terminate();
    let runs = site.runs();
    check_single_runs(&runs);
    let in_flight = runs.values().flatten().filter(|run| {
        let terminated = terminated.iter().find(|(process, _)| *process == run.process);
        terminated.is_some_and(|(_, at)| run.started < *at && run.ended > Some(*at))
    });
    let in_flight = in_flight.count();
    assert!(in_flight > 0, "no restart has met a running job");
    format!("{} jobs, {RESTARTS} restarts with {in_flight} in flight, 0 lost, 0 repeated", ids.len())
}

/// Kills all processes of Postgres, and starts Postgres again. The workers continue during this time.
fn server_killed(_: Engine<'_>, mut rng: Rng) -> String {
    let mut server = Postgres::start().unwrap();
    let mut site = Site::new(Engine::Postgres(&server));
    // The lease is longer than the outage, so the workers keep their jobs.
    site.set("LEASE", 20);
    let count = jobs();
    let mut ids = site.enqueue_all((0..count).map(|_| Work::Takes(rng.u64(10..80))));
    site.start_workers(2);
    let instant = rng.usize(1..count / 2);
    poll_until(&"not both workers run jobs", || site.starts() >= instant && site.is_busy(0, &mut ids) && site.is_busy(1, &mut ids));
    thread::sleep(Duration::from_micros(rng.u64(..20_000)));
    let committed = site.committed();
    let killed = now();
    server.kill();
    server.restart();
    site.all_done(ids.len());
    site.check_none_lost(&ids);
    site.terminate();

    let runs = site.runs();
    let mut repeated = 0;
    for (job, runs) in &runs {
        for pair in runs.windows(2) {
            let open = !committed.contains(job);
            assert!(pair[0].started < killed && open, "{job} runs again, though it was not in flight: {runs:#?}");
            assert!(pair[0].ended.is_some_and(|ended| ended < pair[1].started), "{job} runs twice at the same time: {runs:#?}");
            repeated += 1;
        }
    }
    format!("{} jobs, 0 lost, {repeated} repeated", ids.len())
}

/// Stops a worker for longer than its lease. Another worker must run the job of the stopped worker. The late outcome of the stopped
/// worker must be ignored.
fn hung_worker(engine: Engine<'_>, _: Rng) -> String {
    let mut site = Site::new(engine);
    let gate = site.path("open-").to_str().unwrap().to_owned();
    let open_gate = |process: &str| drop(File::create(format!("{gate}{process}")).unwrap());
    site.start_workers(2);
    let held = site.enqueue(Work::Held(gate.clone()));
    let job = held.to_string();
    poll_until(&"the job has not started", || site.starts() == 1);
    let hanging = site.runs()[&job][0].process.clone();
    let (hangs, other) = if site.worker(0).name == hanging { (0, 1) } else { (1, 0) };
    poll_until(&"the stopped worker locks something", || {
        site.worker(hangs).signal(Signal::STOP);
        let free = site.is_free(held);
        if !free {
            site.worker(hangs).signal(Signal::CONT);
        }
        free
    });
    let stopped = now();
    let meanwhile = site.enqueue_all((0..20).map(|_| Work::Takes(5)));
    poll_until(&"no other worker has started the job", || site.starts_of(held) == 2);
    let taken = Duration::from_nanos(site.runs()[&job][1].started - stopped);
    assert!(taken >= Duration::from_secs(3), "the job was taken from a worker that may be alive: {taken:?}");

    // The stopped worker continues, ends the job that it has lost, and then runs other jobs.
    site.worker(hangs).signal(Signal::CONT);
    open_gate(&hanging);
    poll_until(&"the late run has not ended", || site.runs()[&job][0].ended.is_some());
    let mut later = Vec::new();
    poll_until(&"the worker receives no jobs", || {
        later.push(site.enqueue(Work::Takes(5)));
        let ids: Vec<_> = later.iter().map(ToString::to_string).collect();
        site.runs().iter().any(|(job, runs)| ids.contains(job) && runs[0].process == hanging)
    });
    // When this worker has drained, it has committed all its outcomes. The job still runs on the other worker.
    site.worker(hangs).terminate();
    assert_eq!(site.info(held).status(), JobStatus::Running);
    let name = site.worker(other).name.clone();
    open_gate(&name);
    site.all_done(1 + meanwhile.len() + later.len());
    site.check_none_lost(meanwhile.iter().chain(&later).chain([&held]));
    assert_eq!(site.info(held).result::<String>().unwrap().unwrap(), name);
    site.worker(other).terminate();
    let mut runs = site.runs();
    let job_runs = runs.remove(&job).unwrap();
    assert_eq!((job_runs.len(), job_runs[1].attempt), (2, 2), "{job_runs:#?}");
    check_single_runs(&runs);
    format!("another worker took the job after {:.1} s", taken.as_secs_f64())
}

/// Runs a handler that hangs. When its timeout expires, the worker must release the permit of the handler and retry the job.
fn hung_handler(engine: Engine<'_>, _: Rng) -> String {
    let mut site = Site::new(engine);
    site.set("TIMEOUT", 2);
    site.set("CONCURRENCY", 1);
    let hangs = site.enqueue(Work::HangsOnce);
    let others = site.enqueue_all((0..5).map(|_| Work::Takes(5)));
    site.start_workers(1);
    site.all_done(1 + others.len());
    site.check_none_lost(others.iter().chain([&hangs]));
    site.terminate();
    let mut runs = site.runs();
    let job_runs = runs.remove(&hangs.to_string()).unwrap();
    assert!(matches!(&job_runs[..], [first, second] if first.ended.is_none() && second.attempt == 2), "{job_runs:#?}");
    let between = Duration::from_nanos(job_runs[1].started - job_runs[0].started);
    assert!(between >= Duration::from_secs(1), "the attempt had {between:?}");
    check_single_runs(&runs);
    format!("retried after {:.1} s", between.as_secs_f64())
}

/// Runs a job that kills its process at each attempt. After too many crashes, the job must be dead. One crash also counts for the other
/// jobs of the process, but these jobs must complete.
fn poison_job(engine: Engine<'_>, _: Rng) -> String {
    const STARTS: usize = 3;
    let mut site = Site::new(engine);
    // The lease can be short, because there is only one worker.
    site.set("LEASE", 3);
    site.set("ATTEMPTS", 1);
    site.set("CRASHES", STARTS - 1);
    site.set("CONCURRENCY", 2);
    let gate = site.path("die-").to_str().unwrap().to_owned();
    let poison = site.enqueue(Work::Poison(gate.clone()));
    let others = site.enqueue_all((0..40).map(|_| Work::Takes(20)));
    site.start_workers(1);
    for start in 1..=STARTS {
        // The first crash also counts for other jobs that run at that time. A second crash could make these jobs dead, so they must be
        // done before the second crash.
        let done = if start == 1 { 10 } else { others.len() as u64 };
        poll_until(&"other jobs are not done", || site.counts().done >= done && site.starts_of(poison) == start);
        let name = site.worker(0).name.clone();
        drop(File::create(format!("{gate}{name}")).unwrap());
        site.worker(0).aborts();
        site.replace_dead(0);
    }
    poll_until(&"the job is not dead", || site.info(poison).status() == JobStatus::Dead);
    poll_until(&"not all other jobs are done", || site.counts().done == others.len() as u64);
    site.check_none_lost(&others);
    let info = site.info(poison);
    assert!(info.error().is_some_and(|error| error.contains("3 times")), "{info:?}");
    site.terminate();
    let mut runs = site.runs();
    let job_runs = runs.remove(&poison.to_string()).unwrap();
    assert_eq!(job_runs.iter().map(|run| run.attempt).collect::<Vec<_>>(), [1, 2, 3], "{job_runs:#?}");
    let repeated = check_repeated_runs(&runs, &site.deaths);
    format!("dead after {STARTS} starts, {repeated} other jobs repeated")
}
