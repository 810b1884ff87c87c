//! Re-batching: which queue of waiting tokens an engine should run next (AMoE, section 4).
//!
//! An engine has one stage per decoder layer (an attention node has one more, the LM head) and in
//! each stage one or more groups of experts. Stages are circular: after the last comes the first.

use std::collections::BTreeMap;

use domain::{Digest, NodeId};
use serde::Deserialize;

/// The rule that ranks queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The paper's defragging score (Algorithm 1): own tokens, plus the tokens queued in the next
    /// stages, each weighted by its distance and divided by the number of groups. Running a queue
    /// pushes its tokens towards those that already wait ahead, so batches grow instead of
    /// scattering.
    Defrag,
    /// The fullest queue (the paper's MTFS). A rival, kept for comparison.
    MostTokens,
    /// The lowest stage that has tokens (the paper's FLFS). A rival; unstable above capacity.
    LowestLayer,
}

/// How an engine batches.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tuning {
    /// The rule.
    pub rule: Rule,
    /// Defrag: stages ahead that count (K).
    pub lookahead: usize,
    /// Defrag: weight that is left per stage ahead (d), above 0 and below 1.
    pub decay: f64,
    /// Defrag: the mean over this many earlier picks is added to a later stage's tokens, so that a
    /// stage that is about to refill is not taken for empty. 0 looks at the present only.
    pub lookback: usize,
    /// A queue whose oldest token has waited this long, and through as many picks as there are stages,
    /// runs next, whatever the rule says. The paper has no such guard; without it a cold queue can
    /// starve. Time alone is no measure: where one sweep over all stages takes longer than the
    /// guard, every queue would be overdue.
    pub age_guard_ms: u64,
    /// Defrag: how long news of tokens on their way from other nodes count. The paper's score sees
    /// the engine's own queues only; 0 leaves it at that.
    pub digest_ms: u64,
    /// Defrag: how long an engine may stand still for tokens that are right behind a queue, in mean
    /// times of a run. A batch that would be complete in a moment is run twice otherwise, and below
    /// the ridge the second run costs as much as the first. The paper's engines never wait; 0 is that.
    /// An engine that waits in vain waits ever less.
    pub hold_runs: f64,
    /// Most tokens (attention) or pairs (expert) that one run may take.
    pub drain_max: usize,
}

/// What an engine should do now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision {
    /// Run this queue.
    Run(Pick),
    /// Wait until then, or until something comes: every queue has tokens right behind it.
    Hold {
        /// When patience ends, on the clock of [`Batcher::decide`].
        until_ns: u64,
    },
    /// Nothing waits.
    Rest,
}

/// The queue to run, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// The stage.
    pub stage: usize,
    /// The group within the stage.
    pub group: usize,
    /// Why this one.
    pub reason: Reason,
}

/// Why a queue was picked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// It ranked first; the value it ranked by.
    Score(f64),
    /// Its oldest token had waited too long; for how many nanoseconds.
    Age(u64),
}

#[derive(Clone, Copy, Debug, Default)]
struct Queue {
    tokens: u32,
    oldest_ns: u64,
    /// Picks there had been when it was last empty or picked.
    since: u64,
}

/// The fill of all queues of one engine, and the choice among them.
#[derive(Debug)]
pub struct Batcher {
    tuning: Tuning,
    groups: usize,
    /// `[stage][group]`, flattened.
    queues: Vec<Queue>,
    /// Tokens per stage over all groups.
    stages: Vec<u32>,
    picks: u64,
    /// Stage totals at the last `lookback` picks, a ring, and their sums.
    history: Vec<u32>,
    history_len: usize,
    history_at: usize,
    sums: Vec<u64>,
    /// Tokens per stage that are on their way from elsewhere, and when that was heard.
    coming: Vec<u32>,
    heard_ns: Option<u64>,
    /// Tokens per stage that come to it next.
    behind: Vec<u64>,
    patience: Patience,
}

/// A queue is not held for less than this part of its tokens: of a large cluster some rows are always late.
const STRAGGLERS: u64 = 64;

/// How long an engine stands still for tokens that are right behind a queue.
///
/// Nobody knows when they come, so it learns: half as long after it waited in vain, twice as long after
/// they came. Where a layer waits for its slowest expert most waits are in vain and the engine
/// stops waiting; where nodes keep step by themselves, batches stay whole.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// The longest, in runs.
    hold_runs: f64,
    /// Mean time of a run, in nanoseconds.
    run_ns: f64,
    /// The part of the longest that is left.
    level: f64,
    /// Since when the engine stands still though something waits.
    since_ns: Option<u64>,
}

// === impl Tuning ===

impl Default for Tuning {
    /// The constants of the paper's evaluation (K = 7, d = 0.8, look-back 10), with a guard of
    /// 50 ms, digests that count for a second, patience for one run, and a drain cap of 2048: four full
    /// prefill chunks in one run keep weights in use for longer than it takes to read them.
    fn default() -> Self {
        Self {
            rule: Rule::Defrag,
            lookahead: 7,
            decay: 0.8,
            lookback: 10,
            age_guard_ms: 50,
            digest_ms: 1000,
            hold_runs: 1.0,
            drain_max: 2048,
        }
    }
}

impl Tuning {
    /// Checks what the type alone does not say.
    ///
    /// # Errors
    /// One sentence naming the field and what was expected.
    pub fn check(&self) -> Result<(), String> {
        if !(self.decay > 0.0 && self.decay < 1.0) {
            return Err(format!("decay is {}, expected above 0 and below 1", self.decay));
        }
        if !(0.0..=1000.0).contains(&self.hold_runs) {
            return Err(format!("hold_runs is {}, expected 0 to 1000", self.hold_runs));
        }
        if self.drain_max == 0 {
            return Err("drain_max is 0, expected at least 1".to_owned());
        }
        Ok(())
    }
}

// === impl Batcher ===

impl Batcher {
    /// Empty queues for `stages` stages of `groups` groups.
    ///
    /// # Panics
    /// Without at least one stage and one group.
    #[must_use]
    pub fn new(stages: usize, groups: usize, tuning: Tuning) -> Self {
        assert!(stages > 0 && groups > 0, "an engine has at least one queue");
        let lookback = if tuning.rule == Rule::Defrag { tuning.lookback } else { 0 };
        let hold_runs = if tuning.rule == Rule::Defrag { tuning.hold_runs } else { 0.0 };
        Self {
            tuning,
            groups,
            queues: vec![Queue::default(); stages * groups],
            stages: vec![0; stages],
            picks: 0,
            history: vec![0; stages * lookback],
            history_len: 0,
            history_at: 0,
            sums: vec![0; stages],
            coming: vec![0; stages],
            heard_ns: None,
            behind: vec![0; stages],
            patience: Patience { hold_runs, run_ns: 0.0, level: 1.0, since_ns: None },
        }
    }

    /// The tuning in force.
    #[must_use]
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Tokens queued in all.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        self.stages.iter().sum()
    }

    /// Tells the batcher how a queue stands now: its tokens and when its oldest one came.
    /// `oldest_ns` means nothing for an empty queue.
    pub fn set(&mut self, stage: usize, group: usize, tokens: u32, oldest_ns: u64) {
        let queue = &mut self.queues[stage * self.groups + group];
        self.stages[stage] = self.stages[stage] - queue.tokens + tokens;
        let since = if queue.tokens == 0 { self.picks } else { queue.since };
        *queue = Queue { tokens, oldest_ns, since };
    }

    /// Tells the batcher how many tokens are on their way to each stage from other nodes, as of
    /// `now_ns`; see [`pairs_coming`]. What is missing at the end is none.
    pub fn hear(&mut self, coming: impl IntoIterator<Item = u32>, now_ns: u64) {
        self.coming.fill(0);
        self.coming.iter_mut().zip(coming).for_each(|(slot, tokens)| *slot = tokens);
        self.heard_ns = Some(now_ns);
    }

    /// Tells the batcher how many tokens come to a stage next: they are in the step before it, here or
    /// elsewhere. Unlike [`hear`](Self::hear) this is about a moment from now.
    pub fn follow(&mut self, stage: usize, behind: u64) {
        self.behind[stage] = behind;
    }

    /// Tells the batcher how long a run took.
    pub fn ran(&mut self, ns: u64) {
        self.patience.learn(ns);
    }

    /// What to do now. Ties among queues go to the lowest stage and group.
    pub fn decide(&mut self, now_ns: u64) -> Decision {
        self.heed(now_ns);
        let patient = self.patience.until(now_ns);
        let ripe = self.overdue(now_ns).or_else(|| self.best(patient.is_some()));
        let Some(pick) = ripe else { return self.wait(now_ns, patient) };
        if self.patience.since_ns.take().is_some() {
            let tokens = self.queues[pick.stage * self.groups + pick.group].tokens;
            self.patience.judge(!self.is_worth_holding(pick.stage, tokens));
        }
        self.picks += 1;
        self.queues[pick.stage * self.groups + pick.group].since = self.picks;
        self.remember();
        Decision::Run(pick)
    }

    /// Nothing is to be run: because nothing waits, or because all of it is worth holding.
    fn wait(&mut self, now_ns: u64, patient: Option<u64>) -> Decision {
        match patient {
            Some(until_ns) if self.tokens() > 0 => {
                self.patience.since_ns.get_or_insert(now_ns);
                Decision::Hold { until_ns }
            }
            _ => {
                self.patience.since_ns = None;
                Decision::Rest
            }
        }
    }

    /// Forgets news that are too old.
    fn heed(&mut self, now_ns: u64) {
        let expired = |heard| now_ns.saturating_sub(heard) > self.tuning.digest_ms * 1_000_000;
        if self.heard_ns.is_some_and(expired) {
            self.heard_ns = None;
            self.coming.fill(0);
        }
    }

    /// The queue with the oldest token among those passed over for a whole sweep, if that one is
    /// older than the guard allows.
    fn overdue(&self, now_ns: u64) -> Option<Pick> {
        let sweep = self.stages.len() as u64;
        let passed_over = self.waiting().filter(|(_, queue)| self.picks - queue.since >= sweep);
        let (at, queue) = passed_over.min_by_key(|&(at, queue)| (queue.oldest_ns, at))?;
        let age = now_ns.saturating_sub(queue.oldest_ns);
        (age > self.tuning.age_guard_ms * 1_000_000).then(|| self.at(at, Reason::Age(age)))
    }

    /// The queue that ranks first; with patience among those that are not worth holding.
    fn best(&self, patient: bool) -> Option<Pick> {
        let mut best: Option<(usize, f64)> = None;
        let mut ahead = (usize::MAX, 0.0);
        for (at, queue) in self.waiting() {
            let stage = at / self.groups;
            if patient && self.is_worth_holding(stage, queue.tokens) {
                continue;
            }
            if ahead.0 != stage {
                ahead = (stage, self.ahead(stage));
            }
            let score = match self.tuning.rule {
                Rule::Defrag => f64::from(queue.tokens) + ahead.1,
                Rule::MostTokens => f64::from(queue.tokens),
                // Queues come in ascending order and ties keep the first.
                Rule::LowestLayer => 0.0,
            };
            if best.is_none_or(|(_, highest)| score > highest) {
                best = Some((at, score));
            }
        }
        best.map(|(at, score)| self.at(at, Reason::Score(score)))
    }

    /// Whether so much is right behind a queue of `tokens` that it should not be run without.
    fn is_worth_holding(&self, stage: usize, tokens: u32) -> bool {
        let full = tokens as usize >= self.tuning.drain_max;
        !full && self.behind[stage] * STRAGGLERS > u64::from(tokens)
    }

    /// The look-ahead part of the score: what waits in the stages after `stage`.
    fn ahead(&self, stage: usize) -> f64 {
        let Tuning { rule: Rule::Defrag, lookahead, decay, .. } = self.tuning else {
            return 0.0;
        };
        let count = self.stages.len();
        let mut weight = 1.0;
        let mut sum = 0.0;
        for distance in 1..=lookahead.min(count - 1) {
            weight *= decay;
            sum += weight * self.expected((stage + distance) % count);
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful of groups")]
        let groups = self.groups as f64;
        sum / groups
    }

    /// Tokens of a stage now, plus those on their way to it, plus its mean over the remembered picks.
    fn expected(&self, stage: usize) -> f64 {
        let now = f64::from(self.stages[stage]) + f64::from(self.coming[stage]);
        if self.history_len == 0 {
            return now;
        }
        #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
        let mean = self.sums[stage] as f64 / self.history_len as f64;
        now + mean
    }

    fn remember(&mut self) {
        let stages = self.stages.len();
        let lookback = self.history.len() / stages;
        if lookback == 0 {
            return;
        }
        let slot = &mut self.history[self.history_at * stages..][..stages];
        for ((old, sum), &now) in slot.iter_mut().zip(&mut self.sums).zip(&self.stages) {
            *sum = *sum - u64::from(*old) + u64::from(now);
            *old = now;
        }
        self.history_at = (self.history_at + 1) % lookback;
        self.history_len = (self.history_len + 1).min(lookback);
    }

    fn waiting(&self) -> impl Iterator<Item = (usize, &Queue)> {
        self.queues.iter().enumerate().filter(|(_, queue)| queue.tokens > 0)
    }

    fn at(&self, at: usize, reason: Reason) -> Pick {
        Pick { stage: at / self.groups, group: at % self.groups, reason }
    }
}

// === impl Patience ===

impl Patience {
    /// How much of what was known a new run time changes.
    const LEARNING: f64 = 0.1;
    /// What is left of patience at least, to notice when waiting begins to pay.
    const LEVEL_MIN: f64 = 1.0 / 64.0;

    fn learn(&mut self, ns: u64) {
        #[expect(clippy::cast_precision_loss, reason = "a run takes far less than 2^52 ns")]
        let ns = ns as f64;
        self.run_ns += Self::LEARNING * (ns - self.run_ns);
    }

    /// Until when the engine would wait; none if it has waited that long.
    fn until(&self, now_ns: u64) -> Option<u64> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative, and a cast saturates"
        )]
        let patience = (self.level * self.hold_runs * self.run_ns) as u64;
        let until = self.since_ns.unwrap_or(now_ns).saturating_add(patience);
        (until > now_ns).then_some(until)
    }

    /// Whether what the engine waited for had come.
    fn judge(&mut self, came: bool) {
        let factor = if came { 2.0 } else { 0.5 };
        self.level = (self.level * factor).clamp(Self::LEVEL_MIN, 1.0);
    }
}

/// Rows that come to each layer's experts next, as attention nodes tell with every dispatch.
///
/// What a node told last stands until it tells more: where it was not given rows of late this is old.
#[derive(Clone, Debug)]
pub struct Behind {
    told: BTreeMap<NodeId, Vec<u32>>,
    /// Per decoder layer, over all nodes.
    rows: Vec<u64>,
}

impl Behind {
    /// Nobody has told anything about these decoder layers yet.
    #[must_use]
    pub fn new(layers: usize) -> Self {
        Self { told: BTreeMap::new(), rows: vec![0; layers] }
    }

    /// A node has these rows, per decoder layer.
    pub fn hear(&mut self, node: NodeId, rows: &[u32]) {
        let told = self.told.entry(node).or_default();
        told.resize(self.rows.len(), 0);
        for (layer, (sum, before)) in self.rows.iter_mut().zip(told).enumerate() {
            let now = rows.get(layer).copied().unwrap_or(0);
            *sum = *sum - u64::from(*before) + u64::from(now);
            *before = now;
        }
    }

    /// A node is gone.
    pub fn forget(&mut self, node: NodeId) {
        self.hear(node, &[]);
        self.told.remove(&node);
    }

    /// (token, expert) pairs that are to be expected per decoder layer on one of `expert_nodes` nodes, an
    /// even share.
    pub fn pairs(&self, expert_nodes: u32, top_k: u32) -> impl Iterator<Item = u64> + '_ {
        let nodes = u64::from(expert_nodes.max(1));
        self.rows.iter().map(move |rows| rows * u64::from(top_k) / nodes)
    }
}

/// What an attention node tells: the rows that come to each layer's experts next. They are `ready` for
/// the layer's attention, or `away` with the experts of the layer before; both per stage.
pub fn rows_behind(
    ready: impl Iterator<Item = u32>,
    away: impl Iterator<Item = u32>,
) -> impl Iterator<Item = u32> {
    let before = std::iter::once(0).chain(away);
    ready.zip(before).map(|(ready, away)| ready.saturating_add(away))
}

/// How many (token, expert) pairs are on their way to each layer of one expert node, by what waits
/// in the cluster.
///
/// Rows that wait on attention nodes before a layer come to its experts next; pairs on other expert
/// nodes come, by way of an attention node, to the layer after theirs. An even share of both is
/// this node's. `own` is what waits on this node itself, per layer.
pub fn pairs_coming<'a>(
    digest: &'a Digest,
    own: impl Fn(usize) -> u32 + 'a,
    expert_nodes: u32,
    top_k: u32,
) -> impl Iterator<Item = u32> + 'a {
    let layers = digest.pairs.len();
    (0..layers).map(move |layer| {
        let rows = digest.rows.get(layer).copied().unwrap_or(0);
        let before = (layer + layers - 1) % layers;
        let elsewhere = digest.pairs[before].saturating_sub(own(before));
        rows.saturating_mul(top_k).saturating_add(elsewhere) / expert_nodes.max(1)
    })
}

#[cfg(test)]
mod tests;
