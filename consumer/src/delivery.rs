#[cfg(feature = "json")]
use crate::failure::Failure;
use std::fmt;
use std::sync::Arc;

/// The message that a handler receives, with its ID, payload, headers and attempt number. Clones share the payload.
#[derive(Clone)]
pub struct Delivery(Arc<Parts>);

#[derive(Clone)]
struct Parts {
    id: String,
    payload: Vec<u8>,
    attempt: u32,
    headers: Vec<(String, String)>,
}

impl Delivery {
    /// Creates a delivery, for a source or for the test of a handler. The delivery has no ID and no headers, and its attempt number is 1.
    pub fn new(payload: impl Into<Vec<u8>>) -> Self {
        Self(Arc::new(Parts { id: String::new(), payload: payload.into(), attempt: 1, headers: Vec::new() }))
    }

    /// Sets the ID. Default: empty.
    #[must_use]
    pub fn with_id(self, id: impl Into<String>) -> Self {
        self.change(|parts| parts.id = id.into())
    }

    /// Sets the number of the attempt. Default: 1. Minimum: 1.
    #[must_use]
    pub fn with_attempt(self, attempt: u32) -> Self {
        self.change(|parts| parts.attempt = attempt.max(1))
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.change(|parts| parts.headers.push((name.into(), value.into())))
    }

    fn change(mut self, change: impl FnOnce(&mut Parts)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Returns the ID of the message, which is the same at every attempt. Use it as an idempotency key.
    ///
    /// RabbitMQ assigns no ID. With RabbitMQ, the ID is the property `message_id`, which the sender must set. Otherwise the ID is empty.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Returns the bytes of the message.
    pub fn payload(&self) -> &[u8] {
        &self.0.payload
    }

    /// Returns the number of this attempt. The first attempt is 1. The source calculates the number from the broker's count of deliveries.
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// Returns the headers with text values, as pairs of name and value. A header with several values appears once for each value.
    ///
    /// If the sender uses OpenTelemetry, the headers `traceparent` and `tracestate` contain the context of its trace: see
    /// [`recipes`](crate::recipes#tracing).
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.headers.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Returns the value of the first header with this name. Ignores the case of ASCII letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().find_map(|(other, value)| other.eq_ignore_ascii_case(name).then_some(value))
    }

    /// Parses the payload as JSON.
    ///
    /// # Errors
    ///
    /// Returns a [`Failure::dead`] if the payload is not valid JSON for `T`, because another attempt would fail too.
    #[cfg(feature = "json")]
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(self.payload()).map_err(|error| Failure::dead(format_args!("invalid payload: {error}")))
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The output omits the payload and the values of the headers, because they may be confidential.
        let headers: Vec<_> = self.headers().map(|(name, _)| name).collect();
        f.debug_struct("Delivery")
            .field("id", &self.0.id)
            .field("attempt", &self.0.attempt)
            .field("bytes", &self.0.payload.len())
            .field("headers", &headers)
            .finish()
    }
}
