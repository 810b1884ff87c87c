//! Studies that need no clock: what routing and placement make of batches, one layer at a time.
//!
//! A step is one token of every sequence through all layers in lockstep, with attention data-parallel and experts
//! spread over the same nodes, as METRO and GEM have it. Its time is the sum over layers of attention,
//! collectives and the slowest node's experts.

mod batches;
mod frontier;
mod placement;
mod routing;
mod step;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use crate::{hardware, skew};

/// A study, as a scenario file writes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// What its findings' names begin with.
    pub id: String,
    /// What it looks at.
    pub kind: Kind,
    /// The model and the nodes.
    pub hardware: hardware::Spec,
    /// How many nodes.
    pub nodes: u16,
    /// Tokens per step, all nodes together.
    pub tokens: Vec<u32>,
    /// Tokens of context of each sequence.
    #[serde(default)]
    pub context: u32,
    /// Skews by name.
    pub skews: BTreeMap<String, skew::Spec>,
    /// Replicas per expert, on average.
    #[serde(default = "single")]
    pub replicas: Vec<f64>,
    /// Routing policies to set against even split.
    #[serde(default)]
    pub routing: Vec<policy::routing::Policy>,
    /// Placement policies to set against linear.
    #[serde(default)]
    pub placement: Vec<policy::placement::Policy>,
    /// How much longer the slowest node takes than the fastest, for each study of placement.
    #[serde(default)]
    pub spreads: Vec<f64>,
    /// One dispatch or combine, in microseconds.
    #[serde(default)]
    pub collective_us: f64,
    /// What a layer pays for routing by the whole batch: gathering and deciding, in microseconds.
    #[serde(default)]
    pub routing_us: f64,
    /// Steps that are looked at.
    #[serde(default = "thirty_two")]
    pub steps: u32,
    /// Steps of the past that placement sees.
    #[serde(default = "sixteen")]
    pub past: u32,
    /// Equal seeds give equal findings.
    #[serde(default = "one")]
    pub seed: u64,
    /// Which findings are told, by the ends of their names; all when empty.
    #[serde(default)]
    pub report: Vec<String>,
    /// What the paper found, by a finding's name less the study's.
    #[serde(default)]
    pub paper: BTreeMap<String, f64>,
}

/// What a study looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Largest activated count and step time of routing policies, against even split.
    Routing,
    /// Throughput of routing policies at a fixed time per token, against even split.
    Frontier,
    /// Step time of placement policies on nodes of different speed, against linear.
    Placement,
}

/// One number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The study's name and the case's.
    pub id: String,
    /// What was measured, with its unit.
    pub quantity: String,
    /// What the paper found, if it says.
    pub paper: Option<f64>,
    /// What we found.
    pub measured: f64,
}

impl Spec {
    /// Runs the study; files are looked up from `folder`.
    ///
    /// # Errors
    /// One sentence: what in the description makes no sense.
    pub fn run(&self, folder: &Path) -> Result<Vec<Finding>, String> {
        self.check()?;
        let mut findings = Findings { spec: self, named: Vec::new() };
        for (name, skew) in &self.skews {
            let batches = batches::Source::new(self, skew, folder)?;
            match self.kind {
                Kind::Routing => routing::run(name, &batches, &mut findings)?,
                Kind::Frontier => frontier::run(name, &batches, &mut findings)?,
                Kind::Placement => placement::run(name, &batches, &mut findings)?,
            }
        }
        let unknown = self.paper.keys().find(|name| {
            !findings.named.iter().any(|finding| finding.id == format!("{}-{name}", self.id))
        });
        match unknown {
            None => Ok(findings.named),
            Some(name) => Err(format!("paper.\"{name}\": study {} has no such finding", self.id)),
        }
    }

    fn check(&self) -> Result<(), String> {
        let said = |holds: bool, key: &str, expected: &str| {
            if holds {
                Ok(())
            } else {
                Err(format!("study {}: {key}: expected {expected}", self.id))
            }
        };
        said(self.nodes > 0, "nodes", "at least 1")?;
        said(!self.tokens.is_empty() && !self.tokens.contains(&0), "tokens", "counts above 0")?;
        said(self.steps > 0 && self.past > 0, "steps and past", "at least 1")?;
        said(self.replicas.iter().all(|&ratio| ratio >= 1.0), "replicas", "ratios of at least 1")?;
        said(
            self.spreads.iter().all(|spread| (0.0..=10.0).contains(spread)),
            "spreads",
            "0 to 10",
        )?;
        let times = self.collective_us >= 0.0 && self.routing_us >= 0.0;
        said(times, "collective_us and routing_us", "at least 0")
    }
}

/// Findings under way.
struct Findings<'a> {
    spec: &'a Spec,
    named: Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, name: &str, quantity: &str, measured: f64) {
        let report = &self.spec.report;
        if !report.is_empty() && !report.iter().any(|end| name.ends_with(end.as_str())) {
            return;
        }
        self.named.push(Finding {
            id: format!("{}-{name}", self.spec.id),
            quantity: quantity.to_owned(),
            paper: self.spec.paper.get(name).copied(),
            // Five figures: what lies beyond is chance.
            measured: (measured * 1e4).round() / 1e4,
        });
    }
}

fn single() -> Vec<f64> {
    vec![1.0]
}

fn thirty_two() -> u32 {
    32
}

fn sixteen() -> u32 {
    16
}

fn one() -> u64 {
    1
}
