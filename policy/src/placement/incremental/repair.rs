//! Repairs: every expert gets a host again, every host fits, and further replicas that are missing are added.

use std::cmp::Reverse;

use domain::{NodeId, Plan};

use super::{
    super::{
        cost,
        problem::{HostIndex, LayerTable},
    },
    Trigger, Work,
};

// === impl Work ===

impl Work<'_> {
    pub(super) fn free(&self, host: usize) -> u64 {
        u64::from(self.problem.hosts[host].slots).saturating_sub(self.held[host])
    }

    /// Gives every expert a host and every host no more than it has slots for. What was lost, if anything.
    pub(super) fn repair(&mut self, serving: &Plan) -> Option<Trigger> {
        let known = |id: &NodeId| self.problem.hosts.iter().any(|host| host.id == *id);
        let mut lost: Vec<NodeId> =
            serving.iter().map(|(_, _, node)| node).filter(|id| !known(id)).collect();
        lost.sort_unstable();
        lost.dedup();
        let shrunk: Vec<usize> = (0..self.held.len())
            .filter(|&host| self.held[host] > u64::from(self.problem.hosts[host].slots))
            .collect();
        lost.extend(shrunk.iter().map(|&host| self.problem.hosts[host].id));
        for host in shrunk {
            self.evict(host);
        }
        for layer in 0..self.problem.layers {
            for expert in 0..self.problem.experts {
                if self.tables[layer][expert].is_empty() {
                    self.settle(layer, expert);
                }
            }
        }
        (!lost.is_empty()).then_some(Trigger::Lost(lost))
    }

    /// Takes replicas from a host until it has slots for the rest, such of experts with several first.
    fn evict(&mut self, host: usize) {
        while self.held[host] > u64::from(self.problem.hosts[host].slots) {
            let here = |hosts: &Vec<HostIndex>| hosts.iter().any(|&at| usize::from(at) == host);
            let rows = self.tables.iter_mut().flatten().filter(|hosts| here(hosts));
            let Some(row) = rows.max_by_key(|hosts| hosts.len()) else { return };
            row.retain(|&at| usize::from(at) != host);
            self.held[host] -= 1;
        }
    }

    /// Finds a host for an expert that has none.
    fn settle(&mut self, layer: usize, expert: usize) {
        if (0..self.held.len()).all(|host| self.free(host) == 0) {
            self.drop_spare();
        }
        let host = self.home(layer, expert).expect("hosts have as many slots as there are experts");
        self.put(layer, expert, host);
    }

    /// Adds up to `budget` of the further replicas that the input wishes for, where they are fewest
    /// and to the expert with most tokens per replica. How many were missing, if any.
    pub(super) fn refill(&mut self, budget: u64) -> Option<Trigger> {
        let slots = self.problem.hosts.iter().map(|host| u64::from(host.slots));
        let wanted = slots.sum::<u64>().min(self.problem.wanted());
        let missing = wanted.saturating_sub(self.held.iter().sum());
        let mut added = 0;
        for _ in 0..missing.min(budget) {
            let replicas = |table: &LayerTable| table.iter().map(Vec::len).sum::<usize>();
            let Some(layer) =
                (0..self.tables.len()).min_by_key(|&layer| replicas(&self.tables[layer]))
            else {
                break;
            };
            let (table, loads) = (&self.tables[layer], self.problem.loads(layer));
            let mut experts: Vec<usize> = (0..loads.len()).collect();
            experts
                .sort_by_key(|&expert| Reverse(loads[expert] * 1000 / table[expert].len() as u64));
            let mut homes =
                experts.into_iter().filter_map(|expert| Some((expert, self.home(layer, expert)?)));
            let Some((expert, host)) = homes.next() else { break };
            self.put(layer, expert, host);
            added += 1;
        }
        (added > 0).then_some(Trigger::Missing(missing))
    }

    /// Of the hosts with a free slot that do not hold the expert the one that would finish the layer
    /// first with it; hosts below their equal share come before all others.
    fn home(&self, layer: usize, expert: usize) -> Option<HostIndex> {
        let share = self.share();
        let holders = &self.tables[layer][expert];
        let open = (0..HostIndex::MAX)
            .zip(&self.held)
            .filter(|(host, _)| self.free(usize::from(*host)) > 0 && !holders.contains(host));
        let best = open
            .min_by_key(|&(host, &held)| (held >= share, self.finish(layer, expert, host), held));
        best.map(|(host, _)| host)
    }

    fn put(&mut self, layer: usize, expert: usize, host: HostIndex) {
        self.tables[layer][expert].push(host);
        self.held[usize::from(host)] += 1;
    }

    /// Gives up a replica of an expert that has most of them.
    fn drop_spare(&mut self) {
        let most = self.tables.iter_mut().flatten().max_by_key(|hosts| hosts.len());
        if let Some(host) = most.and_then(Vec::pop) {
            self.held[usize::from(host)] -= 1;
        }
    }

    /// Time that `host` would take for the layer's steps with one more replica of `expert`.
    fn finish(&self, layer: usize, expert: usize, host: HostIndex) -> u64 {
        let Some(trace) = self.problem.trace else { return 0 };
        let table = self.tables[layer].iter().enumerate();
        let held: Vec<(usize, usize)> = table
            .filter(|(other, hosts)| *other == expert || hosts.contains(&host))
            .map(|(other, hosts)| (other, hosts.len() + usize::from(other == expert)))
            .collect();
        let step = |step| {
            let counts = trace.counts(step, layer);
            let shares = held.iter().map(|&(other, replicas)| cost::share(counts[other], replicas));
            self.problem.curves[usize::from(host)].ns(shares.sum())
        };
        (0..trace.steps()).map(step).sum()
    }

    /// Replicas per host if all held equally many.
    pub(super) fn share(&self) -> u64 {
        self.held.iter().sum::<u64>().max(self.problem.needed()).div_ceil(self.held.len() as u64)
    }
}
