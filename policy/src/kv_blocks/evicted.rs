//! What was given up lately: hashes of beginnings whose last block had to give way.

use std::collections::{BTreeSet, VecDeque};

/// The last so many evicted beginnings.
#[derive(Debug)]
pub(super) struct Evicted {
    hashes: BTreeSet<u64>,
    /// In the order of their eviction; those that came back are still here.
    order: VecDeque<u64>,
    max: usize,
}

impl Evicted {
    pub(super) fn new(max: usize) -> Self {
        Self { hashes: BTreeSet::new(), order: VecDeque::new(), max }
    }

    pub(super) fn note(&mut self, hash: u64) {
        if self.order.len() >= self.max
            && let Some(oldest) = self.order.pop_front()
        {
            self.hashes.remove(&oldest);
        }
        self.order.push_back(hash);
        self.hashes.insert(hash);
    }

    /// Whether it was among them; it is not any more.
    pub(super) fn forget(&mut self, hash: u64) -> bool {
        self.hashes.remove(&hash)
    }
}
