//! Whether the world has changed so much since a plan was made that it is worth another look.

use std::{collections::BTreeMap, fmt};

use domain::{CostCurve, NodeId, Trace};

use super::{Input, problem::Problem};

/// What a plan was made for: kept beside the plan that serves, to see how far the world has moved on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    /// Tokens `[moe layer][expert]` over the trace, flattened. Empty if there was none.
    activations: Vec<u64>,
    curves: BTreeMap<NodeId, CostCurve>,
}

/// Why a serving plan was looked at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// These nodes are gone, or have room for fewer replicas than they hold.
    Lost(Vec<NodeId>),
    /// So many further replicas fewer than wished for.
    Missing(u64),
    /// These nodes hold nothing and might.
    Joined(Vec<NodeId>),
    /// The node takes longer than it did.
    Slower {
        /// The node.
        node: NodeId,
        /// By how much, in thousandths of what it took.
        permille: u32,
    },
    /// Other experts are used.
    Drift {
        /// Cosine distance of the activation vectors, in thousandths.
        permille: u32,
    },
    /// Nobody knows what the serving plan was made for.
    Unknown,
}

// === impl Basis ===

impl Basis {
    /// What a plan that is made from `input` is made for.
    #[must_use]
    pub fn of(input: &Input<'_>) -> Self {
        let hosts = input.hosts.iter().zip(input.curves);
        Self {
            activations: input.trace.map(activations).unwrap_or_default(),
            curves: hosts.map(|(host, curve)| (host.id, curve.clone())).collect(),
        }
    }

    /// Cosine distance of the activation vector of `trace` from this one, in thousandths: 0 where
    /// experts are used in the same proportions, 1000 where none is used that was used before. None if there was no trace.
    #[must_use]
    pub fn drift_permille(&self, trace: &Trace) -> Option<u32> {
        let now = activations(trace);
        if self.activations.len() != now.len() {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a thousandth is asked for")]
        let dot = |a: &[u64], b: &[u64]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum()
        };
        let lengths = (dot(&self.activations, &self.activations) * dot(&now, &now)).sqrt();
        if lengths == 0.0 {
            return None;
        }
        let distance = 1.0 - dot(&self.activations, &now) / lengths;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a distance of vectors without negative entries lies between 0 and 1"
        )]
        Some((distance * 1000.0).round() as u32)
    }

    /// The node that lost most of its speed, and how much longer it takes for `tokens` tokens.
    fn slowest(&self, problem: &Problem<'_>, tokens: u32) -> Option<(NodeId, u32)> {
        let hosts = problem.hosts.iter().zip(&problem.curves);
        let slower = hosts.filter_map(|(host, curve)| {
            let (now, then) = (curve.ns(tokens), self.curves.get(&host.id)?.ns(tokens));
            let more = u128::from(now.saturating_sub(then)) * 1000 / u128::from(then.max(1));
            Some((host.id, u32::try_from(more).unwrap_or(u32::MAX)))
        });
        slower.max_by_key(|&(node, permille)| (permille, std::cmp::Reverse(node)))
    }
}

/// Why a plan that has lost no replica and no room should be looked at again; none if it should not.
pub(super) fn trigger(
    problem: &Problem<'_>,
    drift_permille: u32,
    slower_permille: u32,
) -> Option<Trigger> {
    let trace = problem.trace?;
    let Some(basis) = problem.input.basis else { return Some(Trigger::Unknown) };
    if let Some((node, permille)) = basis.slowest(problem, mean_tokens(problem, trace))
        && permille > slower_permille
    {
        return Some(Trigger::Slower { node, permille });
    }
    match basis.drift_permille(trace) {
        None => Some(Trigger::Unknown),
        Some(permille) => (permille > drift_permille).then_some(Trigger::Drift { permille }),
    }
}

/// Tokens of a host in a layer and step, on average; at least one.
fn mean_tokens(problem: &Problem<'_>, trace: &Trace) -> u32 {
    let total: u64 = activations(trace).iter().sum();
    let parts = (trace.steps() * problem.layers * problem.hosts.len()) as u64;
    u32::try_from(total.div_ceil(parts.max(1))).unwrap_or(u32::MAX).max(1)
}

fn activations(trace: &Trace) -> Vec<u64> {
    (0..trace.layers()).flat_map(|layer| trace.totals(layer)).collect()
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = |f: &mut fmt::Formatter<'_>, nodes: &[NodeId]| {
            nodes.iter().try_for_each(|node| write!(f, " {node}"))
        };
        match self {
            Self::Lost(lost) => {
                f.write_str("lost")?;
                nodes(f, lost)
            }
            Self::Missing(replicas) => write!(f, "{replicas} replicas fewer than wished for"),
            Self::Joined(joined) => {
                f.write_str("joined")?;
                nodes(f, joined)
            }
            Self::Slower { node, permille } => {
                write!(f, "{node} takes {permille} ‰ longer than it did")
            }
            Self::Drift { permille } => write!(f, "activations have drifted by {permille} ‰"),
            Self::Unknown => f.write_str("nobody knows what the serving plan was made for"),
        }
    }
}
