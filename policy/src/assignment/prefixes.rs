//! Which attention nodes are thought to have computed which beginnings of sequences, by what was sent there.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use domain::NodeId;

/// Tokens between two beginnings of a sequence that are told apart: what begins alike for less is soon computed.
const STRIDE: usize = 64;

/// The beginnings that were sent last, and where.
///
/// A guess: a node may have given up what it computed, and what other gateways send is not here.
#[derive(Debug)]
pub struct Prefixes {
    /// When each was last sent there.
    sent: BTreeMap<(Beginning, NodeId), u64>,
    oldest: BTreeMap<u64, (Beginning, NodeId)>,
    /// Counts beginnings that were sent.
    clock: u64,
    max: usize,
}

/// A beginning of a sequence, by the hash of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Beginning(u64);

/// The beginnings of a sequence, each longer than the one before.
#[must_use]
pub fn beginnings(tokens: &[u32]) -> Vec<Beginning> {
    let mut hasher = DefaultHasher::new();
    let strides = tokens.chunks_exact(STRIDE);
    let next = |stride: &[u32]| {
        stride.hash(&mut hasher);
        Beginning(hasher.finish())
    };
    strides.map(next).collect()
}

impl Prefixes {
    /// Remembers `max` beginnings, of 64 tokens each.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { sent: BTreeMap::new(), oldest: BTreeMap::new(), clock: 0, max }
    }

    /// A sequence was sent to a node, or grew there.
    pub fn note(&mut self, node: NodeId, beginnings: &[Beginning]) {
        // The last first, so that what many have in common is forgotten last.
        for &beginning in beginnings.iter().rev() {
            if let Some(before) = self.sent.insert((beginning, node), self.clock) {
                self.oldest.remove(&before);
            }
            self.oldest.insert(self.clock, (beginning, node));
            self.clock += 1;
        }
        while self.sent.len() > self.max
            && let Some((_, forgotten)) = self.oldest.pop_first()
        {
            self.sent.remove(&forgotten);
        }
    }

    /// How many tokens of a sequence a node is thought to have computed.
    #[must_use]
    pub fn cached(&self, node: NodeId, beginnings: &[Beginning]) -> u32 {
        let known = |&&beginning: &&Beginning| self.sent.contains_key(&(beginning, node));
        let count = beginnings.iter().take_while(known).count() * STRIDE;
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn tokens(kind: u32, count: usize) -> Vec<u32> {
        (0..count as u32).map(|at| at * kind).collect()
    }

    #[test]
    fn a_node_has_what_it_was_sent_up_to_where_sequences_part() {
        let mut prefixes = Prefixes::new(100);
        let long = tokens(1, 300);
        prefixes.note(A, &beginnings(&long));
        prefixes.note(B, &beginnings(&long[..130]));
        let mut parts = long.clone();
        parts[200] = 7;
        let parts = beginnings(&parts);
        assert_eq!([A, B].map(|node| prefixes.cached(node, &parts)), [192, 128]);
        let other = beginnings(&tokens(2, 300));
        assert_eq!([A, B].map(|node| prefixes.cached(node, &other)), [0, 0]);
        let shifted = beginnings(&long[64..]);
        assert_eq!(prefixes.cached(A, &shifted), 0, "the same tokens after another beginning");
    }

    #[test]
    fn the_oldest_are_forgotten_and_ends_before_beginnings() {
        let mut prefixes = Prefixes::new(4);
        let (old, new) = (beginnings(&tokens(1, 192)), beginnings(&tokens(2, 128)));
        prefixes.note(A, &old);
        prefixes.note(A, &new);
        assert_eq!((prefixes.cached(A, &old), prefixes.cached(A, &new)), (128, 128));
        prefixes.note(A, &old);
        assert_eq!((prefixes.cached(A, &old), prefixes.cached(A, &new)), (192, 64));
        assert_eq!((prefixes.sent.len(), prefixes.oldest.len()), (4, 4));
    }
}
