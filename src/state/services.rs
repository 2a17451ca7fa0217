//! Lists the services of a registry. Also counts the services, because a registry is idle if only services are in flight.

use super::registry_state::{RegistryState, Service};
use super::token::Token;
use crate::report::{ServiceInfo, TaskInfo, TaskKind};
use alloc::vec::Vec;

impl RegistryState {
    /// Returns the services in flight. The services of this registry come first, in the order of their starts. The services of its
    /// descendants follow.
    ///
    /// This function reads the slots of the services under the lock of the list. Each service removes its entry under this lock
    /// before it leaves the gate. Therefore each listed service still occupies its slot.
    pub(crate) fn services(&'static self) -> Vec<ServiceInfo> {
        let mut services = Vec::<ServiceInfo>::new();
        self.for_each_in_subtree(|state| {
            if let Some(rare) = state.used_rare() {
                let first = services.len();
                rare.services.with(|list| services.extend(list.iter().map(Service::current_info)));
                let parent = if services.len() > first { state.id_in_parent() } else { None };
                for service in &mut services[first..] {
                    service.task.parent = parent;
                }
            }
        });
        services
    }
}

impl Service {
    fn current_info(&self) -> ServiceInfo {
        let Self { target, info, .. } = self;
        let in_slot = target.slot.and_then(|slot| target.owner.slots().info(slot));
        let task = in_slot.map_or(info.task, |task| TaskInfo { name: info.task.name, kind: info.task.kind, ..task });
        ServiceInfo { task, ..info.clone() }
    }
}

/// An entry in the registry's list of services. The destructor of this value removes the entry. It runs while the service is still
/// in flight.
pub(crate) struct ListedService {
    token: Token,
    number: u64,
}

impl ListedService {
    pub(crate) fn new(token: Token, name: Option<&'static str>) -> Self {
        let state = token.state();
        let task = TaskInfo { name, kind: Some(TaskKind::Service), ..token.info() };
        let info = ServiceInfo { task, is_running: true, restarts: 0, last_loss: None };
        let number = state.rare().services.with(|list| {
            let number = list.last().map_or(0, |last| last.number + 1);
            list.push(Service { number, target: token.target(), info });
            number
        });
        if token.gate().begin_service() {
            state.notifier().notify();
        }
        Self { token, number }
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut ServiceInfo)) {
        self.token.state().rare().services.with(|list| {
            if let Some(entry) = list.iter_mut().find(|entry| entry.number == self.number) {
                change(&mut entry.info);
            }
        });
    }
}

impl Drop for ListedService {
    fn drop(&mut self) {
        self.token.state().rare().services.with(|list| list.retain(|entry| entry.number != self.number));
        self.token.gate().end_service();
    }
}
