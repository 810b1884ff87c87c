//! The state of the cluster under one leader, apart from all I/O: events and time in, effects out.
//!
//! What the state store has to remember runs ahead of what it does remember: [`Cluster::pending_save`]
//! gives the difference and [`Cluster::saved`] says that it is stored. Nodes see a number or a plan
//! only when it is stored, so that no coordinator ever takes one back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use domain::{ClusterView, Epoch, Guidance, Leased, ModelShape, NodeId, Plan};
use policy::{
    liveness::Terms,
    placement::adoption::{self, Readiness, Reason},
    routing::Demand,
};
use proto::control::{Beat, Registration, Report};

use crate::{
    console::{Journal, Live},
    draft::{Draft, Drafted},
    guide::Guide,
    nodes::{Admitted, Lost, Refusal, Registry, SessionId},
    observations::Observations,
    reconcile::{Intent, Made, Plans, Sight, Step},
    record::{Past, Record},
};

/// What a coordinator's configuration says about the cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) terms: Terms,
    pub(crate) members_max: usize,
    pub(crate) intent: Intent,
    pub(crate) routing: policy::routing::Policy,
    /// How often nodes report and are advised; none: not at all.
    pub(crate) advice: Option<Duration>,
    /// How often the plan is compared with a new one; none: never.
    pub(crate) review: Option<Duration>,
    /// Steps of advice whose routing is remembered.
    pub(crate) trace_steps: usize,
}

/// What sessions report.
#[derive(Debug)]
pub(crate) enum Event {
    Registered { session: SessionId, registration: Registration },
    Beat { session: SessionId, id: NodeId, beat: Beat },
    Report { session: SessionId, id: NodeId, report: Report },
    Left { session: SessionId, id: NodeId },
}

/// What sessions, logs and metrics are to be told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The session's node is a member.
    Admit { session: SessionId, id: NodeId },
    /// The session's node may not join.
    Refuse { session: SessionId, refusal: Refusal },
    /// The session is void: its node opened another one.
    Replace { session: SessionId },
    /// A member's lease is over.
    Lost(Lost),
    /// Something happened to the plans.
    Plans(Step),
}

/// A change of the durable state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Save {
    pub(crate) record: Record,
    /// The plans of the record that nodes are told of.
    pub(crate) published: Published,
    /// Plans that are not stored yet.
    pub(crate) plans: Vec<Arc<Plan>>,
    /// Plans that nobody needs any more.
    pub(crate) obsolete: Vec<Epoch>,
}

/// The plans that nodes may know of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) serving: Option<Arc<Plan>>,
    pub(crate) target: Option<Arc<Plan>>,
}

impl Published {
    /// Whether nodes may know of this plan, or of a later one.
    pub(crate) fn reached(&self, epoch: Epoch) -> bool {
        let plans = [&self.serving, &self.target];
        plans.into_iter().flatten().any(|plan| plan.epoch() >= epoch)
    }
}

/// The members, the plans, and what of them is stored.
#[derive(Debug)]
pub(crate) struct Cluster {
    registry: Registry,
    plans: Plans,
    observations: Observations,
    guide: Guide,
    /// What operators watch.
    live: Live,
    journal: Journal,
    /// How often nodes report; none: never.
    advice: Option<Duration>,
    stored: Record,
    /// The numbers of the stored nodes.
    numbers: BTreeSet<NodeId>,
    /// The plans that are stored.
    kept: BTreeSet<Epoch>,
    published: Published,
    /// The plan that was leased by another leader.
    inherited: Option<Epoch>,
    /// Seconds since 1970 at the origin of this leader's time.
    born: u64,
    /// Whether something durable may have changed since [`Cluster::pending_save`] last looked.
    unsaved: bool,
    /// Sessions of nodes whose number is not stored yet.
    parked: Vec<(SessionId, NodeId)>,
    /// What views should say anew.
    stale: Stale,
}

/// How much a view that was published before is out of date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stale {
    #[default]
    No,
    /// Only in loads, which can wait for the next heartbeat.
    Loads,
    /// In members, health or plans.
    Yes,
}

impl Cluster {
    /// The cluster as it was stored.
    pub(crate) fn restore(
        rules: Rules,
        stored: Record,
        history: Vec<Made>,
        now: Duration,
        born: u64,
    ) -> Self {
        let kept = history.iter().map(|made| made.plan.epoch()).collect();
        let registry = Registry::restore(&stored, rules.terms, rules.members_max, now);
        let mut plans = Plans::restore(
            rules.intent,
            Epoch(stored.epoch_newest),
            (stored.serving.map(Epoch), stored.target.map(Epoch)),
            history,
            stored.pinned,
        );
        plans.recognize(&registry.observed());
        let (mut observations, mut live) = (Observations::new(rules.trace_steps), Live::default());
        if let Some(shape) = stored_shape(&stored) {
            observations.begin(&shape);
            live.begin(&shape);
        }
        Self {
            registry,
            published: published(&plans),
            plans,
            observations,
            guide: Guide::new(rules.routing),
            live,
            journal: Journal::default(),
            advice: rules.advice,
            numbers: numbers(&stored),
            kept,
            inherited: stored.serving.map(Epoch),
            stored,
            born,
            unsaved: false,
            parked: Vec::new(),
            stale: Stale::Yes,
        }
    }

    /// Takes an event.
    pub(crate) fn on(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        let mut effects = match event {
            Event::Registered { session, registration } => {
                self.register(now, session, registration)
            }
            Event::Beat { session, id, beat } => {
                self.registry.beat(now, session, id, &beat);
                Vec::new()
            }
            Event::Report { session, id, report } => {
                if self.registry.is_in(session, id) {
                    self.live.report(now, id, &report);
                    self.observations.report(now, id, report);
                }
                return Vec::new();
            }
            Event::Left { session, id } => {
                let left = self.registry.left(session, id);
                if left && let Some(name) = self.registry.name(id) {
                    self.journal.left(self.clock(now), name);
                }
                self.parked.retain(|&(parked, _)| parked != session);
                Vec::new()
            }
        };
        self.settle(now, &mut effects);
        effects
    }

    /// Lets time pass. To be called at least once per heartbeat.
    pub(crate) fn tick(&mut self, now: Duration) -> Vec<Effect> {
        let lost = self.registry.expire(now);
        let mut effects: Vec<Effect> = lost.into_iter().map(Effect::Lost).collect();
        self.settle(now, &mut effects);
        effects
    }

    /// The durable state if it differs from what is stored.
    pub(crate) fn pending_save(&mut self) -> Option<Save> {
        if !std::mem::take(&mut self.unsaved) {
            return None;
        }
        let mut record = Record {
            term: self.stored.term,
            epoch_newest: self.plans.newest().0,
            serving: self.plans.serving().map(|plan| plan.epoch().0),
            target: self.plans.target().map(|plan| plan.epoch().0),
            history: self.plans.history().iter().map(Past::from).collect(),
            pinned: self.plans.is_pinned(),
            ..Record::default()
        };
        self.registry.save(&mut record);
        if record == self.stored {
            return None;
        }
        let plans = self.plans.history().iter().map(|made| &made.plan);
        let needed: BTreeSet<Epoch> = plans.clone().map(|plan| plan.epoch()).collect();
        let new = plans.filter(|plan| !self.kept.contains(&plan.epoch()));
        Some(Save {
            record,
            published: published(&self.plans),
            plans: new.cloned().collect(),
            obsolete: self.kept.difference(&needed).copied().collect(),
        })
    }

    /// A save was stored: what it holds may be seen.
    pub(crate) fn saved(&mut self, save: Save) -> Vec<Effect> {
        self.published = save.published;
        self.kept.extend(save.plans.iter().map(|plan| plan.epoch()));
        self.kept.retain(|epoch| !save.obsolete.contains(epoch));
        self.numbers = numbers(&save.record);
        self.stored = save.record;
        self.stale = Stale::Yes;
        let parked = std::mem::take(&mut self.parked).into_iter();
        let (admitted, parked): (Vec<_>, _) = parked.partition(|(_, id)| self.numbers.contains(id));
        self.parked = parked;
        let admit = |(session, id)| Effect::Admit { session, id };
        admitted.into_iter().map(admit).collect()
    }

    /// A save was not stored; the next [`Cluster::pending_save`] tries again.
    pub(crate) fn not_saved(&mut self) {
        self.unsaved = true;
    }

    /// What nodes may see. The caller numbers it.
    pub(crate) fn view(&mut self, version: u64) -> ClusterView {
        self.stale = Stale::No;
        let mut members = self.registry.snapshot();
        members.retain(|member| self.numbers.contains(&member.id));
        ClusterView {
            version,
            members,
            shape: stored_shape(&self.stored),
            serving: self.published.serving.clone(),
            target: self.published.target.clone(),
        }
    }

    /// Whether views should be published anew.
    pub(crate) fn stale(&self) -> Stale {
        self.stale
    }

    /// The registry, to be read.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The plans that nodes may know of.
    pub(crate) fn published(&self) -> &Published {
        &self.published
    }

    fn register(
        &mut self,
        now: Duration,
        session: SessionId,
        registration: Registration,
    ) -> Vec<Effect> {
        let (role, epoch) = (registration.role, registration.epoch);
        let curves = registration.curves.clone();
        let admitted = self.registry.register(now, session, registration);
        let Admitted { id, replaced, other_model } = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => return vec![Effect::Refuse { session, refusal }],
        };
        if other_model {
            self.plans.forget();
            if let Some(shape) = self.registry.shape() {
                self.observations.begin(shape);
                self.live.begin(shape);
            }
        }
        self.observations.joined(now, id, role, curves);
        self.plans.heard_of(epoch);
        let mut effects = Vec::new();
        if let Some(replaced) = replaced {
            self.parked.retain(|&(parked, _)| parked != replaced);
            effects.push(Effect::Replace { session: replaced });
        }
        if self.numbers.contains(&id) {
            effects.push(Effect::Admit { session, id });
        } else {
            self.parked.push((session, id));
        }
        effects
    }

    /// Brings plans and dirty marks in line with the registry.
    fn settle(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let changed = self.registry.take_changed();
        self.unsaved |= changed.members;
        let stale = match (changed.members, changed.loads) {
            (true, _) => Stale::Yes,
            (false, true) => Stale::Loads,
            (false, false) => Stale::No,
        };
        self.stale = self.stale.max(stale);
        if changed.members {
            let registry = &self.registry;
            self.observations.retain(|id| registry.is_member(id));
            self.live.retain(|id| registry.is_member(id));
        }
        if !changed.members && !changed.ready {
            return;
        }
        let (at, nodes) = (self.clock(now), self.registry.observed());
        let Some(shape) = self.registry.shape() else { return };
        let sight = Sight { shape, nodes: &nodes, observations: &self.observations, now, at };
        let steps = self.plans.reconcile(&sight);
        self.unsaved |= !steps.is_empty();
        effects.extend(steps.into_iter().map(Effect::Plans));
    }

    /// The time of day, in seconds since 1970.
    pub(crate) fn clock(&self, now: Duration) -> u64 {
        self.born + now.as_secs()
    }
}

/// What comes from observing.
impl Cluster {
    /// Ends a step of observation.
    pub(crate) fn end_step(&mut self, now: Duration) {
        self.observations.end_step();
        self.watch(now);
    }

    /// Whether the plan that serves is another one than nodes have a lease of.
    pub(crate) fn lease_is_old(&self) -> bool {
        let of = self.guide.lease().zip(self.published.serving.as_ref());
        of.is_some_and(|(lease, plan)| lease.epoch != plan.epoch())
    }

    /// What nodes are advised from now on.
    pub(crate) fn advise(&mut self, now: Duration) -> Guidance {
        // Nodes keep the lease of the leader before until this one has seen what is wanted.
        let blind = self.observations.trace().steps() == 0;
        let serving = self.published.serving.as_ref();
        if let Some(plan) = serving.filter(|plan| !blind || self.inherited != Some(plan.epoch())) {
            let nodes = self.registry.at_work(now, plan);
            let seen = &self.observations;
            let (tokens, runs) = seen.wanted(nodes.len());
            let before = self.guide.lease().cloned();
            self.guide.renew(&Demand {
                plan,
                tokens: &tokens,
                runs,
                curves: &seen.expert_curves(now, &nodes),
                backlog_ns: &seen.backlog_ns(now, &nodes),
                nodes: &nodes,
            });
            self.note_lease(now, before.as_ref(), &tokens, &nodes);
        }
        let shape = self.registry.shape();
        Guidance {
            lease: self.guide.lease().cloned(),
            digest: shape.map(|shape| self.observations.digest(now, shape)),
        }
    }

    /// What a planner should look at, if observing may have changed what it would say.
    pub(crate) fn review(&self, now: Duration) -> Option<Draft> {
        self.with_sight(now, |sight| self.plans.review(sight)).flatten()
    }

    /// Takes what came of a review.
    pub(crate) fn reviewed(&mut self, now: Duration, drafted: Drafted) -> Vec<Effect> {
        let (at, registry) = (self.clock(now), &self.registry);
        let gain_percent = self.plans.intent().gain_percent;
        self.journal.reviewed(at, &drafted, gain_percent, &|id| registry.called(id));
        let step = self.plans.reviewed(drafted, at);
        self.unsaved |= step.is_some();
        step.into_iter().map(Effect::Plans).collect()
    }

    fn with_sight<T>(&self, now: Duration, look: impl FnOnce(&Sight<'_>) -> T) -> Option<T> {
        let nodes = self.registry.observed();
        let (shape, observations) = (self.registry.shape()?, &self.observations);
        let at = self.clock(now);
        Some(look(&Sight { shape, nodes: &nodes, observations, now, at }))
    }
}

/// What operators ask for.
impl Cluster {
    /// The plans and how they came about.
    pub(crate) fn plans(&self) -> &Plans {
        &self.plans
    }

    /// What was observed.
    pub(crate) fn observations(&self) -> &Observations {
        &self.observations
    }

    /// The maker of leases.
    pub(crate) fn guide(&self) -> &Guide {
        &self.guide
    }

    /// How many experts each node runs: those leased to it, shared ones too, or without a lease those
    /// it is the first to hold.
    pub(crate) fn leases(&self) -> BTreeMap<NodeId, u32> {
        let mut leases = BTreeMap::new();
        let Some(plan) = self.plans.serving() else { return leases };
        let lease = self.guide.lease().filter(|lease| lease.epoch == plan.epoch());
        let first = || plan.table().filter_map(|nodes| nodes.first().copied()).collect();
        let holders = |lease: &Arc<Leased>| {
            lease.holders.iter().flatten().map(|holder| holder.node).collect()
        };
        let nodes: Vec<NodeId> = lease.map_or_else(first, holders);
        for node in nodes {
            *leases.entry(node).or_default() += 1;
        }
        leases
    }

    /// Who keeps the target from serving.
    pub(crate) fn waiting_for(&self) -> Readiness {
        self.plans.waiting_for(&self.registry.observed())
    }

    /// What a planner looks at now; none before a model is known.
    pub(crate) fn draft(&self, now: Duration) -> Option<Draft> {
        self.with_sight(now, |sight| self.plans.draft(sight, &adoption::hosts(sight.nodes)))
    }

    /// Makes a drafted plan the target; none if the cluster has moved on since.
    pub(crate) fn adopt(&mut self, now: Duration, drafted: Drafted) -> Option<Step> {
        if !self.plans.is_current(&drafted.draft) {
            return None;
        }
        self.unsaved = true;
        Some(self.plans.adopt(drafted, Reason::Asked, self.clock(now)))
    }

    /// Makes a table the target; none before a model is known.
    pub(crate) fn import(
        &mut self,
        now: Duration,
        table: Vec<domain::Replicas>,
    ) -> Option<Result<Step, domain::PlanShapeError>> {
        let (at, nodes) = (self.clock(now), self.registry.observed());
        let (shape, hosts) = (self.registry.shape()?, adoption::hosts(&nodes));
        let memory = adoption::memory(&nodes, shape);
        let parent = self.plans.serving().map(|plan| plan.epoch());
        let plan = match Plan::new(Epoch(self.plans.newest().0 + 1), parent, shape, table) {
            Ok(plan) => plan,
            Err(error) => return Some(Err(error)),
        };
        self.unsaved = true;
        Some(Ok(self.plans.prepare(plan, None, (shape, &hosts, &memory), Reason::Imported, at)))
    }

    /// Keeps the plan as it is, or gives planning free.
    pub(crate) fn pin(&mut self, pinned: bool) {
        self.plans.pin(pinned);
        self.unsaved = true;
    }
}

fn published(plans: &Plans) -> Published {
    Published { serving: plans.serving().cloned(), target: plans.target().cloned() }
}

fn numbers(record: &Record) -> BTreeSet<NodeId> {
    record.nodes.values().map(|node| NodeId(node.id)).collect()
}

/// The shape that stored plans' tables refer to.
pub(crate) fn stored_shape(record: &Record) -> Option<ModelShape> {
    record.model.as_ref().map(|model| (&model.shape).into())
}

mod watched;

#[cfg(test)]
mod tests;
