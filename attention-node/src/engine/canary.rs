//! The engine's pulse: canaries while nothing else is under way, and what the node says of itself by what comes back.

use std::{
    fmt::Write,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use domain::{SamplingParams, SequenceRequest};
use tokio::sync::mpsc;

use super::{AttentionEngine, SubmissionId};
use crate::sequence::{Sequence, Told};

/// The condition that this node names to its process's readiness.
const TOKENS: &str = "tokens";

/// A sequence of one token that nobody asked for. It goes through all layers as any other, by the same batches,
/// routes and links; only what is counted of users leaves it out.
#[derive(Debug)]
pub(super) struct Canary {
    /// The sequence's key.
    key: usize,
    /// Keeps the sequence from being ended for want of a listener.
    _output: mpsc::Receiver<Told>,
}

impl AttentionEngine {
    /// Sends a canary if no token has come back for a while and none is under way.
    pub(super) fn tend_canary(&mut self) {
        let stop = self.joints.shutdown.is_requested();
        if let Some(key) = self.canary.as_ref().map(|canary| canary.key).filter(|_| stop) {
            self.finish(key);
        }
        let able = self.sequences.is_empty() && self.experts.all_reachable() && !stop;
        if able && self.pulse.is_canary_due(Instant::now()) {
            self.send_canary();
        }
    }

    fn send_canary(&mut self) {
        self.canaries += 1;
        // Another token each time: other tokens go to other experts.
        let vocab = u64::from(self.half.spec().shape().vocab).max(1);
        let token = u32::try_from(self.canaries % vocab).unwrap_or(0);
        let sampling = SamplingParams { tokens_max: 1, ..SamplingParams::default() };
        let request = SequenceRequest {
            id: "canary".to_owned(),
            tokens: vec![token],
            prompt_len: 1,
            sampling,
        };
        let (outputs, output) = mpsc::channel(1);
        let id = SubmissionId::CANARY;
        let key = self.sequences.insert(Sequence::new(id, request, self.half.spec(), outputs));
        self.canary = Some(Canary { key, _output: output });
        self.waiting.push_back(key);
    }

    /// Whether a sequence is a canary.
    pub(super) fn is_canary(&self, sequence: usize) -> bool {
        self.canary.as_ref().is_some_and(|canary| canary.key == sequence)
    }

    /// Sequences of users that run.
    pub(super) fn running(&self) -> usize {
        let all = self.sequences.len() - self.waiting.len();
        let canary = self.canary.as_ref().is_some_and(|canary| !self.waiting.contains(&canary.key));
        all - usize::from(canary)
    }

    /// Looks now and then at what is under way, and says whether tokens come back.
    pub(super) fn feel_pulse(&mut self) {
        let now = Instant::now();
        if !self.pulse.takes_look(now) {
            return;
        }
        let overdue = self.overdue(now);
        self.pulse.judge(overdue.is_some(), now);
        if let Some(passed) = self.pulse.passed() {
            let at = SystemTime::now() - now.saturating_duration_since(passed);
            let at = at.duration_since(UNIX_EPOCH).unwrap_or_default();
            self.joints.metrics.last_token.set(at.as_secs_f64());
        }
        match overdue {
            Some(what) => self.joints.readiness.lack(TOKENS, &what),
            None => self.joints.readiness.set(TOKENS, self.pulse.is_well()),
        }
    }

    /// What the rows wait for that have been away for too long, if any have.
    fn overdue(&self, now: Instant) -> Option<String> {
        let away = self.spans.iter().filter_map(|(_, span)| Some((span.trip.away_since()?, span)));
        let (since, span) = away.min_by_key(|&(since, _)| since)?;
        if !self.pulse.is_overdue(since, now) {
            return None;
        }
        let (layer, patience) = (span.trip.layer, self.pulse.patience().as_secs_f64());
        let mut what = format!("rows of layer {layer} have waited for more than {patience} s for ");
        let mut nodes: Vec<_> = span.trip.owed().map(|(_, node)| node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let view = self.joints.views.borrow();
        for (at, &node) in nodes.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            // Writing into a string cannot fail.
            let _ = match view.member(node) {
                Some(member) => write!(what, "{comma}{}", member.name),
                None => write!(what, "{comma}node {node}"),
            };
        }
        if nodes.is_empty() {
            what.push_str("a node that runs their experts");
        }
        Some(what)
    }
}
