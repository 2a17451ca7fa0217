use crate::signals;
use background_tasks::Registry;

/// Says whether the process is ready for requests from load balancers. [`Host::readiness`](crate::Host::readiness) returns this type.
///
/// # Examples
///
/// ```
/// # use background_tasks_host::Readiness;
/// use axum::{Router, http::StatusCode, routing::get};
///
/// fn probes(readiness: Readiness) -> Router {
///     let ready = async move || if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
///     Router::new().route("/readyz", get(ready))
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Readiness(Registry<()>);

impl Readiness {
    pub(crate) fn new(registry: Registry<()>) -> Self {
        Self(registry)
    }

    /// Returns true until the process is asked to stop, or until the shutdown of the host's first registry starts. If the host has a
    /// [delay](crate::Host::delay), the result becomes false at the start of the delay, before the drain.
    pub fn is_ready(&self) -> bool {
        signals::requested_at().is_none() && !self.0.is_shutting_down()
    }
}
