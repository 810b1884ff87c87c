//! Decides which attention node a sequence goes to: one that has computed much of it, else the one with the most KV
//! blocks to spare.

mod prefixes;

use std::{cmp::Reverse, fmt};

use domain::NodeId;

pub use self::prefixes::{Beginning, Prefixes, beginnings};

/// A node that has computed less than one in so many of a sequence's tokens is not chosen for that.
const CACHED_PART: u32 = 4;
/// A node is crowded with this many sequences more than twice those of the least busy one.
const CROWD: u32 = 8;

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
    /// Tokens of the sequence that it is thought to have computed already.
    pub cached_tokens: u32,
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
    /// Tokens of this sequence that it is thought to have computed, if that is why.
    pub cached_tokens: u32,
    /// How many nodes could have been chosen.
    pub considered: usize,
}

impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, considered, blocks_spare, sequences, cached_tokens } = self;
        write!(f, "{node} of {considered} nodes: ")?;
        if *cached_tokens > 0 {
            write!(f, "has computed {cached_tokens} of the tokens; ")?;
        } else {
            f.write_str("most KV blocks to spare; ")?;
        }
        write!(f, "{blocks_spare} blocks to spare, {sequences} sequences there")
    }
}

/// Picks the node for a sequence of `tokens`: the one that has computed the most of it, if that is a good part and the node is neither
/// full nor crowded; then the most KV blocks to spare, the fewest sequences, the lowest number. Nodes in
/// `refused` have said no to this sequence or lost it. `None`: nobody is left.
#[must_use]
pub fn assign(candidates: &[Candidate], refused: &[NodeId], tokens: u32) -> Option<Assignment> {
    let open = || candidates.iter().filter(|candidate| !refused.contains(&candidate.node));
    let fewest = open().map(Candidate::sequences_there).min()?;
    let crowded = fewest.saturating_mul(2).saturating_add(CROWD);
    let cached = |candidate: &Candidate| {
        let much = candidate.cached_tokens.saturating_mul(CACHED_PART) >= tokens;
        let room = candidate.blocks_spare() > 0 && candidate.sequences_there() < crowded;
        if much && room { candidate.cached_tokens } else { 0 }
    };
    let best = open().max_by_key(|candidate| {
        (
            cached(candidate),
            candidate.blocks_spare(),
            Reverse(candidate.sequences_there()),
            Reverse(candidate.node),
        )
    })?;
    Some(Assignment {
        node: best.node,
        blocks_spare: best.blocks_spare(),
        sequences: best.sequences_there(),
        cached_tokens: cached(best),
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
            cached_tokens: 0,
        }
    }

    fn chosen(candidates: &[Candidate], refused: &[NodeId]) -> Option<u32> {
        assign(candidates, refused, 100).map(|assignment| assignment.node.0)
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
    fn who_has_computed_a_good_part_goes_before_who_has_more_to_spare() {
        let roomy = candidate(1, 100, 100);
        let mut has_some = candidate(2, 100, 50);
        has_some.cached_tokens = 64;
        let has_more = Candidate { node: NodeId(3), cached_tokens: 96, ..has_some };
        assert_eq!(chosen(&[roomy, has_some, has_more], &[]), Some(3));
        assert_eq!(chosen(&[roomy, has_some, has_more], &[NodeId(3)]), Some(2));
        let has_little = Candidate { cached_tokens: 24, ..has_some };
        assert_eq!(chosen(&[roomy, has_little], &[]), Some(1), "24 of 100 tokens");
    }

    #[test]
    fn a_full_or_crowded_node_is_not_sent_more_for_what_it_has() {
        let mut idle = candidate(1, 100, 90);
        idle.sequences = 4;
        let mut has = candidate(2, 100, 10);
        (has.cached_tokens, has.sequences) = (96, 15);
        assert_eq!(chosen(&[idle, has], &[]), Some(2));
        assert_eq!(chosen(&[idle, Candidate { sequences: 16, ..has }], &[]), Some(1));
        assert_eq!(chosen(&[idle, Candidate { kv_blocks_free: 0, ..has }], &[]), Some(1));
    }

    #[test]
    fn the_choice_says_why() {
        let mut has = candidate(2, 10, 4);
        let others = candidate(1, 10, 7);
        assert_eq!(
            assign(&[has, others], &[], 100).unwrap().to_string(),
            "n1 of 2 nodes: most KV blocks to spare; 7 blocks to spare, 0 sequences there"
        );
        has.cached_tokens = 64;
        assert_eq!(
            assign(&[has, others], &[], 100).unwrap().to_string(),
            "n2 of 2 nodes: has computed 64 of the tokens; 4 blocks to spare, 0 sequences there"
        );
    }
}
