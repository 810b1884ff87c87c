//! How much is going on right now: rates that forget within seconds, and the last minutes of the whole cluster.

use std::{
    collections::{BTreeMap, VecDeque},
    f64::consts::LN_2,
    time::Duration,
};

use domain::{ModelShape, NodeId};
use proto::control::Report;

use crate::observations::kept;

/// Time after which what happened counts half of what it did.
const HALF_LIFE: Duration = Duration::from_secs(2);
/// Between two samples of the history.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Samples that are kept: three minutes.
const SAMPLES_MAX: usize = 180;
/// What happens more seldom than this, per second, has stopped.
const RATE_MIN: f64 = 0.05;

/// What the cluster does.
#[derive(Debug, Default)]
pub(crate) struct Live {
    /// Tokens of each expert, `[moe layer][expert]`, as they count at `at`.
    experts: Vec<f64>,
    at: Duration,
    /// Those that were reported since.
    step: Vec<u32>,
    nodes: BTreeMap<NodeId, Flow<7>>,
    /// By attention node and expert node: answers, and their nanoseconds.
    links: BTreeMap<(NodeId, NodeId), Flow<2>>,
    history: VecDeque<Sample>,
    sampled: Option<Duration>,
}

/// What a node does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Doing {
    /// The part of its time that it runs layers.
    pub(crate) busy: f64,
    /// Rows or pairs of all runs, per second.
    pub(crate) rows_per_s: f64,
    /// The same of one run.
    pub(crate) rows_per_run: f64,
    /// Tokens drawn per second.
    pub(crate) tokens_per_s: f64,
}

/// How the expert nodes answer an attention node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Link {
    pub(crate) attention: NodeId,
    pub(crate) expert: NodeId,
    pub(crate) answers_per_s: f64,
    pub(crate) answer_ms: f64,
}

/// What is known of the whole cluster from elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Sequences that run and that wait.
    pub(crate) running: u32,
    pub(crate) waiting: u32,
    /// Rows that wait on attention nodes, and pairs on expert nodes.
    pub(crate) rows: u32,
    pub(crate) pairs: u32,
}

/// The whole cluster at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Seconds since 1970.
    pub(crate) at: u64,
    pub(crate) tokens_per_s: f64,
    /// Mean times to a sequence's first token and to every other one; 0 if there was none.
    pub(crate) first_token_ms: f64,
    pub(crate) next_token_ms: f64,
    pub(crate) totals: Totals,
}

/// Sums that decay.
#[derive(Clone, Copy, Debug)]
struct Flow<const N: usize> {
    at: Duration,
    sums: [f64; N],
}

// === impl Live ===

impl Live {
    /// Another model is served from now on.
    pub(crate) fn begin(&mut self, shape: &ModelShape) {
        let slots = shape.moe_layers.len() * usize::from(shape.experts);
        self.experts = vec![0.0; slots];
        self.step = vec![0; slots];
        self.nodes.clear();
        self.links.clear();
    }

    /// Forgets all nodes but these.
    pub(crate) fn retain(&mut self, member: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|&id, _| member(id));
        self.links.retain(|&(attention, expert), _| member(attention) && member(expert));
    }

    /// Takes a member's report.
    pub(crate) fn report(&mut self, now: Duration, id: NodeId, report: &Report) {
        let Report { work, drawn, .. } = report;
        let done = [
            work.runs as f64,
            work.tokens as f64,
            work.busy_ns as f64,
            drawn.first as f64,
            drawn.first_ns as f64,
            drawn.next as f64,
            drawn.next_ns as f64,
        ];
        self.nodes.entry(id).or_insert(Flow::new(now)).add(now, done);
        for answered in &report.responses {
            let link = self.links.entry((id, answered.node)).or_insert(Flow::new(now));
            link.add(now, [f64::from(answered.answers), answered.ns as f64]);
        }
        // The model may have changed since the node registered.
        if report.routed.len() == self.step.len() {
            let counts = self.step.iter_mut().zip(&report.routed);
            counts.for_each(|(sum, pairs)| *sum = sum.saturating_add(*pairs));
        }
    }

    /// Lets time pass; to be called several times per second. `at` is the time of day.
    pub(crate) fn tick(&mut self, now: Duration, at: u64, totals: Totals) {
        let kept = kept(now, self.at, HALF_LIFE);
        self.at = now;
        for (sum, step) in self.experts.iter_mut().zip(&mut self.step) {
            *sum = *sum * kept + f64::from(std::mem::take(step));
        }
        if self.sampled.is_some_and(|before| now.saturating_sub(before) < SAMPLE_EVERY) {
            return;
        }
        self.sampled = Some(now);
        self.links.retain(|_, link| link.per_second(now)[0] >= RATE_MIN);
        let sample = self.sample(now, at, totals);
        self.history.push_back(sample);
        if self.history.len() > SAMPLES_MAX {
            self.history.pop_front();
        }
    }

    fn sample(&self, now: Duration, at: u64, totals: Totals) -> Sample {
        let mut sums = [0.0; 4];
        for flow in self.nodes.values() {
            let [_, _, _, drawn @ ..] = flow.per_second(now);
            sums.iter_mut().zip(drawn).for_each(|(sum, drawn)| *sum += drawn);
        }
        let [first, first_ns, next, next_ns] = sums;
        Sample {
            at,
            tokens_per_s: first + next,
            first_token_ms: ratio(first_ns, first) / 1e6,
            next_token_ms: ratio(next_ns, next) / 1e6,
            totals,
        }
    }

    /// Tokens of each expert per second, `[moe layer][expert]`.
    pub(crate) fn experts_per_s(&self, now: Duration) -> impl Iterator<Item = f64> + '_ {
        let factor = kept(now, self.at, HALF_LIFE) * LN_2 / HALF_LIFE.as_secs_f64();
        self.experts.iter().map(move |sum| sum * factor)
    }

    /// What a node does.
    pub(crate) fn doing(&self, now: Duration, id: NodeId) -> Doing {
        let Some(flow) = self.nodes.get(&id) else { return Doing::default() };
        let [runs, rows, busy_ns, first, _, next, _] = flow.per_second(now);
        Doing {
            busy: (busy_ns / 1e9).min(1.0),
            rows_per_s: rows,
            rows_per_run: ratio(rows, runs),
            tokens_per_s: first + next,
        }
    }

    /// The links in use, ascending.
    pub(crate) fn links(&self, now: Duration) -> impl Iterator<Item = Link> + '_ {
        self.links.iter().map(move |(&(attention, expert), flow)| {
            let [answers_per_s, ns] = flow.per_second(now);
            Link { attention, expert, answers_per_s, answer_ms: ratio(ns, answers_per_s) / 1e6 }
        })
    }

    /// The last minutes, oldest first.
    pub(crate) fn history(&self) -> impl Iterator<Item = &Sample> {
        self.history.iter()
    }
}

// === impl Flow ===

impl<const N: usize> Flow<N> {
    fn new(at: Duration) -> Self {
        Self { at, sums: [0.0; N] }
    }

    fn add(&mut self, now: Duration, amounts: [f64; N]) {
        let kept = kept(now, self.at, HALF_LIFE);
        self.at = now;
        self.sums.iter_mut().zip(amounts).for_each(|(sum, amount)| *sum = *sum * kept + amount);
    }

    fn per_second(&self, now: Duration) -> [f64; N] {
        let factor = kept(now, self.at, HALF_LIFE) * LN_2 / HALF_LIFE.as_secs_f64();
        self.sums.map(|sum| sum * factor)
    }
}

/// How much of a sum falls on each of what happens so often; 0 if it does not.
fn ratio(sum: f64, rate: f64) -> f64 {
    if rate < RATE_MIN { 0.0 } else { sum / rate }
}

#[cfg(test)]
mod tests {
    use domain::Layer;
    use proto::control::{Drawn, Response, Work};

    use super::*;

    const A: NodeId = NodeId(1);
    const E: NodeId = NodeId(2);

    fn report() -> Report {
        let ms = 1_000_000;
        Report {
            routed: vec![20, 0],
            work: Work { runs: 4, tokens: 40, busy_ns: 100 * ms, ..Work::default() },
            responses: vec![Response { node: E, answers: 10, ns: 30 * ms }],
            drawn: Drawn { first: 1, first_ns: 70 * ms, next: 9, next_ns: 45 * ms },
            ..Report::default()
        }
    }

    #[test]
    fn what_goes_on_shows_as_it_is_and_is_forgotten_when_it_ends() {
        let mut live = Live::default();
        live.begin(&ModelShape {
            layers: 1,
            moe_layers: vec![Layer(0)],
            experts: 2,
            top_k: 1,
            hidden: 8,
            expert_bytes: 1,
            vocab: 8,
            positions_max: 8,
        });
        let tick = Duration::from_millis(200);
        let near = |found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < 0.05, "{found}, expected {expected}");
        };
        for count in 1..=100 {
            live.report(tick * count, A, &report());
            live.tick(tick * count, 7, Totals { running: 3, ..Totals::default() });
        }
        let now = tick * 100;
        let doing = live.doing(now, A);
        near(doing.busy, 0.5);
        near(doing.rows_per_s, 200.0);
        near(doing.rows_per_run, 10.0);
        near(doing.tokens_per_s, 50.0);
        let links: Vec<_> = live.links(now).collect();
        assert_eq!((links[0].attention, links[0].expert, links.len()), (A, E, 1));
        near(links[0].answers_per_s, 50.0);
        near(links[0].answer_ms, 3.0);
        let experts: Vec<_> = live.experts_per_s(now).collect();
        near(experts[0], 100.0);
        assert_eq!(experts[1], 0.0);
        let sample = *live.history().last().unwrap();
        near(sample.tokens_per_s, 50.0);
        near(sample.first_token_ms, 70.0);
        near(sample.next_token_ms, 5.0);
        assert_eq!((sample.at, sample.totals.running), (7, 3));
        assert_eq!(live.history().count(), 20, "one a second");

        let later = now + Duration::from_secs(60);
        live.tick(later, 67, Totals::default());
        assert_eq!(live.links(later).count(), 0);
        let sample = *live.history().last().unwrap();
        assert!(sample.tokens_per_s < 0.01 && sample.next_token_ms == 0.0, "{sample:?}");
        assert!(live.experts_per_s(later).all(|rate| rate < 0.01));
        for count in 0..500 {
            live.tick(later + Duration::from_secs(count), 67, Totals::default());
        }
        assert_eq!(live.history().count(), SAMPLES_MAX);
        live.retain(|_| false);
        assert_eq!(live.doing(now, A), Doing::default());
    }
}
