//! Runs the recipe as child processes, on a Postgres server for each test.
#![cfg(unix)]

#[path = "../../../durable/tests/it/common/postgres.rs"]
mod postgres;

use postgres::Postgres;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than any step takes without a hang.
const STEP_TIMEOUT: Duration = Duration::from_mins(2);

/// Starts a Postgres server with the recipe's tables. Returns `None` if Postgres is not installed.
fn database() -> Option<Postgres> {
    let postgres = Postgres::start().inspect_err(|reason| testing::skip("postgres", reason)).ok()?;
    assert_eq!(Worker::start(&postgres, &["migrate"]).wait().0, 0);
    Some(postgres)
}

/// Signs this many people up, with sign-ups numbered from 1.
fn sign_up(postgres: &Postgres, people: usize) {
    let addresses: Vec<_> = (1..=people).map(|each| format!("{each}@example.com")).collect();
    let arguments: Vec<_> = ["sign-up"].into_iter().chain(addresses.iter().map(String::as_str)).collect();
    let (code, lines) = Worker::start(postgres, &arguments).wait();
    assert_eq!(code, 0, "{lines:#?}");
}

/// Polls a query until it has this result.
#[track_caller]
fn wait_until(postgres: &Postgres, query: &str, expected: &str) {
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        let result = postgres.sql(query);
        if result == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{query}: {result}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until every mail is recorded as sent, and no job is left.
#[track_caller]
fn wait_until_all_is_sent(postgres: &Postgres) {
    wait_until(
        postgres,
        "SELECT (SELECT count(*) FROM signups WHERE mailed_at IS NULL), (SELECT count(*) FROM graphile_worker.jobs)",
        "0|0",
    );
}

/// A child process that does not outlive its test.
struct Worker {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Worker {
    fn start(postgres: &Postgres, arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_graphile-recipe"));
        command.args(arguments).env("DATABASE_URL", postgres.url());
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let pipe = child.stderr.take().unwrap();
        thread::spawn(move || BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines, seen: Vec::new() }
    }

    /// Starts a worker whose mail server takes this many milliseconds, and waits until it is ready.
    #[track_caller]
    fn work(postgres: &Postgres, takes: &str, more: &[&str]) -> Self {
        let mut this = Self::start(postgres, &[&["work", "--lease", "2", "--takes", takes], more].concat());
        this.wait_for("the worker is ready", 1);
        this
    }

    /// Waits until this many lines contain the text.
    #[track_caller]
    fn wait_for(&mut self, text: &str, times: usize) {
        let deadline = Instant::now() + STEP_TIMEOUT;
        while self.seen.iter().filter(|line| line.contains(text)).count() < times {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => panic!("the process hangs: {:#?}", self.seen),
                Err(RecvTimeoutError::Disconnected) => panic!("the process exited without {text:?}: {:#?}", self.seen),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until the process exits. Returns its exit code, or -1 if it was killed, and its output.
    #[track_caller]
    fn wait(mut self) -> (i32, Vec<String>) {
        let deadline = Instant::now() + STEP_TIMEOUT;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => panic!("the process hangs: {:#?}", self.seen),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        (code, std::mem::take(&mut self.seen))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Counts, for each sign-up, lines such as `sending the mail of sign-up 7, attempt 1`, where `action` is `sending`.
fn count_lines(lines: &[String], action: &str) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    for line in lines {
        if let Some((_, rest)) = line.split_once(&format!("{action} the mail of sign-up ")) {
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap();
            *counts.entry(digits.parse().unwrap()).or_default() += 1;
        }
    }
    counts
}

fn once(signups: impl IntoIterator<Item = usize>) -> BTreeMap<usize, usize> {
    signups.into_iter().map(|signup| (signup, 1)).collect()
}

#[test]
fn killed_workers_lose_no_mail_and_repeat_only_interrupted_mails() {
    const PEOPLE: usize = 100;
    let Some(postgres) = database() else { return };
    sign_up(&postgres, PEOPLE);

    // One worker is killed while it sends four mails and has fetched more. The others are killed at arbitrary points.
    let mut lines = Vec::new();
    let mut interrupted = BTreeSet::new();
    for (takes, text, times) in [("600000", "sending the mail", 4), ("10", "sent the mail", 3), ("10", "sent the mail", 20)] {
        let mut killed = Worker::work(&postgres, takes, &[]);
        killed.wait_for(text, times);
        if text == "sending the mail" {
            wait_until(&postgres, "SELECT count(*) FROM graphile_worker.jobs WHERE locked_at IS NOT NULL", "8");
        }
        killed.signal(Signal::KILL);
        let (code, output) = killed.wait();
        assert_eq!(code, -1);
        let sent = count_lines(&output, "sent");
        let unsent: Vec<_> = count_lines(&output, "sending").into_keys().filter(|signup| !sent.contains_key(signup)).collect();
        assert!(unsent.len() <= 4, "{output:#?}");
        interrupted.extend(unsent);
        lines.extend(output);
    }
    assert!(interrupted.len() >= 4, "{lines:#?}");

    let worker = Worker::work(&postgres, "10", &[]);
    wait_until_all_is_sent(&postgres);
    worker.signal(Signal::TERM);
    let (code, output) = worker.wait();
    assert_eq!(code, 0, "{output:#?}");
    // A crash counts as an attempt.
    assert!(output.iter().any(|line| line.contains("attempt 2")), "{output:#?}");
    lines.extend(output);
    let sending = count_lines(&lines, "sending");
    assert_eq!(sending.keys().copied().collect::<Vec<_>>(), (1..=PEOPLE).collect::<Vec<_>>(), "no mail is lost");
    let repeated: BTreeSet<_> = sending.into_iter().filter(|(_, times)| *times > 1).map(|(signup, _)| signup).collect();
    assert!(repeated.is_subset(&interrupted), "repeated: {repeated:?}; interrupted: {interrupted:?}");
    println!("{} mails interrupted, {} of them repeated", interrupted.len(), repeated.len());
}

#[test]
fn rolling_restarts_lose_and_repeat_no_mail() {
    const PEOPLE: usize = 300;
    let Some(postgres) = database() else { return };
    sign_up(&postgres, PEOPLE);

    let start = || Worker::work(&postgres, "30", &[]);
    let mut workers = vec![start(), start()];
    let mut lines = Vec::new();
    for _ in 0..6 {
        let mut old = workers.remove(0);
        // While it sends mails.
        old.wait_for("sent the mail", 5);
        old.signal(Signal::TERM);
        workers.push(start());
        let (code, output) = old.wait();
        assert_eq!(code, 0, "{output:#?}");
        assert_eq!(count_lines(&output, "sending"), count_lines(&output, "sent"), "every started mail was sent");
        lines.extend(output);
    }
    wait_until_all_is_sent(&postgres);
    for worker in workers {
        worker.signal(Signal::TERM);
        let (code, output) = worker.wait();
        assert_eq!(code, 0, "{output:#?}");
        lines.extend(output);
    }
    assert_eq!(count_lines(&lines, "sending"), once(1..=PEOPLE));
    assert_eq!(count_lines(&lines, "sent"), once(1..=PEOPLE));
    assert!(!lines.iter().any(|line| line.contains("attempt 2")), "{lines:#?}");
}

#[test]
fn jobs_cut_off_by_the_grace_period_return_to_the_queue_immediately() {
    let Some(postgres) = database() else { return };
    sign_up(&postgres, 1);

    let mut slow = Worker::work(&postgres, "600000", &["--grace", "0.2"]);
    slow.wait_for("sending the mail", 1);
    slow.signal(Signal::TERM);
    let (code, lines) = slow.wait();
    assert_eq!(code, 0, "the engine cuts the job off before the host's grace period expires: {lines:#?}");
    assert!(
        lines.iter().any(|line| line.contains("welcome-mail") && line.contains("the engine returned the job to the queue")),
        "{lines:#?}"
    );
    // No worker holds the job, and the attempt is not counted.
    assert_eq!(postgres.sql("SELECT attempts, locked_at IS NULL, run_at <= now() FROM graphile_worker.jobs"), "0|t|t");

    let worker = Worker::work(&postgres, "10", &[]);
    wait_until_all_is_sent(&postgres);
    drop(worker);
}

#[test]
fn worker_without_a_database_fails_and_the_next_one_continues() {
    const PEOPLE: usize = 20;
    let Some(mut postgres) = database() else { return };
    sign_up(&postgres, PEOPLE);

    let mut worker = Worker::work(&postgres, "500", &["--grace", "1"]);
    worker.wait_for("sending the mail", 6);
    postgres.kill();
    let (code, output) = worker.wait();
    assert_eq!(code, 2, "{output:#?}");
    let sent = count_lines(&output, "sent");
    postgres.restart();

    let worker = Worker::work(&postgres, "10", &[]);
    wait_until_all_is_sent(&postgres);
    worker.signal(Signal::TERM);
    let (code, output) = worker.wait();
    assert_eq!(code, 0, "{output:#?}");
    let mut all = count_lines(&output, "sent");
    all.extend(sent);
    assert_eq!(all, once(1..=PEOPLE), "committed mails are not repeated");
}

#[test]
fn failure_is_reported_and_retried_later() {
    let Some(postgres) = database() else { return };
    assert_eq!(Worker::start(&postgres, &["sign-up", "ada@example.invalid"]).wait().0, 0);

    let mut worker = Worker::work(&postgres, "10", &[]);
    worker.wait_for("sending the mail of sign-up 1, attempt 2", 1);
    worker.signal(Signal::TERM);
    let (code, lines) = worker.wait();
    assert_eq!(code, 0, "{lines:#?}");
    let failed = |line: &&String| line.contains("welcome-mail") && line.contains("no mail server for ada@example.invalid");
    assert_eq!(lines.iter().filter(|line| line.contains("ERROR") || line.contains("WARN")).filter(failed).count(), 2, "{lines:#?}");
    let job =
        "SELECT attempts, last_error LIKE '%no mail server for ada@example.invalid%', run_at > now() FROM graphile_worker.jobs";
    assert_eq!(postgres.sql(job), "2|t|t");
}

#[test]
fn sign_up_and_job_are_committed_together() {
    let Some(postgres) = database() else { return };
    let both = "SELECT (SELECT count(*) FROM signups), (SELECT count(*) FROM graphile_worker.jobs)";
    assert_eq!(Worker::start(&postgres, &["sign-up", "ada@example.com", "ada@example.com"]).wait().0, 0);
    assert_eq!(Worker::start(&postgres, &["sign-up", "ada@example.com"]).wait().0, 0);
    assert_eq!(postgres.sql(both), "1|1", "three sign-ups of one address create one mail");

    let check_rejected = || {
        let (code, lines) = Worker::start(&postgres, &["sign-up", "alan@example.com"]).wait();
        assert_eq!(code, 2, "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("cannot sign up alan@example.com: ")), "{lines:#?}");
        assert_eq!(postgres.sql(both), "1|1");
    };
    // The sign-up is inserted, but enqueueing the job fails.
    postgres.sql("ALTER TABLE graphile_worker._private_jobs ADD CONSTRAINT crowded CHECK (key IS NULL) NOT VALID");
    check_rejected();
    // Both are inserted, but the commit fails.
    postgres.sql(
        "ALTER TABLE graphile_worker._private_jobs DROP CONSTRAINT crowded;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no more''; END';
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON signups DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    check_rejected();
}
