//! Measures a lease with the spawner's timer.

use background_tasks::Timer;
use futures_util::FutureExt;
use futures_util::future::{Either, Map, Shared, select};
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

/// A sleep that the clones of a lease share.
type Sleep<T> = Shared<Map<<T as Timer>::Sleep, fn(<<T as Timer>::Sleep as Future>::Output)>>;

/// A lease. Its clones are the leases of the messages of one `receive`.
#[derive(Clone)]
pub(crate) struct Lease<'t, T: Timer> {
    timer: &'t T,
    /// `None` if the delivery belongs to the consumer as long as its connection exists.
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
    /// Starts a lease.
    ///
    /// The first extension starts after a third of the lease, which leaves time to repeat it if it fails.
    fn start(timer: &T, length: Duration) -> Self {
        Self { extension: sleep(timer, length / 3), expiry: sleep(timer, length) }
    }
}

impl<'t, T: Timer> Lease<'t, T> {
    /// Starts a lease. The broker starts it during the call of `receive`, so create it before this call: this timer expires first.
    pub(crate) fn new(timer: &'t T, length: Option<Duration>) -> Self {
        Self { timer, length, sleeps: length.map(|length| Sleeps::start(timer, length)), is_expired: false }
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.is_expired
    }

    /// Returns a future that resolves when the lease should be extended. Returns `None` if there is nothing to extend.
    pub(crate) fn until_extension(&self) -> Option<impl Future<Output = ()> + Unpin + use<T>> {
        let sleeps = self.sleeps.as_ref().filter(|_| !self.is_expired)?;
        Some(sleeps.extension.clone())
    }

    /// Waits for the broker's response to an extension, at most until the lease expires.
    pub(crate) async fn extend<E>(&mut self, extension: impl Future<Output = Result<(), E>>) {
        let (Some(length), Some(sleeps)) = (self.length, &mut self.sleeps) else { return };
        // The broker starts the new lease later than this moment, so this timer expires first.
        let extended = Sleeps::start(self.timer, length);
        match select(pin!(extension), &mut sleeps.expiry).await {
            Either::Left((Ok(()), _)) => *sleeps = extended,
            Either::Left((Err(_), _)) => sleeps.extension = sleep(self.timer, length / 10),
            Either::Right(_) => self.is_expired = true,
        }
    }

    /// Waits until the lease expires. Without a lease, or after it has expired, waits for `limit`.
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
