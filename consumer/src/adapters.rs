//! The sources of this crate. Each uses the public API only.

#[cfg(feature = "azure")]
pub(crate) mod azure;
#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(feature = "rabbitmq")]
pub(crate) mod rabbitmq;
#[cfg(feature = "sqs")]
pub(crate) mod sqs;
