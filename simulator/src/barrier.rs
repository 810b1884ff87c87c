//! Lockstep's barrier: a turn passes when every attention node has come to it or past it.
//!
//! A turn is one layer of one step: turn = step × layers + layer, steps counted from 1.

/// How far each attention node is, and the turn that is waited for.
#[derive(Debug)]
pub(crate) struct Barrier {
    /// The newest turn of each node.
    seen: Vec<u64>,
    /// The turn that passes next.
    next: u64,
    /// Nodes that have not come to it.
    behind: usize,
}

// === impl Barrier ===

impl Barrier {
    /// A barrier for `nodes` nodes that waits for turn `first`.
    pub(crate) fn new(nodes: usize, first: u64) -> Self {
        Self { seen: vec![0; nodes], next: first, behind: nodes }
    }

    /// A node has come to `turn`. Frames come in order, but that a node has nothing for a step may
    /// be known before its last frame of the step before is in.
    pub(crate) fn arrive(&mut self, node: usize, turn: u64) {
        let seen = &mut self.seen[node];
        if *seen < self.next && turn >= self.next {
            self.behind -= 1;
        }
        *seen = turn.max(*seen);
    }

    /// The turn that every node has come to; it has passed with that.
    pub(crate) fn pass(&mut self) -> Option<u64> {
        if self.behind > 0 {
            return None;
        }
        let turn = self.next;
        self.next += 1;
        self.behind = self.seen.iter().filter(|&&seen| seen < self.next).count();
        Some(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_waits_for_every_node() {
        let mut barrier = Barrier::new(2, 4);
        barrier.arrive(0, 4);
        assert_eq!(barrier.pass(), None);
        barrier.arrive(1, 4);
        assert_eq!(barrier.pass(), Some(4));
        assert_eq!(barrier.pass(), None);
        barrier.arrive(0, 7);
        barrier.arrive(1, 5);
        assert_eq!((barrier.pass(), barrier.pass()), (Some(5), None), "node 0 is ahead");
        barrier.arrive(0, 6);
        barrier.arrive(1, 6);
        barrier.arrive(1, 7);
        assert_eq!(
            (barrier.pass(), barrier.pass()),
            (Some(6), Some(7)),
            "what is late changes nothing"
        );
    }
}
