//! What the page's responses carry: a text, or events as they come.

use async_io::Timer;
use background_tasks::{Registry, ShutdownSignal, Summary, TaskInfo};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

const PERIOD: Duration = Duration::from_millis(500);
/// The most that a drain waits for a stream; and a drain is worth seeing closely.
const PERIOD_OF_A_DRAIN: Duration = Duration::from_millis(100);
/// So many tasks are told one by one.
const MOST: usize = 200;

/// The body of a [`Page`](crate::Page)'s response.
///
/// A stream of events has no length, and ends when the drain is about to wait for it.
pub struct PageBody(Content);

enum Content {
    Whole(Bytes),
    Events(Box<Events>),
}

impl PageBody {
    pub(super) fn whole(text: impl Into<Bytes>) -> Self {
        Self(Content::Whole(text.into()))
    }

    pub(super) fn events(events: Events) -> Self {
        Self(Content::Events(Box::new(events)))
    }
}

impl Body for PageBody {
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

impl fmt::Debug for PageBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageBody").field("is_end_stream", &self.is_end_stream()).finish_non_exhaustive()
    }
}

/// The state of a registry, told over and over.
pub(super) struct Events {
    registry: Registry<()>,
    serving: Vec<&'static str>,
    signal: ShutdownSignal,
    draining: bool,
    /// Of the next event.
    timer: Timer,
    ended: bool,
}

impl Events {
    pub(super) fn new(registry: Registry<()>, serving: Vec<&'static str>) -> Self {
        let signal = registry.signal();
        Self { registry, serving, signal, draining: false, timer: Timer::after(Duration::ZERO), ended: false }
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
        self.timer.set_after(if self.draining { PERIOD_OF_A_DRAIN } else { PERIOD });
        Poll::Ready(Some(self.tell()))
    }

    /// Tells how it stands. The stream ends with this if nothing is left but what serves (or what cannot be told apart).
    fn tell(&mut self) -> Bytes {
        let mut tasks = self.registry.tasks();
        let mut names = BTreeMap::<_, usize>::new();
        for task in &tasks {
            *names.entry(task.name().unwrap_or_default()).or_default() += 1;
        }
        self.ended = self.draining && names.keys().all(|name| self.serving.contains(name));
        let in_flight = self.registry.in_flight().max(tasks.len());
        let more = tasks.len().saturating_sub(MOST);
        tasks.truncate(MOST);
        let state = State {
            in_flight,
            summary: self.registry.summary(),
            shutting_down: self.draining,
            drained: self.registry.is_drained(),
            last: self.ended,
            names,
            tasks,
            more,
        };
        let state = serde_json::to_string(&state).expect("JSON has all that a task has");
        // One line: JSON escapes those in a text.
        format!("data: {state}\n\n").into()
    }
}

#[derive(Serialize)]
struct State {
    in_flight: usize,
    summary: Summary,
    shutting_down: bool,
    drained: bool,
    /// Whether the stream ends with this.
    last: bool,
    /// How many there are of each.
    names: BTreeMap<&'static str, usize>,
    /// Oldest first.
    tasks: Vec<TaskInfo>,
    more: usize,
}
