//! How the next token of a sequence is drawn.

/// Sampling parameters, validated at the gateway and meaning the same on every node.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; otherwise logits are divided by it. Finite, >= 0.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this; in (0, 1].
    pub top_p: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Drop tokens less likely than this share of the most likely one; in [0, 1].
    pub min_p: f32,
    /// Subtracted once for every token that was generated before; in [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted per occurrence among the generated tokens; in [-2, 2].
    pub frequency_penalty: f32,
    /// Divides (positive) or multiplies (negative) logits of tokens seen in prompt or output; > 0.
    pub repetition_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws: equal seed, parameters and prompt give equal tokens.
    pub seed: u64,
    /// Generate at most this many tokens; >= 1.
    pub tokens_max: u32,
    /// Do not stop before this many tokens.
    pub tokens_min: u32,
    /// Tokens that end the sequence besides the model's own end tokens.
    pub stop_tokens: Vec<u32>,
    /// Go on past the model's end tokens.
    pub ignore_eos: bool,
    /// How many alternatives with log-probabilities to report per token; none reports nothing.
    pub logprobs: Option<u32>,
    /// The same for the tokens of the prompt, all of which are then computed.
    pub prompt_logprobs: Option<u32>,
    /// What the generated text has to be; none lets it be anything.
    pub constraint: Option<Constraint>,
}

/// A form that generated text has to keep. Every token that would leave it is impossible, and the sequence ends where nothing
/// may follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// A JSON value that a JSON Schema, written as JSON, describes.
    JsonSchema(String),
    /// A text that a regular expression, in the syntax of Rust's `regex`, matches as a whole.
    Regex(String),
    /// A text that follows a context-free grammar in a variant of Lark's syntax, from its rule `start`.
    Lark(String),
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
            tokens_max: 16,
            tokens_min: 0,
            stop_tokens: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: None,
            constraint: None,
        }
    }
}
