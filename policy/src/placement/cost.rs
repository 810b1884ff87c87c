//! What a plan costs: how long the slowest node of every layer takes, step by step.
//!
//! This is the objective that policies minimise and rivals are compared by: the sum over steps and
//! layers of the largest finish time, so that experts that are busy at the same time (the GEM paper's
//! consistent and temporal ones) count as such without being labelled.
//!
//! The tokens of an expert with several replicas count evenly at all of them, each share rounded up.
//! Where a curve rises, tokens are what costs, and a router that looks at time shares them out like
//! that; where it is flat, it does not matter who gets them.

use std::collections::BTreeMap;

use domain::{CostCurve, NodeId, Plan, Trace};

use super::Host;

/// The predicted time of all steps of `trace` under `plan`, in nanoseconds:
/// Σ over steps and MoE layers of max over nodes of the node's curve at its tokens.
///
/// `curves` are layer curves (time of a node's whole MoE layer against all its (token, expert)
/// pairs), one per host; empty: all are equal and time is in proportion to tokens. Replicas on nodes that are
/// not among `hosts` do not count; when tokens have nowhere to go the cost is `u64::MAX`.
///
/// # Panics
/// The trace is for other layers or experts than the plan, or there are curves for some hosts only.
#[must_use]
pub fn cost(plan: &Plan, hosts: &[Host], curves: &[CostCurve], trace: &Trace) -> u64 {
    let sizes = (plan.moe_layers().len(), usize::from(plan.experts()));
    assert!((trace.layers(), trace.experts()) == sizes, "a trace of another model: {sizes:?}");
    assert!(curves.is_empty() || curves.len() == hosts.len(), "{} curves", curves.len());
    let index: BTreeMap<NodeId, usize> =
        hosts.iter().enumerate().map(|(at, host)| (host.id, at)).collect();
    let proportional = proportional();
    let curve = |host: usize| curves.get(host).unwrap_or(&proportional);
    let table: Vec<Vec<usize>> = plan
        .table()
        .map(|replicas| replicas.iter().filter_map(|id| index.get(id).copied()).collect())
        .collect();
    let mut tokens = vec![0_u32; hosts.len()];
    let mut total = 0_u64;
    for step in 0..trace.steps() {
        for (layer, holders) in table.chunks(sizes.1).enumerate() {
            tokens.fill(0);
            for (&count, holders) in trace.counts(step, layer).iter().zip(holders) {
                if count > 0 && holders.is_empty() {
                    return u64::MAX;
                }
                for &host in holders {
                    tokens[host] = tokens[host].saturating_add(share(count, holders.len()));
                }
            }
            let slowest = (0..hosts.len()).map(|host| curve(host).ns(tokens[host])).max();
            total = total.saturating_add(slowest.unwrap_or(0));
        }
    }
    total
}

/// What one of `replicas` counts of an expert's tokens.
pub(super) fn share(tokens: u32, replicas: usize) -> u32 {
    tokens.div_ceil(u32::try_from(replicas).unwrap_or(u32::MAX))
}

/// The curve of hosts of which nothing is known: a nanosecond per token.
pub(super) fn proportional() -> CostCurve {
    CostCurve::new(vec![(1, 1)]).expect("one point above zero is a curve")
}
