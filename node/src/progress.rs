//! Progress of a long load, in the log.

use std::time::{Duration, Instant};

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(5);

/// Says how far a load is, every few seconds: a quick one says nothing.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    said: Instant,
}

// === impl Progress ===

impl Progress {
    /// A load of `what` ("layers", "experts") that begins now.
    #[must_use]
    pub fn new(what: &'static str) -> Self {
        Self { what, said: Instant::now() }
    }

    /// So many are still to be loaded.
    pub fn left(&mut self, left: usize) {
        if self.said.elapsed() >= PAUSE {
            self.said = Instant::now();
            tracing::info!(left, "loading {}", self.what);
        }
    }
}
