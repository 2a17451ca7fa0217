//! Implements the state of a registry. All handles, tasks, signals and waiters of the registry share this state.

mod admission;
mod drain;
mod family;
mod handle;
mod inspection;
mod lifetime;
mod observers;
mod readings;
mod registry_state;
mod services;
mod settings;
mod token;

pub(crate) use handle::RegistryHandle;
pub(crate) use inspection::InspectedTask;
pub(crate) use lifetime::StateRef;
pub use registry_state::RegistryState;
pub(crate) use services::ListedService;
pub(crate) use settings::{EVERY_TASK, INSPECTED, OBSERVED, SHUTDOWN_ON_FAILURE, SHUTDOWN_ON_PANIC, Settings};
pub(crate) use token::{Token, UnreportedLoss, finish_departure};
