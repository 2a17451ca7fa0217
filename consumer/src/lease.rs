//! Measures with the spawner's timer when a lease must be extended and when it expires.

use background_tasks::Timer;
use futures_util::FutureExt;
use futures_util::future::{Either, Map, Shared, select};
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

/// A timer future that all clones of a lease share.
type Sleep<T> = Shared<Map<<T as Timer>::Sleep, fn(<<T as Timer>::Sleep as Future>::Output)>>;

/// The lease of a message. Each message of one `receive` has a clone of the same lease.
#[derive(Clone)]
pub(crate) struct Lease<'t, T: Timer> {
    timer: &'t T,
    /// `None` if the source has no lease: the delivery then belongs to the consumer as long as its connection exists.
    length: Option<Duration>,
    sleeps: Option<Sleeps<T>>,
    is_expired: bool,
}

#[derive(Clone)]
struct Sleeps<T: Timer> {
    /// Resolves when the lease should be extended.
    extension: Sleep<T>,
    /// Resolves when the lease expires.
    expiry: Sleep<T>,
}

fn sleep<T: Timer>(timer: &T, duration: Duration) -> Sleep<T> {
    timer.sleep(duration).map(drop as fn(_)).shared()
}

impl<T: Timer> Sleeps<T> {
    /// Starts the timers of a lease.
    ///
    /// The consumer extends a lease when a third of its length has elapsed, so there is time to repeat a failed extension.
    fn start(timer: &T, length: Duration) -> Self {
        Self { extension: sleep(timer, length / 3), expiry: sleep(timer, length) }
    }
}

impl<'t, T: Timer> Lease<'t, T> {
    /// Starts a lease. The consumer must call this function before `receive`. The broker starts the lease later, during `receive`. The
    /// timers of this process therefore expire before the lease expires on the broker.
    pub(crate) fn new(timer: &'t T, length: Option<Duration>) -> Self {
        Self { timer, length, sleeps: length.map(|length| Sleeps::start(timer, length)), is_expired: false }
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.is_expired
    }

    /// Returns a future that resolves when the lease should be extended. Returns `None` if the source has no lease, or if the lease has
    /// expired.
    pub(crate) fn until_extension(&self) -> Option<impl Future<Output = ()> + Unpin + use<T>> {
        let sleeps = self.sleeps.as_ref().filter(|_| !self.is_expired)?;
        Some(sleeps.extension.clone())
    }

    /// Waits for the broker's response to a call that extends the lease. Stops waiting when the lease expires.
    pub(crate) async fn extend<E>(&mut self, extension: impl Future<Output = Result<(), E>>) {
        let (Some(length), Some(sleeps)) = (self.length, &mut self.sleeps) else { return };
        // The broker starts the new lease later than these timers start, so the timers expire first.
        let extended = Sleeps::start(self.timer, length);
        match select(pin!(extension), &mut sleeps.expiry).await {
            Either::Left((Ok(()), _)) => *sleeps = extended,
            Either::Left((Err(_), _)) => sleeps.extension = sleep(self.timer, length / 10),
            Either::Right(_) => self.is_expired = true,
        }
    }

    /// Waits until the lease expires. If the source has no lease, or if the lease has already expired, waits for `limit`.
    pub(crate) async fn until_expiry(&mut self, limit: Duration) {
        match &mut self.sleeps {
            Some(sleeps) if !self.is_expired => {
                (&mut sleeps.expiry).await;
                self.is_expired = true;
            }
            _ => drop(self.timer.sleep(limit).await),
        }
    }
}
