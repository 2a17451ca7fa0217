//! The bodies of the dashboard's responses: a text, or a stream of events.

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

/// The time between two events.
const INTERVAL: Duration = Duration::from_millis(500);
/// The time between two events during a drain. A stream delays a drain by at most this long.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);
/// The largest number of tasks that an event lists.
const MAX_TASKS: usize = 200;

/// The body of a response of a [`Dashboard`](crate::Dashboard).
///
/// A stream of events has no length, and ends before a drain would have to wait for it.
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

/// A stream of events, each with the current state of a registry.
pub(super) struct Events {
    registry: Registry<()>,
    serving: Vec<&'static str>,
    signal: ShutdownSignal,
    draining: bool,
    /// Fires at the next event.
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
        self.timer.set_after(if self.draining { DRAIN_INTERVAL } else { INTERVAL });
        Poll::Ready(Some(self.next_event()))
    }

    /// Returns an event with the current state. During a drain, it is the last event if no other tasks than serving ones are listed.
    fn next_event(&mut self) -> Bytes {
        let mut tasks = self.registry.tasks();
        let mut names = BTreeMap::<_, usize>::new();
        for task in &tasks {
            *names.entry(task.name().unwrap_or_default()).or_default() += 1;
        }
        self.ended = self.draining && names.keys().all(|name| self.serving.contains(name));
        let in_flight = self.registry.in_flight().max(tasks.len());
        let more = tasks.len().saturating_sub(MAX_TASKS);
        tasks.truncate(MAX_TASKS);
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
        let state = serde_json::to_string(&state).expect("the state can be represented in JSON");
        // An event's data is one line: JSON escapes line breaks.
        format!("data: {state}\n\n").into()
    }
}

#[derive(Serialize)]
struct State {
    in_flight: usize,
    summary: Summary,
    shutting_down: bool,
    drained: bool,
    /// Whether this is the last event of the stream.
    last: bool,
    /// The number of tasks in flight by name.
    names: BTreeMap<&'static str, usize>,
    /// Oldest first.
    tasks: Vec<TaskInfo>,
    /// How many tasks are not listed.
    more: usize,
}
