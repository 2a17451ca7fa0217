use alloc::string::ToString;
use core::fmt;
use core::panic::Location;
use core::str::FromStr;
use core::time::Duration;

/// What a registry knows of one piece of work: given to observers, and listed by an inspected registry.
///
/// The name and the call site are always known. Id, kind and age are known where the registry is
/// [inspected](crate::RegistryBuilder::inspect).
///
/// Its `Display` is the name and the call site: `welcome-mail at src/main.rs:20:14`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct TaskInfo {
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub(crate) id: Option<TaskId>,
    pub(crate) name: Option<&'static str>,
    #[cfg_attr(feature = "serde", serde(serialize_with = "serialize::text"))]
    pub(crate) location: &'static Location<'static>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub(crate) kind: Option<TaskKind>,
    #[cfg_attr(
        feature = "serde",
        serde(rename = "age_seconds", serialize_with = "serialize::seconds", skip_serializing_if = "Option::is_none")
    )]
    pub(crate) age: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "core::ops::Not::not"))]
    pub(crate) abort_requested: bool,
}

impl TaskInfo {
    /// Returns what is known of every task.
    pub(crate) fn new(location: &'static Location<'static>, name: Option<&'static str>) -> Self {
        Self { id: None, name, location, kind: None, age: None, abort_requested: false }
    }

    /// Returns what the work is called, if it was [named](crate::Registry::named).
    pub fn name(&self) -> Option<&'static str> {
        self.name
    }

    /// Returns where it was started: the call of `run`, `track`, `guard` and so on.
    pub fn location(&self) -> &'static Location<'static> {
        self.location
    }

    /// Returns its id, by which [`Registry::abort_task`](crate::Registry::abort_task) finds it.
    pub fn id(&self) -> Option<TaskId> {
        self.id
    }

    /// Returns how it runs.
    pub fn kind(&self) -> Option<TaskKind> {
        self.kind
    }

    /// Returns how long it has been in flight.
    ///
    /// In the browser, where `std` has no clock, it is known with the feature `wasm-bindgen-futures` alone.
    pub fn age(&self) -> Option<Duration> {
        self.age
    }

    /// Returns whether an abort has been asked of it, which it has not come to yet, or cannot.
    pub fn abort_requested(&self) -> bool {
        self.abort_requested
    }
}

impl fmt::Display for TaskInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name, self.kind) {
            (Some(name), _) => write!(f, "{name} at {}", self.location),
            (None, Some(kind)) => write!(f, "{kind} at {}", self.location),
            (None, None) => write!(f, "task at {}", self.location),
        }
    }
}

/// What is known of a task when it is spawned.
#[derive(Clone, Copy)]
pub(crate) struct SpawnInfo {
    pub(crate) location: &'static Location<'static>,
    pub(crate) name: Option<&'static str>,
    pub(crate) kind: TaskKind,
    /// Whether its loss starts the shutdown.
    pub(crate) critical: bool,
}

/// How a piece of work runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum TaskKind {
    /// A future that the registry's spawner runs.
    Future,
    /// The same, on one thread.
    Local,
    /// A closure on a thread for blocking work.
    Blocking,
    /// A future that somebody else runs; see [`Registry::track`](crate::Registry::track).
    Tracked,
    /// No future; see [`Registry::guard`](crate::Registry::guard).
    Guard,
}

impl TaskKind {
    /// Returns whether such work can be aborted: it has await points, and nobody waits for its output.
    pub fn is_abortable(self) -> bool {
        matches!(self, Self::Future | Self::Local)
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Future => "future",
            Self::Local => "local future",
            Self::Blocking => "blocking closure",
            Self::Tracked => "tracked future",
            Self::Guard => "guard",
        })
    }
}

/// What tells one task of an inspected registry from all others of the program, while it is in flight.
///
/// Its `Display`, `12-7`, can be parsed back, so that it can go through a log line or a URL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// The number of its slot.
    pub(crate) slot: u32,
    /// How many tasks the slot has had.
    pub(crate) generation: u32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.slot, self.generation)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

/// The error of a text that is no [`TaskId`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseTaskIdError(());

impl fmt::Display for ParseTaskIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a task's id is two numbers with a hyphen between them, as in 12-7")
    }
}

impl core::error::Error for ParseTaskIdError {}

impl FromStr for TaskId {
    type Err = ParseTaskIdError;

    fn from_str(text: &str) -> Result<Self, ParseTaskIdError> {
        let number = |text: &str| text.parse().map_err(|_| ParseTaskIdError(()));
        let (slot, generation) = text.split_once('-').ok_or(ParseTaskIdError(()))?;
        let id = Self { slot: number(slot)?, generation: number(generation)? };
        // One text for each: no sign, no zero in front.
        if id.to_string() == text { Ok(id) } else { Err(ParseTaskIdError(())) }
    }
}

#[cfg(feature = "serde")]
mod serialize {
    use core::fmt::Display;
    use core::time::Duration;
    use serde::{Serialize, Serializer};

    pub(super) fn text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// To the microsecond.
    #[expect(clippy::cast_precision_loss, reason = "after 285 million years")]
    #[expect(clippy::ref_option, reason = "serde calls it so")]
    pub(super) fn seconds<S: Serializer>(age: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        let seconds = |age: Duration| age.as_secs() as f64 + f64::from(age.subsec_micros()) / 1e6;
        age.map(seconds).serialize(serializer)
    }

    /// As text: a number of 64 bits would not survive JavaScript.
    impl Serialize for super::TaskId {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }
}
