//! Who runs which expert: the serving plan's hosts, the lease of an asynchronous run, and decisions per batch.

use std::sync::Arc;

use domain::{CostCurve, Epoch, Expert, Layer, NodeId, Plan};
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
    lease: Lease,
    /// Expert nodes.
    nodes: Vec<NodeId>,
    /// Scratch: tokens that each holder is given.
    given: Vec<(usize, u16)>,
    /// Whether any expert has more than one host.
    replicated: bool,
    router: Router,
}

// === impl Routes ===

impl Routes {
    /// Routes under a first plan.
    pub(crate) fn new(policy: Policy, cluster: &Cluster, plan: Arc<Plan>) -> Self {
        let mut routes = Self {
            policy,
            experts: cluster.experts_per_layer(),
            hosts: Vec::new(),
            lease: Lease::first_live(&plan, |_| true),
            nodes: cluster.hosts.iter().map(|host| host.id).collect(),
            given: Vec::new(),
            replicated: false,
            router: Router::new(policy),
            plan: Arc::clone(&plan),
        };
        routes.serve(plan);
        routes
    }

    /// Another plan serves from now on. Its first replicas are leased until the lease is renewed, and by
    /// even split all of them.
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
        self.lease = match self.policy {
            Policy::EvenSplit => Lease::even(&self.plan, |_| true),
            _ => Lease::first_live(&self.plan, |_| true),
        };
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
        if !self.replicated {
            return;
        }
        let demand =
            Demand { plan: &self.plan, nodes: &self.nodes, tokens, runs, curves, backlog_ns };
        let renewed = self.lease.renewed(&demand, &mut self.router);
        if let Some(lease) = renewed.expect("the demand is for this plan and these nodes") {
            self.lease = lease;
        }
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

    /// The nodes that run `tokens` tokens of an expert: its holders, in turn.
    pub(crate) fn split(
        &mut self,
        layer: u16,
        expert: u16,
        tokens: u16,
        mut send: impl FnMut(usize, u16),
    ) {
        for _ in 0..tokens {
            let node = self.lease.next(Layer(layer), Expert(expert));
            let node = node.expect("every expert of a checked plan has a host").0 as usize;
            match self.given.iter_mut().find(|(given, _)| *given == node) {
                Some((_, tokens)) => *tokens += 1,
                None => self.given.push((node, 1)),
            }
        }
        self.given.drain(..).for_each(|(node, tokens)| send(node, tokens));
    }

    /// The hosts of a layer's experts, and the router to choose among them.
    pub(crate) fn layer(&mut self, layer: usize) -> (&Hosts, &mut Router) {
        (&self.hosts[layer], &mut self.router)
    }

    /// A leased node that does not hold its expert: (layer, expert, node).
    pub(crate) fn astray(&self) -> Option<(usize, usize, usize)> {
        let slots = self.lease.holders().zip(self.plan.table()).enumerate();
        let mut astray = slots.filter_map(|(slot, (mut holders, replicas))| {
            let holder = holders.find(|holder| !replicas.contains(&holder.node))?;
            Some((slot / self.experts, slot % self.experts, holder.node.0 as usize))
        });
        astray.next()
    }
}
