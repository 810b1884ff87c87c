//! A sequence: the tokens of one choice of one request, and what comes back for it.

use crate::SamplingParams;

/// Work for an attention node: continue `tokens`.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceRequest {
    /// Names the sequence in logs and traces: the client's request id and the choice's index.
    pub id: String,
    /// The prompt and, when a lost node's sequence is resumed, what was generated before.
    pub tokens: Vec<u32>,
    /// How many of `tokens` are the client's prompt; the rest was generated already.
    pub prompt_len: u32,
    /// How to draw.
    pub sampling: SamplingParams,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token or a stop token was drawn, which is not part of the text.
    Stop,
    /// What the text is held to lets nothing follow the last token, which is part of the text.
    Complete,
    /// `tokens_max` or the model's longest sequence was reached.
    Length,
}

/// Natural-log probability of a token and of its alternatives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token itself.
    pub logprob: f32,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenOutput {
    /// The token.
    pub token: u32,
    /// Present when asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Present on the last one.
    pub finish: Option<FinishReason>,
    /// On the first one that a node draws: how many of the request's tokens it had computed before. Else 0.
    pub cached_tokens: u32,
    /// On the first one of all, when asked for: of every token of the prompt but the first, before which there is none.
    pub prompt_logprobs: Vec<TokenLogprobs>,
}
