use crate::delivery::Delivery;
use std::fmt::Display;
use std::future::{Future, ready};
use std::time::Duration;

/// A message that a [`Source`] has received, with a receipt. The consumer uses the receipt to acknowledge or release the message.
#[derive(Clone, Debug)]
pub struct Message<R> {
    /// The message for the handler.
    pub delivery: Delivery,
    /// Identifies this delivery of the message to the broker.
    pub receipt: R,
}

/// The reason why a message returns to its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Release {
    /// The consumer shuts down. The message is available to other consumers immediately. If the broker supports this, the attempt does
    /// not count.
    Shutdown,
    /// The attempt has failed. The message is available again when this delay has elapsed.
    After(Duration),
}

/// A queue of a broker, from which a [`Consumer`](crate::Consumer) receives messages.
///
/// A delivery is a message that `receive` has returned. A consumer settles each delivery with one of three methods: [`ack`](Self::ack),
/// [`release`](Self::release) or [`dead_letter`](Self::dead_letter). A consumer can call methods for different deliveries simultaneously.
/// For one delivery, it makes one call at a time: it waits until the previous call has ended, or drops the future of that call.
///
/// # For implementors
///
/// A source must satisfy the following contract. The module `conformance` (feature `conformance`) contains tests for the contract.
///
/// - If a message is not settled, it becomes available again when its lease has expired or when its connection has closed. Until then,
///   no other consumer receives the message.
/// - A method returns `Ok` only after the broker has confirmed the call. Without the confirmation, the call can be lost when the process
///   exits. There is one exception: before [`stop`](Self::stop), a source without a lease may return `Ok` without a confirmation. If
///   the call is then lost with its connection, the broker delivers the message again.
/// - `receive` returns within about a second. If the queue is empty, it returns an empty vector. It returns at most `most` messages, and
///   does not wait for more messages when it has one. If a call to `receive` takes as long as the lease, the consumer ignores the messages
///   that it returns.
/// - If a call fails, and [`is_void`](Self::is_void) returns `false` for the error, the consumer repeats the call. The source reconnects if
///   necessary.
/// - If the future of a method other than `receive` is dropped, no message is lost. If a call that settles a message takes longer than a
///   third of the lease, the consumer drops its future. It repeats the call until the lease expires. Without a lease, it drops the future
///   after 3.3 seconds, and repeats the call for 10 seconds. If no call has succeeded, and no shutdown has started, it repeats a
///   release after the backoff.
pub trait Source: Send + Sync + 'static {
    /// Identifies one delivery of a message.
    type Receipt: Send + 'static;
    /// The error of all methods.
    type Error: Display + Send + 'static;

    /// Returns the lease: the time for which a delivery belongs to this consumer without an extension. This time must not change. Returns
    /// `None` if a delivery belongs to the consumer as long as its connection exists.
    ///
    /// The broker starts the lease at some moment during the call to `receive` or [`extend`](Self::extend). The consumer therefore measures
    /// the lease from the start of the call.
    fn lease(&self) -> Option<Duration>;

    /// Receives at most `most` messages. `most` is at least 1.
    ///
    /// # Cancel safety
    ///
    /// This method need not be cancel safe. A consumer drops the future only if it has not resolved one lease after the start of the
    /// shutdown. Without a lease, the consumer drops it after 10 seconds.
    fn receive(&self, most: usize) -> impl Future<Output = Result<Vec<Message<Self::Receipt>>, Self::Error>> + Send;

    /// Deletes a message from the queue, because its handler has completed.
    fn ack(&self, receipt: &mut Self::Receipt) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Extends the lease. The lease then expires when its full length has elapsed since this call. This method may replace the receipt.
    ///
    /// A consumer calls this method only if [`lease`](Self::lease) returns a duration.
    fn extend(&self, receipt: &mut Self::Receipt) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Returns a message to the queue.
    fn release(&self, receipt: &mut Self::Receipt, release: Release) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Moves a message to the dead-letter queue. `reason` says why the message is dead, for example the error of the last attempt. The
    /// consumer truncates it to 1000 characters.
    ///
    /// If the broker cannot move a message in one step, this method must copy the message and then delete it. If the call is repeated after
    /// the broker has confirmed the copy, this method must not copy the message again.
    fn dead_letter(
        &self,
        delivery: &Delivery,
        receipt: &mut Self::Receipt,
        reason: &str,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Returns how long the consumer waits after a `receive` that returned no message. Default: zero. If the value is zero, `receive`
    /// itself must wait for messages.
    fn poll_interval(&self) -> Duration {
        Duration::ZERO
    }

    /// Returns whether [`release`](Self::release) can delay a message. Default: `true`.
    ///
    /// If this method returns `false`, the consumer keeps a failed message until the delay has elapsed or the shutdown starts. It then
    /// releases the message without a delay. A message that the consumer keeps counts toward the concurrency.
    fn can_delay(&self) -> bool {
        true
    }

    /// Returns whether an error means that the receipt is void (no longer valid). The consumer does not repeat a call with a void receipt.
    /// Default: `false`.
    fn is_void(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }

    /// Returns to the queue all messages that the broker has sent in advance, and that `receive` has not returned. Default: does nothing.
    ///
    /// A consumer calls this method one time during the shutdown, after its last `receive`. If the future has not resolved after 10
    /// seconds, the consumer drops the future and reports a failure. The consumer can still settle deliveries after this call.
    fn stop(&self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        ready(Ok(()))
    }
}
