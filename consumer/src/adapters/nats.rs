use crate::delivery::Delivery;
use crate::source::{Message, Release, Source};
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer};
use async_nats::jetstream::{self, AckKind};
use async_nats::{Error, HeaderMap, Request, Subject};
use futures_util::StreamExt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, mem};

/// A pull consumer of NATS JetStream, with the client [`async_nats`]. Needs tokio.
///
/// Your program creates the stream and the JetStream consumer. The JetStream consumer must have the policy [`AckPolicy::Explicit`], no
/// limit on deliveries (`max_deliver: -1`), and no `backoff`. The value of `ack_wait` is the lease.
///
/// Set `max_ack_pending: -1`. Messages that wait for a retry count towards `max_ack_pending`, whose default is 1000. When this limit is
/// reached, the server delivers no other message until a retry has ended.
///
/// The source publishes dead messages to a subject, with the header `Dead-Letter-Reason`. A stream must store the messages of this subject.
/// A dead message has the headers of the message, except the headers whose names start with `Nats-`, because the server interprets them.
/// If the source publishes a message twice, this stream ignores the second copy within its `duplicate_window`.
///
/// The server confirms each acknowledgement, extension and release, even after the lease has expired. The client reconnects automatically.
/// Each delivery counts as an attempt, even if a shutdown released the message.
///
/// The source and the consumer limit the time of each call. Your program need not set timeouts for the client or for the JetStream context.
pub struct JetStream {
    context: jetstream::Context,
    consumer: PullConsumer,
    lease: Duration,
    dead_letters: String,
    /// The error of a `receive` that also received messages. That call has returned the messages, and the next `receive` returns the error.
    error: Mutex<Option<Error>>,
}

impl JetStream {
    /// Creates a source from a JetStream consumer. `dead_letters` is the subject to which the source publishes dead messages.
    ///
    /// # Errors
    ///
    /// Returns an error if the policy, `max_deliver` or `backoff` of the JetStream consumer differs from the requirements of [`JetStream`].
    /// This function does not check `max_ack_pending`.
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

    /// Sends an acknowledgement of this kind to the server, and waits for the confirmation.
    async fn confirmed(&self, receipt: &Subject, kind: AckKind) -> Result<(), Error> {
        // Does not use `Acker::double_ack_with`, because that function returns `Ok` even if the subject of the acknowledgement has no
        // subscriber.
        let request = Request::new().payload(kind.into()).timeout(Some(self.lease / 4));
        self.context.client().send_request(receipt.clone(), request).await?;
        Ok(())
    }

    /// Stores the error that the next `receive` must return. Returns the error that was stored before.
    fn set_error(&self, error: Option<Error>) -> Option<Error> {
        mem::replace(&mut *self.error.lock().unwrap_or_else(PoisonError::into_inner), error)
    }
}

fn message(message: jetstream::Message) -> Result<Message<Subject>, Error> {
    let mut delivery = Delivery::new(message.payload.to_vec());
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        for value in values {
            delivery = delivery.with_header(name.to_string(), value.as_str());
        }
    }
    let info = message.info().map_err(|error| format!("received a message that JetStream has not sent: {error}"))?;
    let attempt = u32::try_from(info.delivered).unwrap_or(u32::MAX);
    let delivery = delivery.with_id(format!("{}:{}", info.stream, info.stream_sequence)).with_attempt(attempt);
    let receipt = message.message.reply.ok_or("received a message without a reply subject")?;
    Ok(Message { delivery, receipt })
}

impl Source for JetStream {
    type Receipt = Subject;
    type Error = Error;

    fn lease(&self) -> Option<Duration> {
        Some(self.lease)
    }

    async fn receive(&self, most: usize) -> Result<Vec<Message<Subject>>, Error> {
        if let Some(error) = self.set_error(None) {
            return Err(error);
        }
        // The call returns as soon as messages exist. `expires` limits how long it waits if there are none, or if the response is lost.
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

    async fn ack(&self, receipt: &mut Subject) -> Result<(), Error> {
        self.confirmed(receipt, AckKind::Ack).await
    }

    async fn extend(&self, receipt: &mut Subject) -> Result<(), Error> {
        self.confirmed(receipt, AckKind::Progress).await
    }

    async fn release(&self, receipt: &mut Subject, release: Release) -> Result<(), Error> {
        let delay = match release {
            Release::After(delay) if !delay.is_zero() => Some(delay),
            _ => None,
        };
        self.confirmed(receipt, AckKind::Nak(delay)).await
    }

    async fn dead_letter(&self, delivery: &Delivery, receipt: &mut Subject, reason: &str) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        // The server would interpret a header such as `Nats-Expected-Last-Sequence` again, and reject the copy.
        for (name, value) in delivery.headers().filter(|(name, _)| !name.starts_with("Nats-")) {
            headers.append(name, value);
        }
        // The stream of the dead messages ignores a second copy with the same ID within its `duplicate_window`.
        headers.insert("Nats-Msg-Id", format!("dead:{}", delivery.id()));
        headers.insert("Dead-Letter-Reason", reason.replace(['\r', '\n'], " "));
        let payload = delivery.payload().to_vec().into();
        self.context.publish_with_headers(self.dead_letters.clone(), headers, payload).await?.await?;
        self.confirmed(receipt, AckKind::Term).await
    }

    /// The server can end a request immediately and without a message, for example if `max_ack_pending` is reached and other requests wait.
    /// This interval then prevents a busy loop.
    fn poll_interval(&self) -> Duration {
        Duration::from_millis(10)
    }
}

impl fmt::Debug for JetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStream").field("lease", &self.lease).field("dead_letters", &self.dead_letters).finish_non_exhaustive()
    }
}
