//! Starts real brokers on free ports, and runs the conformance suite on them. The test starts its own binary again as worker processes.
//!
//! With `LONG=1`, the test sends more messages and kills more workers. An argument selects the brokers whose names contain the argument.

mod azure;
mod nats;
mod rabbitmq;
mod server;
mod sqs;
mod sqs_client;

use background_tasks::{Loss, Observer, Registry, TaskInfo, TokioSpawner};
use background_tasks_consumer::conformance::{self, Broker, Plan};
use background_tasks_consumer::{Source, consumer};
use futures_util::FutureExt;
use server::Server;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};
use tokio::runtime::Runtime;

/// A queue on a broker. A worker process opens the same queue with the same address and name.
pub(crate) trait Queue: Broker {
    const NAME: &'static str;

    /// Opens the queue with this name on the server at `address`. Creates the queue if it does not exist.
    async fn open(address: &str, name: &str) -> Self;

    /// Checks the promises that only this source makes. Panics if the source breaks such a promise.
    async fn check_details(_address: &str) {}
}

/// A handler returns an error that is longer than a header of the broker can be.
pub(crate) async fn message_with_a_long_error_becomes_dead<Q: Queue>(queue: &Q) {
    queue.send("1".into()).await;
    let registry = Registry::new(TokioSpawner);
    let handler = |_| async { Err::<(), _>("x".repeat(2_000_000)) };
    consumer(queue.connect().await).max_attempts(1).serve(&registry, "job", handler).unwrap();
    let start = Instant::now();
    while queue.dead_letters().await != [b"1"] {
        assert!(start.elapsed() < Duration::from_secs(30), "{}: the message is not dead", Q::NAME);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // If the broker rejected the copy, it would deliver the message again, and that attempt would also fail.
    assert_eq!(registry.shutdown().await.failed, 1, "{}", Q::NAME);
}

/// What a test does to the broker while workers handle messages.
#[derive(Clone, Copy, Debug)]
enum Outage {
    Kill,
    Freeze,
}

/// Runs all tests on a broker. Returns whether all tests passed.
async fn check<Q: Queue>(server: &mut Server, address: &str, outages: &[Outage]) -> bool {
    static COUNTER: AtomicUsize = AtomicUsize::new(0);
    let name = || format!("q{}", COUNTER.fetch_add(1, Ordering::Relaxed));
    // A worker creates this file after it has connected.
    let folder = Server::folder();
    let connected = &folder.path().join("connected");
    let start = Instant::now();
    Q::check_details(address).await;
    if let Err(violation) = conformance::source(async || Q::open(address, &name()).await).await {
        eprintln!("{}: {violation}", Q::NAME);
        return false;
    }
    if let Err(error) = repeated_ack(&Q::open(address, &name()).await).await {
        eprintln!("{}: a repeated acknowledgement: {error}", Q::NAME);
        return false;
    }
    println!("{}: each promise holds ({:.0?})", Q::NAME, start.elapsed());
    let plan = if env::var_os("LONG").is_some() { Plan::long() } else { Plan::brief() };
    let mut passed = run::<Q>(address, &name(), plan, "workers killed, stopped and frozen", connected).await;
    for &outage in outages {
        let (name, plan) = (name(), Plan::new(400).broker_fails());
        let what = format!("broker: {outage:?}");
        let _ = fs::remove_file(connected);
        // Makes the broker fail shortly after the worker has connected, because the worker handles messages for some seconds.
        let fail = async {
            while !connected.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(Duration::from_millis(1500)).await;
            tokio::task::block_in_place(|| match outage {
                Outage::Kill => server.restart(),
                Outage::Freeze => server.freeze(Duration::from_secs(5)),
            });
        };
        let (held, ()) = futures_util::join!(run::<Q>(address, &name, plan, &what, connected), fail);
        passed &= held;
    }
    passed
}

/// Drops the future of an acknowledgement, as the consumer does after its time limit, and repeats the call.
async fn repeated_ack<Q: Queue>(queue: &Q) -> Result<(), String> {
    queue.send("1".into()).await;
    let source = queue.connect().await;
    loop {
        let received = source.receive(1).await.map_err(|error| error.to_string())?;
        if let Some(mut message) = received.into_iter().next() {
            let _ = source.ack(&mut message.receipt).now_or_never();
            return source.ack(&mut message.receipt).await.map_err(|error| error.to_string());
        }
        tokio::time::sleep(source.poll_interval()).await;
    }
}

async fn run<Q: Queue>(address: &str, name: &str, plan: Plan, what: &str, connected: &Path) -> bool {
    let start = Instant::now();
    let queue = Q::open(address, name).await;
    let worker = || {
        let mut command = Command::new(env::current_exe().expect("the program has a path"));
        command.args(["worker", Q::NAME, address, name]).arg(connected);
        command
    };
    match conformance::processes(&queue, worker, plan).await {
        Ok(report) => println!("{}: {what}: {report} ({:.0?})", Q::NAME, start.elapsed()),
        Err(violation) => {
            eprintln!("{}: {what}: {violation}", Q::NAME);
            return false;
        }
    }
    true
}

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if let [role, broker, address, name, connected] = &arguments[..] {
        assert_eq!(role, "worker");
        runtime().block_on(work(broker, address, name, connected.as_ref()));
        return ExitCode::SUCCESS;
    }
    let selected = |name: &str| arguments.iter().all(|argument| argument.starts_with('-') || name.contains(&**argument));
    // The tests of all brokers run simultaneously, because they mostly wait for leases.
    let passed = thread::scope(|scope| {
        let brokers = [
            selected(nats::Nats::NAME)
                .then(|| scope.spawn(|| test::<nats::Nats>("nats-server", server::nats, &[Outage::Kill, Outage::Freeze]))),
            selected(rabbitmq::Quorum::NAME).then(|| {
                scope.spawn(|| test::<rabbitmq::Quorum>("rabbitmq-server", server::rabbitmq, &[Outage::Kill, Outage::Freeze]))
            }),
            selected(rabbitmq::Classic::NAME)
                .then(|| scope.spawn(|| test::<rabbitmq::Classic>("rabbitmq-server", server::rabbitmq, &[Outage::Kill]))),
            // No test kills azurite, because a killed azurite loses messages that it has confirmed.
            selected(azure::Azure::NAME)
                .then(|| scope.spawn(|| test::<azure::Azure>("azurite", server::azurite, &[Outage::Freeze]))),
            // No test kills moto, because a killed moto loses all messages.
            selected(sqs::Sqs::NAME).then(|| scope.spawn(|| test::<sqs::Sqs>("moto", server::moto, &[Outage::Freeze]))),
        ];
        brokers.into_iter().flatten().all(|broker| broker.join().unwrap_or(false))
    });
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("the runtime starts")
}

/// Starts a broker and runs its tests. Skips the tests if the broker is not installed.
fn test<Q: Queue>(program: &str, start: fn() -> Result<(Server, String), String>, outages: &[Outage]) -> bool {
    match start() {
        Ok((mut server, address)) => runtime().block_on(check::<Q>(&mut server, &address, outages)),
        Err(why) => {
            testing::skip(program, why);
            true
        }
    }
}

async fn work(broker: &str, address: &str, name: &str, connected: &Path) {
    match broker {
        nats::Nats::NAME => serve::<nats::Nats>(address, name, connected).await,
        rabbitmq::Quorum::NAME => serve::<rabbitmq::Quorum>(address, name, connected).await,
        rabbitmq::Classic::NAME => serve::<rabbitmq::Classic>(address, name, connected).await,
        azure::Azure::NAME => serve::<azure::Azure>(address, name, connected).await,
        sqs::Sqs::NAME => serve::<sqs::Sqs>(address, name, connected).await,
        _ => panic!("unknown broker {broker}"),
    }
}

/// Prints the reports of a worker, so that the output of a failed test says what the worker has met.
struct ToStderr;

impl Observer for ToStderr {
    fn lost(&self, _: &TaskInfo, loss: &Loss<'_>) {
        eprintln!("worker {}: {loss}", std::process::id());
    }
}

async fn serve<Q: Queue>(address: &str, name: &str, connected: &Path) {
    let source = Q::open(address, name).await.connect().await;
    fs::write(connected, "").expect("the folder exists");
    conformance::worker(&Registry::builder(TokioSpawner).inspect().observer(ToStderr).build(), source).await;
}
