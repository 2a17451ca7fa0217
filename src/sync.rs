//! The parts that a registry's state is built from. None of them knows a registry, and a model can drive each of them.

pub(crate) mod gate;
pub(crate) mod notifier;
pub(crate) mod pool;
pub(crate) mod slot_table;
pub(crate) mod wait_list;
pub(crate) mod wait_queue;
