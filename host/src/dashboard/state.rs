//! Creates the JSON from which the page shows the state of the registries.
//!
//! Only the page of the same release reads this JSON, so its fields can change in every release.

use super::PAGE_ID;
use crate::phases::Phases;
use crate::readiness::Readiness;
use crate::status::HostStatus;
use crate::sync::lock;
use background_tasks::{AbortError, Registry, ServiceInfo, Summary, TaskId, TaskInfo, TaskKind};
use bytes::Bytes;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// One event lists at most these numbers of tasks, groups (child registries) and services.
const MAX_TASKS: usize = 200;
const MAX_GROUPS: usize = 50;
const MAX_SERVICES: usize = 100;
/// The largest length of the message about a service's last loss, in characters.
const MAX_LOSS: usize = 300;
/// If an event was made from at least this many tasks, it is expensive. All open pages share an expensive event for a short time.
const MANY_TASKS: usize = 1000;
/// Pages share an expensive event for this many times as long as it took to make the event. So even many open pages together use only a
/// small part of one thread.
const AGE_FACTOR: u32 = 20;
/// The longest time for which pages share an event. This time is shorter than the time between two events of a page, so no page receives
/// the same event twice.
const MAX_AGE: Duration = Duration::from_millis(250);
const MAX_AGE_IN_DRAIN: Duration = Duration::from_millis(50);

/// An event of the stream that the page reads.
#[derive(Clone)]
pub(super) struct Event {
    pub(super) data: Bytes,
    /// Whether the stream ends after this event.
    pub(super) is_last: bool,
    /// Whether a registry is shutting down, or the process was asked to stop.
    pub(super) has_drain: bool,
    /// The time that it took to make the event.
    pub(super) cost: Duration,
}

/// The registries and settings of a dashboard. All streams of the dashboard share this value.
pub(super) struct Source {
    /// The registry that counts the requests of the page as in flight.
    pub(super) registry: Registry<()>,
    pub(super) serving: Vec<&'static str>,
    pub(super) host: Option<HostSource>,
    shared: Mutex<Option<SharedEvent>>,
}

/// A clone shares no events with the value from which it was cloned, because the two can have different settings.
impl Clone for Source {
    fn clone(&self) -> Self {
        let Self { registry, serving, host, .. } = self;
        Self { registry: registry.clone(), serving: serving.clone(), host: host.clone(), shared: Mutex::default() }
    }
}

#[derive(Clone)]
pub(super) struct HostSource {
    pub(super) status: Arc<HostStatus>,
    pub(super) names: &'static [&'static str],
}

struct SharedEvent {
    event: Event,
    draining: bool,
    expires: Instant,
}

impl Source {
    pub(super) fn new(registry: Registry<()>, serving: Vec<&'static str>) -> Self {
        Self { registry, serving, host: None, shared: Mutex::default() }
    }

    /// Returns an event with the current state. `draining` says whether `registry` drains. If it drains and all of its tasks only serve
    /// requests, this event is the last event of the stream.
    pub(super) fn event(&self, draining: bool) -> Event {
        // The lock is held while the event is made. Meanwhile, other streams wait for the lock, and then share the event.
        let mut shared = lock(&self.shared);
        let started = Instant::now();
        if let Some(shared) = shared.as_ref().filter(|shared| shared.draining == draining && started < shared.expires) {
            return shared.event.clone();
        }
        let (event, listed) = self.make_event(draining, started);
        let max_age = if event.has_drain { MAX_AGE_IN_DRAIN } else { MAX_AGE };
        let expires = Instant::now() + (event.cost * AGE_FACTOR).min(max_age);
        *shared = (listed >= MANY_TASKS).then(|| SharedEvent { event: event.clone(), draining, expires });
        event
    }

    /// Makes an event. Also returns the number of tasks from which the event was made.
    fn make_event(&self, draining: bool, started: Instant) -> (Event, usize) {
        let phases = self.host.as_ref().map(|host| host.status.phases());
        let registries = phases.as_ref().map_or(std::slice::from_ref(&self.registry), Phases::registries);
        let mut lists = Lists::default();
        let add = |(index, registry)| lists.add(registry, phases.is_some().then_some(index));
        let in_flight: Vec<_> = registries.iter().enumerate().map(add).collect();
        let listed = lists.len;
        let is_serving = |name: &str| self.serving.contains(&name);
        let only_serves = || match &self.host {
            None => lists.names.keys().all(|name| is_serving(name)),
            Some(_) => self.registry.tasks().iter().all(|task| is_child(task) || is_serving(task.name().unwrap_or_default())),
        };
        let is_last = draining && only_serves();
        let host = self.host.as_ref().zip(phases.as_ref()).map(|(host, phases)| HostState::new(host, phases, &in_flight));
        let shutting_down = draining || host.as_ref().is_some_and(HostState::is_shutting_down);
        let state = State {
            page: &PAGE_ID,
            in_flight: in_flight.iter().sum(),
            summary: phases.as_ref().map_or_else(|| self.registry.summary(), Phases::summary),
            shutting_down,
            drained: registries.iter().all(Registry::is_drained),
            last: is_last,
            inspected: registries.iter().all(Registry::is_inspected),
            lists: lists.limit(),
            host,
        };
        let has_drain = shutting_down || state.host.as_ref().is_some_and(|host| host.stop.is_some());
        let state = serde_json::to_string(&state).expect("the state can be represented in JSON");
        // The data of an event must be one line. JSON escapes line breaks.
        let data = format!("data: {state}\n\n").into();
        (Event { data, is_last, has_drain, cost: started.elapsed() }, listed)
    }

    /// Aborts the task with this ID. The task can be in any of the registries.
    pub(super) fn abort(&self, id: TaskId) -> Result<(), AbortError> {
        let phases = self.host.as_ref().map(|host| host.status.phases());
        let registries = phases.as_ref().map_or(std::slice::from_ref(&self.registry), Phases::registries);
        let aborts = registries.iter().map(|registry| registry.abort_task(id));
        aborts.reduce(|one, other| if one == Err(AbortError::NotInFlight) { other } else { one }).expect("a host has a registry")
    }
}

#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field of the JSON")]
struct State {
    /// The ID of the page that can read this JSON.
    page: &'static str,
    /// The number of tasks in flight, including the tasks of child registries.
    in_flight: usize,
    summary: Summary,
    shutting_down: bool,
    drained: bool,
    /// Whether this is the last event of the stream.
    last: bool,
    /// Whether all registries list their tasks.
    inspected: bool,
    #[serde(flatten)]
    lists: Lists,
    /// This field is in the JSON only if the dashboard shows a host.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<HostState>,
}

#[derive(Default, Serialize)]
struct Lists {
    /// The number of tasks in flight for each name.
    names: BTreeMap<&'static str, usize>,
    /// The tasks, oldest first, without child registries.
    tasks: Vec<InPhase<TaskInfo>>,
    /// The number of tasks in flight that are not in `tasks`, because there are too many.
    more: usize,
    /// The child registries. If there are too many child registries, the list contains only the registries with the most tasks.
    groups: Vec<InPhase<Group>>,
    more_groups: usize,
    /// The services, in the order in which they started. If there are too many services, services that do not run come first, and then
    /// services with a loss. So these services are not cut off.
    services: Vec<InPhase<ServiceInfo>>,
    more_services: usize,
    /// The number of tasks and child registries that were read for the lists.
    #[serde(skip)]
    len: usize,
}

#[derive(Serialize)]
struct InPhase<T> {
    #[serde(flatten)]
    item: T,
    /// The index of the item's phase. This field is in the JSON only if the dashboard shows a host.
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<usize>,
}

/// A child registry.
#[derive(Serialize)]
struct Group {
    task: TaskInfo,
    /// The number of tasks and child registries directly in this child registry. The tasks of the inner child registries are not included.
    in_flight: usize,
}

impl Lists {
    /// Adds the tasks, groups and services of a registry. Returns the number of the registry's tasks in flight.
    fn add(&mut self, registry: &Registry<()>, phase: Option<usize>) -> usize {
        let tasks = registry.tasks();
        self.len += tasks.len();
        let mut in_groups = HashMap::<_, usize>::new();
        for parent in tasks.iter().filter_map(TaskInfo::parent) {
            *in_groups.entry(parent).or_default() += 1;
        }
        let (children, tasks): (Vec<_>, Vec<_>) = tasks.into_iter().partition(is_child);
        for task in &tasks {
            *self.names.entry(task.name().unwrap_or_default()).or_default() += 1;
        }
        let in_flight = |task: &TaskInfo| task.id().and_then(|id| in_groups.get(&id)).copied().unwrap_or_default();
        self.groups.extend(children.into_iter().map(|task| InPhase { item: Group { in_flight: in_flight(&task), task }, phase }));
        // If the registry is not inspected, it cannot list its tasks. Its number of tasks in flight then counts each child registry as one
        // task.
        let count = if registry.is_inspected() { tasks.len() } else { registry.in_flight() };
        self.more += tasks.len().saturating_sub(MAX_TASKS);
        self.tasks.extend(tasks.into_iter().take(MAX_TASKS).map(|item| InPhase { item, phase }));
        self.services.extend(registry.services().into_iter().map(|item| InPhase { item, phase }));
        count
    }

    /// Removes the items that would make the event too long.
    fn limit(mut self) -> Self {
        self.tasks.sort_by_key(|task| Reverse(task.item.age()));
        self.more += truncate(&mut self.tasks, MAX_TASKS);
        if self.groups.len() > MAX_GROUPS {
            self.groups.sort_by_key(|group| Reverse(group.item.in_flight));
        }
        self.more_groups = truncate(&mut self.groups, MAX_GROUPS);
        if self.services.len() > MAX_SERVICES {
            self.services.sort_by_key(|service| (service.item.is_running, service.item.last_loss.is_none()));
        }
        self.more_services = truncate(&mut self.services, MAX_SERVICES);
        for loss in self.services.iter_mut().filter_map(|service| service.item.last_loss.as_mut()) {
            if let Some((end, _)) = loss.char_indices().nth(MAX_LOSS) {
                loss.replace_range(end.., " …");
            }
        }
        self
    }
}

fn is_child(task: &TaskInfo) -> bool {
    task.kind() == Some(TaskKind::Child)
}

/// Shortens a list, and returns how many items were removed.
fn truncate<T>(list: &mut Vec<T>, len: usize) -> usize {
    let removed = list.len().saturating_sub(len);
    list.truncate(len);
    removed
}

/// The state of a host. All times are in seconds.
#[derive(Serialize)]
struct HostState {
    is_ready: bool,
    phases: Vec<PhaseState>,
    /// The times of the shutdown. `null` until the process is asked to stop or shutdown starts.
    stop: Option<StopState>,
    /// The tasks that have reported no progress for longer than their timeouts.
    late: Vec<LateTask>,
}

#[derive(Serialize)]
struct PhaseState {
    /// The name of the phase. `null` if the program has given the phase no name.
    name: Option<&'static str>,
    state: &'static str,
    in_flight: usize,
    reserve: f64,
    /// The host shuts this phase down after at most this time. `null` before the drain starts, if the grace period has no end, or if the
    /// phase is already shut down.
    shutdown_within: Option<f64>,
}

#[derive(Serialize)]
struct StopState {
    elapsed: f64,
    /// The rest of the grace period. `null` if the grace period has no end.
    remaining: Option<f64>,
    /// The rest of the delay before the drain starts.
    delay: Option<f64>,
}

#[derive(Serialize)]
struct LateTask {
    name: &'static str,
    timeout: f64,
}

impl HostState {
    fn new(host: &HostSource, phases: &Phases, in_flight: &[usize]) -> Self {
        let stop = host.status.stop();
        let remaining = stop.deadline.filter(|deadline| !deadline.is_infinite()).map(|deadline| deadline.remaining());
        let is_draining = phases.first().is_shutting_down();
        let delay = stop.delay_end.filter(|_| !is_draining).map(|end| end.saturating_duration_since(Instant::now()));
        let phase = |(index, registry): (usize, &Registry<()>)| {
            let state = match (registry.is_shutting_down(), registry.is_drained()) {
                (_, true) => "drained",
                (true, _) => "draining",
                _ => "open",
            };
            let within = remaining.filter(|_| state == "open" && delay.is_none());
            PhaseState {
                name: host.names.get(index).copied(),
                state,
                in_flight: in_flight[index],
                reserve: phases.reserve(index).as_secs_f64(),
                shutdown_within: within.map(|left| left.saturating_sub(phases.reserved_after(index)).as_secs_f64()),
            }
        };
        Self {
            is_ready: Readiness::new(phases.first().clone()).is_ready(),
            phases: phases.registries().iter().enumerate().map(phase).collect(),
            stop: stop.deadline.map(|deadline| StopState {
                elapsed: deadline.elapsed().as_secs_f64(),
                remaining: remaining.map(|remaining| remaining.as_secs_f64()),
                delay: delay.map(|delay| delay.as_secs_f64()),
            }),
            late: host
                .status
                .late_tasks()
                .iter()
                .map(|late| LateTask { name: late.name(), timeout: late.timeout().as_secs_f64() })
                .collect(),
        }
    }

    fn is_shutting_down(&self) -> bool {
        self.phases.iter().any(|phase| phase.state != "open")
    }
}
