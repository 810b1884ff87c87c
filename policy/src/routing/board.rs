//! What is decided so far within one call: the replica and the tokens of each expert, the load of each node.

use std::ops::Range;

use super::{Hosts, Instance, cut::Cut};

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
    /// Per expert: the replica that has all of its tokens, or [`NONE`].
    chosen: Vec<u32>,
    /// Per node: what it costs in all.
    loads: Vec<u64>,
    /// Loads under somebody else's choices.
    trial: Vec<u64>,
}

const NONE: u32 = u32::MAX;

impl Board {
    /// Starts over: no tokens anywhere, and every replica of the activated experts is priced.
    pub(super) fn clear(&mut self, instance: &Instance<'_>, by: Measure) {
        let hosts = instance.hosts;
        self.parts.clear();
        self.parts.resize(hosts.replicas_all(), 0);
        self.chosen.clear();
        self.chosen.resize(hosts.experts(), NONE);
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

    /// Takes over the choices of `rival`, which is measured otherwise and has split nothing, if
    /// the largest load is smaller with them.
    pub(super) fn learn_from(&mut self, rival: &Self, instance: &Instance<'_>) -> bool {
        let hosts = instance.hosts;
        self.trial.clear();
        self.trial.extend((0..hosts.nodes()).map(|node| instance.backlog_ns(node)));
        for &replica in rival.chosen.iter().filter(|&&replica| replica != NONE) {
            let node = usize::from(hosts.node(replica as usize));
            self.trial[node] += self.costs[replica as usize];
        }
        let better = self.trial.iter().max() < self.loads.iter().max();
        if better {
            self.loads.copy_from_slice(&self.trial);
            self.chosen.copy_from_slice(&rival.chosen);
            self.parts.copy_from_slice(&rival.parts);
        }
        better
    }

    /// Tokens per replica.
    pub(super) fn parts(&self) -> &[u32] {
        &self.parts
    }

    /// Gives a replica a part of its expert's tokens.
    pub(super) fn set_part(&mut self, replica: usize, tokens: u32) {
        self.parts[replica] = tokens;
    }

    /// What all tokens of a replica's expert cost on its node.
    pub(super) fn cost(&self, replica: usize) -> u64 {
        self.costs[replica]
    }

    /// What a node costs in all.
    pub(super) fn load(&self, node: usize) -> u64 {
        self.loads[node]
    }

    /// The node that costs most; ties go to the lowest.
    pub(super) fn fullest(&self) -> Option<usize> {
        let mut fullest = None;
        for (node, &load) in self.loads.iter().enumerate() {
            if fullest.is_none_or(|(_, most)| load > most) {
                fullest = Some((node, load));
            }
        }
        fullest.map(|(node, _)| node)
    }

    /// The replica that has all tokens of an expert; none if the expert is idle or split.
    pub(super) fn chosen(&self, expert: usize) -> Option<usize> {
        let replica = self.chosen[expert];
        (replica != NONE).then_some(replica as usize)
    }

    /// What an expert costs where all its tokens are.
    pub(super) fn cost_now(&self, expert: usize) -> u64 {
        self.costs[self.chosen[expert] as usize]
    }

    /// The node that has all tokens of an expert.
    pub(super) fn node_now(&self, hosts: &Hosts, expert: usize) -> usize {
        usize::from(hosts.node(self.chosen[expert] as usize))
    }

    /// The replica among `candidates` on which its expert is done first; ties go to the first.
    pub(super) fn earliest(&self, hosts: &Hosts, candidates: Range<usize>) -> Option<usize> {
        let done =
            |&replica: &usize| self.loads[usize::from(hosts.node(replica))] + self.costs[replica];
        candidates.min_by_key(done)
    }

    /// Gives all of an idle expert's tokens to one replica.
    pub(super) fn put(&mut self, hosts: &Hosts, expert: usize, replica: usize, tokens: u32) {
        #[expect(clippy::cast_possible_truncation, reason = "replicas fit u32")]
        {
            self.chosen[expert] = replica as u32;
        }
        self.parts[replica] = tokens;
        self.loads[usize::from(hosts.node(replica))] += self.costs[replica];
    }

    /// Takes all tokens from the replica that has them, and gives them to another.
    pub(super) fn shift(&mut self, hosts: &Hosts, expert: usize, replica: usize) {
        let old = self.chosen[expert] as usize;
        let tokens = std::mem::take(&mut self.parts[old]);
        self.loads[usize::from(hosts.node(old))] -= self.costs[old];
        self.put(hosts, expert, replica, tokens);
    }

    /// Moves some of an expert's tokens from one of its replicas to another.
    pub(super) fn cut(&mut self, hosts: &Hosts, cut: &Cut) {
        self.chosen[cut.expert] = NONE;
        self.parts[cut.from] -= cut.tokens;
        self.parts[cut.to] += cut.tokens;
        self.loads[usize::from(hosts.node(cut.from))] = cut.load_from;
        self.loads[usize::from(hosts.node(cut.to))] = cut.load_to;
    }
}
