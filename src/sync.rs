//! The building blocks of a registry's state. No building block depends on the registry, so a loom model can test each building
//! block alone.

pub(crate) mod child_list;
pub(crate) mod gate;
pub(crate) mod join_cell;
pub(crate) mod notifier;
pub(crate) mod pool;
pub(crate) mod slab;
pub(crate) mod slot_table;
pub(crate) mod wait_list;
pub(crate) mod wait_queue;
