//! The placement problem in plain integers: what a policy solves, and the way back to a plan.

use std::collections::BTreeMap;

use domain::{CostCurve, NodeId, Plan, Trace};

use super::{Explanation, Host, Infeasible, Input, Policy, Proposal, Revision, Share, Spare, cost};

/// A host as an index into [`Problem::hosts`].
pub(super) type HostIndex = u16;

/// The hosts of each expert of one layer, the first replica first; never the same host twice.
pub(super) type LayerTable = Vec<Vec<HostIndex>>;

/// An input whose hosts are unique and ascending and together have room for every expert once.
#[derive(Debug)]
pub(super) struct Problem<'a> {
    pub(super) input: &'a Input<'a>,
    pub(super) hosts: Vec<Host>,
    /// Per host.
    pub(super) curves: Vec<CostCurve>,
    pub(super) layers: usize,
    pub(super) experts: usize,
    /// A trace with steps.
    pub(super) trace: Option<&'a Trace>,
}

// === impl Problem ===

impl<'a> Problem<'a> {
    pub(super) fn new(input: &'a Input<'a>) -> Result<Self, Infeasible> {
        let (hosts, curves) = unique(input);
        let (layers, experts) = (input.shape.moe_layers.len(), usize::from(input.shape.experts));
        let needed = layers as u64 * experts as u64;
        let found = hosts.iter().map(|host| u64::from(host.slots)).sum();
        if found < needed || hosts.is_empty() {
            return Err(Infeasible { needed, found, hosts: hosts.len() });
        }
        let trace = input.trace.filter(|trace| trace.steps() > 0);
        if let Some(trace) = trace {
            let sizes = (trace.layers(), trace.experts());
            assert!(sizes == (layers, experts), "a trace of another model: {sizes:?}");
        }
        Ok(Self { input, hosts, curves, layers, experts, trace })
    }

    /// (layer, expert) pairs, each of which needs a replica.
    pub(super) fn needed(&self) -> u64 {
        self.layers as u64 * self.experts as u64
    }

    /// Replicas there are to be over all layers, if the hosts have room: the first ones and those
    /// that the input wishes for.
    pub(super) fn wanted(&self) -> u64 {
        match self.input.spare {
            Spare::Leave => self.needed(),
            Spare::UpTo(further) => self.needed() + self.layers as u64 * u64::from(further),
            Spare::Fill => self.needed() * self.hosts.len() as u64,
        }
    }

    /// Tokens of each expert of a layer over the whole trace; 1 each without a trace.
    pub(super) fn loads(&self, layer: usize) -> Vec<u64> {
        self.trace.map_or_else(|| vec![1; self.experts], |trace| trace.totals(layer))
    }

    /// Whether a plan is for the same layers and experts.
    pub(super) fn fits(&self, plan: &Plan) -> bool {
        plan.moe_layers() == self.input.shape.moe_layers
            && plan.experts() == self.input.shape.experts
    }

    /// The plan that a table per layer says, with the explanation.
    pub(super) fn proposal(
        &self,
        policy: Policy,
        tables: &[LayerTable],
        revision: Option<Revision>,
    ) -> Proposal {
        let mut shares: Vec<Share> =
            self.hosts.iter().map(|&host| Share { host, first: 0, further: 0 }).collect();
        for hosts in tables.iter().flatten() {
            for (rank, &host) in hosts.iter().enumerate() {
                let share = &mut shares[usize::from(host)];
                *(if rank == 0 { &mut share.first } else { &mut share.further }) += 1;
            }
        }
        let id = |&host: &HostIndex| self.hosts[usize::from(host)].id;
        let replicas =
            tables.iter().flatten().map(|hosts| hosts.iter().map(id).collect()).collect();
        let parent = self.input.serving.map(Plan::epoch);
        let plan = Plan::new(self.input.epoch, parent, self.input.shape, replicas)
            .expect("a table has a row for every expert of every layer");
        let cost_ns = self.trace.map(|trace| cost(&plan, &self.hosts, &self.curves, trace));
        Proposal { plan, explanation: Explanation { policy, shares, cost_ns, revision } }
    }
}

/// A host that is named twice is one host; the larger number of slots counts, and its curve.
fn unique(input: &Input<'_>) -> (Vec<Host>, Vec<CostCurve>) {
    let Input { hosts, curves, .. } = *input;
    assert!(
        curves.is_empty() || curves.len() == hosts.len(),
        "{} curves for {} hosts",
        curves.len(),
        hosts.len()
    );
    let mut unique: BTreeMap<NodeId, (u32, usize)> = BTreeMap::new();
    for (at, host) in hosts.iter().enumerate() {
        let known = unique.entry(host.id).or_insert((host.slots, at));
        if host.slots > known.0 {
            *known = (host.slots, at);
        }
    }
    assert!(unique.len() <= usize::from(HostIndex::MAX), "{} hosts", unique.len());
    let proportional = cost::proportional();
    unique
        .into_iter()
        .map(|(id, (slots, at))| {
            let curve = curves.get(at).unwrap_or(&proportional);
            (Host { id, slots }, curve.clone())
        })
        .unzip()
}
