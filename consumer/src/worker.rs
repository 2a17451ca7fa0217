//! Contains the consumer's loop, which runs as one task. The registry cannot abort this task.
//!
//! The loop receives at most as many messages as the concurrency allows. For each message, it polls one future. This future starts the
//! handler as a task, extends the lease, and settles the message. To settle a message means to acknowledge it, to release it, or to move it
//! to the dead-letter queue. After shutdown has started, the loop ends when each message is settled or its lease has expired. The drain
//! waits for the end of the loop.

use crate::attempt::{Outcome, attempt};
use crate::consumer::{CONSUMER, Options};
use crate::delivery::Delivery;
use crate::failure::Next;
use crate::lease::Lease;
use crate::source::{Message, Release, Source};
use background_tasks::{Registry, ShutdownSignal, Spawner, Timer};
use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::fmt::{self, Display};
use std::future::pending;
use std::panic::Location;
use std::pin::pin;
use std::time::{Duration, Instant};

/// The shortest and the longest pause after a failed `receive`.
const RECEIVE_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// On a source without a lease, the consumer waits for the broker for at most this time, including repeated calls.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// The consumer truncates the reason of a dead message to this number of characters, because brokers limit the size of headers.
const MAX_REASON: usize = 1000;

pub(crate) struct Worker<S, P, H> {
    pub(crate) source: S,
    pub(crate) options: Options,
    pub(crate) registry: Registry<P>,
    pub(crate) name: &'static str,
    pub(crate) location: &'static Location<'static>,
    pub(crate) handler: H,
}

/// The call to the source that settles a delivery.
#[derive(Clone, Copy)]
enum Settlement<'a> {
    Ack,
    Release(Release),
    DeadLetter(&'a str),
}

/// The error of a delivery that the consumer could not settle.
struct Unsettled {
    error: String,
    /// `true` if the message still belongs to this consumer, and has no lease. The message then returns to the queue only if the consumer
    /// releases it, or when its connection closes.
    is_held: bool,
}

impl Display for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl<S, P, H, F, E> Worker<S, P, H>
where
    S: Source,
    P: Spawner + Timer<Sleep: Send> + Clone + Send + Sync + 'static,
    H: Fn(Delivery) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Display + Send + 'static,
{
    pub(crate) async fn run(self) {
        let signal = self.registry.signal();
        let mut messages = FuturesUnordered::new();
        let mut backoff = RECEIVE_BACKOFF.0;
        while !signal.is_triggered() {
            // Removes all finished futures, so that the next `receive` can replace all their messages.
            while messages.next().now_or_never().flatten().is_some() {}
            // Calls `receive` only when the handler of another message can start. If a message had to wait for this, its lease could expire
            // before its handler starts.
            if messages.len() >= self.options.concurrency {
                signal.run_until_shutdown(messages.next()).await;
                continue;
            }
            let free = self.options.concurrency - messages.len();
            let lease = Lease::new(self.registry.spawner(), self.source.lease());
            match meanwhile(&mut messages, self.receive(free, &signal)).await {
                Ok(received) => {
                    backoff = RECEIVE_BACKOFF.0;
                    let pause = if received.is_empty() { self.source.poll_interval() } else { Duration::ZERO };
                    messages.extend(received.into_iter().map(|message| self.handle(message, lease.clone(), &signal)));
                    if !pause.is_zero() {
                        meanwhile(&mut messages, signal.run_until_shutdown(self.sleep(pause))).await;
                    }
                }
                Err(error) => {
                    // Reports only the first failure of an outage.
                    if backoff == RECEIVE_BACKOFF.0 {
                        self.report(format!("cannot receive messages: {error}"));
                    }
                    meanwhile(&mut messages, signal.run_until_shutdown(self.sleep(backoff))).await;
                    backoff = (backoff * 2).min(RECEIVE_BACKOFF.1);
                }
            }
        }
        let stop = async {
            match select(pin!(self.source.stop()), pin!(self.sleep(CALL_LIMIT))).await {
                Either::Left((Ok(()), _)) => {}
                Either::Left((Err(error), _)) => self.report(format!("cannot stop receiving: {error}")),
                Either::Right(_) => self.report("cannot stop receiving: the broker does not respond".into()),
            }
        };
        meanwhile(&mut messages, stop).await;
        while messages.next().await.is_some() {}
    }

    /// Receives messages.
    ///
    /// The shutdown does not cancel `receive`, because the messages of a dropped `receive` are invisible until their leases expire. When
    /// one lease has passed since the start of the shutdown, such messages are visible again. This function then drops the future.
    async fn receive(&self, most: usize, signal: &ShutdownSignal) -> Result<Vec<Message<S::Receipt>>, String> {
        let limit = async {
            signal.clone().await;
            self.sleep(self.source.lease().unwrap_or(CALL_LIMIT)).await;
        };
        let start = Instant::now();
        match select(pin!(self.source.receive(most)), pin!(limit)).await {
            // The call took as long as the lease. The leases of the messages have therefore expired, and other consumers may have received
            // the messages.
            Either::Left((Ok(_), _)) if self.source.lease().is_some_and(|lease| start.elapsed() >= lease) => Ok(Vec::new()),
            Either::Left((received, _)) => received.map_err(|error| error.to_string()),
            Either::Right(_) => Err("the broker does not respond".into()),
        }
    }

    /// Runs the handler of a message and settles the message.
    async fn handle(&self, message: Message<S::Receipt>, mut lease: Lease<'_, P>, signal: &ShutdownSignal) {
        let Message { delivery, mut receipt } = message;
        let max_attempts = self.options.max_attempts;
        // Most brokers count a release as an attempt. After a release at the last attempt, the next consumer would move the message to the
        // dead-letter queue without handling it.
        let is_last = delivery.attempt() == max_attempts;
        if signal.is_triggered() && !is_last {
            self.release(&delivery, &mut receipt, &mut lease, Release::Shutdown).await;
            return;
        }
        if delivery.attempt() > max_attempts {
            // The last attempt has not settled the message, for example because its process died.
            let reason = format!("not handled: {max_attempts} attempts have not settled message {:?}", delivery.id());
            let moved = self.settle(&delivery, &mut receipt, &mut lease, Settlement::DeadLetter(&reason)).await;
            let is_held = moved.as_ref().is_err_and(|error| error.is_held);
            let text = match moved {
                Ok(()) => reason,
                Err(error) => format!("{reason}; cannot move it to the dead letters: {error}"),
            };
            self.registry.named(self.name).location(self.location).without_permit().run(async { Err::<(), _>(text) });
            if is_held {
                self.retry(&delivery, &mut receipt, &mut lease, signal, Next::Backoff).await;
            }
            return;
        }

        let (outcome_sender, outcome) = oneshot::channel();
        let (settled_sender, settled) = oneshot::channel();
        let (handler, argument, spawner) = (self.handler.clone(), delivery.clone(), self.registry.spawner().clone());
        let timeout = self.options.timeout;
        let work = async move { handler(argument).await };
        let task = attempt(work, spawner, timeout, outcome_sender, settled);
        let builder = self.registry.named(self.name).location(self.location);
        let task = if is_last { builder.follow_up() } else { builder }.run_when_ready(task);
        let outcome = async {
            // If the task is rejected or aborted, its future is dropped with the sender of the outcome. `outcome` then resolves to an
            // error.
            let _ = task.await;
            outcome.await.unwrap_or(Outcome::Dropped)
        };
        let (text, next) = match self.extend_until(&mut receipt, &mut lease, outcome).await {
            Outcome::Completed => {
                let acked = self.settle(&delivery, &mut receipt, &mut lease, Settlement::Ack).await;
                let _ = settled_sender.send(acked.map_err(|error| format!("done, but not acknowledged: {error}")));
                return;
            }
            Outcome::Dropped if signal.is_triggered() => {
                self.release(&delivery, &mut receipt, &mut lease, Release::Shutdown).await;
                return;
            }
            Outcome::Dropped => ("the task was aborted or dropped".into(), Next::Backoff),
            Outcome::Failed(failure) => failure.into_parts(),
        };
        let mut returns = true;
        let text = if delivery.attempt() >= max_attempts || next == Next::Dead {
            let moved = self.settle(&delivery, &mut receipt, &mut lease, Settlement::DeadLetter(&text)).await;
            returns = moved.as_ref().is_err_and(|error| error.is_held);
            let moved = moved.map_or_else(|error| format!("cannot move it to the dead letters: {error}"), |()| "it is dead".into());
            format!("{text} (attempt {}; {moved})", delivery.attempt())
        } else {
            text
        };
        let _ = settled_sender.send(Err(text));
        if returns {
            self.retry(&delivery, &mut receipt, &mut lease, signal, next).await;
        }
    }

    /// Returns a message to its queue. The message becomes available after its delay. If all calls fail and the message still belongs to
    /// this consumer, repeats them after the next delay.
    async fn retry(
        &self,
        delivery: &Delivery,
        receipt: &mut S::Receipt,
        lease: &mut Lease<'_, P>,
        signal: &ShutdownSignal,
        next: Next,
    ) {
        loop {
            let mut delay = if let Next::After(delay) = next { delay } else { self.options.retry_delay(delivery.attempt()) };
            if !self.source.can_delay() {
                let hold = signal.run_until_shutdown(self.sleep(delay));
                self.extend_until(receipt, lease, hold).await;
                delay = Duration::ZERO;
            }
            let is_held = self.release(delivery, receipt, lease, Release::After(delay)).await;
            if !is_held || signal.is_triggered() {
                return;
            }
        }
    }

    /// Waits until the future resolves. Until then, extends the lease when necessary.
    async fn extend_until<T>(&self, receipt: &mut S::Receipt, lease: &mut Lease<'_, P>, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        while let Some(due) = lease.until_extension() {
            match select(future.as_mut(), due).await {
                Either::Left((output, _)) => return output,
                Either::Right(_) => {}
            }
            // Waits for the extension even if the future resolves first, because the call that settles the message needs the new receipt.
            match select(future.as_mut(), pin!(lease.extend(self.source.extend(receipt)))).await {
                Either::Left((output, extension)) => {
                    extension.await;
                    return output;
                }
                Either::Right(_) => {}
            }
        }
        future.await
    }

    /// Releases a message. Returns `true` if this fails and the message is [held](Unsettled::is_held).
    async fn release(&self, delivery: &Delivery, receipt: &mut S::Receipt, lease: &mut Lease<'_, P>, release: Release) -> bool {
        let Err(error) = self.settle(delivery, receipt, lease, Settlement::Release(release)).await else { return false };
        self.report(format!("cannot release message {:?}: {error}", delivery.id()));
        error.is_held
    }

    /// Settles a message. Repeats a failed call until the broker confirms the call, the receipt is void (no longer valid), or the lease has
    /// expired.
    async fn settle(
        &self,
        delivery: &Delivery,
        receipt: &mut S::Receipt,
        lease: &mut Lease<'_, P>,
        how: Settlement<'_>,
    ) -> Result<(), Unsettled> {
        // After the lease has expired, another consumer may have the message. Only that consumer may then release the message or move it to
        // the dead-letter queue. An acknowledgement is still useful, because the work is done.
        if lease.is_expired() && !matches!(how, Settlement::Ack) {
            return Err(Unsettled { error: "the lease has expired".into(), is_held: false });
        }
        let mut last_error = "the broker does not respond".into();
        // The time limit of one call. If the response to a call is lost, there is time to repeat the call before the lease expires.
        let limit = self.source.lease().unwrap_or(CALL_LIMIT) / 3;
        let calls = async {
            let mut pause = Duration::from_millis(50);
            loop {
                let call = async {
                    match how {
                        Settlement::Ack => self.source.ack(receipt).await,
                        Settlement::Release(release) => self.source.release(receipt, release).await,
                        Settlement::DeadLetter(reason) => self.source.dead_letter(delivery, receipt, truncated(reason)).await,
                    }
                };
                match select(pin!(call), pin!(self.sleep(limit))).await {
                    Either::Left((Ok(()), _)) => return Ok(()),
                    Either::Left((Err(error), _)) if self.source.is_void(&error) => {
                        return Err(Unsettled { error: error.to_string(), is_held: false });
                    }
                    Either::Left((Err(error), _)) => last_error = error.to_string(),
                    Either::Right(_) => {}
                }
                self.sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        };
        if let Either::Left((result, _)) = select(pin!(calls), pin!(lease.until_expiry(CALL_LIMIT))).await {
            return result;
        }
        Err(Unsettled { error: last_error, is_held: self.source.lease().is_none() })
    }

    /// Reports a failure of the consumer itself to the observers.
    fn report(&self, text: String) {
        self.registry.named(CONSUMER).location(self.location).without_permit().run(async { Err::<(), _>(text) });
    }

    /// Returns a future that resolves when `duration` has elapsed since this call.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + use<S, P, H, F, E> {
        self.registry.spawner().sleep(duration).map(drop)
    }
}

fn truncated(reason: &str) -> &str {
    reason.char_indices().nth(MAX_REASON).map_or(reason, |(end, _)| &reason[..end])
}

/// Runs a future to its end, and meanwhile also polls the futures of the messages.
async fn meanwhile<F: Future, M: Future>(messages: &mut FuturesUnordered<M>, future: F) -> F::Output {
    let others = async {
        while messages.next().await.is_some() {}
        pending().await
    };
    match select(pin!(future), pin!(others)).await {
        Either::Left((output, _)) => output,
        Either::Right((never, _)) => never,
    }
}
