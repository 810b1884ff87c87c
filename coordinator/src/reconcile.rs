//! The plans' way from proposal to service: plan, check, target, serving. `policy::placement` decides;
//! this executes and has no choices left to make. Knows no connection and no clock.

use std::sync::Arc;

use domain::{Epoch, ModelShape, Plan};
use policy::placement::{
    self, Explanation, Facts, Host, Infeasible, Input, Policy, Spare, Violation,
    adoption::{self, Considered, Observed, Readiness, Reason, Situation},
};

/// How plans are to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intent {
    pub(crate) policy: Policy,
    pub(crate) spare: Spare,
    /// Expert nodes to wait for before the first plan.
    pub(crate) hosts_min: usize,
}

/// Something that happened to the plans, for logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A new plan is to be prepared.
    Target { epoch: Epoch, reason: Reason, explanation: Explanation },
    /// A new plan was due and would look like the current one, which stays.
    Kept { reason: Reason },
    /// A new plan was due and none is possible; the current one stays.
    Infeasible { reason: Reason, why: Infeasible },
    /// The checker refused what the planner proposed; the current plan stays.
    Refused { reason: Reason, violations: Vec<Violation> },
    /// The target serves.
    Serving { epoch: Epoch },
}

/// The serving plan, the target, and the newest epoch the cluster has heard of.
#[derive(Clone, Debug)]
pub(crate) struct Plans {
    intent: Intent,
    newest: Epoch,
    /// The newest epoch that any node says it has served.
    served: Epoch,
    serving: Option<Arc<Plan>>,
    target: Option<Arc<Plan>>,
    considered: Considered,
}

impl Plans {
    /// The plans as they were stored.
    pub(crate) fn restore(
        intent: Intent,
        newest: Epoch,
        serving: Option<Arc<Plan>>,
        target: Option<Arc<Plan>>,
    ) -> Self {
        Self {
            intent,
            newest,
            served: Epoch(0),
            serving,
            target,
            considered: Considered::default(),
        }
    }

    /// The plan that serves.
    pub(crate) fn serving(&self) -> Option<&Arc<Plan>> {
        self.serving.as_ref()
    }

    /// The plan that nodes prepare.
    pub(crate) fn target(&self) -> Option<&Arc<Plan>> {
        self.target.as_ref()
    }

    /// The newest epoch anybody has heard of.
    pub(crate) fn newest(&self) -> Epoch {
        self.newest
    }

    /// Some node has served `epoch`: no plan made here may be older.
    pub(crate) fn heard_of(&mut self, epoch: Epoch) {
        self.served = self.served.max(epoch);
        self.newest = self.newest.max(epoch);
    }

    /// The plans were for another model. Epochs go on.
    pub(crate) fn forget(&mut self) {
        self.serving = None;
        self.target = None;
        self.considered = Considered::default();
    }

    /// Brings the plans in line with the nodes.
    pub(crate) fn reconcile(&mut self, shape: &ModelShape, nodes: &[Observed]) -> Vec<Step> {
        let mut steps = Vec::new();
        steps.extend(self.flip(nodes));
        let hosts = adoption::hosts(nodes);
        let reason = adoption::due(&Situation {
            serving: self.serving.as_deref(),
            target: self.target.as_deref(),
            newest: self.newest,
            considered: &self.considered,
            hosts: &hosts,
            hosts_min: self.intent.hosts_min,
        });
        if let Some(reason) = reason {
            steps.push(self.plan(shape, &hosts, reason));
            self.considered = Considered { hosts, newest: self.newest };
            steps.extend(self.flip(nodes));
        }
        steps
    }

    fn flip(&mut self, nodes: &[Observed]) -> Option<Step> {
        let target = self.target.as_ref()?;
        let readiness = adoption::readiness(self.serving.as_deref(), target, self.served, nodes);
        if readiness != Readiness::Ready {
            return None;
        }
        let epoch = target.epoch();
        self.serving = self.target.take();
        Some(Step::Serving { epoch })
    }

    fn plan(&mut self, shape: &ModelShape, hosts: &[Host], reason: Reason) -> Step {
        let input = Input {
            serving: self.serving.as_deref(),
            spare: self.intent.spare,
            ..Input::new(Epoch(self.newest.0 + 1), shape, hosts)
        };
        let proposal = match placement::place(self.intent.policy, &input) {
            Ok(proposal) => proposal,
            Err(why) => return Step::Infeasible { reason, why },
        };
        let current = self.target.as_ref().or(self.serving.as_ref());
        // Nodes refuse a plan that is older than one they know, so then even an equal plan is needed.
        let heard = current.is_some_and(|current| current.epoch() >= self.newest);
        if heard && current.is_some_and(|current| current.table().eq(proposal.plan.table())) {
            return Step::Kept { reason };
        }
        let facts = Facts {
            shape,
            hosts,
            serving: self.serving.as_ref().map(|plan| plan.epoch()),
            newest: self.newest,
        };
        let violations = placement::check(&proposal.plan, &facts);
        if !violations.is_empty() {
            return Step::Refused { reason, violations };
        }
        let epoch = proposal.plan.epoch();
        self.newest = epoch;
        self.target = Some(Arc::new(proposal.plan));
        Step::Target { epoch, reason, explanation: proposal.explanation }
    }
}
