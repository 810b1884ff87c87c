//! A sequence on this node: its tokens, its KV blocks and how its next token is drawn.

use std::time::{Duration, Instant};

use domain::{FinishReason, SamplingParams, SequenceRequest, TokenLogprobs, TokenOutput};
use grammar::{Grammar, GrammarError};
use model::{ModelSpec, Sampled, SamplingSpec, TokenCounts};
use tokio::sync::mpsc;

use crate::{engine::SubmissionId, trace::Trace};

/// One sequence, waiting or running.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SubmissionId,
    /// Names it in logs.
    pub(crate) name: String,
    /// Prompt and generated tokens.
    pub(crate) tokens: Vec<u32>,
    /// Tokens of `tokens` whose keys and values are in the cache.
    pub(crate) cached: usize,
    /// Tokens of `tokens` that were in the cache when it began; told with the first token drawn.
    pub(crate) found: u32,
    /// Its KV blocks, in order.
    pub(crate) blocks: Vec<u32>,
    /// Its span's key while it runs.
    pub(crate) span: Option<usize>,
    /// Its number among all admissions, the last time; the youngest gives way first. 0 before the first.
    pub(crate) admitted: u64,
    /// Its trace, if it is sampled.
    pub(crate) trace: Option<Box<Trace>>,
    /// What its text is held to.
    pub(crate) grammar: Option<Box<Grammar>>,
    params: SamplingParams,
    prompt_len: usize,
    spec: SamplingSpec,
    /// Log-probabilities of the prompt's tokens but the first, as far as they are computed.
    scores: Vec<TokenLogprobs>,
    counts: TokenCounts,
    /// Tokens that end it.
    ends: Vec<u32>,
    outputs: mpsc::Sender<Told>,
    arrived: Instant,
    /// When its last token was drawn here.
    drew_at: Option<Instant>,
}

/// What whoever waits for a sequence gets: its tokens or, as the last, why there are no more.
pub(crate) type Told = Result<TokenOutput, GrammarError>;

/// What follows a drawn token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another one.
    Token,
    /// Nothing: it was the last, or none can follow it.
    Finished,
    /// Nothing: whoever waited for it has gone.
    Abandoned,
}

// === impl Sequence ===

impl Sequence {
    /// A sequence that waits. `outputs` has room for all its tokens.
    pub(crate) fn new(
        id: SubmissionId,
        request: SequenceRequest,
        model: &ModelSpec,
        outputs: mpsc::Sender<Told>,
    ) -> Self {
        let prompt_len = request.prompt_len as usize;
        let (prompt, generated) = request.tokens.split_at(prompt_len);
        let mut counts = TokenCounts::new(prompt);
        generated.iter().for_each(|&token| counts.record(token));
        let params = request.sampling;
        let mut ends = params.stop_tokens.clone();
        if !params.ignore_eos {
            ends.extend_from_slice(&model.eos);
        }
        Self {
            id,
            name: request.id,
            tokens: request.tokens,
            cached: 0,
            found: 0,
            blocks: Vec::new(),
            span: None,
            admitted: 0,
            trace: None,
            grammar: None,
            spec: sampling_spec(&params),
            scores: Vec::new(),
            params,
            prompt_len,
            counts,
            ends,
            outputs,
            arrived: Instant::now(),
            drew_at: None,
        }
    }

    /// How the next token is drawn.
    pub(crate) fn draw(&self) -> model::Draw<'_> {
        let early = self.generated() < self.params.tokens_min as usize;
        model::Draw {
            spec: &self.spec,
            counts: &self.counts,
            banned: if early { &self.ends } else { &[] },
            allowed: self.grammar.as_ref().map(|grammar| grammar.allowed()),
            given: None,
            position: self.tokens.len() as u64,
        }
    }

    /// Whether log-probabilities of the prompt's tokens are wanted yet: it has to be computed as a whole then.
    pub(crate) fn is_scored(&self) -> bool {
        self.params.prompt_logprobs.is_some() && self.generated() == 0
    }

    /// How log-probabilities of the prompt's tokens are told.
    pub(crate) fn scoring(&self) -> SamplingSpec {
        let logprobs = self.params.prompt_logprobs.map(|alternatives| alternatives as usize);
        SamplingSpec { logprobs, ..SamplingSpec::default() }
    }

    /// The token that follows `position`, in a text that is there already.
    pub(crate) fn given<'a>(&'a self, spec: &'a SamplingSpec, position: usize) -> model::Draw<'a> {
        model::Draw {
            spec,
            counts: &self.counts,
            banned: &[],
            allowed: None,
            given: self.tokens.get(position + 1).copied(),
            position: position as u64,
        }
    }

    /// Keeps the log-probabilities of the tokens that follow those from `position` on.
    pub(crate) fn score(&mut self, position: usize, sampled: impl Iterator<Item = Sampled>) {
        // One that gave way computes its prompt anew.
        self.scores.truncate(position);
        let scores = sampled.filter_map(|sampled| {
            Some(TokenLogprobs { logprob: sampled.logprob?, top: sampled.top })
        });
        self.scores.extend(scores);
    }

    /// Appends a drawn token and tells whoever waits; what comes next.
    ///
    /// `positions_max` is the longest sequence that fits here.
    pub(crate) fn append(&mut self, sampled: Sampled, positions_max: usize) -> Next {
        let token = sampled.token;
        self.tokens.push(token);
        self.counts.record(token);
        let output = self.finish(token, positions_max).map(|finish| {
            let logprobs =
                sampled.logprob.map(|logprob| TokenLogprobs { logprob, top: sampled.top });
            let cached_tokens = std::mem::take(&mut self.found);
            let prompt_logprobs = std::mem::take(&mut self.scores);
            TokenOutput { token, logprobs, finish, cached_tokens, prompt_logprobs }
        });
        let last = output.as_ref().map_or(true, |output| output.finish.is_some());
        match self.outputs.try_send(output) {
            Err(_) => Next::Abandoned,
            Ok(()) if last => Next::Finished,
            Ok(()) => Next::Token,
        }
    }

    /// Whether the token that was just appended is the last one, and why.
    fn finish(
        &mut self,
        token: u32,
        positions_max: usize,
    ) -> Result<Option<FinishReason>, GrammarError> {
        if self.ends.contains(&token) {
            return Ok(Some(FinishReason::Stop));
        }
        if let Some(grammar) = &mut self.grammar
            && !grammar.accept(token)?
        {
            return Ok(Some(FinishReason::Complete));
        }
        let full = self.generated() >= self.params.tokens_max as usize
            || self.tokens.len() >= positions_max;
        Ok(full.then_some(FinishReason::Length))
    }

    /// A token is drawn at `now`: whether it is the first one here, and its time since the one before, or
    /// since the sequence came.
    pub(crate) fn drew(&mut self, now: Instant) -> (bool, Duration) {
        let before = self.drew_at.replace(now);
        (before.is_none(), now.saturating_duration_since(before.unwrap_or(self.arrived)))
    }

    /// Whether the next token's position is one that was generated, not given.
    pub(crate) fn is_decoding(&self) -> bool {
        self.cached >= self.prompt_len
    }

    /// Tokens generated so far, here and elsewhere.
    pub(crate) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }
}

fn sampling_spec(params: &SamplingParams) -> SamplingSpec {
    SamplingSpec {
        temperature: params.temperature,
        top_k: params.top_k as usize,
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        logit_bias: params.logit_bias.clone(),
        seed: params.seed,
        logprobs: params.logprobs.map(|alternatives| alternatives as usize),
    }
}
