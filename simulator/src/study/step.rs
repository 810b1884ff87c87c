//! The time of a step in lockstep: attention, dispatch, the slowest node's experts, combine, layer by layer.

use domain::{CostCurve, Trace};
use policy::routing::{Assignment, Hosts, Instance, Policy, Router};

use super::batches::Source;

/// What came of routing a number of steps.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    /// Nanoseconds of each step.
    pub(super) steps_ns: Vec<u64>,
    /// Sum over steps and layers of the largest number of experts activated on a node.
    pub(super) activated: u64,
}

impl Outcome {
    pub(super) fn mean_ns(&self) -> f64 {
        mean(&self.steps_ns)
    }

    /// The time that nine of ten steps do not exceed.
    pub(super) fn p90_ns(&self) -> u64 {
        let mut sorted = self.steps_ns.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() * 9 / 10).or(sorted.last()).copied().unwrap_or(0)
    }
}

/// A cluster whose steps are timed.
pub(super) struct Stepper<'a> {
    source: &'a Source<'a>,
    hosts: &'a [Hosts],
    /// Per node.
    factors: &'a [f64],
    curves: Vec<CostCurve>,
}

impl<'a> Stepper<'a> {
    pub(super) fn new(source: &'a Source<'a>, hosts: &'a [Hosts], factors: &'a [f64]) -> Self {
        let curves = factors.iter().map(|&factor| source.costs.expert.scaled(factor)).collect();
        Self { source, hosts, factors, curves }
    }

    /// Routes every step of `trace` by `policy` and times it for `tokens` sequences.
    pub(super) fn run(
        &self,
        policy: Policy,
        trace: &Trace,
        tokens: u32,
    ) -> Result<Outcome, String> {
        let mut router = Router::new(policy);
        let fixed = self.fixed_ns(policy, tokens);
        let mut outcome = Outcome::default();
        for step in 0..trace.steps() {
            let mut time = self.head_ns(tokens);
            for (layer, hosts) in self.hosts.iter().enumerate() {
                let instance = Instance {
                    hosts,
                    tokens: trace.counts(step, layer),
                    curves: &self.curves,
                    backlog_ns: &[],
                };
                let assignment = router.route(&instance).map_err(|error| error.to_string())?;
                time += fixed + self.slowest_ns(assignment);
                outcome.activated += u64::from(assignment.max_activated());
            }
            outcome.steps_ns.push(time);
        }
        Ok(outcome)
    }

    /// What every layer takes beside its experts. Whoever looks at the whole batch pays for that.
    fn fixed_ns(&self, policy: Policy, tokens: u32) -> u64 {
        let spec = self.source.spec;
        let looks = if policy == Policy::EvenSplit { 0.0 } else { spec.routing_us };
        let each = tokens.div_ceil(u32::from(spec.nodes));
        let context = u64::from(each) * u64::from(spec.context);
        let attention = self.source.costs.attention(each, context);
        let wire = microseconds(2.0 * spec.collective_us + looks);
        self.slow(attention) + wire
    }

    fn head_ns(&self, tokens: u32) -> u64 {
        self.slow(self.source.costs.head(tokens.div_ceil(u32::from(self.source.spec.nodes))))
    }

    /// What takes `ns` on a node of nominal speed takes until the slowest node is done.
    fn slow(&self, ns: u64) -> u64 {
        times(ns, self.factors.iter().copied().fold(0.0, f64::max))
    }

    fn slowest_ns(&self, assignment: &Assignment) -> u64 {
        let launch = self.source.costs.launch_ns;
        let nodes = assignment.time_ns().iter().zip(self.factors);
        nodes
            .filter(|&(&ns, _)| ns > 0)
            .map(|(&ns, &factor)| ns + times(launch, factor))
            .max()
            .unwrap_or(0)
    }
}

/// By how many percent `value` lies above `base`.
pub(super) fn percent_above(value: f64, base: f64) -> f64 {
    (value / base - 1.0) * 100.0
}

#[expect(clippy::cast_precision_loss, reason = "times are far below 2^52 ns")]
pub(super) fn mean(values: &[u64]) -> f64 {
    values.iter().sum::<u64>() as f64 / values.len().max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "a count of experts or nanoseconds")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "times are positive and far below 2^52 ns"
)]
fn times(ns: u64, factor: f64) -> u64 {
    (ns as f64 * factor).round() as u64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked: not negative"
)]
fn microseconds(us: f64) -> u64 {
    (us * 1000.0).round() as u64
}
