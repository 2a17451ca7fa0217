//! Runs three subsystems in one process, each in its own child registry. At SIGTERM or Ctrl-C, the subsystems drain in this order:
//!
//! 1. `connections` receives orders over TCP. Each line contains one order.
//! 2. `shipping` passes the orders to a carrier. A task, the consumer, does this. If it fails, the registry starts it again.
//! 3. `archive` archives the receipts of the shipped orders every second, and a last time after the last order.

use background_tasks::{CompletionGuard, Registry, Restart, TokioSpawner};
use background_tasks_host::{Host, StderrObserver};
use clap::Parser;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{error::Error, io};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

type Tasks = Registry<TokioSpawner>;
type Receipts = Arc<Mutex<Vec<String>>>;

/// An order that waits for the consumer. The order counts as in flight until it is shipped. If an order is dropped before it is shipped, it
/// counts as abandoned.
struct Order {
    pieces: u32,
    receipt: String,
    in_flight: CompletionGuard,
}

/// The values that each connection needs.
#[derive(Clone)]
struct Client {
    connections: Tasks,
    shipping: Tasks,
    orders: UnboundedSender<Order>,
}

/// Receives orders over TCP, ships them, and archives their receipts
#[derive(Parser)]
struct Options {
    /// Listen on this address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4000")]
    listen: SocketAddr,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let root = Registry::builder(TokioSpawner).observer(StderrObserver).inspect().build();
    // The child registries have the observer and the settings of the root registry.
    let connections = root.named("connections").child_with_limit(100);
    // The limit is 21, because the consumer holds one permit, and each of at most 20 waiting orders holds another.
    let shipping = root.named("shipping").child_with_limit(21);
    let archive = root.named("archive").child();
    // The host shuts each subsystem down after the subsystems before it have drained.
    let host = Host::new(&connections).then(&shipping).then(&archive).grace(Duration::from_secs(25));
    let orders = start_shipping(&shipping, start_archive(&archive));
    host.run(accept(Client { connections, shipping, orders }, options.listen)).await
}

fn start_archive(archive: &Tasks) -> Receipts {
    let receipts = Receipts::default();
    let (new, last) = (receipts.clone(), receipts.clone());
    archive.named("sweep").every(Duration::from_secs(1), move || {
        let new = new.clone();
        async move { file(&new) }
    });
    let signal = archive.signal();
    archive.named("last receipts").run(async move {
        signal.await; // `shipping` has drained before this signal, so no more receipts follow.
        file(&last);
        println!("archive: closed");
    });
    receipts
}

fn file(receipts: &Receipts) {
    // Keeps the lock while it prints, so that the last receipts are printed after the receipts of a sweep.
    for receipt in receipts.lock().unwrap().drain(..) {
        println!("archive: filed {receipt}");
    }
}

/// Starts the consumer as a service. If the consumer fails, the registry starts it again. If it fails too often, the shutdown starts,
/// because the consumer is critical.
fn start_shipping(shipping: &Tasks, receipts: Receipts) -> UnboundedSender<Order> {
    let (sender, receiver) = unbounded_channel();
    let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
    let restart = Restart::on_failure().at_most(3, Duration::from_secs(60));
    shipping.named("carrier").critical().service(restart, move || ship(receiver.clone(), receipts.clone()));
    sender
}

/// Ships orders until all connections have closed and the queue is empty.
async fn ship(orders: Arc<tokio::sync::Mutex<UnboundedReceiver<Order>>>, receipts: Receipts) -> Result<(), String> {
    println!("shipping: connected to the carrier");
    let mut orders = orders.lock().await;
    while let Some(order) = orders.recv().await {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if order.pieces > 1000 {
            return Err(format!("the carrier has hung up at {}", order.receipt)); // drops the order
        }
        println!("shipping: shipped {}", order.receipt);
        receipts.lock().unwrap().push(order.receipt);
        order.in_flight.complete();
    }
    println!("shipping: closed");
    Ok(())
}

/// Accepts connections until shutdown starts.
async fn accept(client: Client, listen: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let signal = client.connections.signal();
    while let Some(accepted) = signal.run_until_shutdown(listener.accept()).await {
        match accepted {
            // At the limit of `connections`, the registry drops this future, which closes the connection.
            Ok((stream, _)) => client.connections.named("connection").run(serve(stream, client.clone())),
            // The process may have too many open files. The next `accept` would then fail immediately, so the loop waits first.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    Ok(())
}

/// Answers each line until the client closes the connection or shutdown starts.
async fn serve(mut stream: TcpStream, client: Client) -> io::Result<()> {
    let signal = client.connections.signal();
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader.take(64 * 1024)).lines();
    while let Some(line) = signal.run_until_shutdown(lines.next_line()).await {
        let Some(line) = line? else { break };
        let answer = match &*line {
            "services" => client.shipping.services().iter().map(ToString::to_string).collect(),
            _ => client.place(line).await.unwrap_or_else(|error| format!("refused: {error}")),
        };
        writer.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

impl Client {
    /// Places an order such as `3 apples`. Returns the answer for the client.
    async fn place(&self, line: String) -> Result<String, Box<dyn Error + Send + Sync>> {
        // The task needs no permit, because the connection that waits for the task already holds a permit.
        let calculation = self.connections.named("price").without_permit().spawn_blocking(move || price(&line));
        let (pieces, receipt) = calculation.await??; // the first `?` returns the task's error, the second `?` the order's
        let in_flight = self.shipping.named("order").guard()?.require_completion();
        let answer = format!("accepted: {receipt}");
        self.orders.send(Order { pieces, receipt, in_flight }).map_err(|_| "the shipping has ended")?;
        Ok(answer)
    }
}

/// Calculates a price, on a thread on which code may block. If this function panics, the handle of its task resolves to an error.
fn price(line: &str) -> Result<(u32, String), String> {
    let (pieces, item) = line.split_once(' ').ok_or("expected a number and an item, such as 3 apples")?;
    let pieces: u32 = pieces.parse().map_err(|error| format!("{error}: {pieces}"))?;
    let cents = pieces.checked_mul(25).expect("the price has 32 bits");
    Ok((pieces, format!("{pieces} {item} for {cents} cents")))
}
