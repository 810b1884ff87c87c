//! Who runs which expert: the serving plan's hosts, the lease of an asynchronous run, and decisions per batch.

use std::sync::Arc;

use domain::{CostCurve, Epoch, Expert, NodeId, Plan};
use policy::routing::{Demand, Hosts, Lease, Policy, Router};

use crate::cluster::Cluster;

/// The routing state of a run.
#[derive(Debug)]
pub(crate) struct Routes {
    policy: Policy,
    plan: Arc<Plan>,
    experts: usize,
    /// Per layer.
    hosts: Vec<Hosts>,
    /// `[layer][expert]`, flattened: the leased node.
    leased: Vec<u16>,
    lease: Lease,
    /// Expert nodes.
    nodes: Vec<NodeId>,
    /// `[layer][expert]`, flattened: whose turn it is when tokens are split evenly.
    turns: Vec<u16>,
    /// Whether any expert has more than one host.
    replicated: bool,
    router: Router,
}

// === impl Routes ===

impl Routes {
    /// Routes under a first plan.
    pub(crate) fn new(policy: Policy, cluster: &Cluster, plan: Arc<Plan>) -> Self {
        let slots = cluster.layers() * cluster.experts_per_layer();
        let mut routes = Self {
            policy,
            experts: cluster.experts_per_layer(),
            hosts: Vec::new(),
            leased: vec![0; slots],
            lease: Lease::first_live(&plan, |_| true),
            nodes: cluster.hosts.iter().map(|host| host.id).collect(),
            turns: vec![0; slots],
            replicated: false,
            router: Router::new(policy),
            plan: Arc::clone(&plan),
        };
        routes.serve(plan);
        routes
    }

    /// Another plan serves from now on. Its first replicas are leased until the lease is renewed.
    pub(crate) fn serve(&mut self, plan: Arc<Plan>) {
        let narrow = |id: &NodeId| u16::try_from(id.0).expect("nodes are counted in u16");
        let lists: Vec<Vec<u16>> =
            plan.table().map(|replicas| replicas.iter().map(narrow).collect()).collect();
        self.replicated = lists.iter().any(|list| list.len() > 1);
        self.hosts = lists
            .chunks(self.experts)
            .map(|layer| Hosts::new(self.nodes.len(), layer).expect("the plan passed the checker"))
            .collect();
        self.plan = plan;
        self.follow(Lease::first_live(&self.plan, |_| true));
    }

    /// Renews the lease from what was asked for lately: the tokens of every expert,
    /// `[layer][expert]`, in about `runs` runs of each layer, and the work that waits on each node.
    pub(crate) fn renew(
        &mut self,
        tokens: &[u32],
        runs: u32,
        backlog_ns: &[u64],
        curves: &[CostCurve],
    ) {
        if !self.replicated || self.policy == Policy::EvenSplit {
            return;
        }
        let demand =
            Demand { plan: &self.plan, nodes: &self.nodes, tokens, runs, curves, backlog_ns };
        let renewed = self.lease.renewed(&demand, &mut self.router);
        if let Some(lease) = renewed.expect("the demand is for this plan and these nodes") {
            self.follow(lease);
        }
    }

    fn follow(&mut self, lease: Lease) {
        let plan = &self.plan;
        let slots = plan
            .moe_layers()
            .iter()
            .flat_map(|&layer| (0..plan.experts()).map(move |expert| (layer, Expert(expert))));
        for (slot, (layer, expert)) in slots.enumerate() {
            let node =
                lease.node(layer, expert).expect("every expert of a checked plan has a host");
            self.leased[slot] = u16::try_from(node.0).expect("nodes are counted in u16");
        }
        self.lease = lease;
    }

    /// The serving plan.
    pub(crate) fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Its epoch.
    pub(crate) fn epoch(&self) -> Epoch {
        self.plan.epoch()
    }

    /// Whether a lockstep batch is routed over all nodes together: not where there is nothing to
    /// choose, nor for even split, which every node does by itself.
    pub(crate) fn decides_together(&self) -> bool {
        self.replicated && self.policy != Policy::EvenSplit
    }

    /// The nodes that run `tokens` tokens of an expert: the leased one or, for even split, all of its
    /// hosts, in turn.
    pub(crate) fn split(
        &mut self,
        layer: u16,
        expert: u16,
        tokens: u16,
        mut send: impl FnMut(usize, u16),
    ) {
        let slot = usize::from(layer) * self.experts + usize::from(expert);
        if !self.replicated || self.policy != Policy::EvenSplit {
            return send(usize::from(self.leased[slot]), tokens);
        }
        let hosts = self.hosts[usize::from(layer)].of(usize::from(expert));
        let count = u16::try_from(hosts.len()).expect("nodes are counted in u16");
        let turn = &mut self.turns[slot];
        for share in 0..count.min(tokens) {
            let node = hosts[usize::from(*turn % count)];
            *turn = (*turn + 1) % count;
            send(usize::from(node), tokens / count + u16::from(share < tokens % count));
        }
    }

    /// The hosts of a layer's experts, and the router to choose among them.
    pub(crate) fn layer(&mut self, layer: usize) -> (&Hosts, &mut Router) {
        (&self.hosts[layer], &mut self.router)
    }

    /// A leased node that does not hold its expert: (layer, expert, node).
    pub(crate) fn astray(&self) -> Option<(usize, usize, usize)> {
        let slots = self.leased.iter().enumerate();
        let mut slots = slots.map(|(slot, &node)| (slot / self.experts, slot % self.experts, node));
        let astray =
            slots.find(|&(layer, expert, node)| !self.hosts[layer].of(expert).contains(&node));
        astray.map(|(layer, expert, node)| (layer, expert, usize::from(node)))
    }
}
