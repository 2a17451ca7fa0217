//! Contains pages about subsystems, special environments and child processes. The pages exist only in the documentation.

pub mod bare_metal;
pub mod browser;
pub mod child_processes;
pub mod subsystems;
