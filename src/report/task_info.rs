use alloc::string::ToString;
use core::{fmt, panic::Location, str::FromStr, time::Duration};

/// Describes one task, tracked future or guard: passed to observers, and listed by an inspected registry.
///
/// Name and call site are always present. ID, kind and age are present if the registry is [inspected](crate::RegistryBuilder::inspect).
///
/// The `Display` text is the name (or the kind) and the call site: `welcome-mail at src/main.rs:20:14`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskInfo {
    pub(crate) id: Option<TaskId>,
    pub(crate) name: Option<&'static str>,
    pub(crate) location: &'static Location<'static>,
    pub(crate) kind: Option<TaskKind>,
    pub(crate) age: Option<Duration>,
    pub(crate) abort_requested: bool,
}

impl TaskInfo {
    /// Describes a task of a registry that is not inspected.
    pub(crate) fn new(location: &'static Location<'static>, name: Option<&'static str>) -> Self {
        Self { id: None, name, location, kind: None, age: None, abort_requested: false }
    }

    /// Returns the name, if the task was [named](crate::Registry::named).
    pub fn name(&self) -> Option<&'static str> {
        self.name
    }

    /// Returns the call site that started the task: the call of `run`, `track`, `guard` and so on.
    pub fn location(&self) -> &'static Location<'static> {
        self.location
    }

    /// Returns the ID, which [`Registry::abort_task`](crate::Registry::abort_task) takes.
    ///
    /// `None` if the registry is not inspected, or if the task was rejected.
    pub fn id(&self) -> Option<TaskId> {
        self.id
    }

    /// Returns the kind of the task.
    ///
    /// `None` if the registry is not inspected.
    pub fn kind(&self) -> Option<TaskKind> {
        self.kind
    }

    /// Returns how long the task has been in flight.
    ///
    /// `None` if the registry is not inspected, if the task was rejected, or where no clock exists: without `std`, and in the browser
    /// without the feature `wasm-bindgen-futures`.
    pub fn age(&self) -> Option<Duration> {
        self.age
    }

    /// Returns whether an abort was requested while the task is still in flight.
    ///
    /// Such a task has not reached an await point since, or its [kind](Self::kind) cannot be aborted.
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

/// Says how a task runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum TaskKind {
    /// A future on the registry's spawner; see [`Registry::run`](crate::Registry::run).
    Future,
    /// A future that stays on one thread; see [`Registry::run_local`](crate::Registry::run_local).
    Local,
    /// A closure on a thread that may block; see [`Registry::run_blocking`](crate::Registry::run_blocking).
    Blocking,
    /// A future that its owner polls; see [`Registry::track`](crate::Registry::track).
    Tracked,
    /// A guard without a future; see [`Registry::guard`](crate::Registry::guard).
    Guard,
}

impl TaskKind {
    /// Returns whether tasks of this kind can be aborted: `true` for `Future` and `Local`.
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

/// Identifies one task in flight among all tasks of the program's inspected registries.
///
/// The `Display` text, for example `12-7`, can be parsed again, so an ID can be part of a log line or a URL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// The number of the task's slot.
    pub(crate) slot: u32,
    /// Counts the tasks that have used the slot.
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

/// Reports that a text is not a [`TaskId`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseTaskIdError(());

impl fmt::Display for ParseTaskIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid task ID: expected two numbers joined by a hyphen, as in 12-7")
    }
}

impl core::error::Error for ParseTaskIdError {}

impl FromStr for TaskId {
    type Err = ParseTaskIdError;

    fn from_str(text: &str) -> Result<Self, ParseTaskIdError> {
        let number = |text: &str| text.parse().map_err(|_| ParseTaskIdError(()));
        let (slot, generation) = text.split_once('-').ok_or(ParseTaskIdError(()))?;
        let id = Self { slot: number(slot)?, generation: number(generation)? };
        // Each ID has one text: `u32::from_str` also accepts a sign and leading zeros.
        if id.to_string() == text { Ok(id) } else { Err(ParseTaskIdError(())) }
    }
}
