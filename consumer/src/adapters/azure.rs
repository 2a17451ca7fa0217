use crate::delivery::Delivery;
use crate::source::{Message, Release, Source};
use azure_core::Error;
use azure_core::error::ErrorKind;
use azure_core::http::StatusCode;
use azure_storage_queue::QueueClient;
use azure_storage_queue::models::{QueueClientReceiveMessagesOptions, QueueClientSendMessageOptions, QueueMessage};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::fmt;
use std::time::Duration;

/// The service returns at most this many messages for one call.
const MAX_BATCH: usize = 32;
/// The service can make a message invisible for at most this time.
const MAX_DELAY: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A queue of Azure Queue Storage, with the client [`azure_storage_queue`]. Needs tokio.
///
/// For HTTPS, enable the feature `reqwest_rustls` or `reqwest_native_tls` of the crate `azure_core`.
///
/// Your program creates the queue, the dead-letter queue, and the clients with their credentials.
///
/// - By default, the service deletes a message 7 days after it was sent, even while the message waits for its retry. To prevent this,
///   send the message with the time to live -1, which means no limit.
/// - Each delivery counts as an attempt, even if a shutdown released the message.
/// - The source rounds delays and leases up to whole seconds. Their maximum is 7 days.
/// - A message has at most 64 KiB and no headers. The copy of a dead message contains no reason and never expires. If the response to the
///   call that stores the copy is lost, the dead-letter queue may contain two copies.
/// - An acknowledgement also succeeds if the service does not find the message, because an earlier call may have deleted the message. It
///   fails if the service does not find the queue.
pub struct AzureQueue {
    queue: QueueClient,
    dead_letters: QueueClient,
    lease: Duration,
    poll_interval: Duration,
    is_base64: bool,
}

/// Identifies one delivery of a message of an [`AzureQueue`].
#[derive(Debug)]
pub struct AzureReceipt {
    id: String,
    /// The service replaces this value at each update of the message.
    pop_receipt: String,
    text: String,
    /// Whether the dead-letter queue contains a copy of the message. If it does, a repeated call to `dead_letter` makes no second
    /// copy.
    is_copied: bool,
}

impl AzureQueue {
    /// Creates a source for `queue`. Dead messages move to the queue `dead_letters`.
    ///
    /// `lease` is the time for which a delivery belongs to its consumer without an extension. Minimum: 3 seconds. Maximum: 7 days.
    pub fn new(queue: QueueClient, dead_letters: QueueClient, lease: Duration) -> Self {
        let lease = super::whole_lease(lease, MAX_DELAY);
        Self { queue, dead_letters, lease, poll_interval: Duration::from_secs(1), is_base64: false }
    }

    /// Decodes the payload of each message as base64. Without this method, the payload is the text of the message.
    ///
    /// Older .NET libraries and Azure Functions encode their messages as base64. If a message is not valid base64, the payload is its text.
    #[must_use]
    pub fn base64(mut self) -> Self {
        self.is_base64 = true;
        self
    }

    /// Sets how long the consumer waits after a call that returned no message. Default: 1 second. Minimum: 1 millisecond.
    ///
    /// Azure charges money for each call.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval.max(Duration::from_millis(1));
        self
    }

    async fn show_after(&self, receipt: &mut AzureReceipt, delay: Duration) -> Result<(), Error> {
        let response = self.queue.update_message(&receipt.id, &receipt.pop_receipt, seconds(delay), None).await?;
        // Only this header of the response contains the new receipt.
        response.headers().get_str(&"x-ms-popreceipt".into())?.clone_into(&mut receipt.pop_receipt);
        Ok(())
    }
}

/// Returns whether the error means that the queue exists but the message does not.
fn is_message_missing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::HttpResponse { error_code: Some(code), .. } if code == "MessageNotFound")
}

/// Converts a duration to whole seconds for the client library.
fn seconds(duration: Duration) -> i32 {
    super::whole_seconds(duration, MAX_DELAY).cast_signed()
}

impl Source for AzureQueue {
    type Receipt = AzureReceipt;
    type Error = Error;

    fn lease(&self) -> Option<Duration> {
        Some(self.lease)
    }

    async fn receive(&self, most: usize) -> Result<Vec<Message<AzureReceipt>>, Error> {
        let options = QueueClientReceiveMessagesOptions {
            number_of_messages: i32::try_from(most.min(MAX_BATCH)).ok(),
            visibility_timeout: Some(seconds(self.lease)),
            ..QueueClientReceiveMessagesOptions::default()
        };
        let received = self.queue.receive_messages(Some(options)).await?.into_model()?.items.unwrap_or_default();
        let messages = received.into_iter().filter_map(|message| {
            let (id, pop_receipt) = (message.message_id?, message.pop_receipt?);
            let text = message.message_text.unwrap_or_default();
            let decoded = if self.is_base64 { BASE64_STANDARD.decode(&text).ok() } else { None };
            let attempt = message.dequeue_count.and_then(|count| u32::try_from(count).ok()).unwrap_or(1);
            let payload = decoded.unwrap_or_else(|| text.clone().into_bytes());
            let delivery = Delivery::new(payload).with_id(id.clone()).with_attempt(attempt);
            Some(Message { delivery, receipt: AzureReceipt { id, pop_receipt, text, is_copied: false } })
        });
        Ok(messages.collect())
    }

    async fn ack(&self, receipt: &mut AzureReceipt) -> Result<(), Error> {
        match self.queue.delete_message(&receipt.id, &receipt.pop_receipt, None).await {
            // An earlier call deleted the message, and the response to that call was lost.
            Err(error) if is_message_missing(&error) => Ok(()),
            result => result.map(drop),
        }
    }

    async fn extend(&self, receipt: &mut AzureReceipt) -> Result<(), Error> {
        self.show_after(receipt, self.lease).await
    }

    async fn release(&self, receipt: &mut AzureReceipt, release: Release) -> Result<(), Error> {
        let delay = if let Release::After(delay) = release { delay } else { Duration::ZERO };
        self.show_after(receipt, delay).await
    }

    async fn dead_letter(&self, _: &Delivery, receipt: &mut AzureReceipt, _: &str) -> Result<(), Error> {
        if !receipt.is_copied {
            let copy = QueueMessage { message_text: Some(receipt.text.clone()) };
            let options =
                QueueClientSendMessageOptions { message_time_to_live: Some(-1), ..QueueClientSendMessageOptions::default() };
            self.dead_letters.send_message(copy.try_into()?, Some(options)).await?;
            receipt.is_copied = true;
        }
        self.ack(receipt).await
    }

    fn poll_interval(&self) -> Duration {
        self.poll_interval
    }

    fn is_void(&self, error: &Error) -> bool {
        matches!(error.http_status(), Some(StatusCode::NotFound | StatusCode::BadRequest))
    }
}

impl fmt::Debug for AzureQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AzureQueue").field("lease", &self.lease).finish_non_exhaustive()
    }
}
