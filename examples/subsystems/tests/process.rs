//! Starts the program as a process, and sends orders and signals to it.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;
use testing::{Ended, Process, poll_until};

struct Client(BufReader<TcpStream>);

impl Client {
    /// Sends a line to the program. Returns the answer.
    #[track_caller]
    fn request(&mut self, line: &str) -> String {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }
}

#[track_caller]
fn start() -> (Process, Client) {
    let mut process = Process::start(Command::new(env!("CARGO_BIN_EXE_subsystems")).args(["--listen", "127.0.0.1:0"]));
    let stream = TcpStream::connect(process.rest_of_line("listening on ")).unwrap();
    stream.set_read_timeout(Some(testing::PATIENCE)).unwrap();
    (process, Client(BufReader::new(stream)))
}

/// Asserts that each of the texts is in a line of the output, and that these lines are in this order.
#[track_caller]
fn assert_order(ended: &Ended, texts: &[&str]) {
    let output = ended.output();
    let mut lines = output.lines();
    for text in texts {
        assert!(lines.any(|line| line.contains(text)), "no line {text:?} after the texts before it:\n{output}");
    }
}

#[test]
fn subsystems_drain_in_order() {
    let (process, mut client) = start();
    for number in 1..=10 {
        assert_eq!(client.request(&format!("{number} pears")), format!("accepted: {number} pears for {} cents", number * 25));
    }
    // The client is still connected, and the consumer needs another second to ship the ten orders.
    let ended = process.stop();
    ended.assert_code(0);
    let shipped: Vec<_> = (1..=10).map(|number| format!("shipping: shipped {number} pears")).collect();
    assert_order(&ended, &shipped.iter().map(|line| &**line).chain(["shipping: closed", "archive: closed"]).collect::<Vec<_>>());
    let filed: Vec<_> = (1..=10).map(|number| format!("archive: filed {number} pears")).collect();
    assert_order(&ended, &filed.iter().map(|line| &**line).chain(["archive: closed"]).collect::<Vec<_>>());
    ended.assert_line("drained in ").assert_line(" 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected");
    assert!(client.0.read_line(&mut String::new()).is_ok_and(|len| len == 0), "the connection is closed");
}

#[test]
fn periodic_work_files_receipts_before_the_end() {
    let (mut process, mut client) = start();
    client.request("3 apples");
    process.line("archive: filed 3 apples for 75 cents");
    let ended = process.stop();
    ended.assert_code(0);
    assert_order(&ended, &["archive: filed 3 apples", "archive: closed"]);
}

#[test]
fn failed_consumer_starts_again_and_is_listed() {
    let (mut process, mut client) = start();
    assert_eq!(client.request("2000 bricks"), "accepted: 2000 bricks for 50000 cents");
    process.line(" failed: the carrier has hung up at 2000 bricks for 50000 cents");
    assert_eq!(client.request("3 apples"), "accepted: 3 apples for 75 cents");
    process.line("shipping: shipped 3 apples");
    let services = client.request("services");
    assert!(services.contains(" restarts: 1, ") && services.ends_with("hung up at 2000 bricks for 50000 cents"), "{services}");
    let ended = process.stop();
    ended.assert_code(0).assert_line("order at examples/subsystems/src/main.rs:");
    assert_order(&ended, &["connected to the carrier", "connected to the carrier", "shipping: closed", "archive: closed"]);
    ended.assert_line(" 1 failed, 0 panicked, 1 abandoned, 0 aborted, 0 rejected");
}

#[test]
fn consumer_that_fails_too_often_ends_the_program() {
    let (process, mut client) = start();
    for _ in 0..4 {
        client.request("2000 bricks");
    }
    let ended = process.wait();
    ended.assert_code(2).assert_line("shutting down because a task was lost: carrier at ");
    assert_order(&ended, &["archive: closed"]);
    ended.assert_line(" 4 failed, 0 panicked, 4 abandoned, 0 aborted, 0 rejected");
}

#[test]
fn awaited_handle_returns_errors_and_panics() {
    let (process, mut client) = start();
    assert_eq!(client.request("apples"), "refused: expected a number and an item, such as 3 apples");
    let answer = client.request("4000000000 nails");
    assert!(answer.starts_with("refused: price at ") && answer.ends_with(" panicked: the price has 32 bits"), "{answer}");
    assert_eq!(client.request("3 apples"), "accepted: 3 apples for 75 cents");
    process.stop().assert_code(0).assert_line(" 0 failed, 1 panicked, 0 abandoned, 0 aborted, 0 rejected");
}

/// The limit of the child registry `shipping` limits the length of the queue.
#[test]
fn order_beyond_the_limit_is_refused() {
    let (process, mut client) = start();
    poll_until(&"the queue is not full", || {
        let answer = client.request("1 pear");
        assert!(answer.starts_with("accepted: ") || answer.starts_with("refused: "), "{answer}");
        answer.starts_with("refused: ")
    });
    process.stop().assert_code(0).assert_line(" 0 failed, 0 panicked, 0 abandoned, 0 aborted, ");
}
