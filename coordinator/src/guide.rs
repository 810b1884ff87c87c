//! Keeps the lease in force: who runs every expert, made anew when that pays.

use std::sync::Arc;

use domain::Leased;
use policy::routing::{Demand, Lease, Policy, Router};

/// Makes leases, one after the other.
#[derive(Debug)]
pub(crate) struct Guide {
    router: Router,
    lease: Option<(Lease, Arc<Leased>)>,
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

    /// The lease in force, as advice.
    pub(crate) fn lease(&self) -> Option<&Arc<Leased>> {
        self.lease.as_ref().map(|(_, advice)| advice)
    }

    /// Leases anew if that pays; none where every expert has one replica only.
    pub(crate) fn renew(&mut self, demand: &Demand<'_>) {
        if demand.plan.table().all(|replicas| replicas.len() < 2) {
            self.lease = None;
            return;
        }
        let renewed = match &self.lease {
            Some((lease, _)) => lease.renewed(demand, &mut self.router),
            None => Lease::routed(demand, &mut self.router).map(Some),
        };
        match renewed {
            Ok(Some(lease)) => {
                let advice = Arc::new(lease.advice());
                self.lease = Some((lease, advice));
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "no lease can be made; the last one stands"),
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::{CostCurve, Epoch, Layer, ModelShape, NodeId, Plan};

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
        let holders = guide.lease().unwrap().holders.iter().flatten();
        holders.filter(|holder| holder.node == node).count()
    }

    #[test]
    fn a_slow_node_gets_less_and_a_lost_one_nothing() {
        let plan = plan(1);
        let (equal, slow) = (curves(1.0), curves(3.0));
        let demand = |nodes, curves| Demand {
            plan: &plan,
            nodes,
            tokens: &[5; 8],
            runs: 1,
            curves,
            backlog_ns: &[],
        };
        let mut guide = Guide::new(Policy::default());
        guide.renew(&demand(&NODES, &equal));
        assert_eq!((share(&guide, NODES[0]), share(&guide, NODES[1])), (4, 4));
        let before = guide.lease().cloned();
        guide.renew(&demand(&NODES, &equal));
        assert!(
            Option::zip(before, guide.lease().cloned()).is_some_and(|(a, b)| Arc::ptr_eq(&a, &b))
        );
        guide.renew(&demand(&NODES, &slow));
        assert_eq!((share(&guide, NODES[0]), share(&guide, NODES[1])), (6, 2));
        guide.renew(&demand(&NODES[..1], &slow[..1]));
        assert_eq!(share(&guide, NODES[0]), 8);
    }

    #[test]
    fn a_lease_is_of_one_plan_and_only_where_there_is_a_choice() {
        let mut guide = Guide::new(Policy::default());
        let equal = curves(1.0);
        for epoch in 1..3 {
            let plan = plan(epoch);
            let tokens = [1; 8];
            guide.renew(&Demand {
                plan: &plan,
                nodes: &NODES,
                tokens: &tokens,
                runs: 1,
                curves: &equal,
                backlog_ns: &[0, 0],
            });
            assert_eq!(guide.lease().unwrap().epoch, Epoch(epoch));
        }
    }
}
