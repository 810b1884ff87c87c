//! Makes leases from what was asked for lately: one replica per expert for all that comes until the next lease.

use domain::{CostCurve, NodeId, Plan};

use super::{Hosts, Instance, Lease, NS_MAX, Policy, Router, Unroutable};

/// A new lease has to end this part of the old one's time earlier: after a change the tokens of an
/// expert wait in two places for a while, and counts of an interval are never quite the same.
const GAIN: u64 = 20;

/// What a lease is made from.
///
/// An asynchronous cluster has no batch to route, and nobody waits for the others at the end of a
/// layer; so only a node's time over all layers matters, in an interval like the last one.
#[derive(Clone, Copy, Debug)]
pub struct Demand<'a> {
    /// The plan that serves.
    pub plan: &'a Plan,
    /// The nodes that may be used, ascending.
    pub nodes: &'a [NodeId],
    /// Tokens that each expert got in the interval, `[moe layer][expert]`, flattened.
    pub tokens: &'a [u32],
    /// How often a layer was run in the interval, about; 1 if the tokens are those of one run.
    pub runs: u32,
    /// Per node, the time that one activated expert takes there for its tokens of one run, slowness
    /// included. Empty where nothing is known.
    pub curves: &'a [CostCurve],
    /// Per node, nanoseconds of work that waits already. Empty for none.
    pub backlog_ns: &'a [u64],
}

/// A demand in the unit that a policy compares nodes by.
struct Priced<'a> {
    demand: &'a Demand<'a>,
    /// Per node, what the tokens of an interval cost; none for a policy that counts.
    curves: Vec<CostCurve>,
    /// Per node, what it costs already.
    loads: Vec<u64>,
}

// === impl Lease ===

impl Lease {
    /// Leases with the router's policy, layer by layer: what a node is given in one layer is its
    /// backlog in the next. Nothing is split. An expert that nobody asked for goes where least
    /// would be in its way, and one that none of the nodes holds to nobody.
    ///
    /// # Errors
    /// The lengths do not fit, or there are more nodes than a router can tell apart.
    pub fn routed(demand: &Demand<'_>, router: &mut Router) -> Result<Self, Unroutable> {
        Priced::new(demand, router.policy()).route(router)
    }

    /// The lease that should follow this one; none while this one is nearly as good.
    ///
    /// # Errors
    /// As [`Lease::routed`].
    pub fn renewed(
        &self,
        demand: &Demand<'_>,
        router: &mut Router,
    ) -> Result<Option<Self>, Unroutable> {
        let priced = Priced::new(demand, router.policy());
        let next = priced.route(router)?;
        let stays = match (priced.time(self), priced.time(&next)) {
            (Some(now), Some(then)) => then >= now - now / GAIN,
            _ => false,
        };
        Ok((!stays).then_some(next))
    }
}

// === impl Priced ===

impl<'a> Priced<'a> {
    fn new(demand: &'a Demand<'a>, policy: Policy) -> Self {
        if policy != Policy::Time {
            return Self { demand, curves: Vec::new(), loads: vec![0; demand.nodes.len()] };
        }
        let curves = demand.curves.iter().map(|curve| over_runs(curve, demand.runs)).collect();
        let mut loads = demand.backlog_ns.to_vec();
        if loads.is_empty() {
            loads.resize(demand.nodes.len(), 0);
        }
        Self { demand, curves, loads }
    }

    fn route(&self, router: &mut Router) -> Result<Lease, Unroutable> {
        let Demand { plan, nodes, tokens, .. } = *self.demand;
        let experts = usize::from(plan.experts());
        let expected = plan.moe_layers().len() * experts;
        if tokens.len() != expected {
            return Err(Unroutable::Tokens { expected, found: tokens.len() });
        }
        let mut loads = self.loads.clone();
        let mut leased = Vec::with_capacity(expected);
        let mut replicas = plan.table();
        for tokens in tokens.chunks(experts.max(1)) {
            let hosts = Hosts::among(nodes, replicas.by_ref().take(experts))?;
            // What nobody holds now must not keep the rest from being served.
            let held = |(expert, &tokens)| if hosts.of(expert).is_empty() { 0 } else { tokens };
            let tokens: Vec<u32> = tokens.iter().enumerate().map(held).collect();
            let instance = Instance {
                hosts: &hosts,
                tokens: &tokens,
                curves: &self.curves,
                backlog_ns: &loads,
            };
            let assignment = router.lease(&instance)?;
            let mut hopes = assignment.time_ns().to_vec();
            for expert in 0..experts {
                let node = match assignment.shares(expert).first() {
                    Some(share) => Some(share.node),
                    None => self.idlest(hosts.of(expert), &mut hopes),
                };
                leased.push(node.map(|node| nodes[usize::from(node)]));
            }
            assignment.time_ns().clone_into(&mut loads);
        }
        Ok(Lease::new(plan, leased))
    }

    /// Where an expert that nobody asked for has least before it. It then counts for the others of
    /// its kind, so that they do not all go to one node.
    fn idlest(&self, hosts: &[u16], loads: &mut [u64]) -> Option<u16> {
        let idlest = hosts.iter().copied().min_by_key(|&node| loads[usize::from(node)])?;
        loads[usize::from(idlest)] += self.cost(usize::from(idlest), 1);
        Some(idlest)
    }

    fn cost(&self, node: usize, tokens: u32) -> u64 {
        self.curves.get(node).map_or(u64::from(tokens > 0), |curve| curve.ns(tokens).min(NS_MAX))
    }

    /// When the last node is done under a lease; none if the lease is another plan's, or leaves
    /// an expert to a node that must not be used though there is one that may.
    fn time(&self, lease: &Lease) -> Option<u64> {
        let Demand { plan, nodes, tokens, .. } = *self.demand;
        if lease.epoch() != plan.epoch() {
            return None;
        }
        let mut loads = self.loads.clone();
        for ((replicas, leased), &tokens) in plan.table().zip(lease.nodes()).zip(tokens) {
            match leased.and_then(|leased| nodes.binary_search(&leased).ok()) {
                Some(node) => loads[node] = loads[node].saturating_add(self.cost(node, tokens)),
                None if !replicas.iter().any(|id| nodes.binary_search(id).is_ok()) => {}
                None => return None,
            }
        }
        loads.into_iter().max()
    }
}

/// What one expert costs in an interval of `runs` runs of its layer, against its tokens in the
/// whole interval, if every token may fall into any run.
///
/// A cold expert is not activated in every run: of `runs` runs, `1 - exp(-tokens / runs)` are
/// expected to have a token for it, and share its tokens.
fn over_runs(curve: &CostCurve, runs: u32) -> CostCurve {
    if runs <= 1 {
        return curve.clone();
    }
    let last = curve.edges().last().map_or(1, |&(tokens, _)| tokens);
    let end = last.saturating_mul(runs);
    let mut points: Vec<(u32, u64)> = Vec::new();
    let mut tokens = 1_u32;
    loop {
        let activated = f64::from(runs) * -(-f64::from(tokens) / f64::from(runs)).exp_m1();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "positive, and times are far below 2^52 ns"
        )]
        let ns = {
            let each = (f64::from(tokens) / activated).round() as u32;
            (activated * curve.ns(each) as f64).round() as u64
        };
        let before = points.last().map_or(1, |&(_, before)| before);
        points.push((tokens, ns.max(before)));
        if tokens == end {
            return CostCurve::new(points).unwrap_or_else(|_| curve.clone());
        }
        // Steps of an eighth are finer than what is known about the next interval.
        tokens = tokens.saturating_add(tokens / 8 + 1).min(end);
    }
}

#[cfg(test)]
mod tests;
