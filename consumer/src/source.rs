use crate::delivery::Delivery;
use std::fmt::Display;
use std::future::{Future, ready};
use std::time::Duration;

/// A message that a [`Source`] has received, and the receipt that identifies the delivery when the message is settled.
#[derive(Clone, Debug)]
pub struct Message<R> {
    /// The message for the handler.
    pub delivery: Delivery,
    /// Identifies this delivery of the message to the broker.
    pub receipt: R,
}

/// Why a message returns to its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Release {
    /// The consumer shuts down. The message is available to other consumers immediately. It returns without counting the attempt if
    /// the broker supports this.
    Shutdown,
    /// The attempt has failed. The message is available when this delay has elapsed.
    After(Duration),
}

/// A queue of a broker, as a [`Consumer`](crate::Consumer) uses it.
///
/// A delivery is a message that `receive` has returned. A consumer settles each delivery by one of three methods: [`ack`](Self::ack),
/// [`release`](Self::release) or [`dead_letter`](Self::dead_letter). A consumer calls the methods of different deliveries
/// simultaneously. For one delivery, the next call starts when the last call has ended or its future was dropped.
///
/// # For implementors
///
/// A source must satisfy the following contract. The module `conformance` (feature `conformance`) tests it.
///
/// - A message that has not been settled becomes available again when its lease has expired, or when its connection has closed.
/// - Until then, no other consumer receives the message.
/// - `Ok` means that the broker has confirmed the call. If a source only writes to a socket, calls are lost when the process exits. A
///   source without a lease may confirm only after [`stop`](Self::stop), because a lost connection returns its messages.
/// - `receive` returns within about a second, with an empty vector if the queue is empty. It returns at most `most` messages, and
///   does not wait for more when it has one. The consumer ignores the messages of a `receive` that took as long as the lease.
/// - A call that fails can be repeated, unless [`is_void`](Self::is_void) returns `true` for its error. A source reconnects.
/// - A dropped future of any method except `receive` loses no message. The consumer drops and repeats a call that settles a message
///   after a third of the lease, and stops when the lease expires. Without a lease, these times are 3.3 and 10 seconds.
pub trait Source: Send + Sync + 'static {
    /// Identifies one delivery.
    type Receipt: Send + 'static;
    /// The error of all methods.
    type Error: Display + Send + 'static;

    /// Returns how long a delivery belongs to this consumer unless it is extended. This duration must not change. Returns `None` if a
    /// delivery belongs to the consumer as long as its connection exists.
    ///
    /// The broker starts the lease at some moment during the call of `receive` or [`extend`](Self::extend). The consumer therefore counts
    /// the lease from the start of this call.
    fn lease(&self) -> Option<Duration>;

    /// Receives at most `most` messages. `most` is at least 1.
    ///
    /// # Cancel safety
    ///
    /// Need not be cancel safe. A consumer drops this future only if it has not resolved one lease after the start of the shutdown, or
    /// 10 seconds after it without a lease.
    fn receive(&self, most: usize) -> impl Future<Output = Result<Vec<Message<Self::Receipt>>, Self::Error>> + Send;

    /// Deletes a message from the queue, because its handler has completed.
    fn ack(&self, receipt: &mut Self::Receipt) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Extends the lease by its full length from now. May replace the receipt.
    ///
    /// A consumer calls this method only if [`lease`](Self::lease) returns a duration.
    fn extend(&self, receipt: &mut Self::Receipt) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Returns a message to the queue.
    fn release(&self, receipt: &mut Self::Receipt, release: Release) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Moves a message to the dead-letter queue. `reason` is text, such as the error of the last attempt. If this takes two steps, the
    /// copy comes before the deletion, and a repeated call makes no second copy if the broker has confirmed the first one.
    fn dead_letter(
        &self,
        delivery: &Delivery,
        receipt: &mut Self::Receipt,
        reason: &str,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Returns how long the consumer waits after a `receive` that returned no message. Default: zero, which requires that `receive`
    /// waits for messages.
    fn poll_interval(&self) -> Duration {
        Duration::ZERO
    }

    /// Returns whether [`release`](Self::release) can delay a message. Default: `true`.
    ///
    /// If this returns `false`, the consumer holds a failed message until its delay has elapsed or the shutdown starts, and then
    /// releases it without a delay. A held message counts towards the concurrency.
    fn can_delay(&self) -> bool {
        true
    }

    /// Returns whether an error means that the receipt is void, so that repeating the call is useless. Default: `false`.
    fn is_void(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }

    /// Returns prefetched messages to the queue. Default: does nothing.
    ///
    /// A consumer calls this method once, after the start of the shutdown and after its last `receive`. It drops the future after
    /// 10 seconds, and reports this. Deliveries may still be settled afterwards.
    fn stop(&self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        ready(Ok(()))
    }
}
