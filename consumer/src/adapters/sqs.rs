use crate::delivery::Delivery;
use crate::source::{Message, Release, Source};
use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_sdk_sqs::types::{
    MessageAttributeValue, MessageSystemAttributeName, MessageSystemAttributeNameForSends, MessageSystemAttributeValue,
};
use aws_sdk_sqs::{Client, Error};
use std::collections::HashMap;
use std::error::Error as _;
use std::fmt;
use std::time::{Duration, Instant};

/// The service returns at most this many messages for one call.
const MAX_BATCH: usize = 10;
/// A received message is invisible for at most this time, even if the consumer extends its lease.
const MAX_INVISIBLE: Duration = Duration::from_secs(12 * 60 * 60);
/// A message can have at most this many attributes.
const MAX_ATTRIBUTES: usize = 10;
const REASON: &str = "Dead-Letter-Reason";
/// The reason is truncated to this number of characters, and is omitted for large payloads. The copy of a message therefore stays below
/// 256 KiB, which is the limit of many queues.
const MAX_REASON: usize = 1000;
const MAX_PAYLOAD_WITH_REASON: usize = 128 * 1024;
/// The HTTP name of the trace header of X-Ray. OpenTelemetry propagators for X-Ray read the header with this name.
const TRACE_HEADER: &str = "X-Amzn-Trace-Id";

/// A standard queue of Amazon SQS, with the client [`aws_sdk_sqs`]. Needs tokio.
///
/// Your program creates the queue and the dead-letter queue. It also creates the client with a region, credentials and an HTTP
/// client, usually with the crate `aws-config`. The client needs the permissions `sqs:ReceiveMessage`, `sqs:ChangeMessageVisibility` and
/// `sqs:DeleteMessage` for the queue, and `sqs:SendMessage` for the dead-letter queue.
///
/// - Each delivery counts as an attempt, even if a shutdown released the message. SQS counts deliveries only approximately.
/// - If the queue has a redrive policy, SQS itself moves a message to another queue after `maxReceiveCount` deliveries, and no observer
///   receives a report. Use no redrive policy, or set `maxReceiveCount` above [`max_attempts`](crate::Consumer::max_attempts).
/// - The service deletes a message when the retention period has elapsed since the message was sent. Default: 4 days. Maximum: 14 days.
/// - The source rounds delays and leases up to whole seconds. A message becomes visible again at most 12 hours after it was received. A
///   longer delay, or an extension of the lease, does not change this.
/// - If the lease has expired and another consumer has received the message, an acknowledgement has no effect.
/// - The headers are the attributes of the message that are not binary. The header `X-Amzn-Trace-Id` contains the trace header of X-Ray.
/// - A dead message keeps its attributes. The source adds the attribute `Dead-Letter-Reason` of at most 1000 characters, unless the message
///   has 10 other attributes or a payload above 128 KiB. If the response to the call that stores the copy is lost, the dead-letter queue
///   may contain two copies.
/// - A `receive` from an empty queue takes 1 second. Amazon charges money for each request.
/// - FIFO queues are not supported. The consumer would handle messages of one group simultaneously, and the copy of a dead message to a
///   FIFO queue fails.
///
/// Set an operation timeout for the client that is longer than 2 seconds and shorter than the lease. By default, the client has no
/// operation timeout, and waits forever for a lost response.
pub struct SqsQueue {
    client: Client,
    queue_url: String,
    dead_letter_url: String,
    lease: Duration,
}

/// Identifies one delivery of a message of an [`SqsQueue`].
#[derive(Debug)]
pub struct SqsReceipt {
    handle: String,
    received_at: Instant,
    attributes: HashMap<String, MessageAttributeValue>,
    trace_header: Option<String>,
    /// Whether the dead-letter queue contains a copy of the message. If it does, a repeated call to `dead_letter` makes no second
    /// copy.
    is_copied: bool,
}

/// The error of an [`SqsQueue`].
#[derive(Debug)]
pub struct SqsError(Error);

impl SqsQueue {
    /// Creates a source for the queue with the URL `queue_url`. Dead messages move to the queue with the URL `dead_letter_url`.
    ///
    /// `lease` is the time for which a delivery belongs to its consumer without an extension. Minimum: 3 seconds. Maximum: 12 hours. The
    /// lease replaces the visibility timeout of the queue.
    pub fn new(client: Client, queue_url: impl Into<String>, dead_letter_url: impl Into<String>, lease: Duration) -> Self {
        let lease = super::whole_lease(lease, MAX_INVISIBLE);
        Self { client, queue_url: queue_url.into(), dead_letter_url: dead_letter_url.into(), lease }
    }

    async fn show_after(&self, receipt: &SqsReceipt, delay: Duration) -> Result<(), SqsError> {
        // Rounds the remaining time down, because the service rejects a time beyond its limit of 12 hours.
        let left = Duration::from_secs(MAX_INVISIBLE.saturating_sub(receipt.received_at.elapsed()).as_secs());
        let call = self.client.change_message_visibility().queue_url(&self.queue_url).receipt_handle(&receipt.handle);
        call.visibility_timeout(seconds(delay.min(left))).send().await.map_err(error)?;
        Ok(())
    }

    async fn copy(&self, delivery: &Delivery, receipt: &SqsReceipt, reason: &str) -> Result<(), SqsError> {
        let string = || MessageAttributeValue::builder().data_type("String");
        let mut attributes = receipt.attributes.clone();
        // The service rejects an empty value, and most control characters.
        let reason: String = reason.chars().map(|c| if is_text(c) { c } else { ' ' }).take(MAX_REASON).collect();
        let has_room = attributes.len() < MAX_ATTRIBUTES || attributes.contains_key(REASON);
        if has_room && !reason.is_empty() && delivery.payload().len() <= MAX_PAYLOAD_WITH_REASON {
            attributes.insert(REASON.into(), string().string_value(reason).build().map_err(error)?);
        }
        let mut send = self.client.send_message().queue_url(&self.dead_letter_url);
        if let Some(header) = &receipt.trace_header {
            let value = MessageSystemAttributeValue::builder().data_type("String").string_value(header).build().map_err(error)?;
            send = send.message_system_attributes(MessageSystemAttributeNameForSends::AwsTraceHeader, value);
        }
        let body = String::from_utf8_lossy(delivery.payload());
        send.message_body(body).set_message_attributes(Some(attributes)).send().await.map_err(error)?;
        Ok(())
    }
}

fn error(error: impl Into<Error>) -> SqsError {
    SqsError(error.into())
}

fn is_text(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}')
}

/// Converts a duration to whole seconds for the client library.
fn seconds(duration: Duration) -> i32 {
    super::whole_seconds(duration, MAX_INVISIBLE).cast_signed()
}

impl Source for SqsQueue {
    type Receipt = SqsReceipt;
    type Error = SqsError;

    fn lease(&self) -> Option<Duration> {
        Some(self.lease)
    }

    async fn receive(&self, most: usize) -> Result<Vec<Message<SqsReceipt>>, SqsError> {
        let received_at = Instant::now();
        let received = self
            .client
            .receive_message()
            .queue_url(&self.queue_url)
            .set_max_number_of_messages(i32::try_from(most.min(MAX_BATCH)).ok())
            .visibility_timeout(seconds(self.lease))
            .wait_time_seconds(1)
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .message_system_attribute_names(MessageSystemAttributeName::AwsTraceHeader)
            .send();
        let received = received.await.map_err(error)?.messages.unwrap_or_default();
        let messages = received.into_iter().filter_map(|message| {
            let handle = message.receipt_handle?;
            let attributes = message.message_attributes.unwrap_or_default();
            let mut system = message.attributes.unwrap_or_default();
            let attempt = system.get(&MessageSystemAttributeName::ApproximateReceiveCount).and_then(|count| count.parse().ok());
            let trace_header = system.remove(&MessageSystemAttributeName::AwsTraceHeader);
            let delivery = Delivery::new(message.body.unwrap_or_default());
            let mut delivery = delivery.with_id(message.message_id.unwrap_or_default()).with_attempt(attempt.unwrap_or(1));
            let headers = attributes.iter().filter_map(|(name, value)| Some((&**name, value.string_value()?)));
            for (name, value) in headers.chain(trace_header.as_deref().map(|header| (TRACE_HEADER, header))) {
                delivery = delivery.with_header(name, value);
            }
            Some(Message { delivery, receipt: SqsReceipt { handle, received_at, attributes, trace_header, is_copied: false } })
        });
        Ok(messages.collect())
    }

    async fn ack(&self, receipt: &mut SqsReceipt) -> Result<(), SqsError> {
        let delete = self.client.delete_message().queue_url(&self.queue_url).receipt_handle(&receipt.handle);
        delete.send().await.map_err(error)?;
        Ok(())
    }

    async fn extend(&self, receipt: &mut SqsReceipt) -> Result<(), SqsError> {
        self.show_after(receipt, self.lease).await
    }

    async fn release(&self, receipt: &mut SqsReceipt, release: Release) -> Result<(), SqsError> {
        let delay = if let Release::After(delay) = release { delay } else { Duration::ZERO };
        self.show_after(receipt, delay).await
    }

    async fn dead_letter(&self, delivery: &Delivery, receipt: &mut SqsReceipt, reason: &str) -> Result<(), SqsError> {
        if !receipt.is_copied {
            self.copy(delivery, receipt, reason).await?;
            receipt.is_copied = true;
        }
        self.ack(receipt).await
    }

    fn is_void(&self, error: &SqsError) -> bool {
        match &error.0 {
            Error::MessageNotInflight(_) | Error::QueueDoesNotExist(_) | Error::ReceiptHandleIsInvalid(_) => true,
            // The lease has expired, or the total delay is above the limit. The client library has no type for this error.
            error => error.code().is_some_and(|code| code.starts_with("InvalidParameterValue")),
        }
    }
}

impl fmt::Debug for SqsQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsQueue").field("queue_url", &self.queue_url).field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl fmt::Display for SqsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // For most errors, the client library prints only "unhandled error", so this function also prints the causes.
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for SqsError {}
