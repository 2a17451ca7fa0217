//! Contains the programs of the child processes. They read their settings from environment variables, and record what they do.

use crate::record::{Record, now};
use background_tasks::{Registry, TokioSpawner};
use background_tasks_durable::{Durable, Job, WorkerOptions};
use background_tasks_host::{Host, StderrObserver};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::env;
use std::future::pending;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const QUEUE: &str = "chaos";

/// The payload of a job. The payload decides what the handler of the job does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Work {
    /// The handler takes this number of milliseconds.
    Takes(u64),
    /// The handler ends when a gate file exists. The path of this file is the string in this variant, followed by the name of the
    /// process.
    Held(String),
    /// The handler does not end at the first attempt of the job.
    HangsOnce,
    /// The handler waits for a gate file as with `Held`, and then aborts its process.
    Poison(String),
}

pub(crate) fn run(program: &str) -> ExitCode {
    // The system kills this process when the thread of its test exits.
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let parent: i32 = setting("PARENT");
    assert_eq!(getppid().map(Pid::as_raw_pid), Some(parent), "the test has already exited");
    match program {
        "worker" => {
            // The host must install its signal handlers before this process starts another thread.
            let registry = Registry::builder(TokioSpawner).inspect().observer(StderrObserver).build();
            let host = Host::new(&registry).grace(Duration::from_mins(1));
            on_tokio(worker(registry, host))
        }
        "enqueuer" => on_tokio(enqueuer()),
        other => panic!("unknown program {other}"),
    }
}

fn on_tokio(program: impl Future<Output = ExitCode>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(program)
}

#[track_caller]
fn setting<T: FromStr>(name: &str) -> T {
    let value = env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    value.parse().unwrap_or_else(|_| panic!("{name} is {value}"))
}

async fn worker(registry: Registry<TokioSpawner>, host: Host) -> ExitCode {
    let jobs = Durable::connect(&setting::<String>("DATABASE")).await.unwrap();
    let options = WorkerOptions::default()
        .concurrency(setting("CONCURRENCY"))
        .lease(Duration::from_secs(setting("LEASE")))
        .poll_interval(Duration::from_millis(20))
        .backoff(Duration::from_millis(10), Duration::from_millis(100))
        .max_attempts(setting("ATTEMPTS"))
        .crashes(setting("CRASHES"))
        .timeout(Duration::from_secs(setting("TIMEOUT")));
    let record = Arc::new(Record::open(setting::<String>("RECORD")));
    let written = record.clone();
    let handler = move |job: Job<Work>| work(written.clone(), job);
    jobs.queue(QUEUE).serve(&registry, options, handler).await.unwrap();
    record.line("ready");
    host.run(registry.signal()).await
}

/// Handles a job and returns the name of the process.
async fn work(record: Arc<Record>, job: Job<Work>) -> Result<String, Infallible> {
    let path = setting::<String>("RECORD");
    let name = Path::new(&path).file_name().unwrap().to_str().unwrap();
    let (id, attempt) = (job.id(), job.attempt());
    record.line(format_args!("begin {id} {attempt} {}", now()));
    match job.into_inner() {
        Work::Takes(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        Work::Held(gate) => wait_for_gate(&gate, name).await,
        Work::HangsOnce if attempt == 1 => pending().await,
        Work::HangsOnce => {}
        Work::Poison(gate) => {
            wait_for_gate(&gate, name).await;
            std::process::abort();
        }
    }
    record.line(format_args!("end {id} {attempt} {}", now()));
    Ok(name.to_owned())
}

async fn wait_for_gate(gate: &str, name: &str) {
    let gate = format!("{gate}{name}");
    while !Path::new(&gate).exists() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Enqueues a job for each number of a range, with the number as the key of the job. Records each job after the job has been committed.
async fn enqueuer() -> ExitCode {
    let jobs = Durable::connect(&setting::<String>("DATABASE")).await.unwrap();
    let queue = jobs.queue::<Work>(QUEUE);
    let record = Record::open(setting::<String>("RECORD"));
    for number in setting::<u64>("FROM")..setting("TO") {
        let id = queue
            .enqueue(Work::Takes(number * 37 % 60))
            .unique_key(number.to_string())
            .unique_for(Duration::from_hours(1))
            .await
            .unwrap()
            .id;
        record.line(format_args!("ok {number} {id}"));
        // Waits between jobs, so that this program enqueues jobs during the whole time in which the test kills workers.
        tokio::time::sleep(Duration::from_millis(number % 8)).await;
    }
    ExitCode::SUCCESS
}
