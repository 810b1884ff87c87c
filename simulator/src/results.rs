//! What a scenario is for: numbers worked out from its runs, beside those of the papers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    outcome::Outcome,
    plot,
    scenario::{Done, Point},
    study::Finding,
};

/// One `[[result]]` of a scenario file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Short name, such as `A1-short`.
    id: String,
    /// What it is, in words.
    quantity: String,
    /// The number in the paper.
    paper: Option<f64>,
    /// How it is worked out.
    value: Value,
}

/// How a number is worked out.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum Value {
    /// A measurement of one run.
    Measured {
        of: Metric,
        run: String,
        #[serde(default)]
        reduce: Reduce,
        at: Option<Limit>,
    },
    /// That of one run divided by that of another.
    Ratio(Pair),
    /// The same as a change in per cent.
    Change(Pair),
}

/// Two runs that are compared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    of: Metric,
    numerator: String,
    denominator: String,
    #[serde(default)]
    reduce: Reduce,
    /// Compare point by point, then reduce; otherwise reduce each side, then compare.
    #[serde(default)]
    pairs: bool,
    at: Option<Limit>,
}

/// A bound on another measurement: the best value among the points that keep it, and between the last
/// that does and the first that does not in proportion.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    metric: Metric,
    max: f64,
}

/// How the points of a sweep become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reduce {
    #[default]
    Max,
    Min,
    Mean,
    First,
    Last,
}

/// A measurement by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Metric {
    Throughput,
    /// Per device.
    ThroughputPerNode,
    Offered,
    PrefillThroughput,
    /// Prompt and generated tokens.
    TotalThroughput,
    ItlMeanMs,
    ItlP50Ms,
    ItlP99Ms,
    TtftMeanMs,
    TtftP99Ms,
    TpotMeanMs,
    TpotP90Ms,
    E2eMeanMs,
    AttentionBusy,
    ExpertBusy,
    AttentionStall,
    ExpertStall,
    AttentionRows,
    ExpertTokens,
    TokensPerExpert,
    Activated,
    ActivatedMax,
    AttentionQueue,
    ExpertQueue,
    /// Of the bins' throughput: the last one divided by the first.
    Trend,
}

/// One run's outcome.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The run's id.
    pub id: String,
    /// The swept values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub at: Vec<String>,
    /// Its seed.
    pub seed: u64,
    /// What it came to.
    pub outcome: Outcome,
}

/// Everything that a scenario came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Results {
    /// What was to be worked out, and what studies found.
    pub results: Vec<Finding>,
    /// Every run.
    pub runs: Vec<Measured>,
    /// For pictures: what devices did first in the window of each run.
    #[serde(skip)]
    pub(crate) timelines: Vec<Vec<crate::meter::Stretch>>,
}

// === impl Wanted ===

impl Wanted {
    /// Checks that the runs it names are there.
    pub(crate) fn check(&self, ids: &[&str]) -> Result<(), String> {
        let named: &[&String] = match &self.value {
            Value::Measured { run, .. } => &[run],
            Value::Ratio(pair) | Value::Change(pair) => &[&pair.numerator, &pair.denominator],
        };
        match named.iter().find(|name| !ids.contains(&name.as_str())) {
            Some(name) => Err(format!("result {}: there is no run `{name}`", self.id)),
            None => Ok(()),
        }
    }

    /// The number; none where it does not exist, such as a ratio to nothing.
    fn work_out(&self, runs: &[Measured]) -> Option<Finding> {
        let measured = match &self.value {
            Value::Measured { of, run, reduce, at } => side(runs, run, *of, *reduce, *at),
            Value::Ratio(pair) => pair.ratio(runs),
            Value::Change(pair) => pair.ratio(runs).map(|ratio| (ratio - 1.0) * 100.0),
        };
        Some(Finding {
            id: self.id.clone(),
            quantity: self.quantity.clone(),
            paper: self.paper,
            measured: measured.filter(|value| value.is_finite())?,
        })
    }
}

// === impl Pair ===

impl Pair {
    fn ratio(&self, runs: &[Measured]) -> Option<f64> {
        if !self.pairs {
            let side = |run| side(runs, run, self.of, self.reduce, self.at);
            return Some(side(&self.numerator)? / side(&self.denominator)?);
        }
        let points = |id: &String| -> Vec<f64> {
            points(runs, id).map(|point| self.of.read(&point.outcome)).collect()
        };
        let (over, under) = (points(&self.numerator), points(&self.denominator));
        self.reduce.apply(over.iter().zip(&under).map(|(over, under)| over / under))
    }
}

fn points<'a>(runs: &'a [Measured], id: &'a str) -> impl Iterator<Item = &'a Measured> {
    runs.iter().filter(move |point| point.id == id)
}

/// A measurement of all points of a run, as one number.
fn side(runs: &[Measured], id: &str, of: Metric, reduce: Reduce, at: Option<Limit>) -> Option<f64> {
    let points = points(runs, id).map(|point| &point.outcome);
    let Some(limit) = at else { return reduce.apply(points.map(|outcome| of.read(outcome))) };
    let read: Vec<(f64, f64)> =
        points.map(|outcome| (limit.metric.read(outcome), of.read(outcome))).collect();
    let kept = read.iter().filter(|(bound, _)| *bound <= limit.max).map(|&(_, value)| value);
    let crossed = read.windows(2).filter_map(|pair| between(pair[0], pair[1], limit.max));
    Reduce::Max.apply(kept.chain(crossed))
}

/// The value where the bound reaches `max` between two points, one that keeps it and one that does not.
fn between(a: (f64, f64), b: (f64, f64), max: f64) -> Option<f64> {
    let crosses = (a.0 <= max) != (b.0 <= max);
    crosses.then(|| a.1 + (b.1 - a.1) * (max - a.0) / (b.0 - a.0))
}

// === impl Reduce ===

impl Reduce {
    #[expect(clippy::cast_precision_loss, reason = "a handful of points")]
    fn apply(self, values: impl Iterator<Item = f64>) -> Option<f64> {
        let values: Vec<f64> = values.collect();
        match self {
            Self::Max => values.into_iter().reduce(f64::max),
            Self::Min => values.into_iter().reduce(f64::min),
            Self::Mean => {
                (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
            }
            Self::First => values.first().copied(),
            Self::Last => values.last().copied(),
        }
    }
}

// === impl Metric ===

impl Metric {
    #[expect(clippy::cast_precision_loss, reason = "a few thousand devices")]
    fn read(self, outcome: &Outcome) -> f64 {
        match self {
            Self::Throughput => outcome.throughput,
            Self::ThroughputPerNode => outcome.throughput / outcome.devices as f64,
            Self::Offered => outcome.offered,
            Self::PrefillThroughput => outcome.prefill_throughput,
            Self::TotalThroughput => outcome.throughput + outcome.prefill_throughput,
            Self::ItlMeanMs => outcome.itl_ms.mean,
            Self::ItlP50Ms => outcome.itl_ms.p50,
            Self::ItlP99Ms => outcome.itl_ms.p99,
            Self::TtftMeanMs => outcome.ttft_ms.mean,
            Self::TtftP99Ms => outcome.ttft_ms.p99,
            Self::TpotMeanMs => outcome.tpot_ms.mean,
            Self::TpotP90Ms => outcome.tpot_ms.p90,
            Self::E2eMeanMs => outcome.e2e_ms.mean,
            Self::AttentionBusy => outcome.attention.busy,
            Self::ExpertBusy => outcome.expert.busy,
            Self::AttentionStall => outcome.attention.stall,
            Self::ExpertStall => outcome.expert.stall,
            Self::AttentionRows => outcome.attention.batch,
            Self::ExpertTokens => outcome.expert.batch,
            Self::TokensPerExpert => outcome.tokens_per_expert,
            Self::Activated => outcome.activated,
            Self::ActivatedMax => outcome.activated_max,
            Self::AttentionQueue => outcome.attention.queue,
            Self::ExpertQueue => outcome.expert.queue,
            Self::Trend => match (outcome.bins.first(), outcome.bins.last()) {
                (Some(first), Some(last)) => last / first,
                _ => f64::NAN,
            },
        }
    }
}

// === impl Measured ===

impl Measured {
    /// The run's id, and the swept values after it.
    #[must_use]
    pub fn name(&self) -> String {
        std::iter::once(&self.id).chain(&self.at).cloned().collect::<Vec<_>>().join(" ")
    }
}

// === impl Results ===

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for run in &self.runs {
            let Outcome { throughput, offered, itl_ms, ttft_ms, attention, expert, .. } =
                &run.outcome;
            writeln!(
                f,
                "{}: {throughput:.0} of {offered:.0} tokens/s, ITL {:.2} ms (p99 {:.2}), TTFT {:.1} ms; \
                 attention {:.0} % busy, {:.1} rows a run; experts {:.0} % busy, {:.1} tokens a run",
                run.name(),
                itl_ms.mean,
                itl_ms.p99,
                ttft_ms.mean,
                attention.busy * 100.0,
                attention.batch,
                expert.busy * 100.0,
                expert.batch,
            )?;
        }
        for Finding { id, quantity, paper, measured } in &self.results {
            write!(f, "{id}: {measured:.4} ({quantity}")?;
            match paper {
                Some(paper) => writeln!(f, "; the paper: {paper})")?,
                None => writeln!(f, ")")?,
            }
        }
        Ok(())
    }
}

impl Extend<Results> for Results {
    /// Appends what further scenarios came to.
    fn extend<T: IntoIterator<Item = Results>>(&mut self, others: T) {
        for Results { results, runs, timelines } in others {
            self.results.extend(results);
            self.runs.extend(runs);
            self.timelines.extend(timelines);
        }
    }
}

impl Results {
    /// Pictures, each with a file name: throughput and latency against load, and a timeline per run.
    #[must_use]
    pub fn pictures(&self) -> Vec<(String, String)> {
        let load = plot::load(&self.runs).map(|svg| ("load.svg".to_owned(), svg));
        let timelines = self.runs.iter().zip(&self.timelines).filter_map(|(run, stretches)| {
            let letters = |letter: char| {
                if letter.is_ascii_alphanumeric() || "-_.=".contains(letter) { letter } else { '_' }
            };
            let name: String = run.name().chars().map(letters).collect();
            Some((format!("timeline-{name}.svg"), plot::timeline(run, stretches)?))
        });
        load.into_iter().chain(timelines).collect()
    }

    pub(crate) fn new(
        points: &[Point],
        done: Vec<Done>,
        wanted: &[Wanted],
        findings: Vec<Finding>,
    ) -> Self {
        let (outcomes, timelines): (Vec<_>, Vec<_>) = done.into_iter().unzip();
        let measured = |(point, outcome): (&Point, Outcome)| Measured {
            id: point.id.clone(),
            at: point.at.clone(),
            seed: point.run.seed,
            outcome,
        };
        let runs: Vec<Measured> = points.iter().zip(outcomes).map(measured).collect();
        let worked_out = wanted.iter().filter_map(|wanted| wanted.work_out(&runs));
        Self { results: worked_out.chain(findings).collect(), runs, timelines }
    }
}

#[cfg(test)]
mod tests;
