use crate::delivery::Delivery;
use std::fmt::Display;
use std::future::{Future, ready};
use std::time::Duration;

/// A message that a [`Source`] has received, and the receipt with which the source settles it.
#[derive(Clone, Debug)]
pub struct Message<R> {
    /// What the handler receives.
    pub delivery: Delivery,
    /// Identifies this delivery of the message to the broker.
    pub receipt: R,
}

/// Says why a message returns to its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Release {
    /// The consumer shuts down. The message is available to other consumers immediately. If the broker can return a message without
    /// a charged attempt, the source does so.
    Shutdown,
    /// The attempt has failed. The message is available when this delay has elapsed.
    After(Duration),
}

/// A queue of a broker, as a [`Consumer`](crate::Consumer) uses it.
///
/// A delivery is a message that `receive` has returned. A consumer settles each delivery by one of three methods: [`ack`](Self::ack),
/// [`release`](Self::release) or [`dead_letter`](Self::dead_letter). A consumer calls the methods of different deliveries
/// simultaneously. For one delivery, the next call starts when the last call has ended.
///
/// # For implementors
///
/// A source must satisfy the following contract. The module `conformance` (feature `conformance`) checks it.
///
/// - A message that has not been settled becomes available again when its lease has expired, or when its connection has closed.
/// - Until then, no other consumer receives the message.
/// - `Ok` means that the broker has confirmed the call. A source that only writes to a socket loses confirmations when the
///   process exits.
/// - `receive` returns within about a second, with an empty vector if the queue is empty. It returns at most `most` messages, and
///   does not wait for more when it has one.
/// - A call that fails can be repeated, unless [`is_void`](Self::is_void) returns `true` for its error. A source reconnects.
/// - A dropped future of any method except `receive` loses no message. The consumer drops futures that have not resolved when the
///   lease expires.
pub trait Source: Send + Sync + 'static {
    /// Identifies one delivery.
    type Receipt: Send + 'static;
    /// The error of all methods.
    type Error: Display + Send + 'static;

    /// Returns how long a delivery belongs to this consumer unless it is extended. Returns `None` if a delivery belongs to the
    /// consumer as long as its connection exists.
    fn lease(&self) -> Option<Duration>;

    /// Receives at most `most` messages. `most` is at least 1.
    ///
    /// # Cancel safety
    ///
    /// Need not be cancel safe. A consumer drops this future only if it has not resolved one lease after the start of the shutdown.
    fn receive(&self, most: usize) -> impl Future<Output = Result<Vec<Message<Self::Receipt>>, Self::Error>> + Send;

    /// Deletes a message from the queue, because its handler has completed.
    fn ack(&self, receipt: &mut Self::Receipt) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Extends the lease by its full length from now. May replace the receipt.
    ///
    /// A consumer calls this method only if [`lease`](Self::lease) returns a duration.
    fn extend(&self, receipt: &mut Self::Receipt) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Returns a message to the queue.
    fn release(&self, receipt: &mut Self::Receipt, release: Release) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Moves a message to the dead-letter queue. If this takes two steps, the copy comes before the deletion, and a
    /// repeated call makes no second copy.
    fn dead_letter(
        &self,
        delivery: &Delivery,
        receipt: &mut Self::Receipt,
        reason: &str,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Returns how long the consumer waits after a `receive` that returned no message. Default: zero, for a `receive` that itself
    /// waits for messages.
    fn poll_interval(&self) -> Duration {
        Duration::ZERO
    }

    /// Returns whether [`release`](Self::release) can delay a message. Default: `true`.
    ///
    /// If not, the consumer holds a failed message until its delay has elapsed or the shutdown starts, and then releases it without a
    /// delay. A held message counts towards the concurrency.
    fn can_delay(&self) -> bool {
        true
    }

    /// Returns whether an error means that the receipt is void, so that repeating the call is useless. Default: `false`.
    fn is_void(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }

    /// Returns messages that were fetched in advance to the queue. Default: does nothing.
    ///
    /// A consumer calls this method once, when it has started to shut down and after its last `receive`. Deliveries may still be
    /// settled afterwards.
    fn stop(&self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        ready(Ok(()))
    }
}
