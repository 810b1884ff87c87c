//! Lockstep mode with routing by batch: adds up what all attention nodes chose in a layer, so that each of them
//! can route by the whole batch.

use std::collections::BTreeMap;

use domain::NodeId;
use proto::frame::Tally;

use crate::barrier::Turn;

/// The tallies of turns that some attention nodes have come to and others have not.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
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
    /// A node waits for no answer any more. What it chose stays in the sums.
    pub(crate) fn leave(&mut self, peer: NodeId) {
        for sum in self.open.values_mut() {
            sum.asked.retain(|&asked| asked != peer);
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
        None
    }

    /// The oldest turn, if every node has come to it: its sum, and who waits for it.
    pub(crate) fn complete(
        &mut self,
        all_reached: impl Fn(Turn) -> bool,
    ) -> Option<(Vec<NodeId>, Tally)> {
        let oldest = self.open.first_entry().filter(|oldest| all_reached(*oldest.key()))?;
        let (turn, Sum { tokens, asked }) = oldest.remove_entry();
        self.answered = turn;
        Some((asked, Tally { step: turn.0, layer: turn.1, tokens }))
    }
}

#[cfg(test)]
mod tests {
    use domain::Layer;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn tally(step: u64, layer: u16, tokens: &[u32]) -> Tally {
        Tally { step, layer: Layer(layer), tokens: tokens.to_vec() }
    }

    /// The barrier's account, for two nodes that have come to these turns.
    fn reached(a: Turn, b: Turn) -> impl Fn(Turn) -> bool {
        move |turn| a >= turn && b >= turn
    }

    #[test]
    fn a_sum_is_told_when_all_have_come_to_its_turn() {
        let mut tallies = Tallies::default();
        assert_eq!(tallies.add(A, tally(1, 0, &[2, 0, 1])), None);
        assert_eq!(tallies.complete(reached((1, Layer(0)), (0, Layer(0)))), None);
        assert_eq!(tallies.add(B, tally(1, 0, &[1, 1, 0])), None);
        let both = reached((1, Layer(0)), (1, Layer(0)));
        assert_eq!(tallies.complete(&both), Some((vec![A, B], tally(1, 0, &[3, 1, 1]))));
        assert_eq!(tallies.complete(&both), None);
    }

    #[test]
    fn a_node_without_a_tally_holds_nobody_up() {
        let mut tallies = Tallies::default();
        tallies.add(A, tally(1, 0, &[2]));
        let ahead = reached((1, Layer(0)), (1, Layer(4)));
        assert_eq!(tallies.complete(ahead), Some((vec![A], tally(1, 0, &[2]))), "B was idle");
        tallies.add(A, tally(2, 0, &[3]));
        tallies.leave(B);
        assert_eq!(tallies.complete(|_| true), Some((vec![A], tally(2, 0, &[3]))), "B is gone");
        tallies.add(A, tally(3, 0, &[3]));
        tallies.add(B, tally(3, 0, &[4]));
        tallies.leave(B);
        assert_eq!(tallies.complete(|_| true), Some((vec![A], tally(3, 0, &[7]))), "B asked");
    }

    #[test]
    fn a_late_node_routes_alone() {
        let mut tallies = Tallies::default();
        tallies.add(A, tally(3, 1, &[2]));
        tallies.complete(|_| true);
        assert_eq!(tallies.add(B, tally(3, 0, &[7])), Some(tally(3, 0, &[7])));
    }
}
