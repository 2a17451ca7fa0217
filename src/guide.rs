//! Pages on special environments. They exist in the documentation only.

pub mod bare_metal;
pub mod browser;
