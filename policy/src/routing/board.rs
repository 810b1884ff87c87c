//! What is decided so far within one call: the tokens of each replica and the time of each node.

use super::{Hosts, Instance};

/// What nodes are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    /// An activated expert counts 1 wherever it runs, and backlogs do not count.
    Count,
    /// An expert takes what its host's curve says, after the host's backlog.
    Time,
}

/// A state of the decision. Its vectors keep their room from call to call.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// Per replica: what all tokens of its expert cost there. Only set for activated experts.
    costs: Vec<u64>,
    /// Per replica: the tokens it was given.
    parts: Vec<u32>,
    /// Per node: what it costs in all.
    loads: Vec<u64>,
}

impl Board {
    /// Starts over: no tokens anywhere.
    pub(super) fn clear(&mut self, hosts: &Hosts) {
        self.parts.clear();
        self.parts.resize(hosts.replicas_all(), 0);
    }

    /// Prices every replica of the activated experts.
    pub(super) fn measure(&mut self, instance: &Instance<'_>, by: Measure) {
        let hosts = instance.hosts;
        self.costs.clear();
        self.loads.clear();
        match by {
            Measure::Count => {
                self.costs.resize(hosts.replicas_all(), 1);
                self.loads.resize(hosts.nodes(), 0);
            }
            Measure::Time => {
                self.costs.resize(hosts.replicas_all(), 0);
                for (expert, &tokens) in instance.tokens.iter().enumerate() {
                    for replica in hosts.replicas(expert) {
                        self.costs[replica] = instance.cost_ns(hosts.node(replica), tokens);
                    }
                }
                self.loads.extend((0..hosts.nodes()).map(|node| instance.backlog_ns(node)));
            }
        }
    }

    /// Tokens per replica.
    pub(super) fn parts(&self) -> &[u32] {
        &self.parts
    }

    /// Gives a replica a part of its expert's tokens.
    pub(super) fn set_part(&mut self, replica: usize, tokens: u32) {
        self.parts[replica] = tokens;
    }

    /// The replica among `candidates` on which its expert is done first; ties go to the first.
    pub(super) fn earliest(
        &self,
        hosts: &Hosts,
        candidates: std::ops::Range<usize>,
    ) -> Option<usize> {
        candidates.min_by_key(|&replica| {
            self.loads[usize::from(hosts.node(replica))] + self.costs[replica]
        })
    }

    /// Gives all of an expert's tokens to one replica.
    pub(super) fn put(&mut self, hosts: &Hosts, replica: usize, tokens: u32) {
        self.parts[replica] = tokens;
        self.loads[usize::from(hosts.node(replica))] += self.costs[replica];
    }
}
