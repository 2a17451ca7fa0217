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

/// The service's limit for one call.
const MAX_BATCH: usize = 10;
/// The service's limit for the time in which a message is invisible. It starts when the message is received.
const MAX_INVISIBLE: Duration = Duration::from_secs(12 * 60 * 60);
/// The service's limit for the attributes of a message.
const MAX_ATTRIBUTES: usize = 10;
const REASON: &str = "Dead-Letter-Reason";
/// Limits the reason and the payload to which it is added, so that the copy stays below 256 KiB, which is the limit of many queues.
const MAX_REASON: usize = 1000;
const MAX_PAYLOAD_WITH_REASON: usize = 128 * 1024;
/// The name that the trace header of X-Ray has in HTTP, as propagators expect it.
const TRACE_HEADER: &str = "X-Amzn-Trace-Id";

/// A standard queue of Amazon SQS, with the client [`aws_sdk_sqs`]. Needs tokio.
///
/// The program creates the queue and the queue of its dead letters. It also creates the client with its region, credentials and HTTP
/// client, usually with the crate `aws-config`. The client needs the permissions `sqs:ReceiveMessage`, `sqs:ChangeMessageVisibility` and
/// `sqs:DeleteMessage` for the queue, and `sqs:SendMessage` for the queue of the dead letters.
///
/// - Each delivery counts as an attempt, even if a shutdown cut it off. The service counts approximately.
/// - A redrive policy moves a message at its `maxReceiveCount` without a report. Use no redrive policy, or set `maxReceiveCount` above
///   [`max_attempts`](crate::Consumer::max_attempts).
/// - The service deletes a message when the retention period of its queue has elapsed since it was sent. Default: 4 days. Maximum: 14 days.
/// - Delays and leases are whole seconds, rounded up. A message is invisible for at most 12 hours after it was received: a longer delay
///   ends then, and so does an extension.
/// - After its lease has expired, an acknowledgement has no effect if another consumer has received the message.
/// - The headers are the message attributes, except those with binary values. The trace header of X-Ray is the header
///   `X-Amzn-Trace-Id`.
/// - A dead message keeps its attributes. It has the attribute `Dead-Letter-Reason`, of at most 1000 characters, unless it has 10 other
///   attributes or more than 128 KiB. If the response to the copy is lost, a second copy may exist.
/// - A `receive` from an empty queue takes 1 second, and is a request for which the service charges.
/// - FIFO queues are not supported: messages of one group run simultaneously, and a copy to a FIFO queue of dead letters fails.
///
/// Give the client an operation timeout of more than 2 seconds that is shorter than the lease. By default the client has no operation
/// timeout, and waits for a lost response forever.
pub struct SqsQueue {
    client: Client,
    queue_url: String,
    dead_letter_url: String,
    lease: Duration,
}

/// The receipt of an [`SqsQueue`].
#[derive(Debug)]
pub struct SqsReceipt {
    handle: String,
    received_at: Instant,
    attributes: HashMap<String, MessageAttributeValue>,
    trace_header: Option<String>,
    /// Whether the dead-letter queue has the copy. A repeated call then makes no second copy.
    is_copied: bool,
}

/// The error of an [`SqsQueue`].
#[derive(Debug)]
pub struct SqsError(Error);

impl SqsQueue {
    /// Creates a source. `dead_letter_url` is the URL of the queue of the dead messages.
    ///
    /// `lease` is how long a delivery belongs to its consumer unless it is extended. Minimum: 3 seconds. Maximum: 12 hours. The lease
    /// replaces the visibility timeout of the queue.
    pub fn new(client: Client, queue_url: impl Into<String>, dead_letter_url: impl Into<String>, lease: Duration) -> Self {
        let lease = super::whole_lease(lease, MAX_INVISIBLE);
        Self { client, queue_url: queue_url.into(), dead_letter_url: dead_letter_url.into(), lease }
    }

    async fn show_after(&self, receipt: &SqsReceipt, delay: Duration) -> Result<(), SqsError> {
        // Rounded down: the service refuses a time beyond its limit, which starts at the receipt.
        let left = Duration::from_secs(MAX_INVISIBLE.saturating_sub(receipt.received_at.elapsed()).as_secs());
        let call = self.client.change_message_visibility().queue_url(&self.queue_url).receipt_handle(&receipt.handle);
        call.visibility_timeout(seconds(delay.min(left))).send().await.map_err(error)?;
        Ok(())
    }

    async fn copy(&self, delivery: &Delivery, receipt: &SqsReceipt, reason: &str) -> Result<(), SqsError> {
        let string = || MessageAttributeValue::builder().data_type("String");
        let mut attributes = receipt.attributes.clone();
        // The service refuses an empty value, and most control characters.
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

/// Returns whole seconds, as the client needs them.
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
            // The lease has expired, or the total delay is beyond the limit. The client has no type for this error.
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
        // The client's own text says no more than "unhandled error" for most errors.
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
