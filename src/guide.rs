//! Contains pages about special environments. The pages exist only in the documentation.

pub mod bare_metal;
pub mod browser;
