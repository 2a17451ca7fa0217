//! Limits the memory that bodies use. The body of a request counts until it is on disk, and the body of a response counts until it is
//! sent.

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of additional bytes in each reservation, for the task, the name and the headers. Without these bytes, the number of empty
/// bodies would be unlimited.
const OVERHEAD: usize = 1 << 10;

/// Counts the memory that bodies use. The count never exceeds a limit.
pub(crate) struct Memory {
    limit: usize,
    used: AtomicUsize,
}

impl Memory {
    /// Creates a counter with a limit in bytes.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    /// Reserves memory for a body of `len` bytes. Returns `None` if the limit would be exceeded.
    pub(crate) fn reserve(self: &Arc<Self>, len: usize) -> Option<Reservation> {
        let bytes = len + OVERHEAD;
        let add = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(Reservation { memory: self.clone(), bytes })
    }
}

/// The reserved memory for one body. Dropping the value releases the memory.
pub(crate) struct Reservation {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Reservation {
    /// Returns a body that keeps its memory reserved until its last clone or part is dropped. The body must not be longer than the
    /// reserved length.
    pub(crate) fn hold(mut self, body: Vec<u8>) -> Bytes {
        let unused = self.bytes - OVERHEAD - body.len();
        self.release(unused);
        Bytes::from_owner(Held { body: body.into_boxed_slice(), _reservation: self })
    }

    fn release(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.memory.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}

struct Held {
    body: Box<[u8]>,
    _reservation: Reservation,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}
