//! Every decision of amoe as a pure function: values in (time and seeds among them), values out, with an explanation.
//!
//! Nothing here reads a clock, draws a random number of its own, waits, locks, logs or counts a
//! metric, and no module knows a sibling. Nodes and the coordinator run these functions in a live
//! cluster; whatever runs in virtual time runs the very same ones.

pub mod admission;
pub mod assignment;
pub mod batching;
pub mod kv_blocks;
pub mod liveness;
pub mod placement;
pub mod routing;
