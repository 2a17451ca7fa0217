//! Checks a source within one process, by calls to its methods.

use super::{Broker, Violation};
use crate::source::{Message, Release, Source};
use futures_timer::Delay;
use std::fmt::Display;
use std::time::{Duration, Instant};

type Check = Result<(), String>;
type Received<B> = Message<<<B as Broker>::Source as Source>::Receipt>;

/// A broker must deliver an available message within this time.
const PATIENCE: Duration = Duration::from_secs(20);
/// A broker may exceed a promised time by this time. The suite also waits this long to check that no message arrives.
const MARGIN: Duration = Duration::from_secs(2);

/// Checks the contract of a source in one process, by calls to its methods. `empty` must return a broker with a new, empty queue. This
/// function does not drop the futures of calls, and does not interrupt connections.
///
/// Use the shortest lease that the broker allows: this function takes about ten times the lease, plus ten seconds.
///
/// # Errors
///
/// Returns the first promise that the source breaks.
pub async fn source<B: Broker>(empty: impl AsyncFn() -> B) -> Result<(), Violation> {
    macro_rules! check {
        ($promise:literal, $check:ident) => {
            $check(&empty().await).await.map_err(|observed| Violation { promise: $promise, observed })?
        };
    }
    check!("a message arrives unchanged, at its first attempt", arrives);
    check!("`receive` returns within about a second if the queue is empty", returns_if_empty);
    check!("no other consumer receives a message that belongs to one", belongs_to_one);
    check!("`receive` returns at most `most` messages", returns_at_most);
    check!("`receive` returns the messages that it has, and does not wait for more", returns_promptly);
    check!("a message that was not settled returns", returns);
    check!("an acknowledged message does not return", acknowledged);
    check!("each receipt settles one message", settles_one);
    check!("a message that was released at a shutdown is available immediately", released);
    check!("a message that was released after a failure returns with its next attempt", counted);
    check!("a delayed message returns when its delay has elapsed", delayed);
    check!("an extended message belongs to its consumer beyond its first lease", extended);
    check!("an attempt of a process that died counts", crash_counts);
    check!("a dead message moves to the dead-letter queue, once if the call is repeated", dead);
    check!("`stop` returns the messages that were fetched in advance", stopped);
    Ok(())
}

fn text(error: impl Display) -> String {
    error.to_string()
}

fn expect(holds: bool, observed: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(observed()) }
}

/// Receives one message within `limit`.
async fn within<B: Broker>(source: &B::Source, limit: Duration) -> Result<Option<Received<B>>, String> {
    let start = Instant::now();
    loop {
        if let Some(message) = source.receive(1).await.map_err(text)?.pop() {
            return Ok(Some(message));
        }
        if start.elapsed() > limit {
            return Ok(None);
        }
        Delay::new(source.poll_interval().min(Duration::from_millis(100))).await;
    }
}

async fn one<B: Broker>(source: &B::Source) -> Result<Received<B>, String> {
    within::<B>(source, PATIENCE).await?.ok_or_else(|| format!("no message within {PATIENCE:?}"))
}

async fn none<B: Broker>(source: &B::Source, limit: Duration) -> Check {
    match within::<B>(source, limit).await? {
        Some(message) => Err(format!("received {:?}", message.delivery)),
        None => Ok(()),
    }
}

/// Closes the connection of a source. Waits until the leases of its messages have expired, and returns a new source.
async fn reconnect<B: Broker>(broker: &B, source: B::Source) -> B::Source {
    let lease = source.lease();
    drop(source);
    if let Some(lease) = lease {
        Delay::new(lease + Duration::from_millis(200)).await;
    }
    broker.connect().await
}

async fn arrives<B: Broker>(broker: &B) -> Check {
    broker.send("Grüße, <&>".into()).await;
    let message = one::<B>(&broker.connect().await).await?;
    let delivery = message.delivery;
    expect(delivery.payload() == "Grüße, <&>".as_bytes(), || format!("the payload {:?}", delivery.payload()))?;
    expect(delivery.attempt() == 1, || format!("attempt {}", delivery.attempt()))
}

async fn returns_if_empty<B: Broker>(broker: &B) -> Check {
    let source = broker.connect().await;
    source.receive(1).await.map_err(text)?; // may connect
    let mut shortest = Duration::MAX;
    // A busy machine may delay a call. The check therefore uses the shortest of up to three calls.
    for _ in 0..3 {
        let start = Instant::now();
        let received = source.receive(1).await.map_err(text)?;
        expect(received.is_empty(), || "a message".into())?;
        shortest = shortest.min(start.elapsed());
        if shortest < Duration::from_secs(1) + MARGIN {
            return Ok(());
        }
    }
    Err(format!("each call took {shortest:?} or more"))
}

async fn returns_at_most<B: Broker>(broker: &B) -> Check {
    for n in 0..5 {
        broker.send(n.to_string()).await;
    }
    let source = broker.connect().await;
    let mut total = 0;
    let start = Instant::now();
    while total < 5 {
        let received = source.receive(2).await.map_err(text)?.len();
        expect(received <= 2, || format!("{received} messages"))?;
        expect(start.elapsed() < PATIENCE, || format!("{total} of 5 messages within {PATIENCE:?}"))?;
        total += received;
    }
    expect(total == 5, || format!("{total} messages of 5"))
}

async fn returns_promptly<B: Broker>(broker: &B) -> Check {
    let source = broker.connect().await;
    let mut shortest = Duration::MAX;
    // A busy machine may delay some of the calls. The check therefore uses the shortest of five calls.
    for n in 0..5 {
        broker.send(n.to_string()).await;
        let limit = Instant::now() + PATIENCE;
        loop {
            let start = Instant::now();
            let received = source.receive(10).await.map_err(text)?;
            if let Some(mut message) = received.into_iter().next() {
                shortest = shortest.min(start.elapsed());
                source.ack(&mut message.receipt).await.map_err(text)?;
                break;
            }
            expect(start < limit, || format!("no message within {PATIENCE:?}"))?;
            Delay::new(source.poll_interval()).await;
        }
    }
    expect(shortest < Duration::from_millis(500), || format!("each call took {shortest:?} or more"))
}

async fn belongs_to_one<B: Broker>(broker: &B) -> Check {
    broker.send("1".into()).await;
    let (first, second) = (broker.connect().await, broker.connect().await);
    let _message = one::<B>(&first).await?;
    let limit = first.lease().map_or(MARGIN, |lease| (lease / 2).min(MARGIN));
    none::<B>(&second, limit).await
}

async fn acknowledged<B: Broker>(broker: &B) -> Check {
    broker.send("1".into()).await;
    let source = broker.connect().await;
    let mut message = one::<B>(&source).await?;
    source.ack(&mut message.receipt).await.map_err(text)?;
    drop(message);
    // A process can exit after `ack` has returned, so the broker must already have received the acknowledgement.
    none::<B>(&reconnect(broker, source).await, MARGIN).await
}

async fn settles_one<B: Broker>(broker: &B) -> Check {
    broker.send("1".into()).await;
    broker.send("2".into()).await;
    let source = broker.connect().await;
    // A receipt may keep its connection open. Both receipts are therefore dropped before the new connection.
    let Message { delivery: first, receipt } = one::<B>(&source).await?;
    let mut second = one::<B>(&source).await?;
    source.ack(&mut second.receipt).await.map_err(text)?;
    drop((receipt, second));
    let source = reconnect(broker, source).await;
    let message = one::<B>(&source).await?;
    expect(message.delivery.payload() == first.payload(), || "the acknowledged message returned".into())?;
    none::<B>(&source, source.lease().map_or(MARGIN, |lease| (lease / 2).min(MARGIN))).await
}

async fn released<B: Broker>(broker: &B) -> Check {
    broker.send("1".into()).await;
    let (first, second) = (broker.connect().await, broker.connect().await);
    let mut message = one::<B>(&first).await?;
    first.stop().await.map_err(text)?;
    first.release(&mut message.receipt, Release::Shutdown).await.map_err(text)?;
    let limit = first.lease().map_or(PATIENCE, |lease| lease / 2);
    let message = within::<B>(&second, limit).await?;
    expect(message.is_some(), || format!("no message within {limit:?}"))
}

async fn counted<B: Broker>(broker: &B) -> Check {
    broker.send("1".into()).await;
    let source = broker.connect().await;
    for attempt in 1..=3 {
        let mut message = one::<B>(&source).await?;
        expect(message.delivery.payload() == b"1", || "another payload".into())?;
        let observed = message.delivery.attempt();
        expect(observed == attempt, || format!("attempt {observed} in place of {attempt}"))?;
        source.release(&mut message.receipt, Release::After(Duration::ZERO)).await.map_err(text)?;
    }
    Ok(())
}

async fn delayed<B: Broker>(broker: &B) -> Check {
    let source = broker.connect().await;
    if !source.can_delay() {
        return Ok(());
    }
    broker.send("1".into()).await;
    let mut message = one::<B>(&source).await?;
    // The delay is longer than the lease, so that the check fails if the message returns when its lease expires.
    let delay = source.lease().unwrap_or_default() + Duration::from_secs(2);
    let start = Instant::now();
    source.release(&mut message.receipt, Release::After(delay)).await.map_err(text)?;
    one::<B>(&source).await?;
    let elapsed = start.elapsed();
    // A broker may round delays to whole seconds.
    expect(elapsed + Duration::from_secs(1) > delay, || format!("it returned after {elapsed:?} in place of {delay:?}"))
}

async fn extended<B: Broker>(broker: &B) -> Check {
    let (first, second) = (broker.connect().await, broker.connect().await);
    let Some(lease) = first.lease() else { return Ok(()) };
    broker.send("1".into()).await;
    let mut message = one::<B>(&first).await?;
    for _ in 0..3 {
        none::<B>(&second, lease / 4).await?;
        first.extend(&mut message.receipt).await.map_err(text)?;
        none::<B>(&second, lease / 4).await?;
        first.extend(&mut message.receipt).await.map_err(text)?;
    }
    first.ack(&mut message.receipt).await.map_err(|error| format!("the receipt of an extended message: {error}"))?;
    drop(first);
    none::<B>(&second, lease + MARGIN).await
}

async fn returns<B: Broker>(broker: &B) -> Check {
    broker.send("1".into()).await;
    let source = broker.connect().await;
    let message = one::<B>(&source).await?;
    drop(message);
    one::<B>(&reconnect(broker, source).await).await.map(drop)
}

async fn crash_counts<B: Broker>(broker: &B) -> Check {
    broker.send("1".into()).await;
    let source = broker.connect().await;
    drop(one::<B>(&source).await?);
    let message = one::<B>(&reconnect(broker, source).await).await?;
    expect(message.delivery.attempt() == 2, || format!("attempt {} in place of 2", message.delivery.attempt()))
}

async fn dead<B: Broker>(broker: &B) -> Check {
    broker.send("1".into()).await;
    let source = broker.connect().await;
    let mut message = one::<B>(&source).await?;
    source.dead_letter(&message.delivery, &mut message.receipt, "too bad\nreally").await.map_err(text)?;
    // Repeats the call, as a consumer does after a lost response. The call may fail, because the message is already dead.
    let _ = source.dead_letter(&message.delivery, &mut message.receipt, "too bad\nreally").await;
    drop(message);
    none::<B>(&reconnect(broker, source).await, MARGIN).await?;
    let dead = broker.dead_letters().await;
    expect(dead == [b"1"], || format!("{} dead letters, which differ from the message", dead.len()))
}

async fn stopped<B: Broker>(broker: &B) -> Check {
    for n in 0..5 {
        broker.send(n.to_string()).await;
    }
    let (first, second) = (broker.connect().await, broker.connect().await);
    let mut message = one::<B>(&first).await?;
    first.stop().await.map_err(text)?;
    let limit = first.lease().map_or(PATIENCE, |lease| lease / 2);
    let start = Instant::now();
    let mut others = Vec::new();
    while others.len() < 4 && start.elapsed() < limit {
        others.extend(second.receive(4 - others.len()).await.map_err(text)?);
    }
    expect(others.len() == 4, || format!("another consumer received {} of 4 messages within {limit:?}", others.len()))?;
    first.ack(&mut message.receipt).await.map_err(|error| format!("cannot settle a message after `stop`: {error}"))
}
