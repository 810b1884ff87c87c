//! Validates a plan against the facts, knowing nothing of the policy that made it.
//!
//! That the replicas of one expert lie on different nodes needs no check: a [`Plan`] cannot say otherwise.

use std::{collections::BTreeMap, fmt};

use domain::{Epoch, Expert, Layer, ModelShape, NodeId, Plan};

use super::Host;

/// What a plan is checked against.
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
    /// Nobody holds the expert.
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
    let orphans = facts
        .shape
        .slots()
        .filter(|&(layer, expert)| plan.replicas(layer, expert).is_empty())
        .map(|(layer, expert)| Violation::NoReplica { layer, expert });
    violations.extend(orphans);
    let mut held: BTreeMap<NodeId, u64> = BTreeMap::new();
    for (_, _, node) in plan.iter() {
        *held.entry(node).or_default() += 1;
    }
    for (node, replicas) in held {
        match facts.hosts.iter().find(|host| host.id == node) {
            None => violations.push(Violation::UnknownNode { node, replicas }),
            Some(&host) if replicas > u64::from(host.slots) => {
                violations.push(Violation::TooManyReplicas { host, replicas });
            }
            Some(_) => {}
        }
    }
    violations
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
        }
    }
}
