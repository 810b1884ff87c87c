//! The state of the cluster under one leader, apart from all I/O: events and time in, effects out.
//!
//! What the state store has to remember runs ahead of what it does remember: [`Cluster::pending_save`]
//! gives the difference and [`Cluster::saved`] says that it is stored. Nodes see a number or a plan
//! only when it is stored, so that no coordinator ever takes one back.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use domain::{ClusterView, Epoch, ModelShape, NodeId, Plan};
use policy::liveness::Terms;
use proto::control::{Beat, Registration};

use crate::{
    nodes::{Admitted, Lost, Refusal, Registry, SessionId},
    reconcile::{Intent, Plans, Step},
    record::Record,
};

/// What a coordinator's configuration says about the cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) terms: Terms,
    pub(crate) members_max: usize,
    pub(crate) intent: Intent,
}

/// What sessions report.
#[derive(Debug)]
pub(crate) enum Event {
    Registered { session: SessionId, registration: Registration },
    Beat { session: SessionId, id: NodeId, beat: Beat },
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
    fn epochs(&self) -> impl Iterator<Item = Epoch> + '_ {
        self.plans().map(|plan| plan.epoch())
    }

    fn plans(&self) -> impl Iterator<Item = &Arc<Plan>> {
        self.serving.iter().chain(&self.target)
    }
}

/// The members, the plans, and what of them is stored.
#[derive(Debug)]
pub(crate) struct Cluster {
    registry: Registry,
    plans: Plans,
    stored: Record,
    /// The numbers of the stored nodes.
    numbers: BTreeSet<NodeId>,
    published: Published,
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
        published: Published,
        now: Duration,
    ) -> Self {
        let plans = Plans::restore(
            rules.intent,
            Epoch(stored.epoch_newest),
            published.serving.clone(),
            published.target.clone(),
        );
        Self {
            registry: Registry::restore(&stored, rules.terms, rules.members_max, now),
            plans,
            numbers: numbers(&stored),
            stored,
            published,
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
            Event::Left { session, id } => {
                self.registry.left(session, id);
                self.parked.retain(|&(parked, _)| parked != session);
                Vec::new()
            }
        };
        self.settle(&mut effects);
        effects
    }

    /// Lets time pass. To be called at least once per heartbeat.
    pub(crate) fn tick(&mut self, now: Duration) -> Vec<Effect> {
        let lost = self.registry.expire(now);
        let mut effects: Vec<Effect> = lost.into_iter().map(Effect::Lost).collect();
        self.settle(&mut effects);
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
            ..Record::default()
        };
        self.registry.save(&mut record);
        if record == self.stored {
            return None;
        }
        let wanted = self.wanted();
        let known: Vec<Epoch> = self.published.epochs().collect();
        let needed: Vec<Epoch> = wanted.epochs().collect();
        let new = wanted.plans().filter(|plan| !known.contains(&plan.epoch()));
        Some(Save {
            record,
            plans: new.cloned().collect(),
            obsolete: known.into_iter().filter(|epoch| !needed.contains(epoch)).collect(),
        })
    }

    /// A save was stored: what it holds may be seen.
    pub(crate) fn saved(&mut self, save: Save) -> Vec<Effect> {
        let epochs = (save.record.serving, save.record.target);
        let plan = |epoch: Option<u64>| {
            let mut plans = save.plans.iter().chain(self.published.plans());
            plans.find(|plan| Some(plan.epoch().0) == epoch).cloned()
        };
        let published = Published { serving: plan(epochs.0), target: plan(epochs.1) };
        self.published = published;
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
        let epoch = registration.epoch;
        let admitted = self.registry.register(now, session, registration);
        let Admitted { id, replaced, other_model } = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => return vec![Effect::Refuse { session, refusal }],
        };
        if other_model {
            self.plans.forget();
        }
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
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        let changed = self.registry.take_changed();
        self.unsaved |= changed.members;
        let stale = match (changed.members, changed.loads) {
            (true, _) => Stale::Yes,
            (false, true) => Stale::Loads,
            (false, false) => Stale::No,
        };
        self.stale = self.stale.max(stale);
        let Some(shape) = self.registry.shape() else {
            return;
        };
        if !changed.members && !changed.ready {
            return;
        }
        let steps = self.plans.reconcile(shape, &self.registry.observed());
        self.unsaved |= !steps.is_empty();
        effects.extend(steps.into_iter().map(Effect::Plans));
    }

    fn wanted(&self) -> Published {
        Published { serving: self.plans.serving().cloned(), target: self.plans.target().cloned() }
    }
}

fn numbers(record: &Record) -> BTreeSet<NodeId> {
    record.nodes.values().map(|node| NodeId(node.id)).collect()
}

/// The shape that stored plans' tables refer to.
pub(crate) fn stored_shape(record: &Record) -> Option<ModelShape> {
    record.model.as_ref().map(|model| (&model.shape).into())
}

#[cfg(test)]
mod tests;
