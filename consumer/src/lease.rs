//! Measures a lease with the spawner's timer.

use background_tasks::Timer;
use futures_util::future::{Either, select};
use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;

pub(crate) struct Lease<'t, T: Timer> {
    timer: &'t T,
    /// `None` if the delivery belongs to the consumer as long as its connection exists.
    length: Option<Duration>,
    /// Resolves when the lease expires.
    expiry: Option<Pin<Box<T::Sleep>>>,
    is_expired: bool,
    last_extension_failed: bool,
}

impl<'t, T: Timer> Lease<'t, T> {
    /// Starts a lease.
    pub(crate) fn new(timer: &'t T, length: Option<Duration>) -> Self {
        let expiry = length.map(|length| Box::pin(timer.sleep(length)));
        Self { timer, length, expiry, is_expired: false, last_extension_failed: false }
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.is_expired
    }

    /// Returns a future that resolves when the lease should be extended. Returns `None` if there is nothing to extend.
    ///
    /// The first extension starts after a third of the lease, which leaves time to repeat it if it fails.
    pub(crate) fn until_extension(&self) -> Option<T::Sleep> {
        let length = self.length.filter(|_| !self.is_expired)?;
        Some(self.timer.sleep(length / if self.last_extension_failed { 10 } else { 3 }))
    }

    /// Waits for the broker's response to an extension, at most until the lease expires.
    pub(crate) async fn extend<E>(&mut self, extension: impl Future<Output = Result<(), E>>) {
        let (Some(length), Some(expiry)) = (self.length, &mut self.expiry) else { return };
        // The broker starts the new lease later than this moment, so this timer expires first.
        let extended = self.timer.sleep(length);
        match select(pin!(extension), expiry.as_mut()).await {
            Either::Left((Ok(()), _)) => {
                self.expiry = Some(Box::pin(extended));
                self.last_extension_failed = false;
            }
            Either::Left((Err(_), _)) => self.last_extension_failed = true,
            Either::Right(_) => self.is_expired = true,
        }
    }

    /// Waits until the lease expires. Without a lease, or after it has expired, waits for `limit`.
    pub(crate) async fn until_expiry(&mut self, limit: Duration) {
        match &mut self.expiry {
            Some(expiry) if !self.is_expired => {
                expiry.as_mut().await;
                self.is_expired = true;
            }
            _ => drop(self.timer.sleep(limit).await),
        }
    }
}
