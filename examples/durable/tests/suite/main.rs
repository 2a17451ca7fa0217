//! The program as processes, with real signals, a real database and a mail server.
#![cfg(unix)]

mod client;
#[path = "../../../../durable/tests/common/postgres.rs"]
mod postgres;
mod process;
mod smtp;

use background_tasks_durable::sqlx::sqlite::SqliteConnectOptions;
use background_tasks_durable::sqlx::{self, Connection, SqliteConnection};
use client::{FORM, Response, events, get, page, request, sign_up, try_request};
use postgres::Postgres;
use process::{Place, until};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use smtp::{MailServer, Reply};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Instant;

/// Waits for the end of a sign-up, and returns how it is told in JSON.
#[track_caller]
fn ended(server: SocketAddr, path: &str) -> Value {
    let last = events(server, path).pop().expect("something is told");
    assert_eq!(last["ended"], true, "{last}");
    let told = get(server, path).json();
    for field in ["id", "address", "status", "attempts", "message", "ended"] {
        assert_eq!(told[field], last[field], "{told} {last}");
    }
    told
}

#[test]
fn one_command_and_a_mail() {
    let place = Place::new();
    let mut server = place.serve(&[]);
    assert_eq!(page(server.address, "/").status, 200);

    let answer = sign_up(server.address, "Ada@Example.com");
    assert_eq!(answer.status, 202, "{answer:?}");
    let path = answer.location();
    assert_eq!((&answer.json()["url"], &answer.json()["status"]), (&json!(path), &json!("waiting")));
    let told = ended(server.address, path);
    assert_eq!(
        (&told["status"], &told["attempts"], &told["message"]),
        (&json!("done"), &json!(1), &json!("The mail has been sent."))
    );
    assert_eq!(told["address"], "Ada@example.com");
    let shown = page(server.address, path);
    assert_eq!((shown.status, shown.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(shown.body.contains("<main data-state=\"done\">") && shown.body.contains("The mail has been sent."), "{shown:?}");
    assert!(!shown.body.contains("http-equiv"), "nothing more is told, so nothing is to be loaded again: {shown:?}");
    assert_eq!(place.outbox(), ["Ada@example.com"]);

    // The domain is not case-sensitive; what is before it is its server's.
    let again = request(server.address, "POST /signups", &["content-type: application/json"], r#"{"email": "Ada@EXAMPLE.com"}"#);
    assert_eq!((again.status, again.location()), (200, path), "{again:?}");
    assert_eq!(again.json()["message"], "This address had signed up before. The mail has been sent.");
    let another = request(server.address, "POST /signups", &[FORM, "accept: text/html"], "email=ada@example.com");
    assert_eq!(another.status, 303, "{another:?}");
    assert_eq!(ended(server.address, another.location())["status"], "done");
    assert_eq!(place.outbox(), ["Ada@example.com", "ada@example.com"]);

    server.process.line("the worker waits for mails");
    server.process.terminate();
    let said = server.process.wait(0);
    // The worker, and then the server whose child it is.
    let drained: Vec<_> = said.lines().filter(|line| line.contains(": drained in")).collect();
    assert!(
        drained.len() == 2
            && drained.iter().all(|line| line.ends_with(" 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected")),
        "{said}"
    );
}

#[test]
fn each_end_is_told() {
    let place = Place::new();
    let (server, _worker) = (place.serve(&["server"]), place.work(&[]));
    let bounce = sign_up(server.address, "eve@bounce.example");
    let flaky = sign_up(server.address, "bob@flaky.example");

    let told = ended(server.address, bounce.location());
    assert_eq!((&told["status"], &told["attempts"]), (&json!("dead"), &json!(1)));
    assert_eq!(told["message"], "The mail could not be sent: there is no such mailbox.");
    let shown = page(server.address, bounce.location());
    assert!(shown.body.contains("<main data-state=\"dead\">") && shown.body.contains("there is no such mailbox"), "{shown:?}");

    let told = events(server.address, flaky.location());
    let retried = told.iter().find(|told| told["status"] == "retrying").expect("it was retried");
    assert_eq!(retried["message"], "The mail could not be sent yet: the mailbox is busy. It is tried again.");
    let told = ended(server.address, flaky.location());
    assert_eq!((&told["status"], &told["message"]), (&json!("done"), &json!("The mail has been sent, at attempt 2.")));
    assert_eq!(place.outbox(), ["bob@flaky.example"]);
}

/// A page that is looked at without a script asks again by itself, as long as there is something to wait for.
#[test]
fn a_page_without_a_worker_waits() {
    let place = Place::new();
    let server = place.serve(&["server"]);
    let answer = request(server.address, "POST /signups", &[FORM, "accept: text/html"], "email=%22a%26b%3Ci%3E%22%40example.com");
    assert_eq!(answer.status, 303, "{answer:?}");
    let shown = page(server.address, answer.location());
    assert!(shown.body.contains("<noscript><meta http-equiv=\"refresh\""), "{shown:?}");
    assert!(shown.body.contains("<main data-state=\"waiting\">"), "{shown:?}");
    assert!(shown.body.contains("&quot;a&amp;b&lt;i&gt;&quot;@example.com") && !shown.body.contains("<i>"), "{shown:?}");
    // A stream does not hold the end up.
    let stream = thread::spawn({
        let (address, path) = (server.address, answer.location().to_owned());
        move || events(address, &path)
    });
    let began = Instant::now();
    server.process.terminate();
    server.process.wait(0);
    assert!(began.elapsed().as_secs() < 10);
    let _ = stream.join();
}

/// Waits until a worker has it.
#[track_caller]
fn is_sent(server: SocketAddr, path: &str) {
    until("a worker that has it", || (get(server, path).json()["status"] == "running").then_some(()));
}

#[test]
fn a_worker_that_is_killed_in_the_middle_leaves_its_mail_to_another() {
    let place = Place::new();
    let server = place.serve(&["server"]);
    let answer = sign_up(server.address, "ada@example.com");
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    // To open the first attempt's file waits for a reader, who never comes.
    fs::create_dir(place.path("outbox")).unwrap();
    mknodat(CWD, place.path(&format!("outbox/.{id}-1.tmp")), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let worker = place.work(&[]);
    is_sent(server.address, answer.location());
    worker.kill();
    assert!(place.outbox().is_empty());

    let worker = place.work(&[]);
    let told = ended(server.address, answer.location());
    assert_eq!((&told["status"], &told["message"]), (&json!("done"), &json!("The mail has been sent, at attempt 2.")));
    assert_eq!(place.outbox(), ["ada@example.com"]);
    worker.terminate();
    worker.wait(0);
}

/// A mail server that was handed a mail and whose answer nobody heard is handed it again: it can tell by the identifier.
#[test]
fn a_mail_that_is_handed_over_twice_has_one_identifier() {
    let mails = MailServer::start(&[Reply::Nothing]);
    let (place, relay) = (Place::new(), mails.address.to_string());
    let mut server = place.serve(&["--smtp", &relay, "--lease", "3"]);
    let worker: i32 = server.process.line("the worker is process ").parse().unwrap();
    let answer = sign_up(server.address, "ada@example.com");
    let first = mails.next();
    assert!(first.contains("\nTo: ada@example.com\n"), "{first}");
    is_sent(server.address, answer.location());
    let worker = rustix::process::Pid::from_raw(worker).unwrap();
    rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
    server.process.line("the worker is gone (signal: 9 (SIGKILL)): another one takes its place");

    assert_eq!(ended(server.address, answer.location())["status"], "done");
    let identifier = |mail: &str| mail.lines().find_map(|line| line.strip_prefix("Message-ID: ")).unwrap().to_owned();
    assert_eq!(identifier(&mails.next()), identifier(&first));
    assert!(mails.has_no_more());
    server.process.terminate();
    server.process.wait(0);
}

#[test]
fn what_the_mail_server_says_is_told() {
    let mails = MailServer::start(&[Reply::Says("550 no such mailbox here"), Reply::Says("450 not now")]);
    let (place, relay) = (Place::new(), mails.address.to_string());
    let server = place.serve(&["server"]);
    let answer = sign_up(server.address, "eve@example.com");
    let _worker = place.work(&["--smtp", &relay]);
    let told = ended(server.address, answer.location());
    let why = "The mail could not be sent: the mail server refused it (no such mailbox here).";
    assert_eq!((&told["status"], &told["message"]), (&json!("dead"), &json!(why)));

    let answer = sign_up(server.address, "bob@example.com");
    let told = events(server.address, answer.location());
    let why = "The mail could not be sent yet: the mail server did not take it (not now). It is tried again.";
    assert!(told.iter().any(|told| told["message"] == why), "{told:#?}");
    assert_eq!(told.last().unwrap()["message"], "The mail has been sent, at attempt 2.");
    assert!(!place.path("outbox").exists());
}

/// Signs up over some connections, and does something once `enough` are accepted; returns which were, as far as the server lives.
fn sign_up_many(server: SocketAddr, enough: usize, then: impl FnOnce()) -> BTreeSet<String> {
    let next = &AtomicUsize::new(0);
    let sign_up = move |accepted: Sender<String>| {
        while next.load(Ordering::Relaxed) < 10 * enough {
            let reader = format!("reader-{}@example.com", next.fetch_add(1, Ordering::Relaxed));
            // An error is the server's end.
            let Ok(answer) = try_request(server, "POST /signups", &[FORM], &format!("email={reader}")) else { return };
            assert_eq!(answer.status, 202, "{answer:?}");
            let _ = accepted.send(reader);
        }
    };
    thread::scope(|scope| {
        let (tell, told) = channel();
        for _ in 0..8 {
            let tell = tell.clone();
            scope.spawn(move || sign_up(tell));
        }
        drop(tell);
        let mut accepted: BTreeSet<_> = told.iter().take(enough).collect();
        assert_eq!(accepted.len(), enough);
        then();
        accepted.extend(told);
        accepted
    })
}

#[test]
fn sigterm_loses_nothing_and_has_nothing_done_twice() {
    let place = Place::new();
    let (server, worker) = (place.serve(&["server", "--grace", "60"]), place.work(&["--grace", "60"]));
    let accepted = sign_up_many(server.address, 50, || {
        server.process.terminate();
        worker.terminate();
    });
    for process in [server.process, worker] {
        let said = process.wait(0);
        assert!(said.contains(" 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected"), "{said}");
    }
    let worker = place.work(&[]);
    let sent = until("the last mail", || Some(place.outbox()).filter(|sent| sent.len() >= accepted.len()));
    assert_eq!(sent, Vec::from_iter(accepted));
    worker.terminate();
    worker.wait(0);
    let rerun = on_sqlite(&place, "SELECT count(*) FROM Jobs WHERE attempts <> 1 OR status <> 'Done'");
    assert_eq!(rerun, 0);
}

/// The worker works while the server answers what it has begun to answer.
#[test]
fn ctrl_c_is_for_the_server_first() {
    let place = Place::new();
    let server = place.serve_in_a_group(&["--grace", "60"]);
    let flaky = sign_up(server.address, "bob@flaky.example");
    until("the first attempt", || (get(server.address, flaky.location()).json()["attempts"] == 1).then_some(()));
    let mut late = BufReader::new(TcpStream::connect(server.address).unwrap());
    let head = format!("POST /signups HTTP/1.1\r\nhost: localhost\r\n{FORM}\r\nexpect: 100-continue\r\ncontent-length: 21\r\n\r\n");
    late.get_mut().write_all(head.as_bytes()).unwrap();
    let mut line = String::new();
    late.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 100 Continue\r\n");
    server.process.interrupt_its_group();
    until("the second attempt", || (place.outbox() == ["bob@flaky.example"]).then_some(()));
    late.get_mut().write_all(b"email=ada@example.com").unwrap();
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("\r\nHTTP/1.1 202 Accepted\r\n"), "{answer}");
    let said = server.process.wait(0);
    assert!(!said.contains("the worker is gone"), "by the worker that it had: {said}");
}

/// Whoever started the worker, and is killed, takes it along, in order.
#[test]
fn a_worker_does_not_outlive_who_started_it() {
    let place = Place::new();
    let mut server = place.serve(&[]);
    server.process.line("the worker waits for mails");
    let said = server.process.kill();
    assert!(said.lines().last().unwrap().contains(": drained in "), "{said}");
}

/// Asks the database for a number.
fn on_sqlite(place: &Place, query: &'static str) -> i64 {
    with_sqlite(place, async |connection| sqlx::query_scalar(query).fetch_one(connection).await.unwrap())
}

fn with_sqlite<T>(place: &Place, work: impl AsyncFnOnce(&mut SqliteConnection) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let file = SqliteConnectOptions::new().filename(place.path("signups.db"));
        let mut connection = SqliteConnection::connect_with(&file).await.unwrap();
        work(&mut connection).await
    })
}

#[track_caller]
fn is_unavailable(answer: &Response) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json(), json!({ "error": "The database cannot be reached, so nothing was done. Please try again later." }));
}

#[test]
fn a_database_that_is_locked_and_one_that_is_gone() {
    let place = Place::new();
    let server = place.serve(&["server"]);
    let address = server.address;
    let before = sign_up(server.address, "ada@example.com");
    with_sqlite(&place, async |connection| {
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await.unwrap();
        // More than one after the other could be told in time.
        let many: Vec<_> = (0..8).map(|_| thread::spawn(move || sign_up(address, "grace@example.com"))).collect();
        for answer in many {
            is_unavailable(&answer.join().unwrap());
        }
        let shown = request(server.address, "POST /signups", &[FORM, "accept: text/html"], "email=grace@example.com");
        assert!(shown.status == 503 && shown.body.contains("The database cannot be reached, so nothing was done."), "{shown:?}");
        assert_eq!(get(server.address, before.location()).status, 200, "who reads need not wait");
    });
    let both = "SELECT (SELECT count(*) FROM signups) * 1000 + (SELECT count(*) FROM Jobs)";
    assert_eq!(on_sqlite(&place, both), 1001);
    let after = sign_up(server.address, "grace@example.com");
    assert_eq!(after.status, 202, "{after:?}");
    assert_eq!(on_sqlite(&place, both), 2002);

    for file in ["signups.db", "signups.db-wal", "signups.db-shm"] {
        fs::remove_file(place.path(file)).unwrap();
    }
    is_unavailable(&sign_up(server.address, "lin@example.com"));
    is_unavailable(&get(server.address, after.location()));
    server.process.terminate();
    let said = server.process.wait(0);
    assert!(said.contains("was deleted or replaced while it was open"), "{said}");
}

#[test]
fn what_is_no_sign_up_is_refused() {
    let place = Place::new();
    let server = place.serve(&["server"]);
    let json = "content-type: application/json";
    for (headers, body, status) in [
        (&[FORM][..], "email=ada", 422),
        (&[FORM], "email=", 422),
        (&[FORM], "email=ada@example.com%0D%0ABcc:eve@example.com", 422),
        (&[FORM], "email=ada@example.com,eve@example.com", 422),
        (&[FORM], "address=ada@example.com", 422),
        (&[json], r#"{"email": "ada"}"#, 422),
        (&[json], r#"{"email": 1}"#, 422),
        (&[json], r#"{"email": "#, 400),
        (&["content-type: text/plain"], "ada@example.com", 415),
        (&[FORM], &format!("email={}@example.com", "a".repeat(1024)), 413),
    ] {
        let answer = request(server.address, "POST /signups", headers, body);
        assert!(answer.status == status && !answer.json()["error"].as_str().unwrap().is_empty(), "{body}: {answer:?}");
        let shown = request(server.address, "POST /signups", &[headers, &["accept: text/html"]].concat(), body);
        assert!(shown.status == status && shown.body.contains("<main data-state=\"refused\">"), "{body}: {shown:?}");
    }
    for path in ["/signups/1", "/signups/01ARZ3NDEKTSV4RRFFQ69G5FAV", "/signups/01ARZ3NDEKTSV4RRFFQ69G5FAV/events", "/elsewhere"] {
        let answer = get(server.address, path);
        assert_eq!((answer.status, answer.json()), (404, json!({ "error": "There is no such sign-up." })), "{path}");
    }
    assert_eq!(page(server.address, "/signups/1").status, 404);
    assert_eq!(request(server.address, "DELETE /signups", &[], "").status, 405);
    assert_eq!(on_sqlite(&place, "SELECT (SELECT count(*) FROM signups) + (SELECT count(*) FROM Jobs)"), 0);
}

/// The engine's own pages, and nothing that could be done with them.
#[track_caller]
fn shows(board: SocketAddr, address: &str) {
    let queues = get(board, "/api/v1/queues").json();
    assert!(queues.as_array().unwrap().iter().any(|queue| queue["name"] == "mail"), "{queues}");
    let tasks = get(board, "/api/v1/queues/mail/tasks?status=Done").json();
    let to = |task: &Value| task["args"]["to"] == address && task["ctx"]["status"] == "Done";
    assert!(tasks.as_array().unwrap().iter().any(to), "{tasks}");
    let workers = get(board, "/api/v1/workers").json();
    assert!(workers.as_array().unwrap().iter().any(|worker| worker["queue"] == "mail"), "{workers}");
    let shown = get(board, "/queues/mail");
    assert!(shown.status == 200 && shown.body.contains("<title>Apalis Board</title>"), "{shown:?}");
    let push = request(board, "PUT /api/v1/queues/mail/tasks", &["host: localhost", "content-type: application/json"], "{}");
    assert_eq!(push.status, 405, "{push:?}");
    for host in ["host: board.example", "host: 192.0.2.1", "accept: */*"] {
        assert_eq!(request(board, "GET /api/v1/tasks", &[host], "").status, 403, "{host}");
    }
}

#[test]
fn the_board_shows_the_queue() {
    let place = Place::new();
    let server = place.serve(&[]);
    let answer = sign_up(server.address, "ada@example.com");
    assert_eq!(ended(server.address, answer.location())["status"], "done");
    shows(server.board, "ada@example.com");
    // An open board does not hold the end up.
    let stream = thread::spawn({
        let board = server.board;
        move || get(board, "/api/v1/events")
    });
    server.process.terminate();
    server.process.wait(0);
    drop(stream.join());
}

/// It says why and does nothing.
#[test]
fn what_it_cannot_do() {
    let place = Place::new();
    let server = place.serve(&["server"]);
    let taken = server.address.to_string();
    fs::write(place.path("file"), "").unwrap();
    for (args, why) in [
        (&["server", "--listen", &taken, "--board", "none"][..], format!("cannot listen on {taken}: ")),
        (&["server", "--listen", "127.0.0.1:0", "--board", &taken], format!("cannot listen on {taken}: ")),
        (&["worker", "--outbox", "file"], "cannot write to 'file': ".into()),
        (&["--listen", "127.0.0.1:0", "--board", "none", "--outbox", "file"], "the worker cannot work".into()),
        (&["serve"], "it is either server or worker".into()),
        (&["server", "worker"], "unexpected argument \"worker\"".into()),
        (&["--unknown"], "invalid option '--unknown'".into()),
        (&["--board", "0.0.0.0:8081"], "the board has no login, so it is shown on a loopback address alone".into()),
        (&["--lease", "2"], "less than 3 seconds would take the living for dead".into()),
        (&["--smtp", "localhost"], "a mail server is HOST:PORT".into()),
        (&["--grace", "-1"], "cannot parse argument \"-1\"".into()),
    ] {
        let said = place.start(args).wait(2);
        assert!(said.contains(&why), "{args:?}: {said}");
    }
    for (database, why) in [
        ("file", "file: file is not a database"),
        ("missing/signups.db", "missing/signups.db"),
        ("postgres://postgres@127.0.0.1:9/none", "127.0.0.1:9: the server of the database is not there: Connection refused"),
        ("mysql://localhost/none", "is no address of a database"),
    ] {
        let place = Place::on(database);
        fs::write(place.path("file"), "no database, but some text that is long enough to be looked at").unwrap();
        for role in ["server", "worker"] {
            let said = place.start(&[role, "--listen", "127.0.0.1:0", "--board", "none"]).wait(2);
            assert!(said.contains(why), "{database}: {said}");
        }
    }
    assert!(place.start(&["--help"]).wait(0).starts_with("Signs people up."));
}

/// The same on a server, with workers beside each other, one of which is killed, and then the server is.
#[test]
fn on_postgres_with_two_workers() {
    let mut postgres = match Postgres::start() {
        Ok(postgres) => postgres,
        // Past the harness, which keeps to itself what is printed.
        Err(why) => return writeln!(io::stderr(), "skipped: Postgres: {why}").unwrap(),
    };
    let place = Place::on(&postgres.url());
    let (server, other) = (place.serve(&["server"]), place.serve(&["server"]));
    let (killed, left) = (place.work(&[]), place.work(&[]));
    let accepted = sign_up_many(server.address, 30, || drop(killed.kill()));
    let sent = until("the last mail", || Some(place.outbox()).filter(|sent| sent.len() >= accepted.len()));
    assert_eq!(sent, Vec::from_iter(accepted));

    // By either server.
    let answer = sign_up(server.address, "ada@example.com");
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(ended(other.address, answer.location())["status"], "done");
    let again = sign_up(other.address, "ada@example.com");
    assert_eq!((again.status, again.location()), (200, answer.location()), "{again:?}");
    shows(server.board, "ada@example.com");

    postgres.kill();
    is_unavailable(&sign_up(server.address, "grace@example.com"));
    is_unavailable(&get(server.address, answer.location()));
    postgres.restart();
    assert_eq!(postgres.sql("SELECT count(*) FROM signups WHERE address = 'grace@example.com'"), "0");
    let late = until("a sign-up", || Some(sign_up(server.address, "grace@example.com")).filter(|answer| answer.status == 202));
    assert_eq!(ended(server.address, late.location())["status"], "done");
    for process in [server.process, other.process, left] {
        process.terminate();
        process.wait(0);
    }
    let undone = "SELECT count(*) FROM apalis.jobs WHERE status <> 'Done'";
    assert_eq!(postgres.sql(undone), "0");
}
