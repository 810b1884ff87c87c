//! Conversions of what nodes see: cost curves at registration, and reports between heartbeats.

use std::time::Duration;

use domain::{CostCurve, Curves, ModelShape, NodeId, Role};

use crate::{Invalid, internal as wire};

/// What a node saw since its last report. A sample: one that finds no room is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What waits now, per layer: rows on an attention node, which has the LM head as a last one;
    /// (token, expert) pairs on an expert node.
    pub queued: Vec<u32>,
    /// Attention nodes: pairs routed, `[moe layer][expert]`; empty if there were none.
    pub routed: Vec<u32>,
    /// Runs of layers.
    pub work: Work,
    /// Attention nodes: how expert nodes answered.
    pub responses: Vec<Response>,
    /// Attention nodes: the tokens drawn.
    pub drawn: Drawn,
}

/// Tokens and the time they took, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// First tokens of sequences on this node.
    pub first: u64,
    /// Their time from the sequence's arrival on this node.
    pub first_ns: u64,
    /// All other tokens.
    pub next: u64,
    /// Their time from the token before.
    pub next_ns: u64,
}

/// Answers of one expert node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// Who answered.
    pub node: NodeId,
    /// How many frames of outputs.
    pub answers: u32,
    /// Time from the dispatch to the answer, summed over the answers.
    pub ns: u64,
}

/// Runs of layers on one node, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Runs.
    pub runs: u64,
    /// Rows (attention nodes) or pairs (expert nodes) of all runs.
    pub tokens: u64,
    /// Activated experts of all runs; 0 on attention nodes.
    pub experts: u64,
    /// Time of all runs.
    pub busy_ns: u64,
    /// What the runs take by the node's own curve; 0 without one.
    pub predicted_ns: u64,
}

// === impl Work ===

impl Work {
    /// Adds one run of `tokens` rows or pairs by `experts` experts.
    pub fn add(&mut self, tokens: usize, experts: usize, busy: Duration, predicted_ns: u64) {
        self.runs += 1;
        self.tokens += tokens as u64;
        self.experts += experts as u64;
        self.busy_ns += u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
        self.predicted_ns += predicted_ns;
    }
}

// === impl Drawn ===

impl Drawn {
    /// Adds a token that took `time`; whether it is its sequence's `first` on this node.
    pub fn add(&mut self, first: bool, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let (tokens, sum) = match first {
            true => (&mut self.first, &mut self.first_ns),
            false => (&mut self.next, &mut self.next_ns),
        };
        *tokens += 1;
        *sum = sum.saturating_add(ns);
    }
}

// === impl Report ===

impl Report {
    /// Whether nothing waits and nothing was done.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.work.runs == 0 && self.routed.is_empty() && self.queued.iter().all(|&count| count == 0)
    }

    /// Checks the report of a `role` node against the model it registered with.
    ///
    /// # Errors
    /// A list is not as long as the model wants.
    pub fn check(&self, role: Role, shape: &ModelShape) -> Result<(), Invalid> {
        let stages = usize::from(shape.layers) + usize::from(role == Role::Attention);
        if self.queued.len() != stages {
            let problem = format!("has {} layers, expected {stages}", self.queued.len());
            return Err(Invalid::new("report.queued", problem));
        }
        let slots = shape.moe_layers.len() * usize::from(shape.experts);
        let wanted = if role == Role::Attention { slots } else { 0 };
        if !self.routed.is_empty() && self.routed.len() != wanted {
            let problem = format!("has {} counts, expected {wanted}", self.routed.len());
            return Err(Invalid::new("report.routed", problem));
        }
        Ok(())
    }
}

impl From<Report> for wire::Report {
    fn from(report: Report) -> Self {
        let Report { queued, routed, work, responses, drawn } = report;
        let Work { runs, tokens, experts, busy_ns, predicted_ns } = work;
        let work = Some(wire::Work { runs, tokens, experts, busy_ns, predicted_ns });
        let response =
            |Response { node, answers, ns }| wire::Response { node: node.0, answers, ns };
        let responses = responses.into_iter().map(response).collect();
        let Drawn { first, first_ns, next, next_ns } = drawn;
        let drawn = wire::Drawn { first, first_ns, next, next_ns };
        let drawn = (drawn != wire::Drawn::default()).then_some(drawn);
        Self { queued, routed, work, responses, drawn }
    }
}

impl From<wire::Report> for Report {
    fn from(report: wire::Report) -> Self {
        let wire::Report { queued, routed, work, responses, drawn } = report;
        let wire::Work { runs, tokens, experts, busy_ns, predicted_ns } = work.unwrap_or_default();
        let work = Work { runs, tokens, experts, busy_ns, predicted_ns };
        let response =
            |wire::Response { node, answers, ns }| Response { node: NodeId(node), answers, ns };
        let responses = responses.into_iter().map(response).collect();
        let wire::Drawn { first, first_ns, next, next_ns } = drawn.unwrap_or_default();
        let drawn = Drawn { first, first_ns, next, next_ns };
        Self { queued, routed, work, responses, drawn }
    }
}

// === cost curves ===

impl From<&Curves> for wire::Curves {
    fn from(curves: &Curves) -> Self {
        Self { expert: Some((&curves.expert).into()), layer: Some((&curves.layer).into()) }
    }
}

impl TryFrom<wire::Curves> for Curves {
    type Error = Invalid;

    fn try_from(curves: wire::Curves) -> Result<Self, Invalid> {
        let wire::Curves { expert, layer } = curves;
        Ok(Self { expert: curve("curves.expert", expert)?, layer: curve("curves.layer", layer)? })
    }
}

impl From<&CostCurve> for wire::Curve {
    fn from(curve: &CostCurve) -> Self {
        let (tokens, ns) = curve.edges().iter().copied().unzip();
        Self { tokens, ns }
    }
}

fn curve(field: &'static str, curve: Option<wire::Curve>) -> Result<CostCurve, Invalid> {
    let wire::Curve { tokens, ns } = curve.ok_or_else(|| Invalid::missing(field))?;
    if tokens.len() != ns.len() {
        let problem = format!("has {} tokens and {} times", tokens.len(), ns.len());
        return Err(Invalid::new(field, problem));
    }
    let edges = tokens.into_iter().zip(ns).collect();
    CostCurve::new(edges).map_err(|error| Invalid::new(field, error.to_string()))
}

#[cfg(test)]
mod tests {
    use domain::Layer;

    use super::*;

    #[test]
    fn reports_survive_the_wire_and_have_to_fit_the_model() {
        let work = Work { runs: 1, tokens: 2, experts: 3, busy_ns: 4, predicted_ns: 5 };
        let responses = vec![Response { node: NodeId(6), answers: 7, ns: 8 }];
        let mut drawn = Drawn::default();
        drawn.add(true, Duration::from_nanos(9));
        drawn.add(false, Duration::from_nanos(10));
        drawn.add(false, Duration::from_nanos(11));
        assert_eq!(drawn, Drawn { first: 1, first_ns: 9, next: 2, next_ns: 21 });
        let report = Report { queued: vec![0, 7, 1], routed: vec![4, 0], work, responses, drawn };
        assert_eq!(Report::from(wire::Report::from(report.clone())), report);
        let shape = ModelShape {
            layers: 2,
            moe_layers: vec![Layer(1)],
            experts: 2,
            top_k: 1,
            hidden: 8,
            expert_bytes: 1,
            vocab: 8,
            positions_max: 8,
        };
        assert_eq!(report.check(Role::Attention, &shape), Ok(()));
        let error = report.check(Role::Expert, &shape).unwrap_err();
        assert_eq!(error.to_string(), "report.queued: has 3 layers, expected 2");
        let report = Report { queued: vec![0, 7], ..report };
        let error = report.check(Role::Expert, &shape).unwrap_err();
        assert_eq!(error.to_string(), "report.routed: has 2 counts, expected 0");
        let short =
            wire::Curves { expert: Some(wire::Curve { tokens: vec![1], ns: vec![] }), layer: None };
        let error = Curves::try_from(short).unwrap_err();
        assert_eq!(error.to_string(), "curves.expert: has 1 tokens and 0 times");
    }
}
