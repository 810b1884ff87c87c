//! A lease names one active replica per (layer, expert), for attention nodes to look up.

use domain::{Epoch, Expert, Layer, Leased, NodeId, Plan};

/// The active replica of every (layer, expert) under one plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    epoch: Epoch,
    /// Row of each layer in `nodes`; none for a layer without experts.
    rows: Vec<Option<usize>>,
    experts: usize,
    /// `[moe layer][expert]`, flattened; none where no replica is alive.
    nodes: Vec<Option<NodeId>>,
}

impl Lease {
    /// Leases the first live replica of every expert, in ascending node order.
    ///
    /// All attention nodes that see the same plan and the same live nodes agree on the result, so
    /// an expert's tokens meet in one queue instead of being spread over its replicas.
    pub fn first_live(plan: &Plan, alive: impl Fn(NodeId) -> bool) -> Self {
        let live = |replicas: &[NodeId]| replicas.iter().copied().find(|&node| alive(node));
        Self::new(plan, plan.table().map(live).collect())
    }

    /// Leases the replica that the coordinator advises, and the first live one where that is not
    /// alive or is none of the expert's replicas. Advice for another plan is not followed.
    pub fn advised(plan: &Plan, advice: &Leased, alive: impl Fn(NodeId) -> bool) -> Self {
        let nodes: &[NodeId] = if advice.epoch == plan.epoch() { &advice.nodes } else { &[] };
        let choose = |(slot, replicas): (usize, &[NodeId])| {
            let advised = nodes.get(slot).filter(|node| replicas.contains(node));
            let mut wanted = advised.into_iter().chain(replicas);
            wanted.find(|&&node| alive(node)).copied()
        };
        Self::new(plan, plan.table().enumerate().map(choose).collect())
    }

    /// A lease from its table, `[moe layer][expert]`.
    pub(super) fn new(plan: &Plan, nodes: Vec<Option<NodeId>>) -> Self {
        let mut rows = Vec::new();
        for (row, layer) in plan.moe_layers().iter().enumerate() {
            rows.resize(layer.index(), None);
            rows.push(Some(row));
        }
        Self { epoch: plan.epoch(), rows, experts: usize::from(plan.experts()), nodes }
    }

    /// The plan whose replicas these are.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The node that runs `expert` of `layer`; none if no replica is alive.
    #[must_use]
    pub fn node(&self, layer: Layer, expert: Expert) -> Option<NodeId> {
        let row = self.rows.get(layer.index()).copied().flatten()?;
        debug_assert!(expert.index() < self.experts, "{expert} is not of this model");
        self.nodes[row * self.experts + expert.index()]
    }

    /// The nodes in the order `[moe layer][expert]`.
    pub fn nodes(&self) -> impl Iterator<Item = Option<NodeId>> + '_ {
        self.nodes.iter().copied()
    }

    /// The lease as advice to those who follow [`Lease::advised`]. Where it names nobody, the advice
    /// names somebody who is of no use.
    #[must_use]
    pub fn advice(&self) -> Leased {
        Leased { epoch: self.epoch, nodes: self.nodes().map(Option::unwrap_or_default).collect() }
    }
}

#[cfg(test)]
mod tests {
    use domain::{Epoch, ModelShape};

    use super::*;

    #[test]
    fn leases_the_first_live_replica() {
        let shape = ModelShape {
            layers: 4,
            moe_layers: vec![Layer(1), Layer(3)],
            experts: 2,
            top_k: 1,
            hidden: 8,
            expert_bytes: 1,
            vocab: 1,
            positions_max: 1,
        };
        let node = |ids: &[u32]| ids.iter().map(|&id| NodeId(id)).collect::<Vec<_>>();
        let table = vec![node(&[1, 2]), node(&[2]), node(&[3]), node(&[1, 3])];
        let plan = Plan::new(Epoch(1), None, &shape, table).unwrap();
        let lease = Lease::first_live(&plan, |node| node != NodeId(1));
        let leased = |layer, expert| lease.node(Layer(layer), Expert(expert)).map(|node| node.0);
        assert_eq!(
            [leased(1, 0), leased(1, 1), leased(3, 0), leased(3, 1)],
            [2, 2, 3, 3].map(Some)
        );
        assert_eq!(leased(0, 0), None, "a dense layer has no experts");
        let none = Lease::first_live(&plan, |_| false);
        assert_eq!(none.node(Layer(1), Expert(0)), None);
        let advice = |epoch| Leased { epoch: Epoch(epoch), nodes: node(&[2, 1, 3, 3]) };
        let leased = |lease: &Lease| lease.nodes().flatten().map(|node| node.0).collect();
        let lease: Vec<_> = leased(&Lease::advised(&plan, &advice(1), |_| true));
        assert_eq!(lease, [2, 2, 3, 3], "node 1 has no replica of the second");
        let lease: Vec<_> = leased(&Lease::advised(&plan, &advice(1), |node| node != NodeId(2)));
        assert_eq!(lease, [1, 3, 3], "node 2 is not alive");
        let lease: Vec<_> = leased(&Lease::advised(&plan, &advice(2), |_| true));
        assert_eq!(lease, [1, 2, 3, 1], "another plan's advice");
    }
}
