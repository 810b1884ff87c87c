//! (in progress)
pub mod liveness;
pub mod placement;
