//! Records metrics through the `metrics` facade. This module records nothing if the feature `metrics` is disabled, or if the program has
//! not called `record_metrics`.

#[cfg(feature = "metrics")]
mod recording;

#[cfg(feature = "metrics")]
pub(crate) use self::recording::Metrics;

/// Records nothing, because the feature `metrics` is disabled.
#[cfg(not(feature = "metrics"))]
#[derive(Default)]
pub(crate) struct Metrics(());

#[cfg(not(feature = "metrics"))]
#[allow(clippy::unused_self, reason = "as with the feature")]
impl Metrics {
    pub(crate) fn now(&self) -> Option<std::time::Instant> {
        None
    }

    pub(crate) fn fetched(_: Option<std::time::Instant>) {}

    pub(crate) fn attempt_ended(_: &'static str, _: &'static str, _: std::time::Duration) {}

    pub(crate) fn lease_lost(&self, _: &'static str) {}

    pub(crate) fn recovered(&self, _: u64) {}
}
