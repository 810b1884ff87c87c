//! Turns what was observed into advice: the active replica of every expert, and what waits where.

use std::sync::Arc;

use domain::{CostCurve, Leased, NodeId, Plan};
use policy::routing::{Hosts, Instance, Policy, Router};

/// A new lease has to be faster than the old one by this part of its time: every change lets the
/// tokens of an expert wait in two places for a while.
const GAIN: f64 = 0.05;

/// Makes leases, one after the other.
#[derive(Debug)]
pub(crate) struct Guide {
    router: Router,
    lease: Option<Arc<Leased>>,
}

/// What a lease is made from.
#[derive(Debug)]
pub(crate) struct Situation<'a> {
    /// The plan that serves.
    pub(crate) plan: &'a Plan,
    /// The living nodes that hold a part of it, ascending.
    pub(crate) nodes: &'a [NodeId],
    /// Tokens of each expert that meet in one run, `[moe layer][expert]`.
    pub(crate) tokens: &'a [u32],
    /// What one activated expert takes on each of the nodes.
    pub(crate) curves: &'a [CostCurve],
    /// Time that what waits on each of the nodes will take.
    pub(crate) backlog_ns: &'a [u64],
}

// === impl Guide ===

impl Guide {
    pub(crate) fn new(policy: Policy) -> Self {
        Self { router: Router::new(policy), lease: None }
    }

    /// The policy it follows.
    pub(crate) fn policy(&self) -> Policy {
        self.router.policy()
    }

    /// The lease in force.
    pub(crate) fn lease(&self) -> Option<&Arc<Leased>> {
        self.lease.as_ref()
    }

    /// Leases anew if that pays; none where every expert has one replica only.
    pub(crate) fn renew(&mut self, situation: &Situation<'_>) {
        if situation.plan.table().all(|replicas| replicas.len() < 2) {
            self.lease = None;
            return;
        }
        let Some(nodes) = self.route(situation) else { return };
        if let Some(lease) = &self.lease
            && lease.epoch == situation.plan.epoch()
            && let Some(now) = situation.time_ns(&lease.nodes)
        {
            let then = situation.time_ns(&nodes).unwrap_or(u64::MAX);
            if then as f64 > now as f64 * (1.0 - GAIN) {
                return;
            }
        }
        self.lease = Some(Arc::new(Leased { epoch: situation.plan.epoch(), nodes }));
    }

    /// One replica per expert, layer by layer: in asynchronous serving nobody waits at a layer's end, so
    /// what a node was given in one layer counts as its backlog in the next.
    fn route(&mut self, situation: &Situation<'_>) -> Option<Vec<NodeId>> {
        let Situation { plan, nodes, tokens, curves, backlog_ns } = *situation;
        let experts = usize::from(plan.experts());
        let table: Vec<&[NodeId]> = plan.table().collect();
        let mut backlog = backlog_ns.to_vec();
        let mut leased = Vec::with_capacity(table.len());
        for (layer, tokens) in table.chunks(experts).zip(tokens.chunks(experts)) {
            let index = |id: &NodeId| u16::try_from(nodes.binary_search(id).ok()?).ok();
            let lists: Vec<Vec<u16>> =
                layer.iter().map(|replicas| replicas.iter().filter_map(index).collect()).collect();
            // What nobody holds now has nowhere to go, and the others must not wait for it.
            let tokens: Vec<u32> = tokens
                .iter()
                .zip(&lists)
                .map(|(&tokens, hosts)| if hosts.is_empty() { 0 } else { tokens })
                .collect();
            let hosts = Hosts::new(nodes.len(), &lists).ok()?;
            let instance =
                Instance { hosts: &hosts, tokens: &tokens, curves, backlog_ns: &backlog };
            let assignment = self.router.route(&instance).ok()?;
            let mut times = assignment.time_ns().to_vec();
            backlog.clone_from(&times);
            for (expert, hosts) in lists.iter().enumerate() {
                let shares = assignment.shares(expert).iter();
                let largest = shares.max_by_key(|share| share.tokens).map(|share| share.node);
                let node = largest.or_else(|| idlest(hosts, &mut times, curves));
                let first = layer[expert].first().copied()?;
                leased.push(node.map_or(first, |node| nodes[usize::from(node)]));
            }
        }
        Some(leased)
    }
}

/// Where an expert that nobody wants now, and that may be wanted next, has least before it; it then
/// counts there for the others of its kind.
fn idlest(hosts: &[u16], times: &mut [u64], curves: &[CostCurve]) -> Option<u16> {
    let idlest = hosts.iter().copied().min_by_key(|&node| times[usize::from(node)])?;
    let cost = curves.get(usize::from(idlest)).map_or(1, |curve| curve.ns(1));
    times[usize::from(idlest)] += cost;
    Some(idlest)
}

// === impl Situation ===

impl Situation<'_> {
    /// When the last node is done under a lease; none if it names a node that must not be used.
    fn time_ns(&self, leased: &[NodeId]) -> Option<u64> {
        let mut times: Vec<u64> = self.backlog_ns.to_vec();
        times.resize(self.nodes.len(), 0);
        for ((replicas, node), &tokens) in self.plan.table().zip(leased).zip(self.tokens) {
            let living = |node: &NodeId| self.nodes.binary_search(node).is_ok();
            let Ok(at) = self.nodes.binary_search(node) else {
                // Somebody else would have to be there to do better.
                if replicas.iter().any(living) {
                    return None;
                }
                continue;
            };
            let cost = self.curves.get(at).map_or(u64::from(tokens > 0), |curve| curve.ns(tokens));
            times[at] = times[at].saturating_add(cost);
        }
        times.into_iter().max()
    }
}

#[cfg(test)]
mod tests {
    use domain::{Epoch, Layer, ModelShape};

    use super::*;

    const NODES: [NodeId; 2] = [NodeId(4), NodeId(7)];

    /// Two layers of four experts, all of them on both nodes.
    fn plan(epoch: u64) -> Plan {
        let shape = ModelShape {
            layers: 2,
            moe_layers: vec![Layer(0), Layer(1)],
            experts: 4,
            top_k: 1,
            hidden: 8,
            expert_bytes: 1,
            vocab: 8,
            positions_max: 8,
        };
        Plan::new(Epoch(epoch), None, &shape, vec![NODES.to_vec(); 8]).unwrap()
    }

    fn curves(slow: f64) -> Vec<CostCurve> {
        let curve = CostCurve::new(vec![(64, 1000)]).unwrap();
        vec![curve.clone(), curve.scaled(slow)]
    }

    fn share(guide: &Guide, node: NodeId) -> usize {
        guide.lease().unwrap().nodes.iter().filter(|&&leased| leased == node).count()
    }

    #[test]
    fn a_slow_node_gets_less_and_a_lost_one_nothing() {
        let plan = plan(1);
        let (equal, slow) = (curves(1.0), curves(3.0));
        let situation = |nodes, curves| Situation {
            plan: &plan,
            nodes,
            tokens: &[5; 8],
            curves,
            backlog_ns: &[],
        };
        let mut guide = Guide::new(Policy::default());
        guide.renew(&situation(&NODES, &equal));
        assert_eq!((share(&guide, NODES[0]), share(&guide, NODES[1])), (4, 4));
        let before = guide.lease().cloned();
        guide.renew(&situation(&NODES, &equal));
        assert!(
            Option::zip(before, guide.lease().cloned()).is_some_and(|(a, b)| Arc::ptr_eq(&a, &b))
        );
        guide.renew(&situation(&NODES, &slow));
        assert_eq!((share(&guide, NODES[0]), share(&guide, NODES[1])), (6, 2));
        guide.renew(&situation(&NODES[..1], &slow[..1]));
        assert_eq!(share(&guide, NODES[0]), 8);
    }

    #[test]
    fn a_lease_is_of_one_plan_and_only_where_there_is_a_choice() {
        let mut guide = Guide::new(Policy::default());
        let equal = curves(1.0);
        for epoch in 1..3 {
            let plan = plan(epoch);
            let tokens = [1; 8];
            guide.renew(&Situation {
                plan: &plan,
                nodes: &NODES,
                tokens: &tokens,
                curves: &equal,
                backlog_ns: &[0, 0],
            });
            assert_eq!(guide.lease().unwrap().epoch, Epoch(epoch));
        }
    }
}
