//! Decides when a new plan is due and when a checked plan may serve.
//!
//! One plan serves and at most one target is prepared. A target is made
//! - first when the wished number of expert nodes has registered;
//! - again when the nodes that may hold experts have changed. A node that merely joined waits for
//!   the target that is on its way; a node that left makes that target worthless at once;
//! - and when some node has heard of a newer epoch than the cluster's plans carry, because it would
//!   refuse them.
//!
//! A target serves when every attention node at work and every node that holds a part of it is ready.
//! While the serving plan has an expert that nobody holds any more, tokens stand still, so then the
//! target serves as soon as each of its experts has one ready replica. And when a node has served a
//! newer plan than the serving one (the coordinator's store was lost or is old), the target serves at
//! once: nodes follow no view whose plan is older than theirs, so they would never hear of a target.

use std::{collections::BTreeMap, fmt};

use domain::{Epoch, Health, ModelShape, NodeId, Plan, Role};

use super::Host;

/// A registered node as the planner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The node.
    pub id: NodeId,
    /// What it does.
    pub role: Role,
    /// Whether it takes work.
    pub health: Health,
    /// Replicas it has room for.
    pub slots: u32,
    /// Experts it holds at most at once, those of the serving plan and of the next together; none where that has no end.
    pub experts_max: Option<u32>,
    /// The newest plan it is ready to serve by.
    pub epoch_ready: Epoch,
}

/// Why a new plan is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There was none, and enough nodes are here.
    First,
    /// A node has heard of `newest`, which the cluster's plans do not reach.
    Behind {
        /// That epoch.
        newest: Epoch,
    },
    /// The nodes that may hold experts changed.
    Hosts {
        /// Nodes that may hold experts now and might not before, or whose room changed.
        joined: Vec<NodeId>,
        /// Nodes that may not hold experts any more.
        left: Vec<NodeId>,
    },
    /// By what was observed another plan is so much faster that moving pays.
    Observed {
        /// Predicted time of the observed steps under the plan that serves.
        before_ns: u64,
        /// The same under the new plan.
        after_ns: u64,
    },
    /// An operator wished to plan anew.
    Asked,
    /// An operator gave the plan.
    Imported,
}

/// What planning last looked at, so that it is not tried again in vain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Considered {
    /// The hosts there were, ascending.
    pub hosts: Vec<Host>,
    /// The newest epoch anybody had heard of, the new plan's among them.
    pub newest: Epoch,
}

/// What [`due`] looks at.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The plan that serves.
    pub serving: Option<&'a Plan>,
    /// The plan that is being prepared.
    pub target: Option<&'a Plan>,
    /// The newest epoch anybody has heard of.
    pub newest: Epoch,
    /// What planning last looked at.
    pub considered: &'a Considered,
    /// The hosts that there are now, ascending.
    pub hosts: &'a [Host],
    /// Expert nodes to wait for before the first plan.
    pub hosts_min: usize,
}

/// Whether a target may serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It may.
    Ready,
    /// These nodes have not said that they are ready, ascending.
    Waiting(Vec<NodeId>),
}

/// The nodes that may hold experts, ascending: expert nodes with room that do not want to leave.
#[must_use]
pub fn hosts(nodes: &[Observed]) -> Vec<Host> {
    let mut hosts: Vec<Host> = nodes
        .iter()
        .filter(|node| node.role == Role::Expert && node.health != Health::Draining)
        .filter(|node| node.slots > 0)
        .map(|node| Host { id: node.id, slots: node.slots })
        .collect();
    hosts.sort_unstable();
    hosts
}

/// Bytes that nodes have for the experts of two plans together, as [`Facts::memory`](super::Facts::memory) wants them.
#[must_use]
pub fn memory(nodes: &[Observed], shape: &ModelShape) -> Vec<(NodeId, u64)> {
    let bytes = |experts: u32| u64::from(experts).saturating_mul(shape.expert_bytes);
    nodes.iter().filter_map(|node| Some((node.id, bytes(node.experts_max?)))).collect()
}

/// Replicas that every node can load beside as many as it has slots for.
#[must_use]
pub fn room(nodes: &[Observed]) -> u32 {
    let rooms = nodes.iter().filter_map(|node| Some(node.experts_max?.saturating_sub(node.slots)));
    rooms.min().unwrap_or(u32::MAX)
}

/// Whether a new plan is due, and why.
#[must_use]
pub fn due(situation: &Situation<'_>) -> Option<Reason> {
    let Situation { serving, target, newest, considered, hosts, hosts_min } = *situation;
    let tried = hosts == considered.hosts && newest <= considered.newest;
    if tried || hosts.is_empty() {
        return None;
    }
    let Some(current) = target.or(serving) else {
        return (hosts.len() >= hosts_min).then_some(Reason::First);
    };
    if newest > current.epoch() {
        return Some(Reason::Behind { newest });
    }
    let joined = hosts.iter().filter(|host| !considered.hosts.contains(host)).map(|host| host.id);
    let left: Vec<NodeId> = considered
        .hosts
        .iter()
        .map(|host| host.id)
        .filter(|id| !hosts.iter().any(|host| host.id == *id))
        .collect();
    if target.is_some() && left.is_empty() {
        return None;
    }
    Some(Reason::Hosts { joined: joined.collect(), left })
}

/// Whether `target` may serve now. `served` is the newest epoch that any node says it has served.
#[must_use]
pub fn readiness(
    serving: Option<&Plan>,
    target: &Plan,
    served: Epoch,
    nodes: &[Observed],
) -> Readiness {
    if served > serving.map_or(Epoch(0), Plan::epoch) {
        return Readiness::Ready;
    }
    let observed: BTreeMap<NodeId, &Observed> = nodes.iter().map(|node| (node.id, node)).collect();
    let ready =
        |id: &NodeId| observed.get(id).is_some_and(|node| node.epoch_ready >= target.epoch());
    let stranded = |plan: &Plan| {
        plan.table().any(|replicas| !replicas.iter().any(|id| observed.contains_key(id)))
    };
    if serving.is_some_and(stranded) && target.table().all(|replicas| replicas.iter().any(ready)) {
        return Readiness::Ready;
    }
    let mut waiting: Vec<NodeId> = target
        .iter()
        .map(|(_, _, node)| node)
        .chain(nodes.iter().filter(|node| at_work(node)).map(|node| node.id))
        .filter(|id| !ready(id))
        .collect();
    waiting.sort_unstable();
    waiting.dedup();
    if waiting.is_empty() { Readiness::Ready } else { Readiness::Waiting(waiting) }
}

/// Attention nodes that have tokens on their way. One that still joins has none, so nobody waits for it.
fn at_work(node: &Observed) -> bool {
    node.role == Role::Attention && node.health != Health::Joining
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("enough expert nodes are here for the first plan"),
            Self::Behind { newest } => write!(f, "a node has heard of {newest}"),
            Self::Hosts { joined, left } => {
                f.write_str("expert nodes changed:")?;
                joined.iter().try_for_each(|id| write!(f, " +{id}"))?;
                left.iter().try_for_each(|id| write!(f, " -{id}"))
            }
            Self::Observed { before_ns, after_ns } => {
                let saved = before_ns.saturating_sub(*after_ns).saturating_mul(100);
                let percent = saved.checked_div(*before_ns).unwrap_or(0);
                write!(f, "it saves {percent} % of the time that experts take")
            }
            Self::Asked => f.write_str("an operator wished it"),
            Self::Imported => f.write_str("an operator gave it"),
        }
    }
}
