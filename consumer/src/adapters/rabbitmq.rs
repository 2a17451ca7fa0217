use crate::delivery::Delivery;
use crate::source::{Message, Release, Source};
use futures_timer::Delay;
use futures_util::future::{BoxFuture, Either, FutureExt, select};
use futures_util::lock::Mutex;
use futures_util::stream::StreamExt;

use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions,
    BasicRejectOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A `receive` waits for the first message for at most this time.
const RECEIVE_WAIT: Duration = Duration::from_millis(500);
/// The time limit for opening a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The name of the header with the number of failed attempts. Only messages of classic queues have this header.
const ATTEMPTS: &str = "x-consumer-attempts";
const REASON: &str = "x-dead-letter-reason";
/// A copy omits these headers. The broker would route a copy to the queues in `CC` and `BCC` again. The other headers count earlier
/// attempts.
const OMITTED: [&str; 5] = ["CC", "BCC", DELIVERIES, ACQUISITIONS, ATTEMPTS];
/// A quorum queue adds these headers to a message that it delivers again.
const DELIVERIES: &str = "x-delivery-count";
const ACQUISITIONS: &str = "x-acquired-count";

/// A queue of RabbitMQ, over AMQP 0.9.1 with the client [`lapin`]. Needs tokio. For TLS, enable a feature of lapin, such as `rustls`.
///
/// RabbitMQ has no leases: a message belongs to its consumer as long as the connection exists. Your program declares the queue and the
/// dead-letter queue.
///
/// - On a **quorum queue**, the broker counts the attempts. By default, RabbitMQ 4.0 and later drop a message after 20 deliveries. To
///   prevent this, set the `x-delivery-limit` of the queue to -1, or above [`max_attempts`](crate::Consumer::max_attempts).
/// - On a **classic queue**, the broker does not count attempts. The source publishes a failed message again, at the end of the queue. The
///   header `x-consumer-attempts` contains the number of failures. Even if crashes or shutdowns interrupt many deliveries, these deliveries
///   together count as at most one attempt. If `max_attempts` is above 1, a message that always kills its process therefore never becomes
///   dead.
/// - RabbitMQ cannot delay a message. The consumer [keeps](Source::can_delay) a failed message until its backoff has elapsed, so keep the
///   backoff short.
/// - By default, RabbitMQ closes the channel of a consumer that does not acknowledge or release a message within 30 minutes
///   (`consumer_timeout`). The message then returns to the queue.
/// - A dead message is a copy of the message, with the header `x-dead-letter-reason`. If the broker's confirmation of the copy is
///   lost, the dead-letter queue may contain two copies.
/// - A copy, of a dead message or of a failed message of a classic queue, has the properties and headers of the message. It omits
///   `user_id`, `expiration`, `CC`, and the headers that count the attempts. An operator who moves a dead message back to its queue
///   therefore starts again with attempt 1.
/// - The source publishes copies on a second connection, which it opens for the first copy. During a memory or disk alarm, the broker
///   blocks connections that publish. The source can then still acknowledge messages, and the consumer keeps failed messages until their
///   copies are stored.
/// - If a classic queue is full and its overflow behavior is `reject-publish`, the broker rejects the copy of a failed message. The source
///   then returns the message itself to the queue, and does not count the failure.
///
/// AMQP does not confirm acknowledgements. If an acknowledgement is lost, the message returns to the queue. During the drain, the source
/// makes another call after each acknowledgement. The response to this call shows that the broker has handled the acknowledgement. A
/// process that exits after the drain has therefore lost no acknowledgement.
///
/// When the connection is lost, the current `receive` fails, and the next `receive` connects again. The messages in progress return to the
/// queue, and are therefore handled twice.
pub struct RabbitQueue {
    uri: String,
    queue: String,
    dead_letters: String,
    prefetch: u16,
    is_quorum: bool,
    link: Mutex<Option<Link>>,
    /// Publishes the copies of messages.
    publisher: Mutex<Option<(Connection, Channel)>>,
    is_stopping: AtomicBool,
}

struct Link {
    /// The connection closes when this value is dropped.
    _connection: Connection,
    channel: Channel,
    consumer: Consumer,
}

/// Identifies one delivery of a message of a [`RabbitQueue`].
pub struct RabbitReceipt {
    channel: Channel,
    acker: Acker,
    properties: BasicProperties,
    /// A clone of the handler's delivery, which shares the payload.
    delivery: Delivery,
    failed_attempts: u32,
    /// Publishes a copy and waits for the confirmation. If the caller drops a call, the next call continues with the same copy.
    copying: Option<BoxFuture<'static, lapin::Result<Confirmation>>>,
    /// Whether the broker has stored a copy of the message. If it has, a repeated call to `release` or `dead_letter` makes no second copy.
    is_copied: bool,
}

/// The error of a [`RabbitQueue`].
#[derive(Debug)]
#[non_exhaustive]
pub enum RabbitError {
    /// The connection, its channel or a queue is not available.
    Connection(lapin::Error),
    /// The channel has closed, or the broker has cancelled the consumer, for example because the queue was deleted. If the queue still
    /// exists, its messages in progress have returned to it.
    Closed,
    /// The broker has not stored the copy of a message that the source has published for a retry or as a dead message.
    NotStored,
    /// The source could not publish the copy of a message. The message still belongs to this source.
    Publish(lapin::Error),
}

impl RabbitQueue {
    /// Creates a source for a quorum queue. Dead messages move to the queue `dead_letters`. The source connects at the first `receive`.
    pub fn quorum(uri: impl Into<String>, queue: impl Into<String>, dead_letters: impl Into<String>) -> Self {
        Self::new(uri.into(), queue.into(), dead_letters.into(), true)
    }

    /// Creates a source for a classic queue. Dead messages move to the queue `dead_letters`. The source connects at the first `receive`.
    pub fn classic(uri: impl Into<String>, queue: impl Into<String>, dead_letters: impl Into<String>) -> Self {
        Self::new(uri.into(), queue.into(), dead_letters.into(), false)
    }

    fn new(uri: String, queue: String, dead_letters: String, is_quorum: bool) -> Self {
        let (link, publisher, is_stopping) = (Mutex::new(None), Mutex::new(None), AtomicBool::new(false));
        Self { uri, queue, dead_letters, prefetch: 16, is_quorum, link, publisher, is_stopping }
    }

    /// Sets the largest number of unsettled messages that the broker sends to this source. Default: 16. Minimum: 1. Set it to the
    /// [concurrency](crate::Consumer::concurrency) of the consumer.
    #[must_use]
    pub fn prefetch(mut self, messages: u16) -> Self {
        self.prefetch = messages.max(1);
        self
    }

    /// Connects to the broker. Call this method when the program starts, to detect a wrong address or a missing queue. Does nothing if a
    /// connection exists.
    ///
    /// # Errors
    ///
    /// Returns [`RabbitError::Connection`] if the broker or one of the queues is not available, or if the broker does not respond within
    /// 10 seconds.
    pub async fn connect(&self) -> Result<(), RabbitError> {
        let mut link = self.link.lock().await;
        if link.is_none() {
            let connect = pin!(self.open());
            *link = Some(match select(connect, Delay::new(CONNECT_LIMIT)).await {
                Either::Left((link, _)) => link?,
                Either::Right(_) => return Err(RabbitError::Connection(std::io::Error::from(std::io::ErrorKind::TimedOut).into())),
            });
        }
        Ok(())
    }

    async fn open(&self) -> Result<Link, RabbitError> {
        let connection = Connection::connect(&self.uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        // Checks that the dead-letter queue exists. Without this queue, dead messages could not be stored.
        let exists = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(self.dead_letters.as_str().into(), exists, FieldTable::default()).await?;
        channel.basic_qos(self.prefetch, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(self.queue.as_str().into(), "".into(), options, FieldTable::default()).await?;
        Ok(Link { _connection: connection, channel, consumer })
    }

    /// Returns the channel for the copies. Opens it if necessary.
    async fn publisher(&self) -> lapin::Result<Channel> {
        let mut publisher = self.publisher.lock().await;
        if let Some((_, channel)) = &*publisher
            && channel.status().connected()
        {
            return Ok(channel.clone());
        }
        let connection = Connection::connect(&self.uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        *publisher = Some((connection, channel.clone()));
        Ok(channel)
    }

    /// Publishes a copy of a message with this header to `queue`, and waits until the broker has stored the copy.
    async fn copy(&self, receipt: &mut RabbitReceipt, queue: &str, header: &str, value: AMQPValue) -> Result<(), RabbitError> {
        if receipt.is_copied {
            return Ok(());
        }
        // The message is in its queue again.
        if receipt.acker.poisoned() {
            return Err(RabbitError::Closed);
        }
        let copying = match &mut receipt.copying {
            Some(copying) => copying,
            copying => {
                let channel = self.publisher().await.map_err(RabbitError::Publish)?;
                let properties = copied(&receipt.properties, header, value);
                let (queue, delivery) = (queue.into(), receipt.delivery.clone());
                let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
                let publish =
                    async move { channel.basic_publish("".into(), queue, options, delivery.payload(), properties).await?.await };
                copying.insert(publish.boxed())
            }
        };
        let confirmation = copying.await;
        receipt.copying = None;
        match confirmation.map_err(RabbitError::Publish)? {
            Confirmation::Ack(None) => {
                receipt.is_copied = true;
                Ok(())
            }
            _ => Err(RabbitError::NotStored),
        }
    }

    /// Checks the result of an acknowledgement or a release.
    async fn settled(&self, receipt: &mut RabbitReceipt, result: lapin::Result<bool>) -> Result<(), RabbitError> {
        // `result` is `false` if the channel has closed. It is also `false` if an earlier call has already acknowledged or released the
        // message, and the future of that call was dropped.
        if !result? && receipt.acker.poisoned() {
            return Err(RabbitError::Closed);
        }
        // The broker handles calls in order. The response to this call therefore shows that it has handled the acknowledgement.
        if self.is_stopping.load(Ordering::Relaxed) {
            receipt.channel.basic_qos(self.prefetch, BasicQosOptions::default()).await?;
        }
        Ok(())
    }

    fn message(&self, channel: &Channel, delivery: lapin::message::Delivery) -> Message<RabbitReceipt> {
        let lapin::message::Delivery { properties, data, acker, redelivered, .. } = delivery;
        let headers = properties.headers().clone().unwrap_or_default();
        let failed_attempts = if self.is_quorum { 0 } else { number(&headers, ATTEMPTS).unwrap_or(0) };
        let earlier = if self.is_quorum {
            earlier_deliveries(&headers, redelivered)
        } else {
            failed_attempts.saturating_add(redelivered.into())
        };
        let id = properties.message_id().as_ref().map_or("", |id| id.as_str());
        let mut delivery = Delivery::new(data).with_id(id).with_attempt(earlier.saturating_add(1));
        for (name, value) in headers.inner() {
            if let Some(value) = text(value) {
                delivery = delivery.with_header(name.as_str(), value);
            }
        }
        let (channel, shared) = (channel.clone(), delivery.clone());
        Message {
            delivery,
            receipt: RabbitReceipt {
                channel,
                acker,
                properties,
                delivery: shared,
                failed_attempts,
                copying: None,
                is_copied: false,
            },
        }
    }
}

impl Source for RabbitQueue {
    type Receipt = RabbitReceipt;
    type Error = RabbitError;

    fn lease(&self) -> Option<Duration> {
        None
    }

    async fn receive(&self, most: usize) -> Result<Vec<Message<RabbitReceipt>>, RabbitError> {
        self.connect().await?;
        let mut guard = self.link.lock().await;
        let Some(link) = &mut *guard else { return Ok(Vec::new()) };
        let mut messages = Vec::new();
        // Most calls find a message immediately, and need no timer.
        let mut next = link.consumer.next().now_or_never();
        if next.is_none() {
            next = match select(link.consumer.next(), Delay::new(RECEIVE_WAIT)).await {
                Either::Left((next, _)) => Some(next),
                Either::Right(_) if link.channel.status().connected() => return Ok(messages),
                // The client has not ended the stream of a connection that it has lost.
                Either::Right(_) => Some(None),
            };
        }
        while let Some(delivery) = next {
            match delivery {
                Some(Ok(delivery)) => messages.push(self.message(&link.channel, delivery)),
                broken => {
                    *guard = None;
                    // Drops the messages that this call has received: they belonged to the connection, and have returned to the queue.
                    return Err(if let Some(Err(error)) = broken { error.into() } else { RabbitError::Closed });
                }
            }
            next = if messages.len() < most { link.consumer.next().now_or_never() } else { None };
        }
        Ok(messages)
    }

    async fn ack(&self, receipt: &mut RabbitReceipt) -> Result<(), RabbitError> {
        let result = receipt.acker.ack(BasicAckOptions::default()).await;
        self.settled(receipt, result).await
    }

    async fn extend(&self, _: &mut RabbitReceipt) -> Result<(), RabbitError> {
        Ok(())
    }

    async fn release(&self, receipt: &mut RabbitReceipt, release: Release) -> Result<(), RabbitError> {
        let result = match release {
            // From RabbitMQ 4.3, a quorum queue does not count this call as an attempt.
            Release::Shutdown => receipt.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await,
            Release::After(_) if self.is_quorum => receipt.acker.reject(BasicRejectOptions { requeue: true }).await,
            Release::After(_) => {
                let attempts = AMQPValue::LongUInt(receipt.failed_attempts.saturating_add(1));
                match self.copy(receipt, &self.queue, ATTEMPTS, attempts).await {
                    Ok(()) => receipt.acker.ack(BasicAckOptions::default()).await,
                    // Without this call, the message would belong to this consumer as long as the queue is full.
                    Err(RabbitError::NotStored) => {
                        receipt.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        self.settled(receipt, result).await
    }

    async fn dead_letter(&self, _: &Delivery, receipt: &mut RabbitReceipt, reason: &str) -> Result<(), RabbitError> {
        self.copy(receipt, &self.dead_letters, REASON, AMQPValue::LongString(reason.into())).await?;
        self.ack(receipt).await
    }

    fn can_delay(&self) -> bool {
        false
    }

    fn is_void(&self, error: &RabbitError) -> bool {
        !matches!(error, RabbitError::NotStored | RabbitError::Publish(_))
    }

    async fn stop(&self) -> Result<(), RabbitError> {
        self.is_stopping.store(true, Ordering::Relaxed);
        let mut link = self.link.lock().await;
        let Some(link) = &mut *link else { return Ok(()) };
        link.channel.basic_cancel(link.consumer.tag(), BasicCancelOptions::default()).await?;
        // The stream `link.consumer` still contains the messages that the broker sent in advance.
        while let Some(Some(Ok(delivery))) = link.consumer.next().now_or_never() {
            delivery.acker.nack(BasicNackOptions { requeue: true, ..BasicNackOptions::default() }).await?;
        }
        link.channel.basic_qos(self.prefetch, BasicQosOptions::default()).await?;
        Ok(())
    }
}

/// Returns the properties of a copy with this header.
fn copied(original: &BasicProperties, header: &str, value: AMQPValue) -> BasicProperties {
    let headers = original.headers().iter().flat_map(FieldTable::inner);
    let headers = headers.filter(|(name, _)| !OMITTED.contains(&name.as_str()));
    let mut headers: BTreeMap<_, _> = headers.map(|(name, value)| (name.clone(), value.clone())).collect();
    headers.insert(header.into(), value);
    let mut copy = BasicProperties::default().with_headers(headers.into()).with_delivery_mode(2);
    // Omits the `user_id`, because the broker closes the channel if it differs from the user of this connection. Omits the `expiration`,
    // because the broker would drop the copy.
    macro_rules! copy {
        ($($get:ident $set:ident),+) => {
            $(if let Some(value) = original.$get() {
                copy = copy.$set(value.clone());
            })+
        };
    }
    copy!(content_type with_content_type, content_encoding with_content_encoding, priority with_priority);
    copy!(correlation_id with_correlation_id, reply_to with_reply_to, message_id with_message_id);
    copy!(timestamp with_timestamp, kind with_type, app_id with_app_id);
    copy
}

/// Returns how often a quorum queue has delivered a message before, without deliveries that the broker does not count.
fn earlier_deliveries(headers: &FieldTable, redelivered: bool) -> u32 {
    // The sender can have set the headers, for example if an operator has moved the message from another queue.
    if !redelivered {
        return 0;
    }
    // Only brokers that do not count all deliveries add the header `x-acquired-count`. Such a broker omits a count of 0.
    number(headers, DELIVERIES).unwrap_or_else(|| u32::from(!headers.contains_key(ACQUISITIONS)))
}

/// Returns the value of the header `name` if the value is a number.
fn number(headers: &FieldTable, name: &str) -> Option<u32> {
    headers.inner().get(name).and_then(integer)
}

/// Returns the value of a header if the value is a number.
fn integer(value: &AMQPValue) -> Option<u32> {
    match value {
        AMQPValue::LongLongInt(number) => u32::try_from(*number).ok(),
        AMQPValue::LongInt(number) => u32::try_from(*number).ok(),
        AMQPValue::LongUInt(number) => Some(*number),
        _ => None,
    }
}

/// Returns the value of a header if the value is a string.
fn text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

impl From<lapin::Error> for RabbitError {
    fn from(error: lapin::Error) -> Self {
        Self::Connection(error)
    }
}

impl fmt::Display for RabbitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(error) => error.fmt(f),
            Self::Closed => f.write_str("the channel has closed, so the message is in its queue again"),
            Self::Publish(error) => write!(f, "cannot publish a copy of the message: {error}"),
            Self::NotStored => f.write_str("the broker has not stored a copy of the message; check that the queue exists"),
        }
    }
}

impl std::error::Error for RabbitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connection(error) | Self::Publish(error) => Some(error),
            Self::Closed | Self::NotStored => None,
        }
    }
}

impl fmt::Debug for RabbitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The output omits the URI, because the URI contains a password.
        f.debug_struct("RabbitQueue").field("queue", &self.queue).field("dead_letters", &self.dead_letters).finish_non_exhaustive()
    }
}

impl fmt::Debug for RabbitReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitReceipt").field("is_copied", &self.is_copied).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(counts: &[(&str, i64)]) -> FieldTable {
        let counts = counts.iter().map(|&(name, count)| (name.into(), AMQPValue::LongLongInt(count)));
        counts.collect::<BTreeMap<_, _>>().into()
    }

    #[test]
    fn quorum_queue_counts_only_redelivered_messages() {
        let cases: [(&[_], _, _); 7] = [
            (&[], false, 0),
            (&[(DELIVERIES, 25)], false, 0),
            (&[(DELIVERIES, 25), (ACQUISITIONS, 30)], false, 0),
            (&[(DELIVERIES, 2)], true, 2),
            (&[(DELIVERIES, 2), (ACQUISITIONS, 3)], true, 2),
            (&[(ACQUISITIONS, 3)], true, 0),
            (&[], true, 1),
        ];
        for (counts, redelivered, expected) in cases {
            assert_eq!(earlier_deliveries(&headers(counts), redelivered), expected, "{counts:?}, {redelivered}");
        }
    }
}
