//! Pairs over a fake NCCL: two machines turned by hand on a clock of their own, and links with a thread each.

use domain::NodeId;
use tokio::sync::oneshot::error::TryRecvError;

use self::fake::{Fake, World};
use super::{ends::Route, *};
use crate::link::LinkMetrics;

pub(in crate::link) mod fake;
mod machines;

/// The most that a transfer takes.
pub(in crate::link) const ROW_BYTES_MAX: usize = 256 << 10;

/// Bounds under which every row goes by NCCL if it can.
const BOUNDS: Bounds = Bounds {
    row_bytes_min: 1,
    row_bytes_max: ROW_BYTES_MAX,
    join: Duration::from_secs(30),
    transfer: Duration::from_secs(5),
    backoff: Backoff { first: Duration::from_millis(5), max: Duration::from_millis(20) },
};

impl Nccl {
    /// A device in `world`.
    pub(in crate::link) fn fake(world: &World) -> Self {
        let world = world.clone();
        Self::start(BOUNDS, move || Ok(Fake::new(world))).unwrap()
    }
}

#[test]
fn a_machine_without_a_driver_says_so() {
    // Where there is a driver there is nothing to show.
    if let Err(error) = Nccl::open(0) {
        assert!(!error.to_string().is_empty());
    }
}
