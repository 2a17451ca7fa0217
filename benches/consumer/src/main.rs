//! Compares the consumer with hand-written loops that use the brokers' client libraries, and prints a table. In each round, both take
//! turns. An argument selects the brokers whose names contain the argument. `ROUNDS` sets the number of rounds. `QUICK=1` runs a short
//! check whose numbers have no meaning.

mod azure;
mod load;
mod nats;
mod rabbitmq;
#[expect(dead_code, reason = "the tests of the crate use the rest")]
#[path = "../../../consumer/tests/brokers/server.rs"]
mod server;
mod sqs;
#[path = "../../../consumer/tests/brokers/sqs_client.rs"]
mod sqs_client;

use background_tasks::{Registry, TokioSpawner};
use background_tasks_consumer::{Source, consumer};
use futures_util::stream::{self, StreamExt};
use load::Load;
use rustix::time::{ClockId, clock_gettime};
use std::convert::Infallible;
use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::sleep;

const LEASE: Duration = Duration::from_secs(30);
const CONCURRENCY: usize = 16;
const IN_FLIGHT: usize = 100;

/// A message queue on one of the brokers.
trait Queue: Sized {
    type Source: Source;

    /// Creates an empty queue.
    async fn create(address: &str) -> Self;
    async fn send(&self, payload: &'static [u8]);
    async fn source(&self, concurrency: u16) -> Self::Source;
    /// Handles messages in a hand-written loop until all messages of `load` are acknowledged. The loop acknowledges messages in the same
    /// way as the source of the crate.
    async fn bare(&self, concurrency: usize, load: Arc<Load>);
}

/// Returns a name for a queue that differs from the names of the other queues.
fn unique_name() -> String {
    static COUNTER: AtomicUsize = AtomicUsize::new(0);
    format!("queue-{}", COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Waits until fewer than `concurrency` tasks run. Returns how many more tasks can start.
async fn free(tasks: &mut JoinSet<()>, concurrency: usize) -> usize {
    while tasks.len() >= concurrency {
        tasks.join_next().await;
    }
    while tasks.try_join_next().is_some() {}
    concurrency - tasks.len()
}

/// The measurements of one contender in one round.
struct Sample {
    /// The number of handled messages per second.
    rate: f64,
    /// The processor time for each message, in microseconds. It does not include the broker, which is another process.
    cpu: f64,
    /// Milliseconds from the start of the shutdown until the broker has deleted [`IN_FLIGHT`] messages. The handlers end when the
    /// shutdown starts.
    drain: f64,
}

#[tokio::main]
async fn main() {
    let wanted: Vec<_> = env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_quick = env::var_os("QUICK").is_some();
    let rounds = env::var("ROUNDS").map_or(if is_quick { 1 } else { 5 }, |rounds| rounds.parse().expect("ROUNDS is a number"));
    let messages = |messages| if is_quick { messages / 20 } else { messages };
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(&**word));
    println!("| broker | messages/s, bare | consumer | ratio | CPU in µs, bare | consumer | ms to drain 100, bare | consumer |");
    println!("| --- | --: | --: | --: | --: | --: | --: | --: |");
    if is_wanted("nats") {
        row::<nats::Nats>("NATS JetStream", server::nats(), messages(4000), rounds).await;
    }
    if is_wanted("rabbitmq") {
        row::<rabbitmq::Rabbit>("RabbitMQ, quorum", server::rabbitmq(), messages(4000), rounds).await;
    }
    if is_wanted("azure") {
        row::<azure::Azure>("Azure Queue (azurite)", server::azurite(), messages(300), rounds).await;
    }
    if is_wanted("sqs") {
        row::<sqs::Sqs>("Amazon SQS (moto)", server::moto(), messages(300), rounds).await;
    }
}

async fn row<Q: Queue>(name: &str, server: Result<(server::Server, String), String>, messages: usize, rounds: usize) {
    let address = match &server {
        Ok((_, address)) => address,
        Err(why) => return println!("{name} skipped: {why}"),
    };
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    // The first round is a warm-up. The order of the contenders changes in each round.
    for round in 0..=rounds {
        for turn in 0..2 {
            let is_bare = (round + turn) % 2 == 0;
            let (rate, cpu) = process(&filled::<Q>(address, messages).await, messages, is_bare).await;
            let drain = drain(&filled::<Q>(address, IN_FLIGHT).await, is_bare).await;
            if round > 0 {
                if is_bare { &mut bare } else { &mut ours }.push(Sample { rate, cpu, drain });
            }
        }
    }
    let [rate, cpu, drain] = [|sample: &Sample| sample.rate, |sample: &Sample| sample.cpu, |sample: &Sample| sample.drain]
        .map(|field| [&bare, &ours].map(|samples| median(samples.iter().map(field).collect())));
    let ratio = rate[1] / rate[0];
    println!(
        "| {name} | {:.0} | {:.0} | {ratio:.2} | {:.0} | {:.0} | {:.0} | {:.0} |",
        rate[0], rate[1], cpu[0], cpu[1], drain[0], drain[1]
    );
}

async fn filled<Q: Queue>(address: &str, messages: usize) -> Q {
    let queue = Q::create(address).await;
    stream::iter(0..messages).map(|_| queue.send(&[b'x'; 100])).buffer_unordered(50).for_each(async |()| {}).await;
    queue
}

/// Returns the number of messages per second, and the processor time for each message in microseconds.
async fn process<Q: Queue>(queue: &Q, messages: usize, is_bare: bool) -> (f64, f64) {
    let load = Load::open(messages);
    let source = queue.source(CONCURRENCY as u16).await;
    let (start, cpu_start) = (Instant::now(), cpu());
    let read = || {
        let messages = messages as f64;
        (messages / start.elapsed().as_secs_f64(), (cpu() - cpu_start).as_secs_f64() * 1e6 / messages)
    };
    if is_bare {
        drop(source); // the source may already have received messages
        queue.bare(CONCURRENCY, load).await;
        return read();
    }
    let registry = serve(source, CONCURRENCY, &load);
    load.all_started().await;
    // Each task ends when the source has acknowledged its message. The consumer itself also counts as one task in flight.
    while registry.in_flight() > 1 {
        sleep(Duration::from_micros(100)).await;
    }
    let sample = read();
    assert!(registry.shutdown().await.is_clean());
    sample
}

async fn drain<Q: Queue>(queue: &Q, is_bare: bool) -> f64 {
    let load = Load::held(IN_FLIGHT);
    let milliseconds = |start: Instant| start.elapsed().as_secs_f64() * 1e3;
    if is_bare {
        let release = async {
            load.all_started().await;
            load.release();
            Instant::now()
        };
        let (start, ()) = futures_util::join!(release, queue.bare(IN_FLIGHT, load.clone()));
        return milliseconds(start);
    }
    let registry = serve(queue.source(IN_FLIGHT as u16).await, IN_FLIGHT, &load);
    load.all_started().await;
    let start = Instant::now();
    let drained = registry.shutdown();
    load.release();
    assert!(drained.await.is_clean());
    milliseconds(start)
}

fn serve(source: impl Source, concurrency: usize, load: &Arc<Load>) -> Registry<TokioSpawner> {
    let registry = Registry::builder(TokioSpawner).inspect().build();
    let load = load.clone();
    let handler = move |_| {
        let load = load.clone();
        async move {
            load.handle().await;
            Ok::<_, Infallible>(())
        }
    };
    consumer(source).concurrency(concurrency).serve(&registry, "message", handler).expect("the registry is open");
    registry
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("the clock is not negative")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
