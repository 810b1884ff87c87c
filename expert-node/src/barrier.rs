//! Lockstep mode's barrier: a layer runs when every attention node's frame for it is there.

use std::collections::{BTreeMap, BTreeSet};

use domain::{Layer, NodeId};

/// Which attention nodes have sent their frame for which (step, layer).
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    peers: BTreeSet<NodeId>,
    arrived: BTreeMap<(u64, Layer), BTreeSet<NodeId>>,
    /// The newest step that was announced to everybody.
    step: u64,
    /// Layers with pairs that missed their step and are sent again, after a node was lost.
    late: BTreeSet<Layer>,
}

impl Barrier {
    /// A node takes part from now on; the step it has to join, if one has begun.
    pub(crate) fn join(&mut self, peer: NodeId) -> Option<u64> {
        self.peers.insert(peer);
        (self.step > 0).then_some(self.step)
    }

    /// A node takes part no longer: nobody waits for it.
    pub(crate) fn leave(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
        for nodes in self.arrived.values_mut() {
            nodes.remove(&peer);
        }
        self.arrived.retain(|_, nodes| !nodes.is_empty());
    }

    /// Notes a frame; step 0 belongs to no step and waits for nobody. If it begins a step, answers with the nodes that have to be told of it: they
    /// may be idle and know nothing of the step.
    pub(crate) fn arrive(&mut self, peer: NodeId, step: u64, layer: Layer) -> Vec<NodeId> {
        if step == 0 {
            self.late.insert(layer);
            return Vec::new();
        }
        self.arrived.entry((step, layer)).or_default().insert(peer);
        if step <= self.step {
            return Vec::new();
        }
        self.step = step;
        self.peers.iter().copied().filter(|&other| other != peer).collect()
    }

    /// Takes a late layer, or the oldest (step, layer) if every node's frame for it is there.
    pub(crate) fn pass(&mut self) -> Option<Layer> {
        if let Some(layer) = self.late.pop_first() {
            return Some(layer);
        }
        let first = self.arrived.first_entry()?;
        if !self.peers.is_subset(first.get()) {
            return None;
        }
        let ((_, layer), _) = first.remove_entry();
        Some(layer)
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
        assert_eq!(barrier.arrive(A, 1, Layer(0)), [B]);
        assert_eq!(barrier.pass(), None);
        assert_eq!(barrier.arrive(B, 1, Layer(0)), []);
        assert_eq!(barrier.arrive(B, 1, Layer(1)), [], "an idle node sends all layers at once");
        assert_eq!(barrier.pass(), Some(Layer(0)));
        assert_eq!(barrier.pass(), None);
        barrier.arrive(A, 1, Layer(1));
        assert_eq!(barrier.pass(), Some(Layer(1)));
        assert_eq!(barrier.join(NodeId(3)), Some(1), "a late node joins the running step");
    }

    #[test]
    fn what_is_sent_again_waits_for_nobody() {
        let mut barrier = Barrier::default();
        barrier.join(A);
        barrier.join(B);
        barrier.arrive(A, 1, Layer(0));
        assert_eq!(barrier.arrive(B, 0, Layer(4)), []);
        assert_eq!(barrier.pass(), Some(Layer(4)));
        assert_eq!(barrier.pass(), None);
    }

    #[test]
    fn nobody_waits_for_a_node_that_left() {
        let mut barrier = Barrier::default();
        barrier.join(A);
        barrier.join(B);
        barrier.arrive(A, 1, Layer(0));
        barrier.leave(B);
        assert_eq!(barrier.pass(), Some(Layer(0)));
        barrier.arrive(A, 1, Layer(1));
        barrier.leave(A);
        assert_eq!(barrier.pass(), None, "its own frames are gone with it");
    }
}
