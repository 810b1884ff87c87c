//! Validates a plan against the facts, knowing nothing of the policy that made it.
//!
//! That the replicas of one expert lie on different nodes needs no check: a [`Plan`] cannot say otherwise.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use domain::{Epoch, Expert, Layer, ModelShape, NodeId, Plan};

use super::Host;

/// What a plan is checked against. [`Facts::new`] gives what a first plan must respect.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The served model.
    pub shape: &'a ModelShape,
    /// The nodes that may hold experts.
    pub hosts: &'a [Host],
    /// The epoch that serves now.
    pub serving: Option<Epoch>,
    /// The newest epoch anybody in the cluster has heard of.
    pub newest: Epoch,
    /// The plan whose experts stay on their nodes until the new one serves: both need memory.
    pub staying: Option<&'a Plan>,
    /// Bytes that nodes have for experts; those that are not named are held to their slots only.
    pub memory: &'a [(NodeId, u64)],
    /// Whether nodes with free slots may hold at most one replica less than any other, as a
    /// [`Policy`](super::Policy) may have promised.
    pub equal_slots: bool,
}

/// One thing that is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The table is for other layers or another number of experts than the model has.
    OtherModel,
    /// The epoch is not newer than everything the cluster has heard of.
    StaleEpoch {
        /// The plan's.
        epoch: Epoch,
        /// The newest known.
        newest: Epoch,
    },
    /// The plan is not a child of the plan that serves.
    OtherParent {
        /// The plan's parent.
        found: Option<Epoch>,
        /// The epoch that serves.
        serving: Option<Epoch>,
    },
    /// No node that may hold experts holds this one.
    NoReplica {
        /// Its layer.
        layer: Layer,
        /// Its number in the layer.
        expert: Expert,
    },
    /// The plan gives replicas to a node that is not there or must not get any.
    UnknownNode {
        /// The node.
        node: NodeId,
        /// How many replicas.
        replicas: u64,
    },
    /// A node holds more than it has room for.
    TooManyReplicas {
        /// The node.
        host: Host,
        /// How many replicas.
        replicas: u64,
    },
    /// A node has no memory for what it is to hold and what it holds until then.
    TooManyBytes {
        /// The node.
        node: NodeId,
        /// Bytes of both.
        needed: u64,
        /// Bytes it has.
        found: u64,
    },
    /// Slots are not filled equally.
    UnequalSlots {
        /// A node with a free slot, and how many replicas it gets.
        fewer: (NodeId, u64),
        /// The node that gets most.
        most: (NodeId, u64),
    },
}

/// Everything that is wrong with `plan`; empty for a plan that may be adopted.
#[must_use]
pub fn check(plan: &Plan, facts: &Facts<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    if plan.moe_layers() != facts.shape.moe_layers || plan.experts() != facts.shape.experts {
        violations.push(Violation::OtherModel);
    }
    if plan.epoch() <= facts.newest {
        let (epoch, newest) = (plan.epoch(), facts.newest);
        violations.push(Violation::StaleEpoch { epoch, newest });
    }
    if plan.parent() != facts.serving {
        let (found, serving) = (plan.parent(), facts.serving);
        violations.push(Violation::OtherParent { found, serving });
    }
    let host = |node: &NodeId| facts.hosts.iter().find(|host| host.id == *node);
    let orphans = facts
        .shape
        .slots()
        .filter(|&(layer, expert)| {
            !plan.replicas(layer, expert).iter().any(|id| host(id).is_some())
        })
        .map(|(layer, expert)| Violation::NoReplica { layer, expert });
    violations.extend(orphans);
    let mut held: BTreeMap<NodeId, u64> = BTreeMap::new();
    for (_, _, node) in plan.iter() {
        *held.entry(node).or_default() += 1;
    }
    for (&node, &replicas) in &held {
        match host(&node) {
            None => violations.push(Violation::UnknownNode { node, replicas }),
            Some(&host) if replicas > u64::from(host.slots) => {
                violations.push(Violation::TooManyReplicas { host, replicas });
            }
            Some(_) => {}
        }
    }
    violations
        .extend(facts.memory.iter().filter_map(|&memory| too_many_bytes(plan, facts, memory)));
    if facts.equal_slots {
        violations.extend(unequal_slots(facts, &held));
    }
    violations
}

/// Whether nodes have memory for what they are to hold and what they hold until then.
#[must_use]
pub fn fits(plan: &Plan, facts: &Facts<'_>) -> bool {
    facts.memory.iter().all(|&memory| too_many_bytes(plan, facts, memory).is_none())
}

fn too_many_bytes(
    plan: &Plan,
    facts: &Facts<'_>,
    (node, found): (NodeId, u64),
) -> Option<Violation> {
    let staying = facts.staying.into_iter().flat_map(|plan| plan.resident_on(node));
    let resident: BTreeSet<(Layer, Expert)> = plan.resident_on(node).chain(staying).collect();
    let needed = (resident.len() as u64).saturating_mul(facts.shape.expert_bytes);
    (needed > found).then_some(Violation::TooManyBytes { node, needed, found })
}

fn unequal_slots(facts: &Facts<'_>, held: &BTreeMap<NodeId, u64>) -> Option<Violation> {
    let all = facts.shape.slots().count() as u64;
    let of = |node: NodeId| held.get(&node).copied().unwrap_or(0);
    let roomy = facts.hosts.iter().filter(|host| of(host.id) < all.min(host.slots.into()));
    let fewer = roomy.map(|host| (host.id, of(host.id))).min_by_key(|&(_, replicas)| replicas)?;
    let (&node, &replicas) = held.iter().max_by_key(|&(_, &replicas)| replicas)?;
    let most = (node, replicas);
    (fewer.1 + 1 < most.1).then_some(Violation::UnequalSlots { fewer, most })
}

impl<'a> Facts<'a> {
    /// What a plan of epoch 1 must respect while nothing serves: the model, the hosts and their slots.
    #[must_use]
    pub fn new(shape: &'a ModelShape, hosts: &'a [Host]) -> Self {
        Self {
            shape,
            hosts,
            serving: None,
            newest: Epoch(0),
            staying: None,
            memory: &[],
            equal_slots: false,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherModel => f.write_str("the table is not for this model's layers and experts"),
            Self::StaleEpoch { epoch, newest } => {
                write!(f, "{epoch} is not newer than {newest}")
            }
            Self::OtherParent { found, serving } => {
                let name = |epoch: &Option<Epoch>| {
                    epoch.map_or_else(|| "none".to_owned(), |epoch| epoch.to_string())
                };
                write!(f, "the parent is {}, {} serves", name(found), name(serving))
            }
            Self::NoReplica { layer, expert } => write!(f, "nobody holds {layer} {expert}"),
            Self::UnknownNode { node, replicas } => {
                write!(f, "{node} may hold nothing, the plan gives it {replicas} replicas")
            }
            Self::TooManyReplicas { host, replicas } => {
                write!(f, "{} has {} slots, the plan gives it {replicas}", host.id, host.slots)
            }
            Self::TooManyBytes { node, needed, found } => {
                write!(f, "{node} has {found} bytes for experts, the change takes {needed}")
            }
            Self::UnequalSlots { fewer, most } => write!(
                f,
                "{} has a free slot and gets {} replicas, {} gets {}",
                fewer.0, fewer.1, most.0, most.1
            ),
        }
    }
}
