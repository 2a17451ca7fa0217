//! Limits the time in which a client sends the body of a request, and the time in which it reads a response.

use background_tasks::ShutdownSignal;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Sleep, Timer, Write};
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

pub(super) type SharedTimer = Arc<dyn Timer + Send + Sync>;

/// A time limit. When the server stops, the limit becomes at most the drain timeout.
pub(super) struct TimeLimit {
    timer: SharedTimer,
    timeout: Duration,
    drain_timeout: Duration,
    /// The signal that is triggered when the server stops. `None` after the limit has read that the signal is triggered.
    signal: Option<ShutdownSignal>,
    deadline: Option<Instant>,
    sleep: Option<Pin<Box<dyn Sleep>>>,
}

impl TimeLimit {
    pub(super) fn new(timer: SharedTimer, timeout: Duration, drain_timeout: Duration, signal: ShutdownSignal) -> Self {
        Self { timer, timeout, drain_timeout, signal: Some(signal), deadline: None, sleep: None }
    }

    fn stop(&mut self) {
        self.deadline = None;
        self.sleep = None;
    }

    /// Returns the deadline. The first call starts the time. After `stop`, the next call starts the time from zero.
    fn deadline(&mut self) -> Instant {
        if self.signal.take_if(|signal| signal.is_triggered()).is_some() {
            self.timeout = self.timeout.min(self.drain_timeout);
            self.deadline = self.deadline.map(|deadline| deadline.min(self.timer.now() + self.timeout));
            self.sleep = None;
        }
        *self.deadline.get_or_insert_with(|| self.timer.now() + self.timeout)
    }

    /// Returns whether the time has expired. Starts the time as `poll_expired` does.
    fn is_expired(&mut self) -> bool {
        self.deadline() <= self.timer.now()
    }

    /// Returns `Ready` when the time has expired.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // The signal wakes the task. `deadline` then reads whether the signal is triggered.
        if let Some(signal) = &mut self.signal {
            let _ = Pin::new(signal).poll(cx);
        }
        let deadline = self.deadline();
        self.sleep.get_or_insert_with(|| self.timer.sleep_until(deadline)).as_mut().poll(cx)
    }
}

/// The body of a request to an [`HttpServer`](crate::HttpServer). The whole body must arrive within a time limit.
///
/// The limit is the server's [`body_timeout`](crate::HttpServer::body_timeout), and during a shutdown also its
/// [`drain_timeout`](crate::HttpServer::drain_timeout). If the rest of the body arrives too late, the next frame is an error of the kind
/// [`TimedOut`](io::ErrorKind::TimedOut). All other errors come from hyper, for example because the client has disconnected.
pub struct TimedBody {
    body: Incoming,
    limit: TimeLimit,
    timed_out: Arc<AtomicBool>,
    has_failed: Arc<AtomicBool>,
}

impl TimedBody {
    /// Returns a body that sets the flag `timed_out` when the time has expired, and the flag `has_failed` when it returns any error.
    pub(super) fn new(body: Incoming, limit: TimeLimit, timed_out: Arc<AtomicBool>, has_failed: Arc<AtomicBool>) -> Self {
        Self { body, limit, timed_out, has_failed }
    }
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if this.timed_out.load(Ordering::Relaxed) {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.body).poll_frame(cx) {
            // If the service awaits something else between two frames, the next frame is always ready. Without this check, the limit would
            // then never apply. A body that has arrived completely needs no timer.
            Poll::Ready(Some(Ok(frame))) if !frame.is_trailers() && !this.body.is_end_stream() && this.limit.is_expired() => {}
            Poll::Ready(frame) => {
                let failed = |error| {
                    this.has_failed.store(true, Ordering::Relaxed);
                    io::Error::other(error)
                };
                return Poll::Ready(frame.map(|frame| frame.map_err(failed)));
            }
            Poll::Pending => ready!(this.limit.poll_expired(cx)),
        }
        this.has_failed.store(true, Ordering::Relaxed);
        this.timed_out.store(true, Ordering::Relaxed);
        let error = io::Error::new(io::ErrorKind::TimedOut, "the body of the request did not arrive in time");
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Debug for TimedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimedBody").field("body", &self.body).finish_non_exhaustive()
    }
}

/// A connection whose writes fail if the client reads nothing for too long.
pub(super) struct TimedIo<I, P> {
    io: I,
    limit: TimeLimit,
    /// The permit of the connection. The permit is dropped after `io`, which closes the connection.
    _permit: P,
}

impl<I: Unpin, P: Unpin> TimedIo<I, P> {
    /// Wraps a connection. `permit` is dropped after the connection has closed.
    pub(super) fn new(io: I, limit: TimeLimit, permit: P) -> Self {
        Self { io, limit, _permit: permit }
    }

    fn poll_write_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut I>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let polled = poll(Pin::new(&mut self.io), cx);
        if polled.is_ready() {
            self.limit.stop();
            return polled;
        }
        ready!(self.limit.poll_expired(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read the response")))
    }
}

impl<I: Read + Unpin, P: Unpin> Read for TimedIo<I, P> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<I: Write + Unpin, P: Unpin> Write for TimedIo<I, P> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |io, cx| io.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_with(cx, Write::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_with(cx, Write::poll_shutdown)
    }
}
