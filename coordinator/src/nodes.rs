//! The registry of nodes: who is a member, under which number, since when silent. Takes time as a
//! value and asks `policy::liveness`; knows no connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use domain::{Epoch, Health, Load, Member, ModelShape, NodeId, Plan, Role};
use policy::{
    liveness::{self, Terms, Verdict},
    placement::adoption::Observed,
};
use proto::control::{Beat, Registration};
use thiserror::Error;

use crate::record;

/// Names are short: they stand in every view and log line.
const NAME_BYTES_MAX: usize = 128;
/// Addresses are at most a DNS name and a port.
const ADDRESS_BYTES_MAX: usize = 300;
/// How many names of nodes that are gone are remembered, per member allowed.
const NAMES_PER_MEMBER: usize = 4;
/// No cluster gets this far; a node that says so is broken, and believing it would use up all epochs.
const EPOCH_MAX: Epoch = Epoch(1 << 48);
/// The same for the number a node claims to have.
const CLAIM_MAX: u32 = 1 << 24;

/// A session of a node, numbered by who opened it; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// Why a node may not join.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    #[error("{what} of {found} bytes is too long, expected at most {max}")]
    TooLong { what: &'static str, found: usize, max: usize },
    #[error("{name} names no {what}")]
    Missing { name: String, what: &'static str },
    #[error("{name} says it has served {epoch}, which no cluster reaches")]
    Epoch { name: String, epoch: Epoch },
    #[error(
        "{name} serves model {theirs}, this cluster serves {ours}: all nodes must load the same weights with rows of the same precision"
    )]
    OtherModel { name: String, theirs: String, ours: String },
    #[error(
        "{name} computes as {theirs}, the {role} nodes of this cluster as {ours}: answers would depend on who computed them"
    )]
    OtherNumerics { name: String, role: Role, theirs: String, ours: String },
    #[error("{name} serves model {fingerprint} like this cluster, but sees other sizes in it")]
    OtherShape { name: String, fingerprint: String },
    #[error(
        "the name {name} belongs to the {role} node at {address}, which is alive: names are unique in a cluster"
    )]
    NameTaken { name: String, role: Role, address: String },
    #[error("the cluster has {max} members, which is as many as it may have")]
    Full { max: usize },
}

impl Refusal {
    /// A short word for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::TooLong { .. } | Self::Missing { .. } | Self::Epoch { .. } => "invalid",
            Self::OtherModel { .. } | Self::OtherShape { .. } => "other_model",
            Self::OtherNumerics { .. } => "other_numerics",
            Self::NameTaken { .. } => "name_taken",
            Self::Full { .. } => "full",
        }
    }
}

/// What a registration led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) id: NodeId,
    /// The node's earlier session, which is void now.
    pub(crate) replaced: Option<SessionId>,
    /// The cluster serves another model from now on.
    pub(crate) other_model: bool,
}

/// A member whose lease is over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) session: Option<SessionId>,
}

/// What changed since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Members, addresses or health: stored, and published at once.
    pub(crate) members: bool,
    /// Loads only: published with the next heartbeat.
    pub(crate) loads: bool,
    /// Which plan a node is ready for: neither stored nor published.
    pub(crate) ready: bool,
}

/// What all nodes serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) fingerprint: String,
    pub(crate) shape: ModelShape,
}

/// All nodes that have a number: the members, and the names of those that are gone.
#[derive(Debug)]
pub(crate) struct Registry {
    terms: Terms,
    members_max: usize,
    model: Option<Model>,
    nodes: BTreeMap<NodeId, Node>,
    next: u32,
    looked: Duration,
    changed: Changed,
}

#[derive(Debug)]
struct Node {
    name: String,
    role: Role,
    address: String,
    numerics: String,
    health: Health,
    load: Load,
    slots: u32,
    experts_max: Option<u32>,
    epoch_ready: Epoch,
    heard: Duration,
    /// When its health last changed, or it joined.
    since: Duration,
    session: Option<SessionId>,
    member: bool,
}

impl Registry {
    /// The registry as it was stored. Every member has its whole lease from `now` on to come back.
    pub(crate) fn restore(
        record: &record::Record,
        terms: Terms,
        members_max: usize,
        now: Duration,
    ) -> Self {
        let node = |(name, node): (&String, &record::Node)| {
            let restored = Node {
                name: name.clone(),
                role: node.role,
                address: node.address.clone(),
                numerics: node.numerics.clone(),
                health: node.health,
                load: Load::default(),
                slots: node.slots,
                experts_max: node.experts_max,
                epoch_ready: Epoch(0),
                heard: now,
                since: now,
                session: None,
                member: node.member,
            };
            (NodeId(node.id), restored)
        };
        let model = record.model.as_ref().map(|model| Model {
            fingerprint: model.fingerprint.clone(),
            shape: (&model.shape).into(),
        });
        Self {
            terms,
            members_max,
            model,
            nodes: record.nodes.iter().map(node).collect(),
            next: record.next_node,
            looked: now,
            changed: Changed::default(),
        }
    }

    /// Makes the sender of `registration` a member.
    pub(crate) fn register(
        &mut self,
        now: Duration,
        session: SessionId,
        registration: Registration,
    ) -> Result<Admitted, Refusal> {
        validate(&registration)?;
        let other_model = self.agree_on_model(&registration)?;
        self.agree_on_numerics(&registration)?;
        let known = self.find(&registration.name);
        if let Some((_, node)) = known {
            self.refuse_twin(now, node, &registration)?;
        }
        // A name that changes its role is another node.
        let known = known.filter(|(_, node)| node.role == registration.role).map(|(id, _)| id);
        let joins = known.is_none_or(|id| !self.nodes[&id].member);
        if joins && self.members().count() >= self.members_max {
            return Err(Refusal::Full { max: self.members_max });
        }
        if other_model {
            self.adopt_model(&registration);
        }
        let id = known.unwrap_or_else(|| self.number(&registration.name, registration.node));
        let replaced = self.admit(now, session, id, registration);
        Ok(Admitted { id, replaced, other_model })
    }

    /// Takes a heartbeat; one of a session that was replaced is ignored.
    pub(crate) fn beat(&mut self, now: Duration, session: SessionId, id: NodeId, beat: &Beat) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.session != Some(session) {
            return;
        }
        node.heard = now;
        if node.health != beat.health {
            self.changed.members = true;
            node.since = now;
        }
        self.changed.loads |= node.load != beat.load;
        self.changed.ready |= node.epoch_ready != beat.epoch_ready;
        node.health = beat.health;
        node.load = beat.load;
        node.epoch_ready = beat.epoch_ready;
    }

    /// Whether a session is the one that speaks for a member.
    pub(crate) fn is_in(&self, session: SessionId, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.member && node.session == Some(session))
    }

    /// Whether a number is a member's.
    pub(crate) fn is_member(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.member)
    }

    /// The nodes that hold a part of `plan` and can be sent work, ascending: not those that load
    /// their experts anew, nor those that miss heartbeats.
    pub(crate) fn at_work(&self, now: Duration, plan: &Plan) -> Vec<NodeId> {
        let holders: BTreeSet<NodeId> = plan.table().flatten().copied().collect();
        let fit = |id: &NodeId| {
            self.nodes.get(id).is_some_and(|node| {
                let verdict = liveness::judge(now, node.heard, &self.terms);
                node.member && node.health != Health::Joining && verdict == Verdict::Live
            })
        };
        holders.into_iter().filter(fit).collect()
    }

    /// A session has ended. A node that was draining has left, which is the answer; any other keeps its lease.
    pub(crate) fn left(&mut self, session: SessionId, id: NodeId) -> bool {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.session == Some(session))
        else {
            return false;
        };
        node.session = None;
        let leaves = node.health == Health::Draining;
        if leaves {
            node.member = false;
            self.changed.members = true;
        }
        leaves
    }

    /// Removes members whose lease is over. Called at least once per heartbeat.
    pub(crate) fn expire(&mut self, now: Duration) -> Vec<Lost> {
        let forgiven = liveness::forgiven(now, self.looked, &self.terms);
        self.looked = now;
        let mut lost = Vec::new();
        for node in self.nodes.values_mut().filter(|node| node.member) {
            node.heard += forgiven;
            if liveness::judge(now, node.heard, &self.terms) == Verdict::Lost {
                node.member = false;
                lost.push(Lost {
                    name: node.name.clone(),
                    role: node.role,
                    session: node.session.take(),
                });
            }
        }
        self.changed.members |= !lost.is_empty();
        lost
    }

    /// The model's sizes, known once the first node that has weights registered.
    pub(crate) fn shape(&self) -> Option<&ModelShape> {
        self.model.as_ref().map(|model| &model.shape)
    }

    /// What all nodes serve.
    pub(crate) fn model(&self) -> Option<&Model> {
        self.model.as_ref()
    }

    /// The name behind a number.
    pub(crate) fn name(&self, id: NodeId) -> Option<&str> {
        self.nodes.get(&id).map(|node| node.name.as_str())
    }

    /// The name behind a number, or the number when it is forgotten.
    pub(crate) fn called(&self, id: NodeId) -> String {
        self.name(id).map_or_else(|| id.to_string(), str::to_owned)
    }

    /// Since when a member is as it is, and whether it has not beaten lately.
    pub(crate) fn standing(&self, now: Duration, id: NodeId) -> Option<(Duration, bool)> {
        let node = self.nodes.get(&id)?;
        let silent = liveness::judge(now, node.heard, &self.terms) != Verdict::Live;
        Some(if silent { (node.heard, true) } else { (node.since, false) })
    }

    /// The members, ascending.
    pub(crate) fn snapshot(&self) -> Vec<Member> {
        self.members()
            .map(|(&id, node)| Member {
                id,
                name: node.name.clone(),
                role: node.role,
                address: node.address.clone(),
                health: node.health,
                load: node.load,
            })
            .collect()
    }

    /// The members as the planner sees them, ascending.
    pub(crate) fn observed(&self) -> Vec<Observed> {
        self.members()
            .map(|(&id, node)| Observed {
                id,
                role: node.role,
                health: node.health,
                slots: node.slots,
                experts_max: node.experts_max,
                epoch_ready: node.epoch_ready,
            })
            .collect()
    }

    /// Members that have not beaten lately, for metrics.
    pub(crate) fn silent(&self, now: Duration) -> usize {
        let silent = |node: &Node| liveness::judge(now, node.heard, &self.terms) != Verdict::Live;
        self.members().filter(|(_, node)| silent(node)).count()
    }

    /// What changed since this was last asked.
    pub(crate) fn take_changed(&mut self) -> Changed {
        std::mem::take(&mut self.changed)
    }

    /// Writes the registry's part of the record.
    pub(crate) fn save(&self, record: &mut record::Record) {
        record.next_node = self.next;
        record.model = self.model.as_ref().map(|model| record::Model {
            fingerprint: model.fingerprint.clone(),
            shape: (&model.shape).into(),
        });
        record.nodes = self
            .nodes
            .iter()
            .map(|(id, node)| {
                let stored = record::Node {
                    id: id.0,
                    role: node.role,
                    address: node.address.clone(),
                    numerics: node.numerics.clone(),
                    health: node.health,
                    slots: node.slots,
                    experts_max: node.experts_max,
                    member: node.member,
                };
                (node.name.clone(), stored)
            })
            .collect();
    }

    fn members(&self) -> impl Iterator<Item = (&NodeId, &Node)> {
        self.nodes.iter().filter(|(_, node)| node.member)
    }

    fn find(&self, name: &str) -> Option<(NodeId, &Node)> {
        let mut nodes = self.nodes.iter();
        nodes.find(|(_, node)| node.name == name).map(|(&id, node)| (id, node))
    }

    /// Whether the registration brings a new model, which it may when nobody serves the old one.
    fn agree_on_model(&self, registration: &Registration) -> Result<bool, Refusal> {
        let Registration { name, model_fingerprint, shape, .. } = registration;
        let has_weights = registration.role != Role::Gateway;
        let Some(ours) = &self.model else {
            return Ok(has_weights);
        };
        let others_serve_it =
            || self.members().any(|(_, node)| node.role != Role::Gateway && node.name != *name);
        if *model_fingerprint == ours.fingerprint {
            return match shape {
                Some(shape) if *shape != ours.shape => Err(Refusal::OtherShape {
                    name: name.clone(),
                    fingerprint: ours.fingerprint.clone(),
                }),
                _ => Ok(false),
            };
        }
        if model_fingerprint.is_empty() {
            return Ok(false);
        }
        if has_weights && !others_serve_it() {
            return Ok(true);
        }
        Err(Refusal::OtherModel {
            name: name.clone(),
            theirs: model_fingerprint.clone(),
            ours: ours.fingerprint.clone(),
        })
    }

    /// A sequence that goes on elsewhere, or a row that another replica computes, must get the same bits.
    fn agree_on_numerics(&self, registration: &Registration) -> Result<(), Refusal> {
        let Registration { name, role, numerics, .. } = registration;
        let peers = self.members().map(|(_, node)| node);
        let mut peers = peers.filter(|node| node.role == *role && node.name != *name);
        // A record of before numerics were named says nothing of them.
        let differ = |node: &&Node| !node.numerics.is_empty() && node.numerics != *numerics;
        match peers.find(differ) {
            None => Ok(()),
            Some(peer) => Err(Refusal::OtherNumerics {
                name: name.clone(),
                role: *role,
                theirs: numerics.clone(),
                ours: peer.numerics.clone(),
            }),
        }
    }

    fn adopt_model(&mut self, registration: &Registration) {
        self.model = registration
            .shape
            .clone()
            .map(|shape| Model { fingerprint: registration.model_fingerprint.clone(), shape });
    }

    /// Two processes with one name would push each other out for ever: the one that is alive stays.
    fn refuse_twin(
        &self,
        now: Duration,
        node: &Node,
        registration: &Registration,
    ) -> Result<(), Refusal> {
        let alive = node.member
            && node.session.is_some()
            && liveness::judge(now, node.heard, &self.terms) == Verdict::Live;
        let same = node.address == registration.address && node.role == registration.role;
        if alive && !same {
            return Err(Refusal::NameTaken {
                name: node.name.clone(),
                role: node.role,
                address: node.address.clone(),
            });
        }
        Ok(())
    }

    /// A number for `name`, which loses an older one: the one it had so far, if nobody else has that.
    ///
    /// A coordinator that lost its store finds a cluster whose nodes know each other by number.
    fn number(&mut self, name: &str, claim: Option<NodeId>) -> NodeId {
        self.nodes.retain(|_, node| node.name != name);
        if self.nodes.len() >= self.members_max * NAMES_PER_MEMBER {
            let gone = self.nodes.iter().find(|(_, node)| !node.member).map(|(&id, _)| id);
            gone.and_then(|id| self.nodes.remove(&id));
        }
        // 0 is never a node's number, so that an unset field on the wire names nobody.
        self.next = self.next.max(1);
        let free = claim.filter(|id| id.0 < CLAIM_MAX && !self.nodes.contains_key(id));
        let id = free.unwrap_or(NodeId(self.next));
        self.next = self.next.max(id.0 + 1);
        id
    }

    fn admit(
        &mut self,
        now: Duration,
        session: SessionId,
        id: NodeId,
        registration: Registration,
    ) -> Option<SessionId> {
        let before = self.nodes.remove(&id);
        // The same process on a new stream: what it last said still holds.
        let goes_on = before.as_ref().filter(|node| {
            node.member && node.address == registration.address && registration.epoch > Epoch(0)
        });
        let node = Node {
            health: goes_on.map_or(Health::Joining, |node| node.health),
            load: goes_on.map_or_else(Load::default, |node| node.load),
            epoch_ready: goes_on.map_or(Epoch(0), |node| node.epoch_ready),
            name: registration.name,
            role: registration.role,
            address: registration.address,
            numerics: registration.numerics,
            slots: registration.expert_slots,
            experts_max: registration.experts_max,
            heard: now,
            since: goes_on.map_or(now, |node| node.since),
            session: Some(session),
            member: true,
        };
        self.nodes.insert(id, node);
        self.changed.members = true;
        before.and_then(|node| node.session)
    }
}

fn validate(registration: &Registration) -> Result<(), Refusal> {
    let Registration { name, address, .. } = registration;
    let lengths = [
        ("a name", name.len(), NAME_BYTES_MAX),
        ("an address", address.len(), ADDRESS_BYTES_MAX),
        ("a model fingerprint", registration.model_fingerprint.len(), NAME_BYTES_MAX),
        ("a name of numerics", registration.numerics.len(), NAME_BYTES_MAX),
    ];
    for (what, found, max) in lengths {
        if found > max {
            return Err(Refusal::TooLong { what, found, max });
        }
    }
    let missing = |what| Refusal::Missing { name: name.clone(), what };
    if registration.role != Role::Gateway {
        if address.is_empty() {
            return Err(missing("address"));
        }
        if registration.model_fingerprint.is_empty() {
            return Err(missing("model fingerprint"));
        }
        if registration.shape.is_none() {
            return Err(missing("model shape"));
        }
    }
    if registration.epoch > EPOCH_MAX {
        return Err(Refusal::Epoch { name: name.clone(), epoch: registration.epoch });
    }
    Ok(())
}
