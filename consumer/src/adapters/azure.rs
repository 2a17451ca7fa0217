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

/// The service's limit for one call.
const MAX_BATCH: usize = 32;
/// The service's limit for the time in which a message is invisible.
const MAX_DELAY: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A queue of Azure Queue Storage, with the client [`azure_storage_queue`]. Needs tokio.
///
/// For HTTPS, enable the feature `reqwest_rustls` or `reqwest_native_tls` of the crate `azure_core`.
///
/// The program creates the queue, the queue of its dead letters, and the clients with their credentials.
///
/// - The service deletes a message 7 days after it was sent, even while the message waits for its retry, unless the sender sets another
///   time to live. Send with -1, which means no limit.
/// - Each delivery counts as an attempt, even if a shutdown cut it off.
/// - Delays and leases are whole seconds, rounded up, of at most 7 days.
/// - Messages have no headers, and at most 64 KiB. The copy of a dead message has no reason and no time to live. If the response to the
///   copy is lost, a second copy may exist.
/// - If the service does not find a message, an acknowledgement succeeds, because an earlier call may have deleted the message. If it
///   does not find the queue, the acknowledgement fails.
pub struct AzureQueue {
    queue: QueueClient,
    dead_letters: QueueClient,
    lease: Duration,
    poll_interval: Duration,
    is_base64: bool,
}

/// The receipt of an [`AzureQueue`].
#[derive(Debug)]
pub struct AzureReceipt {
    id: String,
    /// Each update of the message replaces it.
    pop_receipt: String,
    text: String,
    /// Whether the dead-letter queue has the copy. A repeated call then makes no second copy.
    is_copied: bool,
}

impl AzureQueue {
    /// Creates a source. `dead_letters` is the queue of the dead messages.
    ///
    /// `lease` is how long a delivery belongs to its consumer unless it is extended. Minimum: 3 seconds. Maximum: 7 days.
    pub fn new(queue: QueueClient, dead_letters: QueueClient, lease: Duration) -> Self {
        let lease = super::whole_lease(lease, MAX_DELAY);
        Self { queue, dead_letters, lease, poll_interval: Duration::from_secs(1), is_base64: false }
    }

    /// Decodes the payload of each message as base64. Default: the payload is the text of the message.
    ///
    /// Older .NET libraries and Azure Functions encode their messages. A message that is not valid base64 is delivered unchanged.
    #[must_use]
    pub fn base64(mut self) -> Self {
        self.is_base64 = true;
        self
    }

    /// Sets how long the consumer waits after it found no message. Default: 1 second. Minimum: 1 millisecond.
    ///
    /// Each poll is a transaction for which the service charges.
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

/// Returns whether the service has the queue, but not the message.
fn is_message_missing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::HttpResponse { error_code: Some(code), .. } if code == "MessageNotFound")
}

/// Returns whole seconds, as the client needs them.
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
            // An earlier call deleted it, and its response was lost.
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
