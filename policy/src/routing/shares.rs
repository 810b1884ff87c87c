//! The answer of a router: which node computes how many tokens of each expert, and what that costs.

use super::{Hosts, Instance};

/// A node's part of an expert's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The node, as an index.
    pub node: u16,
    /// Tokens, above 0.
    pub tokens: u32,
}

/// Who computes what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Where each expert's shares begin in `shares`, and where the last one's end.
    starts: Vec<u32>,
    shares: Vec<Share>,
    activated: Vec<u32>,
    time_ns: Vec<u64>,
}

impl Assignment {
    /// The shares of one expert by ascending node: none if it is not activated, mostly one.
    ///
    /// # Panics
    /// For an expert that was not in the instance.
    #[must_use]
    pub fn shares(&self, expert: usize) -> &[Share] {
        &self.shares[self.starts[expert] as usize..self.starts[expert + 1] as usize]
    }

    /// Experts activated on each node.
    #[must_use]
    pub fn activated(&self) -> &[u32] {
        &self.activated
    }

    /// Nanoseconds until each node is done, its backlog included.
    #[must_use]
    pub fn time_ns(&self) -> &[u64] {
        &self.time_ns
    }

    /// The largest number of experts activated on one node.
    #[must_use]
    pub fn max_activated(&self) -> u32 {
        self.activated.iter().copied().max().unwrap_or(0)
    }

    /// When the last node is done.
    #[must_use]
    pub fn max_time_ns(&self) -> u64 {
        self.time_ns.iter().copied().max().unwrap_or(0)
    }

    /// Makes room for the largest answer that `hosts` allow.
    pub(super) fn reserve(&mut self, hosts: &Hosts) {
        self.starts.clear();
        self.starts.reserve(hosts.experts() + 1);
        self.shares.clear();
        self.shares.reserve(hosts.replicas_all());
    }

    /// Takes over the tokens that each replica was given.
    pub(super) fn fill(&mut self, instance: &Instance<'_>, parts: &[u32]) {
        let hosts = instance.hosts;
        self.reserve(hosts);
        self.activated.clear();
        self.activated.resize(hosts.nodes(), 0);
        self.time_ns.clear();
        self.time_ns.extend((0..hosts.nodes()).map(|node| instance.backlog_ns(node)));
        self.starts.push(0);
        for expert in 0..hosts.experts() {
            if instance.tokens[expert] > 0 {
                for replica in hosts.replicas(expert).filter(|&replica| parts[replica] > 0) {
                    let share = Share { node: hosts.node(replica), tokens: parts[replica] };
                    let node = usize::from(share.node);
                    self.activated[node] += 1;
                    self.time_ns[node] += instance.cost_ns(share.node, share.tokens);
                    self.shares.push(share);
                }
            }
            #[expect(clippy::cast_possible_truncation, reason = "at most one share per replica")]
            self.starts.push(self.shares.len() as u32);
        }
    }
}
