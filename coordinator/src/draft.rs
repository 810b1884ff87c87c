//! A plan in the making: all that a planner looks at, as a value of its own, so that planning holds up nobody.

use std::sync::Arc;

use domain::{CostCurve, Epoch, ModelShape, NodeId, Plan, Trace};
use policy::placement::{
    self, Basis, Facts, Host, Infeasible, Input, Limits, Policy, Proposal, Spare,
};

/// What a planner looks at.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) policy: Policy,
    pub(crate) spare: Spare,
    pub(crate) epoch: Epoch,
    pub(crate) serving: Option<Arc<Plan>>,
    pub(crate) shape: ModelShape,
    pub(crate) hosts: Vec<Host>,
    /// Bytes that hosts have for two plans, where that has an end.
    pub(crate) memory: Vec<(NodeId, u64)>,
    /// How far the serving plan may be changed by a policy that keeps most of it.
    pub(crate) limits: Limits,
    pub(crate) trace: Trace,
    /// A layer curve per host; empty if nothing is known.
    pub(crate) curves: Vec<CostCurve>,
    /// What the serving plan was made for, if that is known.
    pub(crate) basis: Option<Arc<Basis>>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Drafted {
    pub(crate) draft: Draft,
    pub(crate) outcome: Result<Proposal, Infeasible>,
    /// What a plan made from this draft is made for.
    pub(crate) basis: Arc<Basis>,
    /// Predicted time of the observed steps under the serving plan and under the one that was made.
    pub(crate) costs_ns: Option<(u64, u64)>,
}

// === impl Draft ===

impl Draft {
    /// Plans. May take seconds for large models.
    pub(crate) fn plan(self) -> Drafted {
        let trace = (self.trace.steps() > 0).then_some(&self.trace);
        let input = Input {
            serving: self.serving.as_deref(),
            spare: self.spare,
            trace,
            curves: &self.curves,
            basis: self.basis.as_deref(),
            ..Input::new(self.epoch, &self.shape, &self.hosts)
        };
        let mut outcome = placement::place(self.policy, &input);
        if outcome.as_ref().is_ok_and(|proposal| !self.fits(&proposal.plan)) {
            outcome = placement::place(Policy::Incremental(self.limits), &input);
        }
        let basis = Arc::new(Basis::of(&input));
        let costs_ns = outcome.as_ref().ok().and_then(|proposal: &Proposal| {
            Some((self.cost_ns(self.serving.as_deref()?)?, self.cost_ns(&proposal.plan)?))
        });
        Drafted { draft: self, outcome, basis, costs_ns }
    }

    /// Whether hosts have memory for a plan beside the one that serves meanwhile.
    fn fits(&self, plan: &Plan) -> bool {
        let (staying, memory) = (self.serving.as_deref(), &self.memory[..]);
        placement::fits(plan, &Facts { staying, memory, ..Facts::new(&self.shape, &self.hosts) })
    }

    /// Predicted time of the observed steps under `plan`; none if nothing was observed.
    fn cost_ns(&self, plan: &Plan) -> Option<u64> {
        (self.trace.steps() > 0)
            .then(|| placement::cost(plan, &self.hosts, &self.curves, &self.trace))
    }
}

// === impl Drafted ===

impl Drafted {
    /// Whether the proposal saves at least `gain_percent` of the observed steps' time; if so, their
    /// time before and after. A revision was judged by its policy.
    pub(crate) fn pays(&self, proposal: &Proposal, gain_percent: u8) -> Option<(u64, u64)> {
        let (before, after) = self.costs_ns?;
        let pays = match &proposal.explanation.revision {
            Some(revision) => !revision.moves.is_empty(),
            None => (after as f64) < before as f64 * (1.0 - f64::from(gain_percent) / 100.0),
        };
        pays.then_some((before, after))
    }
}

/// The numbers of hosts, in their order.
pub(crate) fn ids(hosts: &[Host]) -> Vec<NodeId> {
    hosts.iter().map(|host| host.id).collect()
}
