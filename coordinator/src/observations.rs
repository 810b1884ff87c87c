//! What nodes reported lately: which experts were wanted, what waits, and how fast every node is.
//!
//! All of it is a sample of the recent past, kept in memory only: whoever leads next learns it anew.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use domain::{CostCurve, Curves, Digest, ModelShape, NodeId, Role, Trace};
use proto::control::{Report, Response, Work};

/// Time after which work counts half of what it did.
const WORK_HALF_LIFE: Duration = Duration::from_secs(1);
/// The same for a node that has no work: a slow node that was relieved is tried again some time later.
const IDLE_HALF_LIFE: Duration = Duration::from_secs(10);
/// Work of unhindered speed that every node is credited with, so that a few runs say little.
const PRIOR_NS: f64 = 10e6;
/// The most that is believed of a node's slowness.
const SLOWDOWN_MAX: f64 = 1000.0;
/// A node answers late when it takes so many times as long as others,
const DELAY_MIN: f64 = 2.0;
/// both taken for this much slower than they are, so that nobody is slow by a trifle.
const DELAY_SLACK_NS: f64 = 1e6;
/// Fewer answers say nothing.
const ANSWERS_MIN: f64 = 5.0;
/// What waits on a node that has not reported for so long is not known any more.
const FRESH: Duration = Duration::from_secs(1);
/// Steps of the trace that say what is wanted now.
const RECENT_STEPS: usize = 8;

/// The recent past of the whole cluster.
#[derive(Debug)]
pub(crate) struct Observations {
    steps_max: usize,
    nodes: BTreeMap<NodeId, Seen>,
    /// Pairs routed and expert nodes' runs since the last step.
    step: Vec<u32>,
    runs: u64,
    trace: Trace,
    /// Runs per step, for as many steps as count as recent.
    recent_runs: VecDeque<u64>,
}

/// What is known of one node.
#[derive(Debug)]
struct Seen {
    role: Role,
    curves: Option<Curves>,
    queued: Vec<u32>,
    heard: Duration,
    speed: Speed,
    /// How it answered attention nodes.
    answers: Answers,
}

/// Answers of one expert node, older ones counting less.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    at: Duration,
    count: f64,
    ns: f64,
}

/// Runs of one node, older ones counting less.
#[derive(Clone, Copy, Debug, Default)]
struct Speed {
    at: Duration,
    busy_ns: f64,
    predicted_ns: f64,
    tokens: f64,
    experts: f64,
}

// === impl Observations ===

impl Observations {
    /// Nothing seen yet; keeps a trace of at most `steps_max` steps.
    pub(crate) fn new(steps_max: usize) -> Self {
        Self {
            steps_max,
            nodes: BTreeMap::new(),
            step: Vec::new(),
            runs: 0,
            trace: Trace::new(0, 0),
            recent_runs: VecDeque::new(),
        }
    }

    /// Another model is served from now on.
    pub(crate) fn begin(&mut self, shape: &ModelShape) {
        let (layers, experts) = (shape.moe_layers.len(), usize::from(shape.experts));
        self.trace = Trace::new(layers, experts);
        self.step = vec![0; layers * experts];
        self.recent_runs.clear();
    }

    /// A node has joined, or has come back.
    pub(crate) fn joined(&mut self, now: Duration, id: NodeId, role: Role, curves: Option<Curves>) {
        let speed = Speed { at: now, ..Speed::default() };
        let answers = Answers { at: now, ..Answers::default() };
        let seen = Seen { role, curves, queued: Vec::new(), heard: now, speed, answers };
        self.nodes.insert(id, seen);
    }

    /// Forgets all nodes but these.
    pub(crate) fn retain(&mut self, member: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|&id, _| member(id));
    }

    /// Takes a report, which was checked against the model its node serves.
    pub(crate) fn report(&mut self, now: Duration, id: NodeId, report: Report) {
        let Some(seen) = self.nodes.get_mut(&id) else { return };
        let Report { queued, routed, work, responses, .. } = report;
        seen.queued = queued;
        seen.heard = now;
        seen.speed.add(now, &work);
        if seen.role == Role::Expert {
            self.runs += work.runs;
        }
        // The model may have changed since the node registered.
        if routed.len() == self.step.len() {
            let counts = self.step.iter_mut().zip(routed);
            counts.for_each(|(sum, pairs)| *sum = sum.saturating_add(pairs));
        }
        for Response { node, answers, ns } in responses {
            if let Some(seen) = self.nodes.get_mut(&node) {
                seen.answers.add(now, answers, ns);
            }
        }
    }

    /// Ends a step of the trace, unless nothing was wanted in it.
    pub(crate) fn end_step(&mut self) {
        if self.step.iter().all(|&pairs| pairs == 0) {
            return;
        }
        if self.trace.push(&self.step).is_err() {
            return;
        }
        self.trace.truncate_front(self.steps_max);
        self.step.fill(0);
        self.recent_runs.push_back(std::mem::take(&mut self.runs));
        if self.recent_runs.len() > RECENT_STEPS.min(self.steps_max) {
            self.recent_runs.pop_front();
        }
    }

    /// Which experts were wanted, step by step.
    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// What waits on a node, per layer; empty if it did not say so lately.
    pub(crate) fn queued(&self, now: Duration, id: NodeId) -> &[u32] {
        let fresh = |seen: &&Seen| now.saturating_sub(seen.heard) < FRESH;
        self.nodes.get(&id).filter(fresh).map_or(&[], |seen| &seen.queued)
    }

    /// What waits in the whole cluster, per layer of `shape`.
    pub(crate) fn digest(&self, now: Duration, shape: &ModelShape) -> Digest {
        let layers = usize::from(shape.layers);
        let mut digest = Digest { rows: vec![0; layers + 1], pairs: vec![0; layers] };
        for seen in self.nodes.values().filter(|seen| now.saturating_sub(seen.heard) < FRESH) {
            let sums = match seen.role {
                Role::Attention => &mut digest.rows,
                Role::Expert => &mut digest.pairs,
                Role::Gateway => continue,
            };
            let sums = sums.iter_mut().zip(&seen.queued);
            sums.for_each(|(sum, &queued)| *sum = sum.saturating_add(queued));
        }
        digest
    }

    /// How much longer a node takes than it should: its runs, or to answer at all.
    pub(crate) fn slowdown(&self, now: Duration, id: NodeId) -> f64 {
        self.run_slowdown(now, id).max(self.delay(now, id))
    }

    /// How much longer a node's runs take than they should.
    ///
    /// They should take what its own curve says; where nodes have none, as long per activated expert
    /// as those of the middle one among such nodes.
    fn run_slowdown(&self, now: Duration, id: NodeId) -> f64 {
        let Some(seen) = self.nodes.get(&id) else { return 1.0 };
        let speed = seen.speed.after(now, IDLE_HALF_LIFE);
        let expected = if speed.predicted_ns > 0.0 {
            speed.predicted_ns
        } else {
            speed.experts * self.expert_ns()
        };
        ((speed.busy_ns + PRIOR_NS) / (expected + PRIOR_NS)).clamp(1.0 / SLOWDOWN_MAX, SLOWDOWN_MAX)
    }

    /// Time per activated expert on the middle one of the nodes without a curve.
    fn expert_ns(&self) -> f64 {
        let speeds = self.nodes.values().map(|seen| &seen.speed);
        let measured = speeds.filter(|speed| speed.predicted_ns == 0.0 && speed.experts > 0.0);
        let mut times: Vec<f64> = measured.map(|speed| speed.busy_ns / speed.experts).collect();
        times.sort_by(f64::total_cmp);
        // Of two the faster one: it shows what is possible.
        times.get(times.len().saturating_sub(1) / 2).copied().unwrap_or_default()
    }

    /// How much longer a node takes to answer than others do, if that is far longer: whatever holds
    /// it up does not have to show in its runs. Less says nothing, for who has more to do takes longer.
    fn delay(&self, now: Duration, id: NodeId) -> f64 {
        let time = |seen: &Seen| seen.answers.mean_ns(now);
        let mut times: Vec<f64> = self.nodes.values().filter_map(time).collect();
        times.sort_by(f64::total_cmp);
        let middle = times.get(times.len().saturating_sub(1) / 2);
        let own = self.nodes.get(&id).and_then(time);
        let Some((own, middle)) = own.zip(middle) else { return 1.0 };
        let delay = (own + DELAY_SLACK_NS) / (middle + DELAY_SLACK_NS);
        if delay < DELAY_MIN { 1.0 } else { delay.min(SLOWDOWN_MAX) }
    }

    /// What one activated expert takes on each of these nodes now, by its tokens.
    pub(crate) fn expert_curves(&self, now: Duration, nodes: &[NodeId]) -> Vec<CostCurve> {
        self.curves(nodes, |curves| &curves.expert, |id| self.slowdown(now, id))
    }

    /// What its part of a MoE layer takes on each of these nodes now, by its pairs. Experts are moved by
    /// what runs take; late answers may have reasons that pass sooner than a move is done.
    pub(crate) fn layer_curves(&self, now: Duration, nodes: &[NodeId]) -> Vec<CostCurve> {
        self.curves(nodes, |curves| &curves.layer, |id| self.run_slowdown(now, id))
    }

    /// Curves as they were measured, made as much longer as the nodes are slower now. A node without
    /// one is taken for like the others; empty if nobody has one.
    fn curves(
        &self,
        nodes: &[NodeId],
        of: impl Fn(&Curves) -> &CostCurve,
        slow: impl Fn(NodeId) -> f64,
    ) -> Vec<CostCurve> {
        let measured =
            |id: &NodeId| self.nodes.get(id).and_then(|seen| seen.curves.as_ref()).map(&of);
        let Some(any) = nodes.iter().find_map(measured).cloned().or_else(unmeasured) else {
            return Vec::new();
        };
        let scaled = |id: &NodeId| measured(id).unwrap_or(&any).scaled(slow(*id));
        nodes.iter().map(scaled).collect()
    }

    /// Time that what waits on each of these nodes will take.
    pub(crate) fn backlog_ns(&self, now: Duration, nodes: &[NodeId]) -> Vec<u64> {
        let backlog = |id: &NodeId| {
            let seen = self.nodes.get(id)?;
            let fresh = now.saturating_sub(seen.heard) < FRESH;
            let pairs: u32 = seen.queued.iter().fold(0, |sum, &pairs| sum.saturating_add(pairs));
            let speed = &seen.speed;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a positive number of nanoseconds far below 2^52"
            )]
            (fresh && speed.tokens > 0.0)
                .then(|| (f64::from(pairs) * speed.busy_ns / speed.tokens) as u64)
        };
        nodes.iter().map(|id| backlog(id).unwrap_or(0)).collect()
    }

    /// What was wanted lately: tokens of each expert, `[moe layer][expert]`, and how often one of the
    /// `expert_nodes` ran a layer meanwhile, on average; at least once.
    pub(crate) fn wanted(&self, expert_nodes: usize) -> (Vec<u32>, u32) {
        let layers = self.trace.layers();
        let mut tokens = vec![0_u32; layers * self.trace.experts()];
        let steps = self.trace.steps();
        for step in steps.saturating_sub(RECENT_STEPS)..steps {
            let counts = (0..layers).flat_map(|layer| self.trace.counts(step, layer));
            let sums = tokens.iter_mut().zip(counts);
            sums.for_each(|(sum, &pairs)| *sum = sum.saturating_add(pairs));
        }
        let runs: u64 = self.recent_runs.iter().sum();
        let runs = runs / (layers * expert_nodes).max(1) as u64;
        (tokens, u32::try_from(runs).unwrap_or(u32::MAX).max(1))
    }
}

/// What nodes are compared by when nobody has a curve: weights have to be read, whatever the tokens.
fn unmeasured() -> Option<CostCurve> {
    CostCurve::new(vec![(64, 100_000)]).ok()
}

// === impl Answers ===

impl Answers {
    fn add(&mut self, now: Duration, answers: u32, ns: u64) {
        let kept = kept(now, self.at, WORK_HALF_LIFE);
        self.at = now;
        self.count = self.count * kept + f64::from(answers);
        self.ns = self.ns * kept + ns as f64;
    }

    /// Time of an answer; none if there were hardly any lately.
    fn mean_ns(&self, now: Duration) -> Option<f64> {
        let count = self.count * kept(now, self.at, IDLE_HALF_LIFE);
        (count >= ANSWERS_MIN).then(|| self.ns / self.count)
    }
}

/// What is left at `now` of what counted in full at `at`.
pub(crate) fn kept(now: Duration, at: Duration, half_life: Duration) -> f64 {
    let age = now.saturating_sub(at);
    0.5_f64.powf(age.as_secs_f64() / half_life.as_secs_f64())
}

// === impl Speed ===

impl Speed {
    fn add(&mut self, now: Duration, work: &Work) {
        let half_life = if work.runs > 0 { WORK_HALF_LIFE } else { IDLE_HALF_LIFE };
        let Work { tokens, experts, busy_ns, predicted_ns, .. } = *work;
        let before = self.after(now, half_life);
        *self = Self {
            at: now,
            busy_ns: before.busy_ns + busy_ns as f64,
            predicted_ns: before.predicted_ns + predicted_ns as f64,
            tokens: before.tokens + tokens as f64,
            experts: before.experts + experts as f64,
        };
    }

    /// What it counts at `now`.
    fn after(&self, now: Duration, half_life: Duration) -> Self {
        let kept = kept(now, self.at, half_life);
        Self {
            at: now,
            busy_ns: self.busy_ns * kept,
            predicted_ns: self.predicted_ns * kept,
            tokens: self.tokens * kept,
            experts: self.experts * kept,
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::Layer;

    use super::*;

    const A: NodeId = NodeId(1);
    const E: [NodeId; 2] = [NodeId(2), NodeId(3)];

    fn shape() -> ModelShape {
        ModelShape {
            layers: 2,
            moe_layers: vec![Layer(1)],
            experts: 2,
            top_k: 1,
            hidden: 8,
            expert_bytes: 1,
            vocab: 8,
            positions_max: 8,
        }
    }

    fn observations(curves: Option<&Curves>) -> Observations {
        let mut seen = Observations::new(4);
        seen.begin(&shape());
        seen.joined(Duration::ZERO, A, Role::Attention, None);
        for id in E {
            seen.joined(Duration::ZERO, id, Role::Expert, curves.cloned());
        }
        seen
    }

    fn ran(runs: u64, busy_ms: u64, predicted_ms: u64) -> Report {
        let (busy_ns, predicted_ns) = (busy_ms * 1_000_000, predicted_ms * 1_000_000);
        let work = Work { runs, tokens: 10 * runs, experts: runs, busy_ns, predicted_ns };
        Report { queued: vec![0, 20], work, ..Report::default() }
    }

    #[test]
    fn a_node_that_slows_down_is_noticed_and_tried_again_when_it_was_relieved() {
        let curve = CostCurve::new(vec![(16, 1000)]).unwrap();
        let curves = Curves { expert: curve.clone(), layer: curve };
        let mut seen = observations(Some(&curves));
        let mut now = Duration::ZERO;
        let pass = |seen: &mut Observations, now: &mut Duration, slow: Report| {
            *now += Duration::from_millis(200);
            seen.report(*now, E[0], ran(100, 100, 100));
            seen.report(*now, E[1], slow);
        };
        (0..20).for_each(|_| pass(&mut seen, &mut now, ran(100, 101, 100)));
        assert!((0.95..1.05).contains(&seen.slowdown(now, E[1])), "{}", seen.slowdown(now, E[1]));
        (0..10).for_each(|_| pass(&mut seen, &mut now, ran(20, 200, 20)));
        assert!(seen.slowdown(now, E[1]) > 2.0, "two seconds: {}", seen.slowdown(now, E[1]));
        assert!((0.95..1.05).contains(&seen.slowdown(now, E[0])));
        let scaled = seen.expert_curves(now, &E);
        assert!(scaled[0].ns(1) <= 1050 && scaled[1].ns(1) > 2000);
        now += Duration::from_secs(120);
        assert!(
            seen.slowdown(now, E[1]) < 1.5,
            "after two idle minutes: {}",
            seen.slowdown(now, E[1])
        );
    }

    #[test]
    fn a_node_that_answers_late_is_avoided_though_its_runs_look_well() {
        let mut seen = observations(None);
        let report = |late_ms: u64| Report {
            queued: vec![0; 3],
            responses: [(E[0], 2), (E[1], late_ms)]
                .map(|(node, ms)| Response { node, answers: 10, ns: 10 * ms * 1_000_000 })
                .to_vec(),
            ..Report::default()
        };
        let mut now = Duration::ZERO;
        let mut pass = |seen: &mut Observations, late_ms| {
            for _ in 0..20 {
                now += Duration::from_millis(200);
                seen.report(now, A, report(late_ms));
            }
            E.map(|id| seen.delay(now, id))
        };
        assert_eq!(pass(&mut seen, 4), [1.0, 1.0], "it has more to do");
        let delays = pass(&mut seen, 20);
        assert!(delays[0] == 1.0 && delays[1] > 4.0, "{delays:?}");
        let curves = seen.expert_curves(Duration::from_secs(8), &E);
        assert!(curves[1].ns(1) > 4 * curves[0].ns(1));
        let curves = seen.layer_curves(Duration::from_secs(8), &E);
        assert_eq!(curves[0], curves[1], "no expert moves for that");
    }

    #[test]
    fn nodes_without_curves_are_compared_with_each_other() {
        let mut seen = observations(None);
        let now = Duration::from_millis(200 * 19);
        for tick in 1..20 {
            let now = Duration::from_millis(200 * tick);
            seen.report(now, E[0], ran(100, 100, 0));
            seen.report(now, E[1], ran(50, 150, 0));
        }
        assert!((0.95..1.05).contains(&seen.slowdown(now, E[0])));
        assert!((2.5..3.1).contains(&seen.slowdown(now, E[1])), "{}", seen.slowdown(now, E[1]));
        assert_eq!(seen.backlog_ns(Duration::from_secs(4), &E), [2_000_000, 6_000_000]);
        assert_eq!(seen.backlog_ns(Duration::from_secs(9), &E), [0, 0], "too long ago");
    }

    #[test]
    fn steps_hold_what_all_attention_nodes_routed_and_runs_say_how_it_met() {
        let mut seen = observations(None);
        seen.end_step();
        assert_eq!(seen.trace().steps(), 0, "nothing was wanted");
        let now = Duration::from_millis(200);
        let routed = |routed: &[u32]| Report {
            queued: vec![1, 2, 3],
            routed: routed.to_vec(),
            ..Report::default()
        };
        for _ in 0..6 {
            seen.report(now, A, routed(&[30, 1]));
            seen.report(now, A, routed(&[30, 0]));
            seen.report(now, A, routed(&[1]));
            for id in E {
                seen.report(now, id, ran(4, 1, 1));
            }
            seen.end_step();
        }
        assert_eq!((seen.trace().steps(), seen.trace().counts(3, 0)), (4, &[60, 1][..]));
        assert_eq!(seen.wanted(2), (vec![240, 4], 16), "4 of 6 steps are kept");
        let digest = seen.digest(now, &shape());
        assert_eq!((digest.rows, digest.pairs), (vec![1, 2, 3], vec![0, 40]));
        assert_eq!(seen.digest(now + FRESH, &shape()).pairs, [0, 0]);
    }
}
