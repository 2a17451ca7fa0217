//! Runs each command as a process, on SQLite and on Postgres.
#![cfg(unix)]

#[path = "../../tests/it/common/postgres.rs"]
mod postgres;

use self::postgres::Postgres;
use background_tasks::{Registry, TokioSpawner};
use background_tasks_durable::{Durable, Failure, Job, JobId, JobStatus, WorkerOptions, sqlx};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::timeout;

const HANG: Duration = Duration::from_mins(2);

/// A database with jobs, and the runtime of a program that uses the database.
struct Store {
    url: String,
    runtime: Runtime,
    jobs: Durable,
}

struct Output {
    code: i32,
    stdout: String,
    stderr: String,
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_background-tasks-durable"));
    command.env_remove("DATABASE_URL").args(args);
    command
}

fn output_of(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Output { code: output.status.code().unwrap(), stdout, stderr }
}

impl Store {
    fn new(url: String) -> Self {
        let runtime = Runtime::new().unwrap();
        let jobs = runtime.block_on(Durable::connect(&url)).unwrap();
        Self { url, runtime, jobs }
    }

    /// Runs the tool and returns its output.
    fn run(&self, args: &[&str]) -> Output {
        output_of(command(args).env("DATABASE_URL", &self.url), "")
    }

    /// Runs the tool, which must succeed, and returns the text that the tool prints.
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!((output.code, &*output.stderr), (0, ""), "{args:?}: {}", output.stdout);
        output.stdout
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    /// Runs the tool, which must fail with this exit code and message.
    #[track_caller]
    fn fails(&self, args: &[&str], code: i32, message: &str) {
        let output = self.run(args);
        assert!(output.code == code && output.stderr.contains(message), "{args:?}: {} {}", output.code, output.stderr);
    }

    fn enqueue(&self, queue: &'static str, number: i32) -> JobId {
        self.runtime.block_on(self.jobs.queue::<i32>(queue).enqueue(number).into_future()).unwrap()
    }

    /// Enqueues jobs and runs them. Jobs with a negative number become dead.
    fn work(&self, queue: &'static str, numbers: &[i32]) -> Vec<JobId> {
        let ids: Vec<_> = numbers.iter().map(|number| self.enqueue(queue, *number)).collect();
        self.wait(queue, &ids);
        ids
    }

    /// Runs a worker until these jobs have ended.
    fn wait(&self, queue: &'static str, ids: &[JobId]) -> Vec<JobStatus> {
        let queue = self.jobs.queue::<i32>(queue);
        self.runtime.block_on(async {
            let registry = Registry::builder(TokioSpawner).inspect().build();
            let handler = async |job: Job<i32>| {
                if *job < 0 { Err(Failure::dead(format!("negative number\n\u{1b}[31m{}", *job))) } else { Ok(*job * 2) }
            };
            queue.serve(&registry, WorkerOptions::default(), handler).await.unwrap();
            let mut statuses = Vec::new();
            for id in ids {
                statuses.push(timeout(HANG, queue.wait(*id)).await.unwrap().unwrap().unwrap().status());
            }
            registry.shutdown().await;
            statuses
        })
    }
}

/// Runs a test on SQLite. If Postgres is installed, also runs the test on Postgres.
fn on_each_store(test: impl Fn(&Store)) {
    let folder = TempDir::new().unwrap();
    test(&Store::new(folder.path().join("jobs.db").to_str().unwrap().to_owned()));
    match Postgres::start_with(&[("fsync", "off")]) {
        Ok(server) => test(&Store::new(server.url())),
        Err(why) => testing::skip("postgres", why),
    }
}

#[test]
fn queues_and_jobs_are_shown() {
    on_each_store(|store| {
        assert_eq!((store.ok(&["queues"]), store.json(&["queues"])), ("no queues\n".to_owned(), serde_json::json!([])));
        let [done, dead] = store.work("numbers", &[21, -1])[..] else { panic!() };
        let waiting = store.enqueue("numbers", 3);
        store.enqueue("other", 4);
        let table = store.ok(&["queues"]);
        let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0][..7], ["QUEUE", "WAITING", "RUNNING", "RETRYING", "DONE", "DEAD", "CANCELLED"]);
        assert_eq!(
            (&rows[1][..7], &rows[2][..7]),
            (&["numbers", "1", "0", "0", "1", "1", "0"][..], &["other", "1", "0", "0", "0", "0", "0"][..])
        );
        // If the database is busy when a worker ends, the entry of the worker stays in the store until its lease expires.
        let queues = loop {
            let queues = store.json(&["queues"]);
            if queues[0]["workers"] == 0 {
                break queues;
            }
        };
        assert_eq!(
            (&queues[0]["name"], &queues[0]["counts"]["dead"], &queues[0]["paused"]),
            (&"numbers".into(), &1.into(), &false.into())
        );
        assert!(queues[0]["oldest_seconds"].is_number(), "{queues}");

        for (status, id) in [("waiting", waiting), ("done", done), ("dead", dead)] {
            let jobs = store.json(&["jobs", "numbers", status]);
            assert_eq!(
                (&jobs[0]["id"], &jobs[0]["status"], jobs.as_array().unwrap().len()),
                (&id.to_string().into(), &status.into(), 1)
            );
            assert!(store.ok(&["jobs", "numbers", status]).contains(&id.to_string()));
        }
        assert_eq!(store.ok(&["jobs", "numbers", "cancelled"]), "no jobs\n");
        let shown = store.ok(&["show", &done.to_string()]);
        for line in [
            format!("job       {done}"),
            "queue     numbers".into(),
            "status    done".into(),
            "payload   21".into(),
            "result    42".into(),
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
        }
        // The error of the dead job has several lines and an escape sequence.
        let shown = store.ok(&["show", &dead.to_string()]);
        assert!(shown.contains("error     negative number\n          \u{fffd}[31m-1\n") && !shown.contains('\u{1b}'), "{shown}");
        let table = store.ok(&["dead"]);
        assert!(table.contains("negative number…") && !table.contains('\u{1b}'), "{table}");
        assert_eq!(store.json(&["dead", "numbers"]), store.json(&["dead"]));
        assert_eq!(store.ok(&["dead", "other"]), "no jobs\n");
        let job = store.json(&["show", &dead.to_string()]);
        assert_eq!(
            (&job["error"], &job["payload"], &job["result"]),
            (&"negative number\n\u{1b}[31m-1".into(), &(-1).into(), &serde_json::Value::Null)
        );
        assert_eq!(store.json(&["dead"])[0], job);
    });
}

#[test]
fn lists_longer_than_their_limit_say_so() {
    on_each_store(|store| {
        let ids: Vec<_> = store.runtime.block_on(store.jobs.queue::<i32>("numbers").enqueue_all(0..250).into_future()).unwrap();
        let output = store.run(&["jobs", "numbers", "waiting", "--json", "--limit", "249"]);
        let jobs: Vec<serde_json::Value> = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(jobs.iter().map(|job| job["payload"].as_i64().unwrap()).collect::<Vec<_>>(), (0..249).collect::<Vec<_>>());
        assert!(output.code == 0 && output.stderr.contains("there are more jobs; pass a larger --limit"), "{}", output.stderr);
        assert_eq!(store.ok(&["jobs", "numbers", "waiting", "--limit", "250"]).lines().count(), 251);
        assert!(store.ok(&["jobs", "numbers", "waiting", "--limit", "1000"]).contains(&ids[249].to_string()));
    });
}

#[test]
fn single_jobs_are_retried_discarded_and_cancelled() {
    on_each_store(|store| {
        let dead = store.work("numbers", &[-1, -2, -3]);
        let id = |index: usize| dead[index].to_string();
        assert_eq!(store.ok(&["retry", &id(0), &id(1)]), format!("retried {}\nretried {}\n", id(0), id(1)));
        store.fails(&["retry", &id(0)], 1, "which is waiting: it is not dead");
        assert_eq!(store.ok(&["discard", &id(2)]), format!("discarded {}\n", id(2)));
        store.fails(&["show", &id(2)], 1, &format!("no job {}", id(2)));
        assert_eq!(store.json(&["cancel", &id(0)]), serde_json::json!({ "cancelled": [id(0)] }));
        store.fails(&["cancel", &id(0)], 1, "which is cancelled");
        // If one job cannot be changed, the tool still changes the other jobs.
        let output = store.run(&["discard", &id(2), &id(0), &id(1)]);
        assert_eq!((output.code, output.stdout), (1, format!("discarded {}\ndiscarded {}\n", id(0), id(1))));
        let done = store.work("numbers", &[1])[0].to_string();
        store.fails(&["discard", &done], 1, "workers delete it when its retention expires");
        for action in ["retry", "discard", "cancel"] {
            store.fails(&[action, &id(2)], 1, "no job");
            store.fails(&[action, "1"], 2, "invalid job ID");
            store.fails(&[action], 2, "required");
        }
    });
}

/// The tool changes jobs and queues that a worker in another process uses.
#[test]
fn running_job_is_cancelled_and_paused_queue_resumes() {
    on_each_store(|store| {
        let queue = store.jobs.queue::<i32>("numbers");
        let registry = Registry::builder(TokioSpawner).inspect().build();
        let id = store.enqueue("numbers", 1);
        store.runtime.block_on(async {
            let handler = async |job: Job<i32>| if *job == 1 { std::future::pending().await } else { Ok::<_, Failure>(*job) };
            queue.serve(&registry, WorkerOptions::default(), handler).await.unwrap();
            let running = async || queue.info(id).await.unwrap().unwrap().status() == JobStatus::Running;
            timeout(HANG, async { while !running().await {} }).await.unwrap();
        });
        assert_eq!(store.json(&["queues"])[0]["workers"], 1);
        store.fails(&["discard", &id.to_string()], 1, "which is running: cancel it first");
        store.ok(&["cancel", &id.to_string()]);
        assert_eq!(store.ok(&["pause", "numbers"]), "paused numbers\n");
        let next = store.enqueue("numbers", 2);
        assert!(store.ok(&["queues"]).lines().nth(1).unwrap().ends_with(" paused"));
        assert_eq!(store.json(&["queues"])[0]["counts"]["waiting"], 1);
        assert_eq!(store.json(&["resume", "numbers"])["paused"], false);
        let status = store.runtime.block_on(async { timeout(HANG, queue.wait(next)).await.unwrap().unwrap().unwrap().status() });
        assert_eq!(status, JobStatus::Done);
        store.runtime.block_on(registry.shutdown());
    });
}

#[test]
fn bulk_actions_need_a_confirmation() {
    on_each_store(|store| {
        let dead = store.work("numbers", &[-1, -2, -3]);
        store.work("numbers", &[4]); // `discard --all` must not delete this job, because it is not dead
        store.fails(&["retry", "--all", "numbers"], 2, "retry all 3 dead jobs of \"numbers\"? Pass --yes to confirm");
        store.fails(&["discard", "--all", "numbers"], 2, "Pass --yes to confirm");
        assert_eq!(store.json(&["dead"]).as_array().unwrap().len(), 3);
        assert_eq!(store.ok(&["retry", "--all", "numbers", "--yes"]), "retried 3 of numbers\n");
        assert_eq!(store.wait("numbers", &dead), [JobStatus::Dead; 3]);
        // On a terminal, the tool asks for confirmation.
        if let Some(asked) = on_a_terminal(store, &["discard", "--all", "numbers"], "n\n") {
            assert!(asked.stdout.contains("discard all 3 dead jobs of \"numbers\"? [y/N]") && asked.code == 2, "{}", asked.stdout);
            assert_eq!(store.json(&["queues"])[0]["counts"]["dead"], 3);
            let asked = on_a_terminal(store, &["discard", "--all", "numbers"], "y\n").unwrap();
            assert!(asked.stdout.contains("discarded 3 of numbers") && asked.code == 0, "{}", asked.stdout);
        } else {
            store.ok(&["discard", "--all", "numbers", "-y"]);
        }
        // If there are no dead jobs, the tool does not ask.
        assert_eq!(store.ok(&["discard", "--all", "numbers"]), "discarded 0 of numbers\n");
        assert_eq!(store.json(&["retry", "--all", "numbers"]), serde_json::json!({ "queue": "numbers", "retried": 0 }));
        store.fails(&["retry", "--all", "numbers", &dead[0].to_string()], 2, "cannot be used with");
    });
}

fn on_a_terminal(store: &Store, args: &[&str], input: &str) -> Option<Output> {
    testing::run_or_skip("script", &["script", "--version"])?;
    let words = [&[env!("CARGO_BIN_EXE_background-tasks-durable")], args].concat().join(" ");
    let mut script = Command::new("script");
    Some(output_of(script.args(["-qec", &words, "/dev/null"]).env("DATABASE_URL", &store.url), input))
}

#[test]
fn limits_are_shown_and_changed() {
    on_each_store(|store| {
        store.enqueue("numbers", 1);
        assert_eq!(store.ok(&["limits", "numbers"]), "numbers: no limits\n");
        assert_eq!(store.ok(&["limits", "numbers", "--running", "8", "--rate", "100/60s"]), "numbers: --running 8 --rate 100/1m\n");
        // Limits without an option do not change.
        let all = "--running 8 --running-per-key 2 --rate 100/1m";
        assert_eq!(store.ok(&["limits", "numbers", "--running-per-key", "2"]), format!("numbers: {all}\n"));
        assert!(store.ok(&["queues"]).contains(all));
        let limits = serde_json::json!({ "running": 8, "running_per_key": 2, "rate_jobs": 100, "rate_seconds": 60.0 });
        assert_eq!((store.json(&["limits", "numbers"]), &store.json(&["queues"])[0]["limits"]), (limits.clone(), &limits));
        assert_eq!(store.ok(&["limits", "numbers", "--none", "--running", "1"]), "numbers: --running 1\n");
        assert_eq!(store.ok(&["limits", "numbers", "--none"]), "numbers: no limits\n");
        store.fails(&["limits", "numbers", "--running", "0"], 2, "--running");
        store.fails(&["limits", "numbers", "--rate", "5"], 2, "expected JOBS/PERIOD");
    });
}

/// A misspelled queue name is an error that changes nothing and creates no queue.
#[test]
fn unknown_queue_is_an_error() {
    on_each_store(|store| {
        store.fails(&["pause", "email"], 1, "no queue \"email\"; there are no queues");
        store.enqueue("emails", 1);
        for args in [
            &["pause", "email"][..],
            &["resume", "email"],
            &["dead", "email"],
            &["jobs", "email", "dead"],
            &["limits", "email", "--running", "1"],
            &["retry", "--all", "email", "--yes"],
            &["discard", "--all", "email", "--yes"],
        ] {
            store.fails(args, 1, "no queue \"email\"; the queues are: emails");
        }
        assert_eq!(store.json(&["queues"]).as_array().unwrap().len(), 1);
        store.fails(&["jobs", "emails", "failed"], 2, "expected one of: waiting, running, retrying, done, dead, cancelled");
    });
}

/// A wrong path or a wrong database is an error, and the tool does not change the file or the database.
#[test]
fn database_of_another_program_is_an_error_and_stays_unchanged() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("empty.db"), "").unwrap();
    let run = |url: &str, args: &[&str]| output_of(&mut command(&[args, &["--url", url]].concat()), "");
    let output = run(&path("missing.db"), &["queues"]);
    assert!(output.code == 3 && output.stderr.contains("missing.db"), "{}", output.stderr);
    for args in [&["queues"][..], &["pause", "email"], &["limits", "email", "--none"]] {
        let output = run(&path("empty.db"), args);
        assert!(output.code == 3 && output.stderr.contains("no tables of background-tasks-durable"), "{}", output.stderr);
    }
    assert_eq!(fs::read(path("empty.db")).unwrap(), b"");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // With these arguments, the tool has no database that it can use.
    for (args, code, message) in [
        (&["queues"][..], 2, "pass --url or set DATABASE_URL"),
        (&["queues", "--url", "mysql://user:secret@host/name"], 2, "invalid database address: mysql:…"),
        (&["queues", "--url", "postgres://user:secret@127.0.0.1:1/name"], 3, "127.0.0.1:1"),
        (&["queues", "--url", "jobs.db", "--schema", "jobs"], 2, "SQLite has no schemas"),
    ] {
        let output = output_of(&mut command(args), "");
        assert!(output.code == code && output.stderr.contains(message), "{args:?}: {} {}", output.code, output.stderr);
        assert!(!output.stderr.contains("secret"), "{}", output.stderr);
    }
    let Ok(server) = Postgres::start_with(&[("fsync", "off")]).map_err(|why| testing::skip("postgres", why)) else { return };
    let output = run(&server.url(), &["pause", "email"]);
    assert!(output.code == 3 && output.stderr.contains("schema background_tasks: no tables"), "{}", output.stderr);
    assert_eq!(server.sql("SELECT count(*) FROM pg_namespace WHERE nspname = 'background_tasks'"), "0");
    let runtime = Runtime::new().unwrap();
    let other = runtime.block_on(Durable::postgres_in(&server.url(), "jobs")).unwrap();
    runtime.block_on(other.queue::<i32>("numbers").enqueue(1).into_future()).unwrap();
    assert_eq!(run(&server.url(), &["queues"]).code, 3);
    let output = run(&server.url(), &["queues", "--schema", "jobs"]);
    assert!(output.code == 0 && output.stdout.contains("numbers"), "{}", output.stderr);
}

#[test]
fn reader_that_closes_the_pipe_is_no_error() {
    let folder = TempDir::new().unwrap();
    let store = Store::new(folder.path().join("jobs.db").to_str().unwrap().to_owned());
    store.runtime.block_on(store.jobs.queue::<i32>("numbers").enqueue_all(0..5000).into_future()).unwrap();
    let tool = env!("CARGO_BIN_EXE_background-tasks-durable");
    let mut shell = Command::new("sh");
    let output = output_of(
        shell.args(["-c", "\"$0\" jobs numbers waiting --limit 5000 | head -n 1", tool]).env("DATABASE_URL", &store.url),
        "",
    );
    assert!(
        output.code == 0 && output.stderr.is_empty() && output.stdout.starts_with("JOB"),
        "{} {}",
        output.stdout,
        output.stderr
    );
}

/// Payloads with large numbers are printed as they are stored.
#[test]
fn payloads_are_printed_as_they_are_stored() {
    let folder = TempDir::new().unwrap();
    let store = Store::new(folder.path().join("jobs.db").to_str().unwrap().to_owned());
    let id = store.runtime.block_on(store.jobs.queue::<u128>("big").enqueue(u128::MAX).into_future()).unwrap().to_string();
    assert!(store.ok(&["show", &id, "--json"]).contains("\"payload\":340282366920938463463374607431768211455,"));
    store.runtime.block_on(async {
        let pool = store.jobs.sqlite_pool().unwrap();
        sqlx::query("UPDATE background_tasks_jobs SET payload = 'not JSON'").execute(pool).await.unwrap();
    });
    assert_eq!(store.json(&["show", &id])["payload"], "not JSON");
}
