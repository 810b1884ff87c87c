//! Lockstep mode with routing by batch: adds up what all attention nodes chose in a layer, so that each of them
//! can route by the whole batch.

use std::collections::BTreeMap;

use domain::{Layer, NodeId};
use proto::frame::Tally;

/// One layer of one step; turns come in this order.
type Turn = (u64, Layer);

/// The tallies of turns that some attention nodes have come to and others have not.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    /// The newest turn that each node has sent anything for. Frames of a node come in order.
    positions: BTreeMap<NodeId, Turn>,
    open: BTreeMap<Turn, Sum>,
    /// The newest turn that was answered.
    answered: Turn,
}

#[derive(Debug, Default)]
struct Sum {
    tokens: Vec<u32>,
    /// Who asked, and waits for the answer.
    asked: Vec<NodeId>,
}

impl Tallies {
    /// A node takes part from now on.
    pub(crate) fn join(&mut self, peer: NodeId) {
        self.positions.insert(peer, Turn::default());
    }

    /// A node takes part no longer: nobody waits for it, and what it chose does not count.
    pub(crate) fn leave(&mut self, peer: NodeId) {
        self.positions.remove(&peer);
        for sum in self.open.values_mut() {
            sum.asked.retain(|&asked| asked != peer);
        }
    }

    /// A node has come to a turn, with a tally or without one.
    pub(crate) fn reach(&mut self, peer: NodeId, step: u64, layer: Layer) {
        if let Some(position) = self.positions.get_mut(&peer) {
            *position = (step, layer).max(*position);
        }
    }

    /// Adds a tally. One of a turn that was answered is of a node that is late and routes alone.
    pub(crate) fn add(&mut self, peer: NodeId, tally: Tally) -> Option<Tally> {
        let turn = (tally.step, tally.layer);
        if turn <= self.answered {
            return Some(tally);
        }
        let sum = self.open.entry(turn).or_default();
        sum.tokens.resize(tally.tokens.len(), 0);
        for (total, tokens) in sum.tokens.iter_mut().zip(tally.tokens) {
            *total = total.saturating_add(tokens);
        }
        sum.asked.push(peer);
        self.reach(peer, turn.0, turn.1);
        None
    }

    /// The oldest turn that every node has come to: its sum, and who waits for it.
    pub(crate) fn complete(&mut self) -> Option<(Vec<NodeId>, Tally)> {
        let (&turn, _) = self.open.first_key_value()?;
        if self.positions.values().any(|&position| position < turn) {
            return None;
        }
        let Sum { tokens, asked } = self.open.remove(&turn)?;
        self.answered = turn;
        Some((asked, Tally { step: turn.0, layer: turn.1, tokens }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn tally(step: u64, layer: u16, tokens: &[u32]) -> Tally {
        Tally { step, layer: Layer(layer), tokens: tokens.to_vec() }
    }

    fn both() -> Tallies {
        let mut tallies = Tallies::default();
        tallies.join(A);
        tallies.join(B);
        tallies
    }

    #[test]
    fn a_sum_is_told_when_all_have_come_to_its_turn() {
        let mut tallies = both();
        assert_eq!(tallies.add(A, tally(1, 0, &[2, 0, 1])), None);
        assert_eq!(tallies.complete(), None);
        assert_eq!(tallies.add(B, tally(1, 0, &[1, 1, 0])), None);
        assert_eq!(tallies.complete(), Some((vec![A, B], tally(1, 0, &[3, 1, 1]))));
        assert_eq!(tallies.complete(), None);
    }

    #[test]
    fn a_node_without_a_tally_holds_nobody_up() {
        let mut tallies = both();
        tallies.add(A, tally(1, 0, &[2]));
        tallies.reach(B, 1, Layer(4));
        assert_eq!(tallies.complete(), Some((vec![A], tally(1, 0, &[2]))), "B was idle");
        tallies.add(A, tally(2, 0, &[3]));
        tallies.leave(B);
        assert_eq!(tallies.complete(), Some((vec![A], tally(2, 0, &[3]))), "B is gone");
    }

    #[test]
    fn a_late_node_routes_alone() {
        let mut tallies = both();
        tallies.add(A, tally(3, 1, &[2]));
        tallies.reach(B, 3, Layer(1));
        tallies.complete();
        assert_eq!(tallies.add(B, tally(3, 0, &[7])), Some(tally(3, 0, &[7])));
    }
}
