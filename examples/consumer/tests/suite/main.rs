//! Runs the program as child processes with real brokers, and sends signals to the processes.
#![cfg(unix)]

#[path = "../../../durable/tests/suite/client.rs"]
mod client;
#[expect(dead_code, reason = "the tests of the crate use the rest")]
#[path = "../../../../consumer/tests/brokers/server.rs"]
mod server;
mod site;
#[expect(dead_code, reason = "the tests of examples/durable use the rest")]
#[path = "../../../durable/tests/suite/smtp.rs"]
mod smtp;

use client::{FORM, SignupResponse, events, get, page, post, sign_up};
use serde_json::json;
use server::Server;
use site::Site;
use smtp::{MailServer, Reply};
use std::net::SocketAddr;
use testing::{Response, Signal, only_child, poll_until, poll_until_some, skip};

/// Waits until the status of a sign-up is final. Returns the status and its message.
#[track_caller]
fn wait_for_end(server: SocketAddr, path: &str) -> (String, String) {
    let last = events(server, path).pop().expect("there is an event");
    assert_eq!(last["ended"], true, "{last}");
    let signup = get(server, path).json();
    assert_eq!((&signup["status"], &signup["message"]), (&last["status"], &last["message"]));
    let text = |field: &str| last[field].as_str().unwrap().to_owned();
    (text("status"), text("message"))
}

#[track_caller]
fn assert_drained(output: &str, processes: usize) {
    let drained: Vec<_> = output.lines().filter(|line| line.contains("background tasks drained ")).collect();
    assert_eq!(drained.len(), processes, "{output}");
}

/// Checks the page, the events and the mails of one server. With each broker, the outcomes must be the same.
fn every_outcome_is_shown(site: &Site, server: SocketAddr) {
    assert_eq!(page(server, "/").status, 200);
    let [ada, eve, bob] = ["ada@example.com", "eve@bounce.example", "bob@flaky.example"].map(|address| {
        let answer = sign_up(server, address);
        assert_eq!(answer.status, 202, "{answer:?}");
        answer
    });
    assert_eq!(ada.json()["status"], "waiting");
    assert_eq!(ada.json()["url"], ada.location());
    assert_eq!(wait_for_end(server, ada.location()), ("done".into(), "The mail has been sent.".into()));
    let shown = page(server, ada.location());
    assert!(shown.text().contains("<main data-state=\"done\">") && shown.text().contains("ada@example.com"), "{shown:?}");

    let (status, message) = wait_for_end(server, eve.location());
    assert_eq!((&*status, &*message), ("dead", "The mail could not be sent: the mailbox does not exist."));

    // The number of the successful attempt depends on the broker, because some brokers also count a delivery that a shutdown has
    // interrupted.
    let (status, message) = wait_for_end(server, bob.location());
    assert!(status == "done" && message.starts_with("The mail has been sent, at attempt "), "{message}");
    assert_eq!(site.outbox(), ["ada@example.com", "bob@flaky.example"]);

    let refused = [post(server, &[FORM], "email=ada"), post(server, &[FORM], "mail=ada"), get(server, "/signups/1")];
    assert_eq!(refused.map(|response: Response| response.status), [422, 422, 404]);
}

#[test]
fn one_command_sends_mails_from_memory() {
    let site = Site::on("memory");
    let (process, server) = site.serve(&[]);
    every_outcome_is_shown(&site, server);
    assert_drained(&process.stop().assert_code(0).output(), 1);
}

#[test]
fn mails_in_memory_are_lost_and_reported() {
    let mails = MailServer::start(&[Reply::Line("450 busy"); 100]);
    let site = Site::on("memory");
    let (process, server) = site.serve(&["--smtp", &mails.address.to_string()]);
    let answer = sign_up(server, "ada@example.com");
    mails.next();
    poll_until(&"retried", || get(server, answer.location()).json()["status"] == "retrying");
    process.stop().assert_code(0).assert_line("lost mails, which were in memory only: 1");
}

#[test]
fn queue_in_memory_has_one_process() {
    let site = Site::on("memory");
    site.start(&["worker"]).wait().assert_code(2).assert_line("a queue in memory has no other processes");
}

/// Starts a broker. Returns the broker and its `QUEUE_URL`, or `None` if the broker is not installed.
fn broker(name: &str, start: fn() -> Result<(Server, String), String>) -> Option<(Server, String)> {
    match start() {
        Ok((server, address)) if name == "nats-server" => Some((server, format!("nats://{address}"))),
        Ok((server, address)) if name == "moto" => Some((server, format!("sqs+{address}/123456789012"))),
        Ok((server, address)) => Some((server, address.replace("/QUEUE", ""))),
        Err(why) => {
            skip(name, why);
            None
        }
    }
}

/// Kills the server and two workers. The next workers must send every accepted mail, and the next server must know the status of every
/// mail.
fn no_crash_loses_a_mail(url: &str) {
    let site = Site::on(url);
    let (server, address) = site.serve(&["server"]);
    let addresses: Vec<_> = (10..40).map(|number| format!("{number}@example.com")).collect();
    let paths: Vec<_> = addresses.iter().map(|to| sign_up(address, to).location().to_owned()).collect();
    assert_eq!(get(address, &paths[0]).json()["status"], "waiting");
    server.kill();

    for count in [1, 8] {
        let worker = site.work();
        poll_until(&"the worker sends mails", || site.outbox().len() >= count);
        worker.kill();
    }
    let worker = site.work();
    poll_until(&"the mails of killed workers are sent", || site.outbox().len() == addresses.len());
    assert_eq!(site.outbox(), addresses);

    let (server, address) = site.serve(&["server"]);
    for path in &paths {
        let status = || Some(get(address, path)).filter(|response| response.status == 200).map(|response| response.json());
        let signup = poll_until_some(path, || status().filter(|signup| signup["ended"] == true));
        assert_eq!(signup["status"], json!("done"), "{signup}");
    }
    assert_drained(&server.stop().assert_code(0).output(), 1);
    assert_drained(&worker.stop().assert_code(0).output(), 1);
}

/// The server must start a worker process, start another worker when this worker dies, and stop the worker last.
fn one_command_keeps_a_worker(url: &str) {
    let site = Site::on(url);
    let (mut process, server) = site.serve(&[]);
    process.line("the worker is ready");
    every_outcome_is_shown(&site, server);
    let worker = only_child(process.id()).expect("the server has a worker");
    assert!(std::process::Command::new("kill").args(["-9", &worker.to_string()]).status().unwrap().success());
    process.line("the worker died (signal: 9 (SIGKILL))");
    assert_eq!(wait_for_end(server, sign_up(server, "joe@example.com").location()).0, "done");
    process.signal(Signal::TERM);
    assert_drained(&process.wait().assert_code(0).output(), 2);
}

#[test]
fn on_nats() {
    let Some((_server, url)) = broker("nats-server", server::nats) else { return };
    one_command_keeps_a_worker(&url);
    no_crash_loses_a_mail(&url);
}

#[test]
fn on_rabbitmq() {
    let Some((_server, url)) = broker("rabbitmq-server", server::rabbitmq) else { return };
    one_command_keeps_a_worker(&url);
    no_crash_loses_a_mail(&url);
}

#[test]
fn on_azurite() {
    let Some((_server, url)) = broker("azurite", server::azurite) else { return };
    one_command_keeps_a_worker(&url);
    no_crash_loses_a_mail(&url);
}

#[test]
fn on_moto() {
    let Some((_server, url)) = broker("moto", server::moto) else { return };
    one_command_keeps_a_worker(&url);
    no_crash_loses_a_mail(&url);
}
