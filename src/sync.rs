//! Contains the data structures that a registry's state consists of. They do not depend on the registry, so a loom model can
//! test each of them separately.

pub(crate) mod child_list;
pub(crate) mod gate;
pub(crate) mod join_cell;
pub(crate) mod notifier;
pub(crate) mod pool;
pub(crate) mod slab;
pub(crate) mod slot_table;
pub(crate) mod wait_list;
pub(crate) mod wait_queue;
