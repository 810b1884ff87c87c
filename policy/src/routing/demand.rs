//! Makes leases from what was asked for lately: who runs all that comes until the next lease.

use domain::{CostCurve, Holder, NodeId, Plan};

use super::{Hosts, Instance, Lease, NS_MAX, Policy, Router, Share, Unroutable, lease::whole};

/// A new lease has to end this part of the old one's time earlier: after a change the tokens of an
/// expert wait in two places for a while, and counts of an interval are never quite the same.
const GAIN: u64 = 20;

/// What a lease is made from.
///
/// An asynchronous cluster has no batch to route; what is known is an interval like the next one. Every
/// layer is balanced by itself: rows that some nodes are late with come late to the next layer, and
/// batches fall apart there.
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
    /// Per node, what it costs already, per layer.
    loads: Vec<u64>,
}

/// What a node is given beyond others in one layer counts in the next divided by this where times are
/// known: it decides between equals. Counts are so coarse that it counts whole.
const CARRY: u64 = 16;

// === impl Lease ===

impl Lease {
    /// Leases with the router's policy, layer by layer. By [`Policy::Time`] an expert that is too hot
    /// for one node is shared by several, by [`Policy::EvenSplit`] every expert by all its nodes, asked
    /// for or not. By the others one
    /// that nobody asked for goes where least would be in its way, and one that none of the nodes
    /// holds to nobody.
    ///
    /// # Errors
    /// The lengths do not fit, or there are more nodes than a router can tell apart.
    pub fn routed(demand: &Demand<'_>, router: &mut Router) -> Result<Self, Unroutable> {
        if router.policy() == Policy::EvenSplit {
            return Ok(Self::even(demand.plan, |node| demand.nodes.binary_search(&node).is_ok()));
        }
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
        if router.policy() == Policy::EvenSplit {
            let next = Self::routed(demand, router)?;
            return Ok((!self.holds_as(&next)).then_some(next));
        }
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
        let layers = demand.plan.moe_layers().len().max(1) as u64;
        let mut loads: Vec<u64> = demand.backlog_ns.iter().map(|ns| ns / layers).collect();
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
        let carry = if self.curves.is_empty() { 1 } else { CARRY };
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
            let id = |node: u16| nodes[usize::from(node)];
            for expert in 0..experts {
                let shares = assignment.shares(expert);
                let holder = |share: &Share| Holder { node: id(share.node), part: share.tokens };
                leased.push(if shares.is_empty() {
                    whole(self.idlest(hosts.of(expert), &mut hopes).map(id))
                } else {
                    shares.iter().map(holder).collect()
                });
            }
            let times = assignment.time_ns();
            let least = times.iter().min().copied().unwrap_or(0);
            for ((load, &base), &time) in loads.iter_mut().zip(&self.loads).zip(times) {
                *load = base + (time - least) / carry;
            }
        }
        Ok(Lease::new(plan, leased.into_iter()))
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

    /// What the fullest node takes in every layer under a lease, in all; none if the lease is another
    /// plan's, or leaves an expert to a node that must not be used though there is one that may.
    fn time(&self, lease: &Lease) -> Option<u64> {
        let Demand { plan, nodes, tokens, .. } = *self.demand;
        if lease.epoch() != plan.epoch() {
            return None;
        }
        let experts = usize::from(plan.experts()).max(1);
        let mut slots = plan.table().zip(lease.holders());
        let mut sum = 0_u64;
        for tokens in tokens.chunks(experts) {
            let mut loads = self.loads.clone();
            for (&tokens, (replicas, holders)) in tokens.iter().zip(slots.by_ref()) {
                if replicas.iter().any(|id| nodes.binary_search(id).is_ok()) {
                    self.load(holders, tokens, &mut loads)?;
                }
            }
            sum = sum.saturating_add(loads.into_iter().max().unwrap_or(0));
        }
        Some(sum)
    }

    /// Adds an expert's tokens to the loads of its holders; none if it has no holder, or one that must
    /// not be used.
    fn load(
        &self,
        holders: impl Iterator<Item = Holder>,
        tokens: u32,
        loads: &mut [u64],
    ) -> Option<()> {
        let mut held = false;
        for holder in holders {
            held = true;
            let node = self.demand.nodes.binary_search(&holder.node).ok()?;
            let tokens = u64::from(tokens) * u64::from(holder.part) / u64::from(u32::MAX);
            let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
            loads[node] = loads[node].saturating_add(self.cost(node, tokens));
        }
        held.then_some(())
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
