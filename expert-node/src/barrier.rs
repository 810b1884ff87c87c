//! Lockstep mode's barrier: a layer runs when every attention node's frame for it is there.

use std::collections::{BTreeMap, BTreeSet};

use domain::{Layer, NodeId};

/// One layer of one step; turns come in this order.
pub(crate) type Turn = (u64, Layer);

/// How far each attention node is, and which turns wait for the others.
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    /// The newest turn that each node has come to, and whether its frame for it is here. Frames of a
    /// node come in order: it has nothing more for an earlier turn.
    positions: BTreeMap<NodeId, (Turn, bool)>,
    /// Turns with a frame that have not run.
    waiting: BTreeSet<Turn>,
    /// The newest turn that has run.
    passed: Turn,
    /// Layers with pairs that missed their turn: sent again after a node was lost, or by a node
    /// that joined in the middle of a step.
    late: BTreeSet<Layer>,
    /// The newest step that was announced to everybody.
    step: u64,
}

impl Barrier {
    /// A node takes part from now on; the step it has to join, if one has begun.
    pub(crate) fn join(&mut self, peer: NodeId) -> Option<u64> {
        self.positions.insert(peer, <(Turn, bool)>::default());
        (self.step > 0).then_some(self.step)
    }

    /// A node takes part no longer: nobody waits for it.
    pub(crate) fn leave(&mut self, peer: NodeId) {
        self.positions.remove(&peer);
    }

    /// Notes a frame; one of step 0, or of a turn that has passed, waits for nobody.
    pub(crate) fn arrive(&mut self, peer: NodeId, step: u64, layer: Layer) {
        let turn = (step, layer);
        self.advance(peer, (turn, true));
        if step == 0 || turn <= self.passed {
            self.late.insert(layer);
        } else {
            self.waiting.insert(turn);
        }
    }

    /// A node has come to a turn and will send its frame for it later.
    pub(crate) fn reach(&mut self, peer: NodeId, step: u64, layer: Layer) {
        self.advance(peer, ((step, layer), false));
    }

    /// Whether every node has come to a turn, with or without its frame for it.
    pub(crate) fn all_reached(&self, turn: Turn) -> bool {
        self.all_at((turn, false))
    }

    fn all_at(&self, least: (Turn, bool)) -> bool {
        self.positions.values().all(|&position| position >= least)
    }

    fn advance(&mut self, peer: NodeId, to: (Turn, bool)) {
        if let Some(position) = self.positions.get_mut(&peer) {
            *position = to.max(*position);
        }
    }

    /// A node is at a step. If it is the first one, answers with those that have to be told: they
    /// may be idle and know nothing of the step.
    pub(crate) fn announce(&mut self, peer: NodeId, step: u64) -> Vec<NodeId> {
        if step <= self.step {
            return Vec::new();
        }
        self.step = step;
        self.positions.keys().copied().filter(|&other| other != peer).collect()
    }

    /// Takes a late layer, or the oldest turn if every node has come to it. A node that is further
    /// has nothing for it.
    pub(crate) fn pass(&mut self) -> Option<Layer> {
        if let Some(layer) = self.late.pop_first() {
            return Some(layer);
        }
        let turn = *self.waiting.first()?;
        if !self.all_at((turn, true)) {
            return None;
        }
        self.waiting.remove(&turn);
        self.passed = turn;
        Some(turn.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    #[test]
    fn a_layer_waits_for_every_node_and_steps_are_announced_once() {
        let mut barrier = Barrier::default();
        assert_eq!(barrier.join(A), None);
        assert_eq!(barrier.join(B), None);
        barrier.arrive(A, 1, Layer(0));
        assert_eq!(barrier.announce(A, 1), [B]);
        assert_eq!(barrier.pass(), None);
        assert_eq!(barrier.announce(B, 1), []);
        barrier.arrive(B, 1, Layer(0));
        // An idle node sends all layers at once.
        barrier.arrive(B, 1, Layer(1));
        assert_eq!(barrier.pass(), Some(Layer(0)));
        assert_eq!(barrier.pass(), None);
        barrier.arrive(A, 1, Layer(1));
        assert_eq!(barrier.pass(), Some(Layer(1)));
        assert_eq!(barrier.join(NodeId(3)), Some(1), "a late node joins the running step");
    }

    #[test]
    fn a_node_that_joins_in_the_middle_of_a_step_holds_nobody_up() {
        let mut barrier = Barrier::default();
        barrier.join(A);
        barrier.announce(A, 4);
        barrier.arrive(A, 4, Layer(0));
        assert_eq!(barrier.pass(), Some(Layer(0)));
        assert_eq!(barrier.join(B), Some(4));
        barrier.arrive(B, 4, Layer(0));
        assert_eq!(barrier.pass(), Some(Layer(0)), "late, by itself");
        barrier.arrive(A, 4, Layer(1));
        assert_eq!(barrier.pass(), None);
        barrier.arrive(B, 4, Layer(1));
        assert_eq!(barrier.pass(), Some(Layer(1)));
    }

    #[test]
    fn what_is_sent_again_waits_for_nobody() {
        let mut barrier = Barrier::default();
        barrier.join(A);
        barrier.join(B);
        barrier.arrive(A, 1, Layer(0));
        barrier.arrive(B, 0, Layer(4));
        assert_eq!(barrier.pass(), Some(Layer(4)));
        assert_eq!(barrier.pass(), None);
    }

    #[test]
    fn a_node_that_is_further_has_nothing_for_a_turn() {
        let mut barrier = Barrier::default();
        barrier.join(A);
        barrier.join(B);
        barrier.arrive(A, 1, Layer(0));
        // B's link came up too late for layer 0.
        barrier.arrive(B, 1, Layer(1));
        assert_eq!(barrier.pass(), Some(Layer(0)));
        assert_eq!(barrier.pass(), None);
    }

    #[test]
    fn a_node_that_has_come_to_a_turn_holds_up_that_one_only() {
        let mut barrier = Barrier::default();
        barrier.join(A);
        barrier.join(B);
        barrier.arrive(A, 1, Layer(0));
        barrier.arrive(A, 1, Layer(1));
        barrier.reach(B, 1, Layer(1));
        assert_eq!(barrier.pass(), Some(Layer(0)));
        assert_eq!(barrier.pass(), None);
        assert!(barrier.all_reached((1, Layer(1))) && !barrier.all_reached((1, Layer(2))));
        barrier.arrive(B, 1, Layer(1));
        assert_eq!(barrier.pass(), Some(Layer(1)));
    }

    #[test]
    fn nobody_waits_for_a_node_that_left() {
        let mut barrier = Barrier::default();
        barrier.join(A);
        barrier.join(B);
        barrier.arrive(A, 1, Layer(0));
        assert!(!barrier.all_reached((1, Layer(0))));
        barrier.leave(B);
        assert!(barrier.all_reached((1, Layer(0))));
        assert_eq!(barrier.pass(), Some(Layer(0)));
        assert_eq!(barrier.pass(), None);
    }
}
