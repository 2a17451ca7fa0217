//! Runs the program as child processes with a real database and a test mail server, and sends signals to the processes.
#![cfg(unix)]

mod client;
#[path = "../../../../durable/tests/it/common/postgres.rs"]
mod postgres;
mod site;
mod smtp;

use background_tasks_durable::sqlx::sqlite::SqliteConnectOptions;
use background_tasks_durable::sqlx::{self, Connection, SqliteConnection};
use client::{FORM, SignupResponse, events, events_while, get, page, post, request, sign_up, try_sign_up};
use postgres::Postgres;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use site::Site;
use smtp::{MailServer, Reply};
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use testing::{Client, Response, Signal, poll_until, poll_until_some};

/// Waits until the status of a sign-up is final, and returns the sign-up as JSON.
#[track_caller]
fn wait_for_end(server: SocketAddr, path: &str) -> Value {
    let last = events(server, path).pop().expect("there is an event");
    assert_eq!(last["ended"], true, "{last}");
    let signup = get(server, path).json();
    for field in ["id", "address", "status", "attempts", "message", "ended"] {
        assert_eq!(signup[field], last[field], "{signup} {last}");
    }
    signup
}

#[test]
fn one_command_sends_a_mail() {
    let site = Site::new();
    let mut server = site.serve(&[]);
    assert_eq!(page(server.address, "/").status, 200);

    let answer = sign_up(server.address, "Ada@Example.com");
    assert_eq!(answer.status, 202, "{answer:?}");
    let path = answer.location();
    assert_eq!((&answer.json()["url"], &answer.json()["status"]), (&json!(path), &json!("waiting")));
    let signup = wait_for_end(server.address, path);
    assert_eq!(
        (&signup["status"], &signup["attempts"], &signup["message"]),
        (&json!("done"), &json!(1), &json!("The mail has been sent."))
    );
    assert_eq!(signup["address"], "Ada@example.com");
    let shown = page(server.address, path);
    assert_eq!((shown.status, shown.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(shown.text().contains("<main data-state=\"done\">") && shown.text().contains("The mail has been sent."), "{shown:?}");
    assert!(!shown.text().contains("http-equiv"), "a page with a final status does not reload: {shown:?}");
    assert_eq!(site.outbox(), ["Ada@example.com"]);

    // The domain is not case-sensitive. The part before the @ may be case-sensitive.
    let again = post(server.address, &["content-type: application/json"], r#"{"email": "Ada@EXAMPLE.com"}"#);
    assert_eq!((again.status, again.location()), (200, path), "{again:?}");
    assert_eq!(again.json()["message"], "This address has already signed up. The mail has been sent.");
    let another = post(server.address, &[FORM, "accept: text/html"], "email=ada@example.com");
    assert_eq!(another.status, 303, "{another:?}");
    assert_eq!(wait_for_end(server.address, another.location())["status"], "done");
    assert_eq!(site.outbox(), ["Ada@example.com", "ada@example.com"]);

    server.process.line("the worker is ready");
    let output = server.process.stop().assert_code(0).output();
    // Both processes write this line: first the worker, and then the server that started it.
    let drained: Vec<_> = output.lines().filter(|line| line.contains("background tasks drained ")).collect();
    assert!(
        drained.len() == 2 && drained.iter().all(|line| line.ends_with(" failed=0 panicked=0 abandoned=0 aborted=0 rejected=0")),
        "{output}"
    );
}

#[test]
fn every_outcome_is_shown() {
    let site = Site::new();
    let server = site.serve(&["server"]);
    let bounce = sign_up(server.address, "eve@bounce.example");
    let flaky = sign_up(server.address, "bob@flaky.example");
    let (events, _worker) = events_while(server.address, flaky.location(), || site.work(&[]));

    let signup = wait_for_end(server.address, bounce.location());
    assert_eq!((&signup["status"], &signup["attempts"]), (&json!("dead"), &json!(1)));
    assert_eq!(signup["message"], "The mail could not be sent: the mailbox does not exist.");
    let shown = page(server.address, bounce.location());
    assert!(
        shown.text().contains("<main data-state=\"dead\">") && shown.text().contains("the mailbox does not exist"),
        "{shown:?}"
    );

    let retried = events.iter().find(|event| event["status"] == "retrying").expect("the mail was retried");
    assert_eq!(retried["message"], "The mail could not be sent yet: the mailbox is busy. It will be retried.");
    let signup = wait_for_end(server.address, flaky.location());
    assert_eq!((&signup["status"], &signup["message"]), (&json!("done"), &json!("The mail has been sent, at attempt 2.")));
    assert_eq!(site.outbox(), ["bob@flaky.example"]);
}

/// In a browser without scripts, the page must reload itself until the status is final.
#[test]
fn page_without_a_worker_reloads() {
    let site = Site::new();
    let server = site.serve(&["server"]);
    let answer = post(server.address, &[FORM, "accept: text/html"], "email=a%26b%40example.com");
    assert_eq!(answer.status, 303, "{answer:?}");
    let shown = page(server.address, answer.location());
    assert!(shown.text().contains("<noscript><meta http-equiv=\"refresh\""), "{shown:?}");
    assert!(shown.text().contains("<main data-state=\"waiting\">"), "{shown:?}");
    assert!(shown.text().contains("a&amp;b@example.com") && !shown.text().contains("a&b"), "{shown:?}");
    // An open event stream must not delay the shutdown.
    let stream = thread::spawn({
        let (address, path) = (server.address, answer.location().to_owned());
        move || events(address, &path)
    });
    let start = Instant::now();
    server.process.stop().assert_code(0);
    assert!(start.elapsed().as_secs() < 10);
    let _ = stream.join();
}

/// A client has sent only a part of a request head. At SIGTERM, the server must close this connection, and not wait for the head
/// timeout of 5 s.
#[test]
fn half_a_request_head_does_not_delay_exit() {
    let site = Site::new();
    let server = site.serve(&["server", "--grace", "30"]);
    let mut halves = [server.address, server.board].map(|address| {
        let mut half = Client::connect(address).unwrap();
        half.send(b"POST /signups HTTP/1.1\r\nhost: local").unwrap();
        get(address, "/");
        half
    });
    let start = Instant::now();
    server.process.stop().assert_code(0).assert_line("background tasks drained ");
    assert!(start.elapsed().as_secs() < 3);
    for half in &mut halves {
        half.response().unwrap_err();
    }
}

/// During the drain, a client must send the rest of a body within half of the grace period.
#[test]
fn half_a_request_body_does_not_exceed_the_grace_period() {
    let site = Site::new();
    let server = site.serve(&["server", "--grace", "10"]);
    let mut half = Client::connect(server.address).unwrap().with_headers(&["host: localhost", FORM]);
    half.start_request("POST", "/signups", 21).unwrap();
    half.send(b"email=ada").unwrap();
    server.process.terminate();
    assert_eq!(half.response().unwrap().status, 408);
    server.process.wait().assert_code(0).assert_line("background tasks drained ");
}

/// Many idle connections must leave enough file descriptors for the database.
#[cfg(target_os = "linux")]
#[test]
fn idle_connections_do_not_stop_sign_ups() {
    let site = Site::new();
    let server = site.serve_with_descriptors(128, &["server"]);
    let mut client = Client::connect(server.address).unwrap().with_headers(&["host: localhost", FORM]);
    assert_eq!(client.get("/").unwrap().status, 200);
    let idle: Vec<_> =
        (0..150).map(|each| Client::connect(if each % 2 == 0 { server.address } else { server.board }).unwrap()).collect();
    for number in 0..20 {
        let answer = client.request("POST", "/signups", format!("email={number}@example.com").as_bytes()).unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    drop(idle);
    server.process.stop().assert_code(0);
}

/// With DNS rebinding, a web page of another site makes its own host name point to the address of the server. The server must reject
/// requests for such host names.
#[test]
fn unknown_hosts_are_rejected() {
    let site = Site::new();
    let server = site.serve(&["server", "--host", "signups.example.com"]);
    let known = ["localhost", "127.0.0.1:8080", "[::1]"].map(|host| (host, 200, 200));
    for (host, expected, on_the_board) in
        known.into_iter().chain([("signups.example.com", 200, 421), ("example.com", 421, 421), ("localhost.example.com", 421, 421)])
    {
        let host = [&*format!("host: {host}")];
        assert_eq!(request(server.address, "GET", "/", &host, "").status, expected, "{host:?}");
        let answer = request(server.board, "GET", "/api/mails", &host, "");
        assert_eq!(answer.status, on_the_board, "{host:?}: {answer:?}");
    }
    for hosts in [&[][..], &["host: localhost", "host: localhost"]] {
        for address in [server.address, server.board] {
            let answer = Client::connect(address).unwrap().with_headers(hosts).get("/").unwrap();
            assert_eq!(answer.status, 400, "{hosts:?}");
        }
    }
}

/// Waits until a worker has started to send the mail.
#[track_caller]
fn wait_until_running(server: SocketAddr, path: &str) {
    poll_until(&"no worker sends the mail", || get(server, path).json()["status"] == "running");
}

#[test]
fn mail_of_a_killed_worker_is_sent_by_another() {
    // The mail server does not respond, so the first worker waits until it is killed.
    let mails = MailServer::start(&[Reply::Nothing]);
    let site = Site::new();
    let server = site.serve(&["server"]);
    let answer = sign_up(server.address, "ada@example.com");
    let worker = site.work(&["--smtp", &mails.address.to_string()]);
    mails.next();
    wait_until_running(server.address, answer.location());
    worker.kill();

    let worker = site.work(&[]);
    let signup = wait_for_end(server.address, answer.location());
    assert_eq!((&signup["status"], &signup["message"]), (&json!("done"), &json!("The mail has been sent, at attempt 2.")));
    assert_eq!(site.outbox(), ["ada@example.com"]);
    worker.stop().assert_code(0);
}

/// If the outbox contains a link or a pipe, the worker must not write to another file, block, or lose a mail.
#[test]
fn links_and_pipes_in_the_outbox_are_not_followed() {
    let site = Site::new();
    let server = site.serve(&["server"]);
    let signups = ["ada@example.com", "bob@example.com"].map(|address| sign_up(server.address, address));
    let [ada, bob] = signups.each_ref().map(|answer| answer.json()["id"].as_str().unwrap().to_owned());
    fs::create_dir(site.path("outbox")).unwrap();
    fs::write(site.path("other"), "the file of another service").unwrap();
    symlink(site.path("other"), site.path(&format!("outbox/.{ada}-1.tmp"))).unwrap();
    mknodat(CWD, site.path(&format!("outbox/{bob}.eml")), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _worker = site.work(&[]);
    for answer in &signups {
        assert_eq!(wait_for_end(server.address, answer.location())["status"], "done");
    }
    assert_eq!(fs::read_to_string(site.path("other")).unwrap(), "the file of another service");
    for mail in [ada, bob] {
        let found = fs::symlink_metadata(site.path(&format!("outbox/{mail}.eml"))).unwrap();
        assert!(found.is_file(), "{found:?}");
    }
    assert_eq!(site.outbox(), ["ada@example.com", "bob@example.com"]);
}

/// A killed worker leaves a temporary file. The next worker must remove old temporary files. It must keep recent files, because another
/// worker may be writing to them.
#[test]
fn stale_temporary_files_are_removed() {
    let site = Site::new();
    fs::create_dir(site.path("outbox")).unwrap();
    let [stale, young, other] = ["outbox/.1-1.tmp", "outbox/.2-1.tmp", "outbox/0.eml"].map(|name| site.path(name));
    for (path, hours) in [(&stale, 2), (&young, 0), (&other, 2)] {
        let modified = SystemTime::now() - Duration::from_hours(hours);
        fs::File::create_new(path).unwrap().set_modified(modified).unwrap();
    }
    site.work(&[]).stop().assert_code(0);
    assert_eq!([stale, young, other].map(|path| path.exists()), [false, true, true]);
}

/// If a worker dies before the mail server responds, another worker sends the mail a second time. Both mails must have the same
/// `Message-ID`.
#[test]
fn repeated_mail_has_the_same_message_id() {
    let mails = MailServer::start(&[Reply::Nothing]);
    let (site, relay) = (Site::new(), mails.address.to_string());
    let mut server = site.serve(&["--smtp", &relay, "--lease", "3"]);
    let worker: i32 = server.process.rest_of_line("the worker is process ").parse().unwrap();
    let answer = sign_up(server.address, "ada@example.com");
    let first = mails.next();
    assert!(first.contains("\nTo: ada@example.com\n"), "{first}");
    wait_until_running(server.address, answer.location());
    let worker = rustix::process::Pid::from_raw(worker).unwrap();
    rustix::process::kill_process(worker, Signal::KILL).unwrap();
    server.process.line("the worker died (signal: 9 (SIGKILL)): starting another one");

    assert_eq!(wait_for_end(server.address, answer.location())["status"], "done");
    let message_id = |mail: &str| mail.lines().find_map(|line| line.strip_prefix("Message-ID: ")).unwrap().to_owned();
    assert_eq!(message_id(&mails.next()), message_id(&first));
    assert!(mails.has_no_more());
    server.process.stop().assert_code(0);
}

#[test]
fn errors_of_the_mail_server_are_shown() {
    const BUSY: Reply = Reply::Line("450 not now");
    // Three attempts fail, so that the job waits for seconds, and the event stream contains this status.
    const REPLIES: [Reply; 4] = [Reply::Line("550 no such mailbox here"), BUSY, BUSY, BUSY];
    let mails = MailServer::start(&REPLIES);
    let (site, relay) = (Site::new(), mails.address.to_string());
    let server = site.serve(&["server"]);
    let answer = sign_up(server.address, "eve@example.com");
    let _worker = site.work(&["--smtp", &relay]);
    let signup = wait_for_end(server.address, answer.location());
    let message = "The mail could not be sent: the mail server rejected it (no such mailbox here).";
    assert_eq!((&signup["status"], &signup["message"]), (&json!("dead"), &json!(message)));

    let answer = sign_up(server.address, "bob@example.com");
    let all = events(server.address, answer.location());
    let message = "The mail could not be sent yet: the mail server did not accept it (not now). It will be retried.";
    assert!(all.iter().any(|event| event["message"] == message), "{all:#?}");
    assert_eq!(all.last().unwrap()["message"], "The mail has been sent, at attempt 4.");
    assert!(!site.path("outbox").exists());
}

/// Signs up over several connections. Calls `then` after `enough` sign-ups are accepted. Returns all addresses that were accepted before
/// the server stopped.
fn sign_up_many(server: SocketAddr, enough: usize, then: impl FnOnce()) -> BTreeSet<String> {
    let next = &AtomicUsize::new(0);
    let sign_up = move |accepted: Sender<String>| {
        while next.load(Ordering::Relaxed) < 10 * enough {
            let reader = format!("reader-{}@example.com", next.fetch_add(1, Ordering::Relaxed));
            // The client gets an error if the server has stopped.
            let Ok(answer) = try_sign_up(server, &reader) else { return };
            assert_eq!(answer.status, 202, "{answer:?}");
            let _ = accepted.send(reader);
        }
    };
    thread::scope(|scope| {
        let (sender, receiver) = channel();
        for _ in 0..8 {
            let sender = sender.clone();
            scope.spawn(move || sign_up(sender));
        }
        drop(sender);
        let mut accepted: BTreeSet<_> = receiver.iter().take(enough).collect();
        assert_eq!(accepted.len(), enough);
        then();
        accepted.extend(receiver);
        accepted
    })
}

#[test]
fn sigterm_loses_and_repeats_no_mail() {
    let site = Site::new();
    let (server, worker) = (site.serve(&["server", "--grace", "60"]), site.work(&["--grace", "60"]));
    let accepted = sign_up_many(server.address, 50, || {
        server.process.terminate();
        worker.terminate();
    });
    for process in [server.process, worker] {
        let output = process.wait().assert_code(0).output();
        assert!(output.contains(" failed=0 panicked=0 abandoned=0 aborted=0 rejected=0"), "{output}");
    }
    let worker = site.work(&[]);
    let sent = poll_until_some(&"mails are missing", || Some(site.outbox()).filter(|sent| sent.len() >= accepted.len()));
    assert_eq!(sent, Vec::from_iter(accepted));
    worker.stop().assert_code(0);
    let repeated = on_sqlite(&site, "SELECT count(*) FROM background_tasks_jobs WHERE attempts <> 1 OR state <> 'done'");
    assert_eq!(repeated, 0);
}

/// After Ctrl-C, the worker must keep running while the server completes its open requests.
#[test]
fn ctrl_c_drains_the_server_before_the_worker() {
    let site = Site::new();
    let server = site.serve_in_a_group(&["--grace", "60"]);
    let flaky = sign_up(server.address, "bob@flaky.example");
    poll_until(&"no first attempt", || get(server.address, flaky.location()).json()["attempts"].as_u64() >= Some(1));
    let mut late = Client::connect(server.address).unwrap().with_headers(&["host: localhost", FORM]);
    late.start_request("POST", "/signups", 21).unwrap();
    server.process.signal_group(Signal::INT);
    poll_until(&"no second attempt", || site.outbox() == ["bob@flaky.example"]);
    late.send(b"email=ada@example.com").unwrap();
    assert_eq!(late.response().unwrap().status, 202);
    let output = server.process.wait().assert_code(0).output();
    assert!(!output.contains("the worker died"), "the first worker sends the mail: {output}");
}

/// If the server, which is the parent process, is killed, the worker must drain.
#[test]
fn worker_drains_when_its_parent_is_killed() {
    let site = Site::new();
    let mut server = site.serve(&[]);
    server.process.line("the worker is ready");
    let output = server.process.kill().output();
    assert!(output.lines().last().unwrap().contains("background tasks drained "), "{output}");
}

/// Runs a query that returns a number, and returns the number.
fn on_sqlite(site: &Site, query: &'static str) -> i64 {
    with_sqlite(site, async |connection| sqlx::query_scalar(query).fetch_one(connection).await.unwrap())
}

fn with_sqlite<T>(site: &Site, work: impl AsyncFnOnce(&mut SqliteConnection) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let file = SqliteConnectOptions::new().filename(site.path("signups.db"));
        let mut connection = SqliteConnection::connect_with(&file).await.unwrap();
        work(&mut connection).await
    })
}

#[track_caller]
fn is_unavailable(answer: &Response) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json(), json!({ "error": "The database cannot be reached, so nothing was saved. Please try again later." }));
}

#[test]
fn locked_and_deleted_databases_are_unavailable() {
    let site = Site::new();
    let server = site.serve(&["server"]);
    let address = server.address;
    let before = sign_up(server.address, "ada@example.com");
    with_sqlite(&site, async |connection| {
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await.unwrap();
        // The eight requests must wait at the same time. One after another, they would exceed the time limit of the test.
        let many: Vec<_> = (0..8).map(|_| thread::spawn(move || sign_up(address, "grace@example.com"))).collect();
        let shown = thread::spawn(move || post(address, &[FORM, "accept: text/html"], "email=grace@example.com"));
        for answer in many {
            is_unavailable(&answer.join().unwrap());
        }
        let shown = shown.join().unwrap();
        assert!(shown.status == 503 && shown.text().contains("The database cannot be reached, so nothing was saved."), "{shown:?}");
        assert_eq!(get(server.address, before.location()).status, 200, "readers do not wait");
    });
    let both = "SELECT (SELECT count(*) FROM signups) * 1000 + (SELECT count(*) FROM background_tasks_jobs)";
    assert_eq!(on_sqlite(&site, both), 1001);
    let after = sign_up(server.address, "grace@example.com");
    assert_eq!(after.status, 202, "{after:?}");
    assert_eq!(on_sqlite(&site, both), 2002);

    for file in ["signups.db", "signups.db-wal", "signups.db-shm"] {
        fs::remove_file(site.path(file)).unwrap();
    }
    is_unavailable(&sign_up(server.address, "lin@example.com"));
    is_unavailable(&get(server.address, after.location()));
    let output = server.process.stop().assert_code(0).output();
    assert!(output.contains("was deleted or replaced while it was open"), "{output}");
}

#[test]
fn invalid_requests_are_rejected() {
    let site = Site::new();
    let server = site.serve(&["server"]);
    let json = "content-type: application/json";
    for (headers, body, status) in [
        (&[FORM][..], "email=ada", 422),
        (&[FORM], "email=", 422),
        (&[FORM], "email=ada@example.com%0D%0ABcc:eve@example.com", 422),
        (&[FORM], "email=ada@example.com,eve@example.com", 422),
        (&[FORM], "address=ada@example.com", 422),
        // No mail to these addresses can be composed.
        (&[FORM], "email=%22a%20b%22@example.com", 422),
        (&[FORM], "email=%22a,b%22@example.com", 422),
        // Some readers treat U+0085 and U+2028 as the end of a line.
        (&[FORM], "email=a%C2%85b@example.com", 422),
        (&[FORM], "email=%22a%E2%80%A8b%22@example.com", 422),
        (&[json], r#"{"email": "a\u2028b@example.com"}"#, 422),
        (&[json], r#"{"email": "ada"}"#, 422),
        (&[json], r#"{"email": 1}"#, 422),
        (&[json], r#"{"email": "#, 400),
        (&["content-type: text/plain"], "ada@example.com", 415),
        (&[FORM], &format!("email={}@example.com", "a".repeat(1024)), 413),
    ] {
        let answer = post(server.address, headers, body);
        assert!(answer.status == status && !answer.json()["error"].as_str().unwrap().is_empty(), "{body}: {answer:?}");
        let shown = post(server.address, &[headers, &["accept: text/html"]].concat(), body);
        assert!(shown.status == status && shown.text().contains("<main data-state=\"refused\">"), "{body}: {shown:?}");
    }
    for path in ["/signups/1", "/signups/01ARZ3NDEKTSV4RRFFQ69G5FAV", "/signups/01ARZ3NDEKTSV4RRFFQ69G5FAV/events", "/elsewhere"] {
        let answer = get(server.address, path);
        assert_eq!((answer.status, answer.json()), (404, json!({ "error": "There is no such sign-up." })), "{path}");
    }
    assert_eq!(page(server.address, "/signups/1").status, 404);
    assert_eq!(request(server.address, "DELETE", "/signups", &[], "").status, 405);
    assert_eq!(on_sqlite(&site, "SELECT (SELECT count(*) FROM signups) + (SELECT count(*) FROM background_tasks_jobs)"), 0);
}

/// Checks that the board counts the mails, and that it rejects writes of other sites.
#[track_caller]
fn check_board(board: SocketAddr) {
    let mails = get(board, "/api/mails").json();
    assert!(mails["counts"]["done"].as_u64() >= Some(1), "{mails}");
    let shown = get(board, "/");
    assert!(shown.status == 200 && shown.text().contains("<title>Mails</title>"), "{shown:?}");
    let policy = shown.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    for shown in [shown, get(board, "/api/mails"), get(board, "/missing")] {
        assert_eq!(shown.header("x-content-type-options"), Some("nosniff"), "{shown:?}");
    }
    for (headers, expected) in [
        (&[][..], 403),
        (&["sec-fetch-site: cross-site"], 403),
        (&["sec-fetch-site: same-site", "origin: http://localhost"], 403),
        (&["origin: http://example.com"], 403),
        (&["origin: null"], 403),
        (&["origin: http://localhost"], 405),
        (&["sec-fetch-site: same-origin"], 405),
    ] {
        let put = request(board, "PUT", "/api/mails", headers, "{}");
        assert_eq!(put.status, expected, "{headers:?}: {put:?}");
        let expected = if expected == 403 { 403 } else { 404 };
        let post = request(board, "POST", "/queues/missing/pause", headers, "");
        assert_eq!(post.status, expected, "{headers:?}: {post:?}");
    }
}

/// Sends the request that a form of the board would send. Checks the status of the response.
#[track_caller]
fn press(board: SocketAddr, path: &str, expected: u16) {
    let answer = request(board, "POST", path, &["sec-fetch-site: same-origin", FORM], "");
    assert_eq!(answer.status, expected, "{path}: {answer:?}");
    if expected == 303 {
        assert_eq!(answer.location(), "/?queue=mail");
    }
}

/// Each button of the board must change the job or the queue, or return an error status.
#[test]
fn board_operates_the_queue() {
    let site = Site::new();
    let server = site.serve(&["server"]);
    let board = server.board;
    let job = |answer: &Response| answer.json()["id"].as_str().unwrap().to_owned();
    press(board, "/queues/mail/pause", 404); // the queue does not exist before its first job
    let [ada, eve] = ["ada@example.com", "eve@bounce.example"].map(|address| sign_up(server.address, address));
    press(board, "/queues/mail/pause", 303);
    assert!(get(board, "/").text().contains("paused"));
    press(board, &format!("/jobs/{}/cancel", job(&ada)), 303);
    press(board, &format!("/jobs/{}/cancel", job(&ada)), 409);
    press(board, &format!("/jobs/{}/retry", job(&eve)), 409);
    press(board, "/queues/mail/resume", 303);
    let _worker = site.work(&[]);
    assert_eq!(wait_for_end(server.address, eve.location())["status"], "dead");
    let shown = get(board, "/");
    assert!(shown.text().contains("the mailbox does not exist") && shown.text().contains(&job(&eve)), "{shown:?}");
    press(board, &format!("/jobs/{}/retry", job(&eve)), 303);
    assert_eq!(wait_for_end(server.address, eve.location())["status"], "dead");
    press(board, "/queues/mail/retry", 303);
    assert_eq!(wait_for_end(server.address, eve.location())["status"], "dead");
    press(board, &format!("/jobs/{}/discard", job(&eve)), 303);
    for path in [&format!("/jobs/{}/discard", job(&eve)), "/jobs/1/retry", "/queues/mail/delete", "/queues/other/pause"] {
        press(board, path, 404);
    }
    let counts = get(board, "/api/mails").json();
    assert_eq!((&counts["counts"]["dead"], &counts["counts"]["cancelled"]), (&json!(0), &json!(1)));
    assert_eq!(get(board, "/?queue=%3Cb%3E").status, 200);
}

#[test]
fn board_shows_the_queue() {
    let site = Site::new();
    let server = site.serve(&[]);
    let answer = sign_up(server.address, "ada@example.com");
    assert_eq!(wait_for_end(server.address, answer.location())["status"], "done");
    check_board(server.board);
    let answer = sign_up(server.address, "<b>@bounce.example");
    if answer.status == 202 {
        assert_eq!(wait_for_end(server.address, answer.location())["status"], "dead");
        assert!(!get(server.board, "/").text().contains("<b>"));
    }
    server.process.stop().assert_code(0);
}

/// Each error must name the problem, and the program must exit with code 2.
#[test]
fn invalid_options_and_databases_are_reported() {
    let site = Site::new();
    let server = site.serve(&["server"]);
    let taken = server.address.to_string();
    fs::write(site.path("file"), "").unwrap();
    for (args, error) in [
        (&["server", "--listen", &taken, "--board", "none"][..], format!("cannot listen on {taken}: ")),
        (&["server", "--listen", "127.0.0.1:0", "--board", &taken], format!("cannot listen on {taken}: ")),
        (&["worker", "--outbox", "file"], "cannot write to 'file': ".into()),
        (&["--listen", "127.0.0.1:0", "--board", "none", "--outbox", "file"], "the worker failed with exit code 2".into()),
        (&["serve"], "invalid value 'serve' for '[ROLE]'".into()),
        (&["server", "worker"], "unexpected argument 'worker'".into()),
        (&["--unknown"], "unexpected argument '--unknown'".into()),
        (&["--board", "0.0.0.0:8081"], "the board has no login, so it needs a loopback address".into()),
        (&["--lease", "2"], "the minimum is 3 seconds".into()),
        (&["--smtp", "localhost"], "expected HOST:PORT".into()),
        (&["--grace", "-1"], "invalid value '-1' for '--grace <SECONDS>'".into()),
    ] {
        let output = site.start(args).wait().assert_code(2).output();
        assert!(output.contains(&error), "{args:?}: {output}");
    }
    for (database, error) in [
        ("file", "file: file is not a database"),
        ("missing/signups.db", "missing/signups.db"),
        ("mysql://localhost/none", "invalid database address"),
    ] {
        let site = Site::on(database);
        fs::write(site.path("file"), "This text is not a database, but is long enough for SQLite to read it.").unwrap();
        for role in ["server", "worker"] {
            let process = site.start(&[role, "--listen", "127.0.0.1:0", "--board", "none"]);
            process.wait().assert_code(2).assert_line(error);
        }
    }
    assert!(site.start(&["--help"]).wait().assert_code(0).output().starts_with("Signs people up."));
}

/// Runs two servers and two workers on one Postgres server. Kills a worker, and then kills Postgres.
///
/// This test takes longest, so it should start first. Tests start in alphabetical order, so this test has a name that starts with
/// `a`.
#[test]
fn all_roles_share_a_postgres() {
    // The test can switch `fsync` off: if a process is killed, the operating system still writes the data of the process to the disk.
    let mut postgres = match Postgres::start_with(&[("fsync", "off")]) {
        Ok(postgres) => postgres,
        Err(reason) => return testing::skip("postgres", reason),
    };
    let site = Site::on(&postgres.url());
    let (server, other) = (site.serve(&["server"]), site.serve(&["server"]));
    let (killed, left) = (site.work(&[]), site.work(&[]));
    let accepted = sign_up_many(server.address, 30, || drop(killed.kill()));
    let sent = poll_until_some(&"mails are missing", || Some(site.outbox()).filter(|sent| sent.len() >= accepted.len()));
    assert_eq!(sent, Vec::from_iter(accepted));

    // Both servers must show the sign-up.
    let answer = sign_up(server.address, "ada@example.com");
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(wait_for_end(other.address, answer.location())["status"], "done");
    let again = sign_up(other.address, "ada@example.com");
    assert_eq!((again.status, again.location()), (200, answer.location()), "{again:?}");
    check_board(server.board);

    postgres.kill();
    let late = thread::spawn(move || sign_up(server.address, "grace@example.com"));
    is_unavailable(&get(server.address, answer.location()));
    is_unavailable(&late.join().unwrap());
    postgres.restart();
    assert_eq!(postgres.sql("SELECT count(*) FROM signups WHERE address = 'grace@example.com'"), "0");
    let late = poll_until_some(&"no sign-up is accepted", || {
        Some(sign_up(server.address, "grace@example.com")).filter(|answer| answer.status == 202)
    });
    assert_eq!(wait_for_end(server.address, late.location())["status"], "done");
    // The killed worker may have sent a mail without committing the outcome of the job. Such a job runs a second time when the
    // lease of the killed worker has expired.
    let undone = "SELECT count(*) FROM background_tasks.jobs WHERE state <> 'done'";
    poll_until(&"jobs are not done", || postgres.sql(undone) == "0");
    for process in [server.process, other.process, left] {
        process.stop().assert_code(0);
    }
    assert_eq!(postgres.sql(undone), "0");
}
