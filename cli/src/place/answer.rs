//! What `amoe place` prints: the plan, its predicted cost, and what its rivals would cost.

use std::fmt;

use domain::NodeId;
use policy::placement::{Proposal, Revision};
use serde::Serialize;

use super::Cluster;
use crate::plan::table;

/// The answer as JSON, or for people.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    policy: String,
    /// Predicted time of the trace's steps.
    cost_ns: u64,
    rivals: Vec<Rival>,
    /// As `amoe plan import` reads it.
    plan: table::Plan,
    /// What changed in the plan that serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<Revised>,
    #[serde(skip)]
    nodes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Rival {
    policy: String,
    cost_ns: u64,
}

#[derive(Debug, Serialize)]
struct Revised {
    why: String,
    moves: Vec<Move>,
}

#[derive(Debug, Serialize)]
struct Move {
    layer: u16,
    expert: u16,
    from: Option<String>,
    to: String,
}

// === impl Answer ===

impl Answer {
    pub(super) fn new(cluster: &Cluster, proposal: &Proposal, rivals: &[Proposal]) -> Self {
        let cost = |proposal: &Proposal| proposal.explanation.cost_ns.unwrap_or_default();
        let rival = |proposal: &Proposal| Rival {
            policy: proposal.explanation.policy.to_string(),
            cost_ns: cost(proposal),
        };
        Self {
            policy: proposal.explanation.policy.to_string(),
            cost_ns: cost(proposal),
            rivals: rivals.iter().map(rival).collect(),
            plan: cluster.table(&proposal.plan),
            revision: proposal
                .explanation
                .revision
                .as_ref()
                .map(|revision| revised(cluster, revision)),
            nodes: cluster.names.clone(),
        }
    }

    /// One line: the predicted cost, and how much more the rivals take.
    pub(super) fn headline(&self) -> String {
        let mut line = format!("{}: predicted {}", self.policy, time(self.cost_ns));
        for Rival { policy, cost_ns } in &self.rivals {
            #[expect(clippy::cast_precision_loss, reason = "a percentage")]
            let more = (*cost_ns as f64 / self.cost_ns.max(1) as f64 - 1.0) * 100.0;
            line += &format!(", {policy} {} ({more:+.1} %)", time(*cost_ns));
        }
        line
    }
}

fn revised(cluster: &Cluster, revision: &Revision) -> Revised {
    let name = |node: NodeId| cluster.names.get(node.0 as usize).cloned().unwrap_or_default();
    let moves = revision.moves.iter().map(|one| Move {
        layer: one.layer.0,
        expert: one.expert.0,
        from: one.from.map(name),
        to: name(one.to),
    });
    let why = revision.trigger.as_ref().map_or_else(
        || "nothing has changed".to_owned(),
        |why| {
            let more = if revision.limited { ", more swaps would save more" } else { "" };
            format!("{why}: {} replicas move{more}", revision.moves.len())
        },
    );
    Revised { why, moves: moves.collect() }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn time(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.2} s", ns as f64 / 1e9),
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.headline())?;
        if let Some(Revised { why, moves }) = &self.revision {
            writeln!(f, "{why}")?;
            for Move { layer, expert, from, to } in moves {
                let from = from.as_deref().unwrap_or("-");
                writeln!(f, "layer {layer} expert {expert}: {from} -> {to}")?;
            }
        }
        let width = self.nodes.iter().map(String::len).max().unwrap_or(0);
        for table::Layer { layer, experts } in &self.plan.layers {
            writeln!(f, "layer {layer}")?;
            for node in &self.nodes {
                write!(f, "  {node:width$}:")?;
                let held = experts.iter().enumerate().filter(|(_, nodes)| nodes.contains(node));
                held.map(|(expert, _)| expert).try_for_each(|expert| write!(f, " {expert}"))?;
                writeln!(f)?;
            }
        }
        Ok(())
    }
}
