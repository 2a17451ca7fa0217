//! Contains the sources for brokers. Each source uses only the public API of this crate.

#[cfg(any(feature = "azure", feature = "sqs"))]
use std::time::Duration;

#[cfg(feature = "azure")]
pub(crate) mod azure;
#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(feature = "rabbitmq")]
pub(crate) mod rabbitmq;
#[cfg(feature = "sqs")]
pub(crate) mod sqs;

/// Returns the duration in seconds, rounded up, and at most `max`.
#[cfg(any(feature = "azure", feature = "sqs"))]
fn whole_seconds(duration: Duration, max: Duration) -> u32 {
    let duration = duration.min(max);
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Rounds a lease up to whole seconds. Returns at least 3 seconds and at most `max`.
#[cfg(any(feature = "azure", feature = "sqs"))]
fn whole_lease(lease: Duration, max: Duration) -> Duration {
    Duration::from_secs(whole_seconds(lease.max(Duration::from_secs(3)), max).into())
}
