//! Incremental placement: as few moves as pay, from the plan that serves (as ViBE does, arXiv 2606.00735).
//!
//! 1. *Repair*: experts whose nodes are all gone get a new one, whatever it costs; further replicas that
//!    the input wishes for and the plan lacks are added, as far as the limit on bytes allows.
//! 2. *Look*: without a [`Trigger`] the plan stays.
//! 3. *Improve*: of all layers' best straggler-first swaps make the one that gains most per replica
//!    to be loaded, until none helps or the limits are reached. A node that holds less than its equal share
//!    takes replicas without giving any.
//! 4. *Judge*: if all that saves too little, keep only the repairs.

mod climb;
mod repair;

use std::fmt;

use domain::{Expert, Layer, NodeId, Plan};

use super::{
    drift::{self, Trigger},
    gem,
    problem::{HostIndex, LayerTable, Problem},
};

/// How far a plan may be changed, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Look when the activation vector's cosine distance from the [`Basis`](super::Basis) is above
    /// this, in thousandths.
    pub drift_permille: u32,
    /// Look when a node takes longer than it did by more than this, in thousandths.
    pub slower_permille: u32,
    /// Change only what saves at least this part of the predicted cost, in thousandths.
    pub gain_permille: u32,
    /// Swaps (or moves to a node with room) at most. Repairs do not count.
    pub swaps_max: u32,
    /// Bytes of weights that nodes have to load at most. Repairs count, but are made in any case.
    pub bytes_max: u64,
}

/// What was changed in a plan, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Why the plan was looked at; none if there was no reason to.
    pub trigger: Option<Trigger>,
    /// Replicas that nodes have to load, in order of layer and expert. Empty: the plan stays.
    pub moves: Vec<Move>,
    /// Weights in `moves`, in bytes.
    pub bytes: u64,
    /// Predicted cost before, repairs included, and after. None without a trace.
    pub cost_ns: Option<(u64, u64)>,
    /// Whether only the limits stopped it from getting better still. Keep the old
    /// [`Basis`](super::Basis) then, so that the next look goes on.
    pub limited: bool,
}

/// A replica that is new on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The expert's layer.
    pub layer: Layer,
    /// The expert.
    pub expert: Expert,
    /// The node that gives it up; none for a further replica.
    pub from: Option<NodeId>,
    /// The node that gets it.
    pub to: NodeId,
}

impl Default for Limits {
    /// The sizes of ViBE: 5 to 30 swaps at a drift of a few percent. A gibibyte.
    fn default() -> Self {
        Self {
            drift_permille: 30,
            slower_permille: 50,
            gain_permille: 10,
            swaps_max: 30,
            bytes_max: 1 << 30,
        }
    }
}

/// The revised tables. Without a serving plan of this model there is nothing to revise: then GEM's.
pub(super) fn place(problem: &Problem<'_>, limits: &Limits) -> (Vec<LayerTable>, Option<Revision>) {
    let Some(serving) = problem.input.serving.filter(|plan| problem.fits(plan)) else {
        return (gem::place(problem), None);
    };
    let mut work = Work::new(problem, serving);
    let lost = work.repair(serving);
    let budget = limits.bytes_max / problem.input.shape.expert_bytes.max(1);
    let missing = work.refill(budget.saturating_sub(work.moves(serving).len() as u64));
    let trigger = lost
        .or(missing)
        .or_else(|| work.joined())
        .or_else(|| drift::trigger(problem, limits.drift_permille, limits.slower_permille));
    let mut revision = Revision { trigger, moves: vec![], bytes: 0, cost_ns: None, limited: false };
    if problem.trace.is_some() && revision.trigger.is_some() {
        let moved = work.moves(serving).len() as u64;
        work.improve(limits, budget.saturating_sub(moved), &mut revision);
    }
    revision.moves = work.moves(serving);
    revision.bytes = revision.moves.len() as u64 * problem.input.shape.expert_bytes;
    (work.tables, Some(revision))
}

/// Tables that are being revised.
#[derive(Debug)]
struct Work<'a> {
    problem: &'a Problem<'a>,
    tables: Vec<LayerTable>,
    /// Replicas per host over all layers.
    held: Vec<u64>,
}

// === impl Work ===

impl<'a> Work<'a> {
    fn new(problem: &'a Problem<'a>, serving: &Plan) -> Self {
        let index = |id: &NodeId| {
            let at = problem.hosts.binary_search_by_key(id, |host| host.id).ok()?;
            HostIndex::try_from(at).ok()
        };
        let rows: Vec<Vec<HostIndex>> =
            serving.table().map(|replicas| replicas.iter().filter_map(index).collect()).collect();
        let tables: Vec<LayerTable> = rows.chunks(problem.experts).map(<[_]>::to_vec).collect();
        let mut held = vec![0; problem.hosts.len()];
        tables.iter().flatten().flatten().for_each(|&host| held[usize::from(host)] += 1);
        Self { problem, tables, held }
    }

    fn joined(&self) -> Option<Trigger> {
        let hosts = self.problem.hosts.iter().zip(&self.held);
        let empty = hosts.filter(|(host, held)| **held == 0 && host.slots > 0);
        let joined: Vec<NodeId> = empty.map(|(host, _)| host.id).collect();
        (!joined.is_empty()).then_some(Trigger::Joined(joined))
    }

    /// What nodes have to load to get from `serving` to the tables.
    fn moves(&self, serving: &Plan) -> Vec<Move> {
        let mut moves = Vec::new();
        for (row, (before, after)) in serving.table().zip(self.tables.iter().flatten()).enumerate()
        {
            let after: Vec<NodeId> =
                after.iter().map(|&host| self.problem.hosts[usize::from(host)].id).collect();
            let mut given_up = before.iter().filter(|id| !after.contains(id));
            for &to in after.iter().filter(|id| !before.contains(id)) {
                let (layer, expert) = (row / self.problem.experts, row % self.problem.experts);
                moves.push(Move {
                    layer: serving.moe_layers()[layer],
                    expert: Expert(u16::try_from(expert).expect("experts are counted by a u16")),
                    from: given_up.next().copied(),
                    to,
                });
            }
        }
        moves
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.trigger {
            None => return f.write_str("nothing has changed"),
            Some(trigger) => write!(f, "{trigger}: ")?,
        }
        write!(f, "{} replicas move, {} bytes", self.moves.len(), self.bytes)?;
        if let Some((before, after)) = self.cost_ns {
            write!(f, ", {before} -> {after} ns")?;
        }
        f.write_str(if self.limited { ", more at the next look" } else { "" })
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, expert, from, to } = self;
        match from {
            Some(from) => write!(f, "{layer} {expert} {from} -> {to}"),
            None => write!(f, "{layer} {expert} -> {to}"),
        }
    }
}
