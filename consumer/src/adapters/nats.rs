use crate::delivery::Delivery;
use crate::source::{Message, Release, Source};
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer};
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{self, AckKind};
use async_nats::{Error, HeaderMap};
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, mem};

/// A pull consumer of NATS JetStream, with the client [`async_nats`]. Needs tokio.
///
/// The program creates the stream and the consumer. The consumer must have the policy [`AckPolicy::Explicit`], no limit on deliveries
/// (`max_deliver: -1`), no `backoff`, and a `max_ack_pending` of at least the concurrency of all workers. Its `ack_wait` is the lease.
/// Dead messages are published to a subject that a stream must store, with the header `Dead-Letter-Reason`. The stream ignores a second
/// copy within its `duplicate_window`.
///
/// The server confirms each acknowledgement, extension and release, even after the lease has expired. The client reconnects. Each
/// delivery counts as an attempt, even if a shutdown cut it off.
///
/// Give the client a `request_timeout`, and the JetStream context a timeout, that is shorter than the lease.
pub struct JetStream {
    context: jetstream::Context,
    consumer: PullConsumer,
    lease: Duration,
    dead_letters: String,
    /// The error of a `receive` that returned messages. The next call returns it.
    error: Mutex<Option<Error>>,
}

impl JetStream {
    /// Creates a source from a consumer. `dead_letters` is the subject to which dead messages are published.
    ///
    /// # Errors
    ///
    /// Returns an error if the policy, `max_deliver` or `backoff` of the consumer differs from the requirements above. `max_ack_pending`
    /// is not checked.
    pub fn new(context: jetstream::Context, consumer: PullConsumer, dead_letters: impl Into<String>) -> Result<Self, Error> {
        let config = &consumer.cached_info().config;
        if config.ack_policy != AckPolicy::Explicit {
            return Err("the consumer must have the ack policy `Explicit`".into());
        }
        if config.max_deliver > 0 {
            return Err("the consumer must have `max_deliver: -1`: the server drops messages at that limit".into());
        }
        if !config.backoff.is_empty() {
            return Err("the consumer must have no `backoff`, which replaces `ack_wait`".into());
        }
        let lease = config.ack_wait;
        Ok(Self { context, consumer, lease, dead_letters: dead_letters.into(), error: Mutex::default() })
    }

    async fn confirmed(&self, acker: &Acker, kind: AckKind) -> Result<(), Error> {
        // If the connection was lost, its response never arrives.
        match select(pin!(acker.double_ack_with(kind)), futures_timer::Delay::new(self.lease / 4)).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => Err("the server does not respond".into()),
        }
    }

    /// Replaces the error for the next `receive`.
    fn set_error(&self, error: Option<Error>) -> Option<Error> {
        mem::replace(&mut *self.error.lock().unwrap_or_else(PoisonError::into_inner), error)
    }
}

fn message(message: jetstream::Message) -> Result<Message<Acker>, Error> {
    let mut delivery = Delivery::new(message.payload.to_vec());
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        for value in values {
            delivery = delivery.with_header(name.to_string(), value.as_str());
        }
    }
    let info = message.info().map_err(|error| format!("received a message that JetStream has not sent: {error}"))?;
    let attempt = u32::try_from(info.delivered).unwrap_or(u32::MAX);
    let delivery = delivery.with_id(format!("{}:{}", info.stream, info.stream_sequence)).with_attempt(attempt);
    Ok(Message { delivery, receipt: message.split().1 })
}

impl Source for JetStream {
    type Receipt = Acker;
    type Error = Error;

    fn lease(&self) -> Option<Duration> {
        Some(self.lease)
    }

    async fn receive(&self, most: usize) -> Result<Vec<Message<Acker>>, Error> {
        if let Some(error) = self.set_error(None) {
            return Err(error);
        }
        // Returns as soon as there are messages. `expires` limits the wait for the first one, also if a response is lost.
        let mut batch = self.consumer.fetch().max_messages(most).expires(Duration::from_secs(1)).messages().await?;
        let (mut messages, mut failed) = (Vec::new(), None);
        while let Some(received) = batch.next().await {
            match received.and_then(message) {
                Ok(message) => messages.push(message),
                Err(error) => failed = Some(error),
            }
        }
        if messages.is_empty()
            && let Some(error) = failed
        {
            return Err(error);
        }
        self.set_error(failed);
        Ok(messages)
    }

    async fn ack(&self, acker: &mut Acker) -> Result<(), Error> {
        self.confirmed(acker, AckKind::Ack).await
    }

    async fn extend(&self, acker: &mut Acker) -> Result<(), Error> {
        self.confirmed(acker, AckKind::Progress).await
    }

    async fn release(&self, acker: &mut Acker, release: Release) -> Result<(), Error> {
        let delay = match release {
            Release::After(delay) if !delay.is_zero() => Some(delay),
            _ => None,
        };
        self.confirmed(acker, AckKind::Nak(delay)).await
    }

    async fn dead_letter(&self, delivery: &Delivery, acker: &mut Acker, reason: &str) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        for (name, value) in delivery.headers() {
            headers.append(name, value);
        }
        // The stream of the dead letters ignores a second copy with this ID, within its `duplicate_window`.
        headers.insert("Nats-Msg-Id", format!("dead:{}", delivery.id()));
        headers.insert("Dead-Letter-Reason", reason.replace(['\r', '\n'], " "));
        let payload = delivery.payload().to_vec().into();
        self.context.publish_with_headers(self.dead_letters.clone(), headers, payload).await?.await?;
        self.confirmed(acker, AckKind::Term).await
    }

    /// Prevents a busy loop: the server can end a request without a message, for example at `max_ack_pending` while other requests wait.
    fn poll_interval(&self) -> Duration {
        Duration::from_millis(10)
    }
}

impl fmt::Debug for JetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStream").field("lease", &self.lease).field("dead_letters", &self.dead_letters).finish_non_exhaustive()
    }
}
