//! Runs the program as child processes. Each test uses its own Postgres server.
#![cfg(unix)]

#[path = "../../../durable/tests/it/common/postgres.rs"]
mod postgres;

use postgres::Postgres;
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::process::Command;
use testing::{Line, Process, poll_until_ok};

/// Starts a Postgres server and creates the tables of the program. Returns `None` if Postgres is not installed.
fn database() -> Option<Postgres> {
    let postgres = Postgres::start().inspect_err(|reason| testing::skip("postgres", reason)).ok()?;
    start(&postgres, &["migrate"]).wait().assert_code(0);
    Some(postgres)
}

/// Signs up this number of people. The IDs of the sign-ups start with 1.
fn sign_up(postgres: &Postgres, people: usize) {
    let addresses: Vec<_> = (1..=people).map(|each| format!("{each}@example.com")).collect();
    let arguments: Vec<_> = ["sign-up"].into_iter().chain(addresses.iter().map(String::as_str)).collect();
    start(postgres, &arguments).wait().assert_code(0);
}

/// Repeats a query until it returns the expected result.
#[track_caller]
fn wait_until(postgres: &Postgres, query: &str, expected: &str) {
    poll_until_ok(|| {
        let result = postgres.sql(query);
        if result == expected { Ok(()) } else { Err(format!("{query}: {result}")) }
    });
}

/// Waits until every mail is recorded as sent and no job is left.
#[track_caller]
fn wait_until_all_is_sent(postgres: &Postgres) {
    wait_until(
        postgres,
        "SELECT (SELECT count(*) FROM signups WHERE mailed_at IS NULL), (SELECT count(*) FROM graphile_worker.jobs)",
        "0|0",
    );
}

fn start(postgres: &Postgres, arguments: &[&str]) -> Process {
    Process::start(Command::new(env!("CARGO_BIN_EXE_graphile-recipe")).args(arguments).env("DATABASE_URL", postgres.url()))
}

/// Starts a worker whose simulated mail server needs `takes` milliseconds for a mail. Waits until the worker is ready.
#[track_caller]
fn work(postgres: &Postgres, takes: &str, more: &[&str]) -> Process {
    let lease = if more.contains(&"--lease") { &[][..] } else { &["--lease", "2"] };
    let mut worker = start(postgres, &[&["work", "--takes", takes], lease, more].concat());
    worker.line("the worker is ready");
    worker
}

/// For each sign-up, counts its lines with this action. For example, the line `sending the mail of sign-up 7, attempt 1` has the
/// action `sending`.
fn count_lines(lines: &[Line], action: &str) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    for line in lines {
        if let Some((_, rest)) = line.text().split_once(&format!("{action} the mail of sign-up ")) {
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

    // The first worker is killed while it sends four mails and has fetched more jobs. The next workers are killed at arbitrary points.
    let mut lines = Vec::new();
    let mut interrupted = BTreeSet::new();
    for (takes, text, times) in [("600000", "sending the mail", 4), ("10", "sent the mail", 3), ("10", "sent the mail", 20)] {
        let mut killed = work(&postgres, takes, &[]);
        killed.lines(text, times);
        if text == "sending the mail" {
            wait_until(&postgres, "SELECT count(*) FROM graphile_worker.jobs WHERE locked_at IS NOT NULL", "8");
        }
        let ended = killed.kill();
        assert_eq!(ended.status.code(), None);
        let output = ended.lines;
        let sent = count_lines(&output, "sent");
        let unsent: Vec<_> = count_lines(&output, "sending").into_keys().filter(|signup| !sent.contains_key(signup)).collect();
        assert!(unsent.len() <= 4, "{output:#?}");
        interrupted.extend(unsent);
        lines.extend(output);
    }
    assert!(interrupted.len() >= 4, "{lines:#?}");

    let worker = work(&postgres, "10", &[]);
    wait_until_all_is_sent(&postgres);
    let ended = worker.stop();
    // The crash counted as an attempt, so this mail was sent in attempt 2.
    ended.assert_code(0).assert_line("attempt 2");
    lines.extend(ended.lines);
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

    // The mails take so long that some are left for each worker. The lease is long, because a worker that stalls longer loses its jobs.
    let start = || work(&postgres, "300", &["--lease", "30"]);
    let mut workers = vec![start(), start()];
    let mut lines = Vec::new();
    for _ in 0..6 {
        let mut old = workers.remove(0);
        // Waits until the worker is sending mails.
        old.lines("sent the mail", 5);
        old.terminate();
        workers.push(start());
        let ended = old.wait();
        ended.assert_code(0);
        assert_eq!(count_lines(&ended.lines, "sending"), count_lines(&ended.lines, "sent"), "every started mail was sent");
        lines.extend(ended.lines);
    }
    wait_until_all_is_sent(&postgres);
    for worker in workers {
        let ended = worker.stop();
        ended.assert_code(0);
        lines.extend(ended.lines);
    }
    assert_eq!(count_lines(&lines, "sending"), once(1..=PEOPLE));
    assert_eq!(count_lines(&lines, "sent"), once(1..=PEOPLE));
    assert!(!lines.iter().any(|line| line.text().contains("attempt 2")), "{lines:#?}");
}

#[test]
fn jobs_cut_off_by_the_grace_period_return_to_the_queue_immediately() {
    let Some(postgres) = database() else { return };
    sign_up(&postgres, 1);

    let mut slow = work(&postgres, "600000", &["--grace", "0.2"]);
    slow.lines("sending the mail", 1);
    let ended = slow.stop();
    // The engine interrupts the job before the host's grace period expires.
    ended.assert_code(0);
    let is_returned = |line: &str| line.contains("welcome-mail") && line.contains("the engine returned the job to the queue");
    assert!(ended.lines.iter().any(|line| is_returned(line.text())), "{ended:#?}");
    // No worker holds the job, and the interrupted attempt is not counted.
    assert_eq!(postgres.sql("SELECT attempts, locked_at IS NULL, run_at <= now() FROM graphile_worker.jobs"), "0|t|t");

    let worker = work(&postgres, "10", &[]);
    wait_until_all_is_sent(&postgres);
    drop(worker);
}

#[test]
fn worker_without_a_database_fails_and_the_next_one_continues() {
    const PEOPLE: usize = 20;
    let Some(mut postgres) = database() else { return };
    sign_up(&postgres, PEOPLE);

    let mut worker = work(&postgres, "500", &["--grace", "1"]);
    worker.lines("sending the mail", 6);
    postgres.kill();
    let ended = worker.wait();
    ended.assert_code(2);
    let mut lines = ended.lines;
    postgres.restart();

    let worker = work(&postgres, "10", &[]);
    wait_until_all_is_sent(&postgres);
    let ended = worker.stop();
    ended.assert_code(0);
    lines.extend(ended.lines);
    let mut sent = count_lines(&lines, "sent");
    // If Postgres was killed after it had committed that a mail was sent, the first worker received no response. The next worker
    // then reports that this mail was already sent.
    lines.retain(|line| line.text().contains(" was already sent"));
    for signup in count_lines(&lines, "").into_keys() {
        sent.entry(signup).or_insert(1);
    }
    assert_eq!(sent, once(1..=PEOPLE), "committed mails are not repeated");
}

#[test]
fn failure_is_reported_and_retried_later() {
    let Some(postgres) = database() else { return };
    start(&postgres, &["sign-up", "ada@example.invalid"]).wait().assert_code(0);

    let mut worker = work(&postgres, "10", &[]);
    worker.lines("sending the mail of sign-up 1, attempt 2", 1);
    let ended = worker.stop();
    ended.assert_code(0);
    let reports = ended.lines.iter().map(Line::text).filter(|line| line.contains("ERROR") || line.contains("WARN"));
    let failed = |line: &&str| line.contains("welcome-mail") && line.contains("no mail server for ada@example.invalid");
    assert_eq!(reports.filter(failed).count(), 2, "{ended:#?}");
    let job =
        "SELECT attempts, last_error LIKE '%no mail server for ada@example.invalid%', run_at > now() FROM graphile_worker.jobs";
    assert_eq!(postgres.sql(job), "2|t|t");
}

#[test]
fn missing_server_is_reported_with_its_address_and_the_cause() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Closes the port. No other process is likely to use the port during the test.
    drop(listener);
    let run = |url: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_graphile-recipe"));
        Process::start(command.args(["sign-up", "ada@example.com"]).env("DATABASE_URL", url)).wait()
    };
    let ended = run(&format!("postgres://ada:secret@{address}/signups"));
    ended.assert_code(2).assert_line(&format!("cannot connect to Postgres at {address}: "));
    ended
        .assert_line("Connection refused")
        .assert_line("; start the server, or set DATABASE_URL to postgres://user:password@host:port/database");
    assert!(!ended.has_line("secret"), "{ended:#?}");
    run("localhost").assert_code(2).assert_line("invalid DATABASE_URL: ");
}

#[test]
fn sign_up_and_job_are_committed_together() {
    let Some(postgres) = database() else { return };
    let both = "SELECT (SELECT count(*) FROM signups), (SELECT count(*) FROM graphile_worker.jobs)";
    start(&postgres, &["sign-up", "ada@example.com", "ada@example.com"]).wait().assert_code(0);
    start(&postgres, &["sign-up", "ada@example.com"]).wait().assert_code(0);
    assert_eq!(postgres.sql(both), "1|1", "three sign-ups of one address create one mail");

    let check_rejected = || {
        start(&postgres, &["sign-up", "alan@example.com"]).wait().assert_code(2).assert_line("cannot sign up alan@example.com: ");
        assert_eq!(postgres.sql(both), "1|1");
    };
    // Case 1: the row of the sign-up is inserted, but the insertion of the job fails.
    postgres.sql("ALTER TABLE graphile_worker._private_jobs ADD CONSTRAINT crowded CHECK (key IS NULL) NOT VALID");
    check_rejected();
    // Case 2: the sign-up and the job are inserted, but the commit fails.
    postgres.sql(
        "ALTER TABLE graphile_worker._private_jobs DROP CONSTRAINT crowded;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no more''; END';
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON signups DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    check_rejected();
}
