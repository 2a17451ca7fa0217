use crate::signals;
use background_tasks::Registry;

/// Says whether load balancers may send requests to the process. [`Host::readiness`](crate::Host::readiness) returns this type.
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

    /// Returns false once the process has been asked to stop, which is before the drain if the host has a
    /// [delay](crate::Host::delay), and once the shutdown of the host's first registry has started.
    pub fn is_ready(&self) -> bool {
        signals::requested_at().is_none() && !self.0.is_shutting_down()
    }
}
