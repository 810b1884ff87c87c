//! Lockstep mode with routing by batch: where this node's rows go, decided by what all attention nodes chose.

use std::collections::{BTreeMap, btree_map::Entry};

use domain::{Expert, Layer, NodeId, Plan};
use policy::routing::{Hosts, Instance, Policy, Router, Unroutable};

/// Routes one layer of one batch after the other.
///
/// Every attention node decides alone and from the same sum, so all of them activate the same
/// replicas: METRO's global batch, without anything but counts having been gathered.
#[derive(Debug)]
pub(crate) struct BatchRoutes {
    router: Router,
    /// The nodes that can be reached; routing counts them by their places here.
    nodes: Vec<NodeId>,
    /// Hosts of the layers that were routed since plan or nodes changed.
    hosts: BTreeMap<Layer, Hosts>,
    /// Per expert: where its parts begin, and where the last one's end.
    starts: Vec<usize>,
    parts: Vec<Part>,
    /// Per expert: how many of this node's rows have been given a node.
    given: Vec<u32>,
}

/// A node, and up to which of this node's rows of the expert it takes them.
#[derive(Clone, Copy, Debug)]
struct Part {
    node: NodeId,
    until: u32,
}

impl BatchRoutes {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            router: Router::new(policy),
            nodes: Vec::new(),
            hosts: BTreeMap::new(),
            starts: Vec::new(),
            parts: Vec::new(),
            given: Vec::new(),
        }
    }

    /// The plan changed, or which nodes can be reached.
    pub(crate) fn renew(&mut self, nodes: impl Iterator<Item = NodeId>) {
        self.nodes.clear();
        self.nodes.extend(nodes);
        self.hosts.clear();
        self.end();
    }

    /// Decides a layer: `all` are the tokens per expert of the whole batch, `own` those of this node.
    ///
    /// # Errors
    /// Some expert cannot be reached: nothing is decided, and rows go by the lease.
    pub(crate) fn begin(
        &mut self,
        plan: &Plan,
        layer: Layer,
        all: &[u32],
        own: &[u32],
    ) -> Result<(), Unroutable> {
        self.end();
        let hosts = match self.hosts.entry(layer) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let experts = (0..plan.experts()).map(Expert);
                let replicas = experts.map(|expert| plan.replicas(layer, expert));
                place.insert(Hosts::among(&self.nodes, replicas)?)
            }
        };
        let instance = Instance { hosts, tokens: all, curves: &[], backlog_ns: &[] };
        let assignment = self.router.route(&instance)?;
        self.given.resize(own.len(), 0);
        for (expert, (&own, &all)) in own.iter().zip(all).enumerate() {
            self.starts.push(self.parts.len());
            let mut before = 0;
            for share in assignment.shares(expert) {
                before += share.tokens;
                // Everybody's rows are split alike; the sum was taken over all of them.
                let until = u64::from(own) * u64::from(before) / u64::from(all);
                let node = self.nodes[usize::from(share.node)];
                self.parts.push(Part { node, until: u32::try_from(until).unwrap_or(u32::MAX) });
            }
        }
        self.starts.push(self.parts.len());
        Ok(())
    }

    /// The node for the next of this node's rows that chose `expert`; none if nothing is decided.
    pub(crate) fn next(&mut self, expert: Expert) -> Option<NodeId> {
        let (begin, end) =
            (*self.starts.get(expert.index())?, *self.starts.get(expert.index() + 1)?);
        let given = &mut self.given[expert.index()];
        let part = self.parts[begin..end].iter().find(|part| *given < part.until)?;
        *given += 1;
        Some(part.node)
    }

    /// The layer's rows are on their way.
    pub(crate) fn end(&mut self) {
        self.starts.clear();
        self.parts.clear();
        self.given.clear();
    }
}

#[cfg(test)]
mod tests {
    use domain::{Epoch, ModelShape};

    use super::*;

    fn plan() -> Plan {
        let shape = ModelShape {
            layers: 1,
            moe_layers: vec![Layer(0)],
            experts: 3,
            top_k: 1,
            hidden: 8,
            expert_bytes: 1,
            vocab: 1,
            positions_max: 1,
        };
        let node = |ids: &[u32]| ids.iter().map(|&id| NodeId(id)).collect::<Vec<_>>();
        let table = vec![node(&[4]), node(&[4, 9]), node(&[4, 9])];
        Plan::new(Epoch(1), None, &shape, table).unwrap()
    }

    fn next(routes: &mut BatchRoutes, expert: u16, times: usize) -> Vec<Option<u32>> {
        (0..times).map(|_| routes.next(Expert(expert)).map(|node| node.0)).collect()
    }

    #[test]
    fn all_tokens_of_an_expert_meet_on_the_node_that_the_whole_batch_decides() {
        let mut routes = BatchRoutes::new(Policy::Exact);
        routes.renew([NodeId(4), NodeId(9)].into_iter());
        // This node has no row for expert 0, but somebody has: experts 1 and 2 cannot both join it.
        routes.begin(&plan(), Layer(0), &[5, 3, 0], &[0, 2, 0]).unwrap();
        assert_eq!(next(&mut routes, 1, 3), [Some(9), Some(9), None], "of two rows");
        routes.end();
        assert_eq!(next(&mut routes, 1, 1), [None]);
    }

    #[test]
    fn an_expert_that_is_split_is_split_alike_by_everybody() {
        let mut routes = BatchRoutes::new(Policy::EvenSplit);
        routes.renew([NodeId(4), NodeId(9)].into_iter());
        routes.begin(&plan(), Layer(0), &[0, 8, 0], &[0, 4, 0]).unwrap();
        assert_eq!(next(&mut routes, 1, 4), [4, 4, 9, 9].map(Some));
    }

    #[test]
    fn without_a_host_nothing_is_decided() {
        let mut routes = BatchRoutes::new(Policy::Metro);
        routes.renew([NodeId(9)].into_iter());
        assert!(routes.begin(&plan(), Layer(0), &[1, 1, 0], &[1, 1, 0]).is_err());
        assert_eq!(next(&mut routes, 1, 1), [None]);
    }
}
