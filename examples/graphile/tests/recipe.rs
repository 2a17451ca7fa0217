//! The recipe as processes, on a Postgres of the test's own.
#![cfg(unix)]

#[path = "../../../durable/tests/common/postgres.rs"]
mod postgres;

use postgres::Postgres;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write, stderr};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes here; what takes longer hangs.
const PATIENCE: Duration = Duration::from_mins(2);

/// A Postgres with the recipe's tables, if one can be had.
fn database() -> Option<Postgres> {
    // Past the capture of a test that passes.
    let skipped = |why: &String| drop(writeln!(stderr(), "skipped: Postgres: {why}"));
    let postgres = Postgres::start().inspect_err(skipped).ok()?;
    assert_eq!(Worker::start(&postgres, &["migrate"]).end().0, 0);
    Some(postgres)
}

/// Signs so many people up, whose sign-ups are 1 and so on.
fn sign_up(postgres: &Postgres, people: usize) {
    let addresses: Vec<_> = (1..=people).map(|each| format!("{each}@example.com")).collect();
    let arguments: Vec<_> = ["sign-up"].into_iter().chain(addresses.iter().map(String::as_str)).collect();
    let (code, lines) = Worker::start(postgres, &arguments).end();
    assert_eq!(code, 0, "{lines:#?}");
}

/// Waits until the database answers so.
#[track_caller]
fn wait_until(postgres: &Postgres, query: &str, answer: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let is = postgres.sql(query);
        if is == answer {
            return;
        }
        assert!(Instant::now() < deadline, "{query}: {is}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until every mail is noted as sent, and no job is left.
#[track_caller]
fn wait_until_all_is_sent(postgres: &Postgres) {
    wait_until(
        postgres,
        "SELECT (SELECT count(*) FROM signups WHERE mailed_at IS NULL), (SELECT count(*) FROM graphile_worker.jobs)",
        "0|0",
    );
}

/// A process that does not outlive its test.
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

    /// Starts a worker, whose mail server takes so many milliseconds, and waits until it works.
    #[track_caller]
    fn work(postgres: &Postgres, takes: &str, more: &[&str]) -> Self {
        let mut this = Self::start(postgres, &[&["work", "--lease", "2", "--takes", takes], more].concat());
        this.wait_for("working", 1);
        this
    }

    /// Waits until so many lines have had the text.
    #[track_caller]
    fn wait_for(&mut self, text: &str, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.seen.iter().filter(|line| line.contains(text)).count() < times {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => panic!("it hangs: {:#?}", self.seen),
                Err(RecvTimeoutError::Disconnected) => panic!("it has ended without {text:?}: {:#?}", self.seen),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the process's end, and returns its exit code, -1 of one that was killed, and all it has said.
    #[track_caller]
    fn end(mut self) -> (i32, Vec<String>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => panic!("it hangs: {:#?}", self.seen),
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

/// How often each sign-up is told of by lines such as `sending the mail of sign-up 7, attempt 1`, where `what` is `sending`.
fn told(lines: &[String], what: &str) -> BTreeMap<usize, usize> {
    let mut told = BTreeMap::new();
    for line in lines {
        if let Some((_, rest)) = line.split_once(&format!("{what} the mail of sign-up ")) {
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap();
            *told.entry(digits.parse().unwrap()).or_default() += 1;
        }
    }
    told
}

fn once(signups: impl IntoIterator<Item = usize>) -> BTreeMap<usize, usize> {
    signups.into_iter().map(|signup| (signup, 1)).collect()
}

#[test]
fn what_a_killed_worker_was_doing_is_done_by_another_and_nothing_else_is_done_twice() {
    const PEOPLE: usize = 100;
    let Some(postgres) = database() else { return };
    sign_up(&postgres, PEOPLE);

    // One is killed in the middle of four mails, with more of them fetched; some in the middle of whatever they do.
    let mut lines = Vec::new();
    let mut cut = BTreeSet::new();
    for (takes, text, times) in [("600000", "sending the mail", 4), ("10", "sent the mail", 3), ("10", "sent the mail", 20)] {
        let mut killed = Worker::work(&postgres, takes, &[]);
        killed.wait_for(text, times);
        if text == "sending the mail" {
            wait_until(&postgres, "SELECT count(*) FROM graphile_worker.jobs WHERE locked_at IS NOT NULL", "8");
        }
        killed.signal(Signal::KILL);
        let (code, said) = killed.end();
        assert_eq!(code, -1);
        let sent = told(&said, "sent");
        let unsent: Vec<_> = told(&said, "sending").into_keys().filter(|signup| !sent.contains_key(signup)).collect();
        assert!(unsent.len() <= 4, "{said:#?}");
        cut.extend(unsent);
        lines.extend(said);
    }
    assert!(cut.len() >= 4, "{lines:#?}");

    let worker = Worker::work(&postgres, "10", &[]);
    wait_until_all_is_sent(&postgres);
    worker.signal(Signal::TERM);
    let (code, said) = worker.end();
    assert_eq!(code, 0, "{said:#?}");
    // A crash is an attempt.
    assert!(said.iter().any(|line| line.contains("attempt 2")), "{said:#?}");
    lines.extend(said);
    let sending = told(&lines, "sending");
    assert_eq!(sending.keys().copied().collect::<Vec<_>>(), (1..=PEOPLE).collect::<Vec<_>>(), "none is lost");
    let again: BTreeSet<_> = sending.into_iter().filter(|(_, times)| *times > 1).map(|(signup, _)| signup).collect();
    assert!(again.is_subset(&cut), "begun again: {again:?}; killed in the middle: {cut:?}");
    println!("killed in the middle of {}, of which {} were begun again", cut.len(), again.len());
}

#[test]
fn workers_that_are_restarted_one_after_the_other_lose_nothing_and_repeat_nothing() {
    const PEOPLE: usize = 300;
    let Some(postgres) = database() else { return };
    sign_up(&postgres, PEOPLE);

    let start = || Worker::work(&postgres, "30", &[]);
    let mut workers = vec![start(), start()];
    let mut lines = Vec::new();
    for _ in 0..6 {
        let mut old = workers.remove(0);
        // In the middle of some.
        old.wait_for("sent the mail", 5);
        old.signal(Signal::TERM);
        workers.push(start());
        let (code, said) = old.end();
        assert_eq!(code, 0, "{said:#?}");
        assert_eq!(told(&said, "sending"), told(&said, "sent"), "what it has begun it has ended");
        lines.extend(said);
    }
    wait_until_all_is_sent(&postgres);
    for worker in workers {
        worker.signal(Signal::TERM);
        let (code, said) = worker.end();
        assert_eq!(code, 0, "{said:#?}");
        lines.extend(said);
    }
    assert_eq!(told(&lines, "sending"), once(1..=PEOPLE));
    assert_eq!(told(&lines, "sent"), once(1..=PEOPLE));
    assert!(!lines.iter().any(|line| line.contains("attempt 2")), "{lines:#?}");
}

#[test]
fn what_the_grace_cuts_is_anothers_at_once() {
    let Some(postgres) = database() else { return };
    sign_up(&postgres, 1);

    let mut slow = Worker::work(&postgres, "600000", &["--grace", "0.2"]);
    slow.wait_for("sending the mail", 1);
    slow.signal(Signal::TERM);
    let (code, lines) = slow.end();
    assert_eq!(code, 0, "the engine has cut it before the host's grace was over: {lines:#?}");
    assert!(lines.iter().any(|line| line.contains("welcome-mail") && line.contains("the engine took it back")), "{lines:#?}");
    // Nobody holds it, and the attempt is not counted.
    assert_eq!(postgres.sql("SELECT attempts, locked_at IS NULL, run_at <= now() FROM graphile_worker.jobs"), "0|t|t");

    let worker = Worker::work(&postgres, "10", &[]);
    wait_until_all_is_sent(&postgres);
    drop(worker);
}

#[test]
fn a_worker_whose_database_is_lost_says_so_and_the_next_one_goes_on() {
    const PEOPLE: usize = 20;
    let Some(mut postgres) = database() else { return };
    sign_up(&postgres, PEOPLE);

    let mut worker = Worker::work(&postgres, "500", &["--grace", "1"]);
    worker.wait_for("sending the mail", 6);
    postgres.kill();
    let (code, said) = worker.end();
    assert_eq!(code, 2, "{said:#?}");
    let sent = told(&said, "sent");
    postgres.restart();

    let worker = Worker::work(&postgres, "10", &[]);
    wait_until_all_is_sent(&postgres);
    worker.signal(Signal::TERM);
    let (code, said) = worker.end();
    assert_eq!(code, 0, "{said:#?}");
    let mut all = told(&said, "sent");
    all.extend(sent);
    assert_eq!(all, once(1..=PEOPLE), "what is committed stays so");
}

#[test]
fn a_failure_is_told_and_tried_again_later() {
    let Some(postgres) = database() else { return };
    assert_eq!(Worker::start(&postgres, &["sign-up", "ada@example.invalid"]).end().0, 0);

    let mut worker = Worker::work(&postgres, "10", &[]);
    worker.wait_for("sending the mail of sign-up 1, attempt 2", 1);
    worker.signal(Signal::TERM);
    let (code, lines) = worker.end();
    assert_eq!(code, 0, "{lines:#?}");
    let failed = |line: &&String| line.contains("welcome-mail") && line.contains("there is no mail server for ada@example.invalid");
    assert_eq!(lines.iter().filter(|line| line.contains("ERROR") || line.contains("WARN")).filter(failed).count(), 2, "{lines:#?}");
    let job = "SELECT attempts, last_error LIKE '%there is no mail server for ada@example.invalid%', run_at > now() FROM graphile_worker.jobs";
    assert_eq!(postgres.sql(job), "2|t|t");
}

#[test]
fn a_sign_up_and_its_job_are_there_both_or_neither() {
    let Some(postgres) = database() else { return };
    let both = "SELECT (SELECT count(*) FROM signups), (SELECT count(*) FROM graphile_worker.jobs)";
    assert_eq!(Worker::start(&postgres, &["sign-up", "ada@example.com", "ada@example.com"]).end().0, 0);
    assert_eq!(Worker::start(&postgres, &["sign-up", "ada@example.com"]).end().0, 0);
    assert_eq!(postgres.sql(both), "1|1", "who asks three times is owed one mail");

    let refused = || {
        let (code, lines) = Worker::start(&postgres, &["sign-up", "alan@example.com"]).end();
        assert_eq!(code, 2, "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("alan@example.com is not signed up: ")), "{lines:#?}");
        assert_eq!(postgres.sql(both), "1|1");
    };
    // The job cannot be enqueued; the sign-up's insert, before it, could.
    postgres.sql("ALTER TABLE graphile_worker._private_jobs ADD CONSTRAINT crowded CHECK (key IS NULL) NOT VALID");
    refused();
    // Both could be, and the commit cannot.
    postgres.sql(
        "ALTER TABLE graphile_worker._private_jobs DROP CONSTRAINT crowded;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no more''; END';
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON signups DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    refused();
}
