//! The plans' way from proposal to service: plan, check, target, serving. `policy::placement` decides;
//! this executes and has no choices left to make. Knows no connection and no clock.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use domain::{Epoch, ModelShape, NodeId, Plan};
use policy::placement::{
    self, Basis, Explanation, Facts, Host, Infeasible, Limits, Policy, Spare, Violation,
    adoption::{self, Considered, Observed, Readiness, Reason, Situation},
};

use crate::{
    draft::{Draft, Drafted, ids},
    observations::Observations,
};

/// How plans are to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intent {
    pub(crate) policy: Policy,
    pub(crate) spare: Spare,
    /// Expert nodes to wait for before the first plan.
    pub(crate) hosts_min: usize,
    /// The part of its time that a new plan has to save while nothing else asks for one.
    pub(crate) gain_percent: u8,
    /// Plans that are remembered.
    pub(crate) history_max: usize,
}

/// Something that happened to the plans, for logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A new plan is to be prepared.
    Target { epoch: Epoch, reason: Reason, explanation: Option<Explanation> },
    /// A new plan was due and would look like the current one, which stays.
    Kept { reason: Reason },
    /// A new plan was due and none is possible; the current one stays.
    Infeasible { reason: Reason, why: Infeasible },
    /// The checker refused what the planner proposed; the current plan stays.
    Refused { reason: Reason, violations: Vec<Violation> },
    /// The target serves.
    Serving { epoch: Epoch },
}

/// A plan of the past or the present, and why it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) plan: Arc<Plan>,
    pub(crate) reason: String,
    /// Seconds since 1970.
    pub(crate) at: u64,
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
    /// Serving plans and the target, oldest first.
    history: VecDeque<Made>,
    /// Whether the plan stays as it is for as long as it can serve.
    pinned: bool,
    /// What the newest plan was made for; a new leader does not know.
    basis: Option<Arc<Basis>>,
    considered: Considered,
}

/// What planning looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight<'a> {
    pub(crate) shape: &'a ModelShape,
    pub(crate) nodes: &'a [Observed],
    pub(crate) observations: &'a Observations,
    pub(crate) now: Duration,
    /// Seconds since 1970.
    pub(crate) at: u64,
}

impl Plans {
    /// The plans as they were stored, oldest first.
    pub(crate) fn restore(
        intent: Intent,
        newest: Epoch,
        (serving, target): (Option<Epoch>, Option<Epoch>),
        history: Vec<Made>,
        pinned: bool,
    ) -> Self {
        let find = |epoch: Option<Epoch>| {
            let made = history.iter().find(|made| Some(made.plan.epoch()) == epoch);
            made.map(|made| Arc::clone(&made.plan))
        };
        Self {
            intent,
            newest,
            served: Epoch(0),
            serving: find(serving),
            target: find(target),
            history: history.into(),
            pinned,
            basis: None,
            considered: Considered::default(),
        }
    }

    /// Takes the nodes that hold a part of the plan for those that it was made for, so that a new leader
    /// does not plan anew without need.
    pub(crate) fn recognize(&mut self, nodes: &[Observed]) {
        let Some(plan) = self.target.as_ref().or(self.serving.as_ref()) else { return };
        let holders: BTreeSet<NodeId> = plan.table().flatten().copied().collect();
        let mut hosts = adoption::hosts(nodes);
        hosts.retain(|host| holders.contains(&host.id));
        self.considered = Considered { hosts, newest: self.newest };
    }

    /// How plans are made.
    pub(crate) fn intent(&self) -> &Intent {
        &self.intent
    }

    /// The plan that serves.
    pub(crate) fn serving(&self) -> Option<&Arc<Plan>> {
        self.serving.as_ref()
    }

    /// The plan that nodes prepare.
    pub(crate) fn target(&self) -> Option<&Arc<Plan>> {
        self.target.as_ref()
    }

    /// The serving plan, the target and plans that served before, oldest first.
    pub(crate) fn history(&self) -> &VecDeque<Made> {
        &self.history
    }

    /// Whether the plan stays as it is for as long as it can serve.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Keeps the plan as it is, or gives planning free.
    pub(crate) fn pin(&mut self, pinned: bool) {
        self.pinned = pinned;
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
        self.history.clear();
        self.pinned = false;
        self.basis = None;
        self.considered = Considered::default();
    }

    /// Brings the plans in line with the nodes.
    pub(crate) fn reconcile(&mut self, sight: &Sight<'_>) -> Vec<Step> {
        let mut steps = Vec::new();
        steps.extend(self.flip(sight.nodes));
        let hosts = adoption::hosts(sight.nodes);
        let reason = adoption::due(&Situation {
            serving: self.serving.as_deref(),
            target: self.target.as_deref(),
            newest: self.newest,
            considered: &self.considered,
            hosts: &hosts,
            hosts_min: self.intent.hosts_min,
        });
        if let Some(reason) = reason.filter(|reason| self.may_follow(reason, &hosts)) {
            let lost = matches!(&reason, Reason::Hosts { joined, .. } if joined.is_empty());
            let draft = if lost { self.revision(sight, &hosts) } else { self.draft(sight, &hosts) };
            steps.push(self.adopt(draft.plan(), reason, sight.at));
            self.considered = Considered { hosts, newest: self.newest };
            steps.extend(self.flip(sight.nodes));
        }
        steps
    }

    /// A pinned plan gives way only when it has lost experts, or cannot be followed any more.
    fn may_follow(&self, reason: &Reason, hosts: &[Host]) -> bool {
        let lacking = |plan: &Arc<Plan>| {
            let hosted = |node: &NodeId| hosts.iter().any(|host| host.id == *node);
            plan.table().any(|replicas| !replicas.iter().any(hosted))
        };
        !self.pinned
            || !matches!(reason, Reason::Hosts { .. })
            || self.serving.as_ref().is_none_or(lacking)
    }

    /// What a planner looks at now; none while a target is prepared or where observing changes nothing.
    pub(crate) fn review(&self, sight: &Sight<'_>) -> Option<Draft> {
        let blind = self.intent.policy == Policy::Linear || sight.observations.trace().steps() == 0;
        let steady = self.target.is_none() && self.serving.is_some() && !self.pinned;
        (steady && !blind).then(|| self.revision(sight, &adoption::hosts(sight.nodes)))
    }

    /// What a planner looks at.
    pub(crate) fn draft(&self, sight: &Sight<'_>, hosts: &[Host]) -> Draft {
        Draft {
            policy: self.intent.policy,
            spare: self.intent.spare,
            epoch: Epoch(self.newest.0 + 1),
            serving: self.serving.clone(),
            shape: sight.shape.clone(),
            hosts: hosts.to_vec(),
            memory: adoption::memory(sight.nodes, sight.shape),
            limits: self.limits(sight.nodes),
            trace: sight.observations.trace().clone(),
            curves: sight.observations.layer_curves(sight.now, &ids(hosts)),
            basis: self.basis.clone(),
        }
    }

    /// What a planner looks at that changes the serving plan while no node joins.
    fn revision(&self, sight: &Sight<'_>, hosts: &[Host]) -> Draft {
        let policy = self.intent.policy.revising(self.limits(sight.nodes));
        Draft { policy, ..self.draft(sight, hosts) }
    }

    /// Every swap may be one more expert on the same node; fewer swaps have to save as much less.
    fn limits(&self, nodes: &[Observed]) -> Limits {
        let default = Limits::default();
        let swaps_max = default.swaps_max.min(adoption::room(nodes));
        let gain_permille = u32::from(self.intent.gain_percent) * 10;
        let gain_permille = gain_permille * swaps_max / default.swaps_max;
        Limits { gain_permille, swaps_max, ..default }
    }

    /// Takes what a review came to; nothing if it does not pay, or if the cluster has moved on.
    pub(crate) fn reviewed(&mut self, drafted: Drafted, at: u64) -> Option<Step> {
        let draft = &drafted.draft;
        let current = self.target.is_none() && !self.pinned && self.is_current(draft);
        let proposal = drafted.outcome.as_ref().ok().filter(|_| current)?;
        let Some((before_ns, after_ns)) = drafted.pays(proposal, self.intent.gain_percent) else {
            if proposal.explanation.revision.as_ref().is_some_and(|revision| !revision.limited) {
                // The world has changed and the plan is as good for it as any.
                self.basis = Some(drafted.basis);
            }
            return None;
        };
        Some(self.adopt(drafted, Reason::Observed { before_ns, after_ns }, at))
    }

    /// Whether nothing was decided since `draft` was begun.
    pub(crate) fn is_current(&self, draft: &Draft) -> bool {
        draft.epoch == Epoch(self.newest.0 + 1)
    }

    /// Makes a drafted plan the target, unless it is none.
    pub(crate) fn adopt(&mut self, drafted: Drafted, reason: Reason, at: u64) -> Step {
        let Drafted { draft, outcome, basis, .. } = drafted;
        match outcome {
            Err(why) => Step::Infeasible { reason, why },
            Ok(proposal) => {
                let revision = proposal.explanation.revision.as_ref();
                // What was changed as far as the limits allow is to be looked at again.
                if !revision.is_some_and(|revision| revision.limited) {
                    self.basis = Some(basis);
                }
                let ground = (&draft.shape, &draft.hosts[..], &draft.memory[..]);
                self.prepare(proposal.plan, Some(proposal.explanation), ground, reason, at)
            }
        }
    }

    /// Makes a plan the target if the checker passes it, on this model, these hosts and their memory, and it is
    /// anything new.
    pub(crate) fn prepare(
        &mut self,
        plan: Plan,
        explanation: Option<Explanation>,
        (shape, hosts, memory): (&ModelShape, &[Host], &[(NodeId, u64)]),
        reason: Reason,
        at: u64,
    ) -> Step {
        let current = self.target.as_ref().or(self.serving.as_ref());
        // Nodes refuse a plan that is older than one they know, so then even an equal plan is needed.
        let heard = current.is_some_and(|current| current.epoch() >= self.newest);
        if heard && current.is_some_and(|current| current.table().eq(plan.table())) {
            return Step::Kept { reason };
        }
        let facts = Facts {
            serving: self.serving.as_ref().map(|plan| plan.epoch()),
            newest: self.newest,
            staying: self.serving.as_deref(),
            memory,
            ..Facts::new(shape, hosts)
        };
        let violations = placement::check(&plan, &facts);
        if !violations.is_empty() {
            return Step::Refused { reason, violations };
        }
        let (epoch, plan) = (plan.epoch(), Arc::new(plan));
        self.newest = epoch;
        self.considered.newest = epoch;
        if let Some(abandoned) = self.target.replace(Arc::clone(&plan)) {
            self.history.retain(|made| made.plan.epoch() != abandoned.epoch());
        }
        self.history.push_back(Made { plan, reason: reason.to_string(), at });
        self.shorten_history();
        Step::Target { epoch, reason, explanation }
    }

    fn shorten_history(&mut self) {
        let in_use = [&self.serving, &self.target].map(|plan| plan.as_ref().map(|p| p.epoch()));
        while self.history.len() > self.intent.history_max.max(2) {
            let past = |made: &Made| !in_use.contains(&Some(made.plan.epoch()));
            let Some(oldest) = self.history.iter().position(past) else { return };
            self.history.remove(oldest);
        }
    }

    fn flip(&mut self, nodes: &[Observed]) -> Option<Step> {
        let target = self.target.as_ref()?;
        if self.waiting_for(nodes) != Readiness::Ready {
            return None;
        }
        let epoch = target.epoch();
        self.serving = self.target.take();
        Some(Step::Serving { epoch })
    }

    /// Who keeps the target from serving.
    pub(crate) fn waiting_for(&self, nodes: &[Observed]) -> Readiness {
        match &self.target {
            None => Readiness::Ready,
            Some(target) => {
                adoption::readiness(self.serving.as_deref(), target, self.served, nodes)
            }
        }
    }
}
