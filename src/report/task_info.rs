use crate::platform::ThreadId;
use alloc::string::{String, ToString};
use core::{fmt, panic::Location, str::FromStr, time::Duration};

/// Describes one task, tracked future, guard, service or child registry. Observers receive this type, and
/// [`Registry::tasks`](crate::Registry::tasks) returns it.
///
/// The call site is always present. The ID, the kind and the age are present only if the registry is
/// [inspected](crate::RegistryBuilder::inspect).
///
/// The `Display` text consists of the name and the call site, for example `welcome-mail at src/main.rs:20:14`. If the task has no
/// name, the text starts with the task's kind, or with `task` if the kind is not present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskInfo {
    pub(crate) id: Option<TaskId>,
    pub(crate) name: Option<&'static str>,
    pub(crate) location: &'static Location<'static>,
    pub(crate) kind: Option<TaskKind>,
    pub(crate) age: Option<Duration>,
    pub(crate) abort_requested: bool,
    pub(crate) is_abortable: bool,
    pub(crate) parent: Option<TaskId>,
}

impl TaskInfo {
    /// Returns a description with only the call site and the name. A registry that is not inspected has no other information.
    pub(crate) fn new(location: &'static Location<'static>, name: Option<&'static str>) -> Self {
        Self { id: None, name, location, kind: None, age: None, abort_requested: false, is_abortable: false, parent: None }
    }

    /// Returns the name of the task. Returns `None` if the task was started without a [name](crate::Registry::named).
    pub fn name(&self) -> Option<&'static str> {
        self.name
    }

    /// Returns the call site: the source location of the call to `run`, `track`, `guard` or a similar method. If a location was
    /// passed to [`TaskBuilder::location`](crate::TaskBuilder::location), this location is returned instead.
    pub fn location(&self) -> &'static Location<'static> {
        self.location
    }

    /// Returns the ID of the task. Pass the ID to [`Registry::abort_task`](crate::Registry::abort_task) to abort the task.
    ///
    /// Returns `None` if the registry is not inspected, or if the task was rejected.
    pub fn id(&self) -> Option<TaskId> {
        self.id
    }

    /// Returns the kind of the task.
    ///
    /// Returns `None` if the registry is not inspected, or if this value comes from a [`JoinError`](crate::JoinError). The kind
    /// is always present in a [`ServiceInfo`].
    pub fn kind(&self) -> Option<TaskKind> {
        self.kind
    }

    /// Returns the ID of the [child registry](crate::Registry::child) that the task belongs to. The lists of tasks of the child's
    /// ancestors contain the child itself with this ID.
    ///
    /// Returns `None` if the task belongs to a registry without a parent. Only values from
    /// [`Registry::tasks`](crate::Registry::tasks), [`Registry::services`](crate::Registry::services) and
    /// [`Stragglers`](crate::Stragglers) contain this ID, and only if the registry is
    /// [inspected](crate::RegistryBuilder::inspect).
    ///
    /// # Examples
    ///
    /// ```
    /// use background_tasks::{Registry, TaskKind};
    ///
    /// let registry = Registry::builder(()).inspect().build();
    /// let tenant = registry.named("tenant").child();
    /// let _guard = tenant.named("import").guard();
    /// let tasks = registry.tasks();
    /// let find = |name| tasks.iter().find(|task| task.name() == Some(name)).unwrap();
    /// assert_eq!(find("tenant").kind(), Some(TaskKind::Child));
    /// assert_eq!(find("import").parent(), find("tenant").id());
    /// ```
    pub fn parent(&self) -> Option<TaskId> {
        self.parent
    }

    /// Returns how long the task has been in flight.
    ///
    /// Returns `None` in these cases: the registry is not inspected, the task was rejected, this value comes from a
    /// [`JoinError`](crate::JoinError), or the program has no clock. A program has a clock if the feature `std` is on. In the
    /// browser, a program also needs the feature `wasm-bindgen-futures`.
    pub fn age(&self) -> Option<Duration> {
        self.age
    }

    /// Returns whether a caller has requested an abort of the task. Returns false if the registry is not inspected.
    ///
    /// After an abort, a future stays in flight until it reaches an await point. An aborted blocking closure that has not started
    /// never starts, but stays in flight until its executor tries to start it or drops it. A task that [cannot be
    /// aborted](Self::is_abortable) stays in flight until it finishes.
    pub fn abort_requested(&self) -> bool {
        self.abort_requested
    }

    /// Returns whether an abort can end the task. After such an abort, still returns true until the task has ended.
    ///
    /// An abort ends a future at its next await point. A blocking closure can be aborted only if it has not started. This method
    /// returns false for guards, for tracked futures, for child registries, and for all tasks of a registry that is not
    /// inspected.
    pub fn is_abortable(&self) -> bool {
        self.is_abortable
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

/// Describes a task to the spawner that starts the task. [`Spawner::spawn_with_info`](crate::Spawner::spawn_with_info) receives
/// this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpawnInfo {
    pub(crate) location: &'static Location<'static>,
    pub(crate) name: Option<&'static str>,
    pub(crate) kind: TaskKind,
    /// Whether the loss of this task starts the shutdown of its registry.
    pub(crate) critical: bool,
    /// Whether the task starts without a permit of the registry's limit.
    pub(crate) without_permit: bool,
    /// If this describes a guard that a panicking thread takes, this field contains the ID of that thread. In all other cases, this
    /// field is `None`.
    pub(crate) panicking_at_start: Option<ThreadId>,
}

impl SpawnInfo {
    /// Creates a description for a future that you pass to a spawner yourself, for example a [tracked](crate::Registry::track)
    /// future.
    pub fn new(name: Option<&'static str>, location: &'static Location<'static>) -> Self {
        Self { location, name, kind: TaskKind::Future, critical: false, without_permit: false, panicking_at_start: None }
    }

    /// Returns the name of the task. Returns `None` if the task was started without a [name](crate::Registry::named).
    pub fn name(&self) -> Option<&'static str> {
        self.name
    }

    /// Returns the call site: the source location of the call that started the task.
    pub fn location(&self) -> &'static Location<'static> {
        self.location
    }
}

/// Describes one service. [`Registry::services`](crate::Registry::services) returns this type.
///
/// The `Display` text contains the service and its state, for example `outbox at src/main.rs:20:14 waits to run again, restarts:
/// 3, last loss: failed: connection refused`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ServiceInfo {
    /// The task of the service, with its name and call site. In an [inspected](crate::RegistryBuilder::inspect) registry, this
    /// value has the same ID as the task in [`Registry::tasks`](crate::Registry::tasks). Its age is the time since the start of the
    /// service.
    pub task: TaskInfo,
    /// Whether a run of the service's work is in progress. If this field is false, the service waits before it runs the work again.
    pub is_running: bool,
    /// The number of times that the work has started again. The first start does not count.
    pub restarts: u64,
    /// The most recent loss of a run, for example `failed: connection refused`. If no run was lost, this field is `None`.
    pub last_loss: Option<String>,
}

impl fmt::Display for ServiceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_running { "runs" } else { "waits to run again" };
        write!(f, "{} {state}, restarts: {}", self.task, self.restarts)?;
        self.last_loss.as_ref().map_or(Ok(()), |loss| write!(f, ", last loss: {loss}"))
    }
}

/// Says how a task runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum TaskKind {
    /// A future that the registry's spawner runs; see [`Registry::run`](crate::Registry::run).
    Future,
    /// A future that stays on the thread that started it; see [`Registry::run_local`](crate::Registry::run_local).
    Local,
    /// A closure on a thread that is allowed to block; see [`Registry::run_blocking`](crate::Registry::run_blocking).
    Blocking,
    /// A future that the caller of [`Registry::track`](crate::Registry::track) polls.
    Tracked,
    /// A guard, which represents work that is not a future; see [`Registry::guard`](crate::Registry::guard).
    Guard,
    /// A task that repeats its work; see [`Registry::service`](crate::Registry::service) and
    /// [`Registry::every`](crate::Registry::every).
    Service,
    /// A child registry that has not drained; see [`Registry::child`](crate::Registry::child).
    Child,
}

impl TaskKind {
    /// Returns whether tasks of this kind can be aborted. Guards, tracked futures and child registries cannot be aborted.
    ///
    /// A blocking closure can be aborted only before it starts; see [`TaskInfo::is_abortable`].
    pub fn is_abortable(self) -> bool {
        matches!(self, Self::Future | Self::Local | Self::Blocking | Self::Service)
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
            Self::Service => "service",
            Self::Child => "child registry",
        })
    }
}

/// Identifies one task in flight. IDs are unique among all inspected registries of the program. An ID consists of the number of
/// the task's slot (table entry) and a counter. The same ID occurs again only after 2³² tasks have used this slot.
///
/// The `Display` text of an ID, for example `12-7`, can be parsed into the same ID. Therefore a program can write an ID to a
/// log line or a URL, and a person or program can later pass this text back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// The number of the slot (table entry) that the task occupies.
    pub(crate) slot: u32,
    /// The number of tasks that have used the slot, modulo 2³².
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

/// Reports that a string cannot be parsed as a [`TaskId`].
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
        // Each ID has exactly one valid text. This check is necessary because `u32::from_str` also accepts a sign and leading
        // zeros.
        if id.to_string() == text { Ok(id) } else { Err(ParseTaskIdError(())) }
    }
}
