//! A plan in the making: all that a planner looks at, as a value of its own, so that planning holds up nobody.

use std::sync::Arc;

use domain::{CostCurve, Epoch, ModelShape, NodeId, Plan, Trace};
use policy::placement::{self, Host, Infeasible, Input, Policy, Proposal, Spare};

/// What a planner looks at.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) policy: Policy,
    pub(crate) spare: Spare,
    pub(crate) epoch: Epoch,
    pub(crate) serving: Option<Arc<Plan>>,
    pub(crate) shape: ModelShape,
    pub(crate) hosts: Vec<Host>,
    pub(crate) trace: Trace,
    /// A layer curve per host; empty if nothing is known.
    pub(crate) curves: Vec<CostCurve>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Drafted {
    pub(crate) draft: Draft,
    pub(crate) outcome: Result<Proposal, Infeasible>,
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
            ..Input::new(self.epoch, &self.shape, &self.hosts)
        };
        let outcome = placement::place(self.policy, &input);
        Drafted { draft: self, outcome }
    }

    /// Predicted time of the observed steps under `plan`; none if nothing was observed.
    pub(crate) fn cost_ns(&self, plan: &Plan) -> Option<u64> {
        (self.trace.steps() > 0)
            .then(|| placement::cost(plan, &self.hosts, &self.curves, &self.trace))
    }
}

/// The numbers of hosts, in their order.
pub(crate) fn ids(hosts: &[Host]) -> Vec<NodeId> {
    hosts.iter().map(|host| host.id).collect()
}
