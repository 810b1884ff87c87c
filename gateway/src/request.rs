//! What a client asks for, in the one form that HTTP and gRPC share, and the rules it has to keep.

#[cfg(test)]
mod tests;

use std::time::Duration;

use domain::{Constraint, SamplingParams};

use crate::{
    constraint::{self, CONSTRAINT_BYTES_MAX},
    refusal::{Kind, Refusal},
    trace::Traceparent,
};

/// Choices that one request may ask for per prompt.
pub(crate) const CHOICES_MAX: u32 = 128;
/// Alternatives per token that may be asked for.
pub(crate) const LOGPROBS_MAX: u32 = 20;
/// Stop strings a request may name.
pub(crate) const STOPS_MAX: usize = 64;
/// Longest stop string, in bytes; text is held back up to this length.
pub(crate) const STOP_BYTES_MAX: usize = 1024;
/// Stop tokens and biased tokens that a request may name.
pub(crate) const NAMED_TOKENS_MAX: usize = 1024;

/// Sampling as a client states it: anything may be absent or out of range.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wishes {
    /// See [`SamplingParams`] for this and the fields of the same name.
    pub(crate) temperature: Option<f64>,
    /// Nucleus.
    pub(crate) top_p: Option<f64>,
    /// -1 and 0 keep all.
    pub(crate) top_k: Option<i64>,
    /// Share of the likeliest token.
    pub(crate) min_p: Option<f64>,
    /// Presence penalty.
    pub(crate) presence_penalty: Option<f64>,
    /// Frequency penalty.
    pub(crate) frequency_penalty: Option<f64>,
    /// Repetition penalty.
    pub(crate) repetition_penalty: Option<f64>,
    /// Token and bias.
    pub(crate) logit_bias: Vec<(u64, f64)>,
    /// Drawn at the gateway when absent.
    pub(crate) seed: Option<u64>,
    /// Most tokens to generate.
    pub(crate) max_tokens: Option<i64>,
    /// The newer name of `max_tokens`, which it goes over.
    pub(crate) max_completion_tokens: Option<i64>,
    /// Fewest tokens to generate.
    pub(crate) min_tokens: Option<i64>,
    /// Tokens that end a choice.
    pub(crate) stop_token_ids: Vec<i64>,
    /// Strings that end a choice.
    pub(crate) stop: Vec<String>,
    /// Go on past the model's end tokens.
    pub(crate) ignore_eos: Option<bool>,
    /// Let the text end with what stopped it.
    pub(crate) stop_shown: Option<bool>,
    /// Spell special tokens out in the text.
    pub(crate) special_shown: Option<bool>,
    /// Alternatives to report per token.
    pub(crate) logprobs: Option<i64>,
    /// The same per token of the prompt.
    pub(crate) prompt_logprobs: Option<i64>,
    /// Chat's name for `logprobs`.
    pub(crate) top_logprobs: Option<i64>,
    /// Choices per prompt.
    pub(crate) n: Option<i64>,
    /// What the text has to be.
    pub(crate) constraint: Option<Constraint>,
}

/// Sampling that keeps the rules. What depends on a prompt is settled by [`Sampling::settle`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sampling {
    params: SamplingParams,
    tokens_max: Option<u32>,
    /// Strings that end a choice.
    pub(crate) stop: Vec<String>,
    /// What of its tokens shows in a choice's text.
    pub(crate) shown: Shown,
    /// Choices per prompt, >= 1.
    pub(crate) n: u32,
}

/// What shows in a text beside its ordinary tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    /// The stop string or the stop token at its end.
    pub(crate) stop: bool,
    /// Special tokens, spelled as in the vocabulary.
    pub(crate) special: bool,
}

/// One prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    /// To be tokenized, with or without the special tokens the tokenizer adds around a text.
    Text {
        /// The text.
        text: String,
        /// Whether the tokenizer's own special tokens are added.
        special: bool,
    },
    /// Used as it is.
    Tokens(Vec<u32>),
}

/// A request that keeps every rule which can be checked without its tokens.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Names it in logs, traces and the answer.
    pub(crate) id: String,
    /// At least one; every one gets `sampling.n` choices.
    pub(crate) prompts: Vec<Prompt>,
    /// How to draw.
    pub(crate) sampling: Sampling,
    /// When the client wants its first token.
    pub(crate) first_token: Option<Duration>,
    /// What the client said of its trace.
    pub(crate) traceparent: Traceparent,
}

impl Request {
    /// Sequences it asks for.
    #[must_use]
    pub(crate) fn sequences(&self) -> u32 {
        u32::try_from(self.prompts.len()).unwrap_or(u32::MAX).saturating_mul(self.sampling.n)
    }
}

/// A number that is finite and within the bounds, or the sentence that says so.
fn number(
    param: &'static str,
    value: Option<f64>,
    default: f32,
    expected: &'static str,
    accept: impl Fn(f64) -> bool,
) -> Result<f32, Refusal> {
    let Some(value) = value else {
        return Ok(default);
    };
    // The narrowing to f32 comes first so that no value is accepted which it moves out of bounds.
    let narrow = value as f32;
    if narrow.is_finite() && accept(f64::from(narrow)) {
        Ok(narrow)
    } else {
        // Debug keeps numbers of any size short.
        Err(Refusal::field(param, expected, format!("{value:?}")))
    }
}

fn integer(
    param: &'static str,
    value: Option<i64>,
    min: u32,
    max: u32,
) -> Result<Option<u32>, Refusal> {
    value
        .map(|value| {
            u32::try_from(value).ok().filter(|value| (min..=max).contains(value)).ok_or_else(|| {
                let expected = match max {
                    u32::MAX => format!("an integer of at least {min}"),
                    _ => format!("an integer from {min} to {max}"),
                };
                Refusal::field(param, expected, value.to_string())
            })
        })
        .transpose()
}

fn token(param: &'static str, value: Option<u32>, shown: &str, vocab: u32) -> Result<u32, Refusal> {
    value.filter(|&token| token < vocab).ok_or_else(|| {
        Refusal::field(param, format!("token ids below the vocabulary's size {vocab}"), shown)
    })
}

fn not_more_than<T>(param: &'static str, items: &[T], max: usize) -> Result<(), Refusal> {
    if items.len() > max {
        return Err(Refusal::field(
            param,
            format!("at most {max} entries"),
            items.len().to_string(),
        ));
    }
    Ok(())
}

fn stops(stop: Vec<String>) -> Result<Vec<String>, Refusal> {
    not_more_than("stop", &stop, STOPS_MAX)?;
    for text in &stop {
        if text.is_empty() || text.len() > STOP_BYTES_MAX {
            return Err(Refusal::field(
                "stop",
                format!("strings of 1 to {STOP_BYTES_MAX} bytes"),
                format!("one of {} bytes", text.len()),
            ));
        }
    }
    Ok(stop)
}

fn biases(biases: &[(u64, f64)], vocab: u32) -> Result<Vec<(u32, f32)>, Refusal> {
    const PARAM: &str = "logit_bias";
    not_more_than(PARAM, biases, NAMED_TOKENS_MAX)?;
    biases
        .iter()
        .map(|&(id, bias)| {
            let id = token(PARAM, u32::try_from(id).ok(), &id.to_string(), vocab)?;
            let bias = number(PARAM, Some(bias), 0.0, "biases from -100 to 100", |bias| {
                bias.abs() <= 100.0
            })?;
            Ok((id, bias))
        })
        .collect()
}

/// Checks what can be known of a constraint before it is compiled.
fn constrained(constraint: &Constraint, tokens_min: u32) -> Result<(), Refusal> {
    let size = constraint::size(constraint);
    if size > CONSTRAINT_BYTES_MAX {
        let expected = format!("at most {CONSTRAINT_BYTES_MAX} bytes");
        return Err(Refusal::field("structured_outputs", expected, size.to_string()));
    }
    if tokens_min > 0 {
        let message = "not offered beside a constraint on the text, which says where the text ends";
        return Err(Refusal::unsupported("min_tokens", message));
    }
    Ok(())
}

impl Wishes {
    /// Checks every rule on sampling. `vocab` is the model's number of token ids.
    pub(crate) fn check(self, vocab: u32) -> Result<Sampling, Refusal> {
        let penalty =
            |param, value| number(param, value, 0.0, "a number from -2 to 2", |v| v.abs() <= 2.0);
        not_more_than("stop_token_ids", &self.stop_token_ids, NAMED_TOKENS_MAX)?;
        let stop_tokens = token_ids("stop_token_ids", &self.stop_token_ids, vocab)?;
        let tokens_max = integer("max_tokens", self.max_tokens, 1, u32::MAX)?;
        let newer = integer("max_completion_tokens", self.max_completion_tokens, 1, u32::MAX)?;
        let tokens_max = newer.or(tokens_max);
        let logprobs = integer("logprobs", self.logprobs, 0, LOGPROBS_MAX)?;
        let prompt_logprobs = integer("logprobs", self.prompt_logprobs, 0, LOGPROBS_MAX)?;
        let top_logprobs = integer("top_logprobs", self.top_logprobs, 0, LOGPROBS_MAX)?;
        let tokens_min = integer("min_tokens", self.min_tokens, 0, u32::MAX)?.unwrap_or(0);
        if let Some(max) = tokens_max.filter(|&max| max < tokens_min) {
            return Err(Refusal::field(
                "min_tokens",
                format!("at most `max_tokens`, which is {max}"),
                tokens_min.to_string(),
            ));
        }
        if let Some(constraint) = &self.constraint {
            constrained(constraint, tokens_min)?;
        }
        let top_k = self.top_k.map(|k| if k == -1 { 0 } else { k });
        let params = SamplingParams {
            temperature: number(
                "temperature",
                self.temperature,
                1.0,
                "a number of at least 0",
                |v| v >= 0.0,
            )?,
            top_p: number("top_p", self.top_p, 1.0, "a number above 0 and up to 1", |v| {
                v >= f64::from(f32::MIN_POSITIVE) && v <= 1.0
            })?,
            top_k: integer("top_k", top_k, 0, u32::MAX)?.unwrap_or(0),
            min_p: number("min_p", self.min_p, 0.0, "a number from 0 to 1", |v| {
                (0.0..=1.0).contains(&v)
            })?,
            presence_penalty: penalty("presence_penalty", self.presence_penalty)?,
            frequency_penalty: penalty("frequency_penalty", self.frequency_penalty)?,
            repetition_penalty: number(
                "repetition_penalty",
                self.repetition_penalty,
                1.0,
                "a number above 0",
                |v| v >= f64::from(f32::MIN_POSITIVE),
            )?,
            logit_bias: biases(&self.logit_bias, vocab)?,
            seed: self.seed.unwrap_or_else(crate::random::draw),
            tokens_max: 0,
            tokens_min,
            stop_tokens,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            logprobs: top_logprobs.or(logprobs),
            prompt_logprobs,
            constraint: self.constraint,
        };
        Ok(Sampling {
            params,
            tokens_max,
            stop: stops(self.stop)?,
            shown: Shown {
                stop: self.stop_shown.unwrap_or(false),
                special: self.special_shown.unwrap_or(false),
            },
            n: integer("n", self.n, 1, CHOICES_MAX)?.unwrap_or(1),
        })
    }
}

impl Sampling {
    /// Settles what depends on the prompt's length; every choice draws with a seed of its own.
    /// `positions_max` is the longest sequence, prompt and generated tokens.
    pub(crate) fn settle(
        &self,
        prompt_len: usize,
        positions_max: u32,
    ) -> Result<SamplingParams, Refusal> {
        let room = usize::try_from(positions_max)
            .ok()
            .and_then(|max| max.checked_sub(prompt_len))
            .and_then(|room| u32::try_from(room).ok())
            .filter(|&room| room > 0);
        // Clients that cut conversations to size look for these words of OpenAI's.
        let Some(room) = room else {
            return Err(Refusal::new(
                Kind::TooLong,
                format!(
                    "this model's maximum context length is {positions_max} tokens, of which at least one \
                     must be generated, but the prompt has {prompt_len}"
                ),
            ));
        };
        let asked = self.tokens_max.unwrap_or(room);
        let least = asked.max(self.params.tokens_min);
        if least > room {
            return Err(Refusal::new(
                Kind::TooLong,
                format!(
                    "this model's maximum context length is {positions_max} tokens, but the prompt has \
                     {prompt_len} and {least} more are asked for"
                ),
            ));
        }
        Ok(SamplingParams { tokens_max: asked, ..self.params.clone() })
    }
}

/// Checks token ids that a client states, as a prompt or to have them spelled.
pub(crate) fn token_ids(param: &'static str, ids: &[i64], vocab: u32) -> Result<Vec<u32>, Refusal> {
    ids.iter().map(|&id| token(param, u32::try_from(id).ok(), &id.to_string(), vocab)).collect()
}
