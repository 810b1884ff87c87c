//! Decides which attention node a sequence goes to: the one with the most KV blocks to spare.

use std::{cmp::Reverse, fmt};

use domain::NodeId;

/// What is known about one attention node that takes work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// KV blocks it has in all, as last reported.
    pub kv_blocks: u32,
    /// KV blocks nobody uses, as last reported.
    pub kv_blocks_free: u32,
    /// Sequences running or waiting there, as last reported, from all gateways.
    pub sequences: u32,
    /// KV blocks that this gateway's own sequences there hold at least.
    pub own_blocks: u32,
    /// This gateway's own sequences there.
    pub own_sequences: u32,
}

impl Candidate {
    /// KV blocks in use: reports are late and own sequences are sure, so the larger of both.
    fn blocks_used(&self) -> u32 {
        self.kv_blocks.saturating_sub(self.kv_blocks_free).max(self.own_blocks)
    }

    /// KV blocks to spare; negative when own sequences have claimed more than there are.
    fn blocks_spare(&self) -> i64 {
        i64::from(self.kv_blocks) - i64::from(self.blocks_used())
    }

    /// Sequences there, by the same reasoning as for the blocks.
    fn sequences_there(&self) -> u32 {
        self.sequences.max(self.own_sequences)
    }
}

/// A choice and what spoke for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The chosen node.
    pub node: NodeId,
    /// KV blocks it is thought to have to spare before this sequence.
    pub blocks_spare: i64,
    /// Sequences it is thought to have before this one.
    pub sequences: u32,
    /// How many nodes could have been chosen.
    pub considered: usize,
}

impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} nodes: most KV blocks to spare ({}), {} sequences there",
            self.node, self.considered, self.blocks_spare, self.sequences
        )
    }
}

/// Picks the node with the most KV blocks to spare, then the fewest sequences, then the lowest
/// number. Nodes in `refused` have said no to this sequence or lost it. `None`: nobody is left.
#[must_use]
pub fn assign(candidates: &[Candidate], refused: &[NodeId]) -> Option<Assignment> {
    let open = || candidates.iter().filter(|candidate| !refused.contains(&candidate.node));
    let best = open().max_by_key(|candidate| {
        (candidate.blocks_spare(), Reverse(candidate.sequences_there()), Reverse(candidate.node))
    })?;
    Some(Assignment {
        node: best.node,
        blocks_spare: best.blocks_spare(),
        sequences: best.sequences_there(),
        considered: open().count(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(node: u32, kv_blocks: u32, kv_blocks_free: u32) -> Candidate {
        Candidate {
            node: NodeId(node),
            kv_blocks,
            kv_blocks_free,
            sequences: 0,
            own_blocks: 0,
            own_sequences: 0,
        }
    }

    fn chosen(candidates: &[Candidate], refused: &[NodeId]) -> Option<u32> {
        assign(candidates, refused).map(|assignment| assignment.node.0)
    }

    #[test]
    fn most_spare_blocks_win_whatever_the_size() {
        let small = candidate(1, 200, 150);
        let large = candidate(2, 1000, 500);
        assert_eq!(chosen(&[small, large], &[]), Some(2));
    }

    #[test]
    fn own_sequences_count_before_they_are_reported_and_not_twice() {
        let mut stale = candidate(1, 100, 100);
        stale.own_blocks = 60;
        let mut fresh = candidate(2, 100, 50);
        fresh.own_blocks = 50;
        // 40 against 50: were own blocks subtracted from the report, it would be 40 against 0.
        assert_eq!(chosen(&[stale, fresh], &[]), Some(2));
    }

    #[test]
    fn claims_beyond_the_capacity_still_order_the_nodes() {
        let mut over = candidate(1, 10, 10);
        over.own_blocks = 30;
        let mut further_over = candidate(2, 10, 10);
        further_over.own_blocks = 31;
        assert_eq!(chosen(&[further_over, over], &[]), Some(1));
    }

    #[test]
    fn ties_go_to_the_fewest_sequences_then_the_lowest_number() {
        let mut busy = candidate(1, 10, 10);
        busy.sequences = 3;
        let idle = candidate(3, 10, 10);
        let idle_too = candidate(2, 10, 10);
        assert_eq!(chosen(&[busy, idle, idle_too], &[]), Some(2));
    }

    #[test]
    fn refused_nodes_are_left_out_until_nobody_is_left() {
        let nodes = [candidate(1, 10, 10), candidate(2, 10, 5)];
        assert_eq!(chosen(&nodes, &[NodeId(1)]), Some(2));
        assert_eq!(chosen(&nodes, &[NodeId(1), NodeId(2)]), None);
        assert_eq!(chosen(&[], &[]), None);
    }

    #[test]
    fn the_choice_says_why() {
        let assignment = assign(&[candidate(1, 10, 4), candidate(2, 10, 7)], &[]).unwrap();
        assert_eq!(
            assignment.to_string(),
            "n2 of 2 nodes: most KV blocks to spare (7), 0 sequences there"
        );
    }
}
