//! The bodies of the dashboard's responses. A body is either a complete text or a stream of events.

use super::state::Source;
use async_io::Timer;
use background_tasks::ShutdownSignal;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// The shortest time between two events.
const INTERVAL: Duration = Duration::from_millis(500);
/// The longest time between two events. The page waits longer than this time for an event before it treats the connection as lost.
const MAX_INTERVAL: Duration = Duration::from_secs(2);
/// The shortest time between two events during a drain. The end of the stream is an event, so a stream can delay the drain for this time.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_DRAIN_INTERVAL: Duration = Duration::from_millis(250);
/// After an event, the stream waits this many times as long as it took to make the event, within the limits above.
const IDLE_FACTOR: u32 = 20;

/// The body of a response from a [`Dashboard`](crate::Dashboard).
///
/// A stream of events does not announce its length. During a drain, the stream ends when only tasks that [serve
/// requests](crate::Dashboard::serving) are still in flight.
pub struct DashboardBody(Content);

enum Content {
    Whole(Bytes),
    Events(Box<Events>),
}

impl DashboardBody {
    pub(super) fn whole(text: impl Into<Bytes>) -> Self {
        Self(Content::Whole(text.into()))
    }

    pub(super) fn events(events: Events) -> Self {
        Self(Content::Events(Box::new(events)))
    }
}

impl Body for DashboardBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match &mut self.0 {
            Content::Whole(text) => Some(std::mem::take(text)).filter(|text| !text.is_empty()),
            Content::Events(events) => ready!(events.poll_next(cx)),
        };
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Content::Whole(text) => text.is_empty(),
            Content::Events(events) => events.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Whole(text) => SizeHint::with_exact(text.len() as u64),
            Content::Events(_) => SizeHint::default(),
        }
    }
}

impl fmt::Debug for DashboardBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DashboardBody").field("is_end_stream", &self.is_end_stream()).finish_non_exhaustive()
    }
}

/// A stream of events. Each event contains the current state of a registry.
pub(super) struct Events {
    source: Arc<Source>,
    signal: ShutdownSignal,
    draining: bool,
    /// A timer that fires when the next event is due.
    timer: Timer,
    ended: bool,
}

impl Events {
    pub(super) fn new(source: Arc<Source>) -> Self {
        let signal = source.registry.signal();
        Self { source, signal, draining: false, timer: Timer::after(Duration::ZERO), ended: false }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if !self.draining && Pin::new(&mut self.signal).poll(cx).is_ready() {
            self.draining = true;
            self.timer.set_after(Duration::ZERO);
        }
        ready!(Pin::new(&mut self.timer).poll(cx));
        let event = self.source.event(self.draining);
        let (min, max) = if event.has_drain { (DRAIN_INTERVAL, MAX_DRAIN_INTERVAL) } else { (INTERVAL, MAX_INTERVAL) };
        self.timer.set_after((event.cost * IDLE_FACTOR).clamp(min, max));
        self.ended = event.is_last;
        Poll::Ready(Some(event.data))
    }
}
