//! Who has which expert: the hosts of every expert of one layer, checked once and used for many calls.

use std::ops::Range;

use domain::NodeId;
use thiserror::Error;

/// The hosts of each expert. Nodes are dense indices, whatever their names are elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    nodes: usize,
    /// Where each expert's hosts begin in `hosts`, and where the last one's end.
    starts: Vec<u32>,
    /// One entry per replica: by expert, then ascending.
    hosts: Vec<u16>,
    /// Experts by number of hosts, then by id.
    fewest_first: Vec<u16>,
    /// Where each node's part begins in an array that has room for all replicas of every node.
    rooms: Vec<u32>,
}

/// Lists of hosts that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadHosts {
    /// A list names a node that is not there.
    #[error("expert {expert} is hosted by node {node}, expected a node below {nodes}")]
    UnknownNode {
        /// The expert.
        expert: usize,
        /// The node that its list names.
        node: u16,
        /// How many nodes there are.
        nodes: usize,
    },
    /// More nodes or experts than a layer can have.
    #[error("found {found} {what}, expected at most 65535")]
    TooMany {
        /// Nodes or experts.
        what: &'static str,
        /// How many, as far as they were counted.
        found: usize,
    },
}

impl Hosts {
    /// Takes the hosts of each expert, below `nodes`; their order and repetition do not matter.
    ///
    /// # Errors
    /// A list names a node that is not there, or there are too many nodes or experts.
    pub fn new(
        nodes: usize,
        lists: impl IntoIterator<Item = impl AsRef<[u16]>>,
    ) -> Result<Self, BadHosts> {
        const MAX: usize = u16::MAX as usize;
        if nodes > MAX {
            return Err(BadHosts::TooMany { what: "nodes", found: nodes });
        }
        let mut starts = vec![0];
        let mut hosts = Vec::new();
        let mut list = Vec::new();
        for (expert, named) in lists.into_iter().enumerate() {
            list.clear();
            list.extend_from_slice(named.as_ref());
            list.sort_unstable();
            list.dedup();
            if let Some(&node) = list.iter().find(|&&node| usize::from(node) >= nodes) {
                return Err(BadHosts::UnknownNode { expert, node, nodes });
            }
            hosts.extend_from_slice(&list);
            if expert == MAX {
                return Err(BadHosts::TooMany { what: "experts", found: expert + 1 });
            }
            #[expect(clippy::cast_possible_truncation, reason = "2^16 lists of as many nodes")]
            starts.push(hosts.len() as u32);
        }
        let mut rooms = vec![0; nodes + 1];
        for &node in &hosts {
            rooms[usize::from(node) + 1] += 1;
        }
        for node in 0..nodes {
            rooms[node + 1] += rooms[node];
        }
        let mut fewest_first: Vec<u16> = (0..=u16::MAX).take(starts.len() - 1).collect();
        let count = |&expert: &u16| starts[usize::from(expert) + 1] - starts[usize::from(expert)];
        fewest_first.sort_by_key(count);
        Ok(Self { nodes, starts, hosts, fewest_first, rooms })
    }

    /// The hosts of experts that have these replicas, as far as they are among `nodes`, which ascend;
    /// a node's index is its place there.
    ///
    /// # Errors
    /// There are too many nodes or experts.
    pub fn among<'a>(
        nodes: &[NodeId],
        replicas: impl IntoIterator<Item = &'a [NodeId]>,
    ) -> Result<Self, BadHosts> {
        let index = |id| u16::try_from(nodes.binary_search(id).ok()?).ok();
        let lists = replicas
            .into_iter()
            .map(|replicas| -> Vec<u16> { replicas.iter().filter_map(index).collect() });
        Self::new(nodes.len(), lists)
    }

    /// Nodes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Experts.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.starts.len() - 1
    }

    /// The hosts of one expert, ascending.
    ///
    /// # Panics
    /// For an expert that is not in the lists.
    #[must_use]
    pub fn of(&self, expert: usize) -> &[u16] {
        &self.hosts[self.replicas(expert)]
    }

    /// The replicas of one expert, as indices among all replicas.
    pub(super) fn replicas(&self, expert: usize) -> Range<usize> {
        self.starts[expert] as usize..self.starts[expert + 1] as usize
    }

    /// How many replicas there are in all.
    pub(super) fn replicas_all(&self) -> usize {
        self.hosts.len()
    }

    /// The node of a replica.
    pub(super) fn node(&self, replica: usize) -> u16 {
        self.hosts[replica]
    }

    /// Experts by number of hosts, then by id.
    pub(super) fn fewest_first(&self) -> impl Iterator<Item = usize> + '_ {
        self.fewest_first.iter().map(|&expert| usize::from(expert))
    }

    /// The expert at a place of [`Self::fewest_first`].
    pub(super) fn ranked(&self, rank: usize) -> usize {
        usize::from(self.fewest_first[rank])
    }

    /// Where a node's part begins in an array that has room for all replicas of every node.
    pub(super) fn room(&self, node: usize) -> usize {
        self.rooms[node] as usize
    }
}
