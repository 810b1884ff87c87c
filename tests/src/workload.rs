//! Sequences to run and what comes back, comparable bit by bit.

use domain::{FinishReason, SamplingParams, SequenceRequest, TokenLogprobs, TokenOutput};

/// What a sequence came to: tokens, and the exact bits of the log-probabilities they were drawn from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Per token: the bits of its own log-probability and of the alternatives', best first.
    pub logprob_bits: Vec<Vec<(u32, u32)>>,
    /// The same of the prompt's tokens but the first, where it was asked for.
    pub prompt_bits: Vec<Vec<(u32, u32)>>,
    /// How it ended.
    pub finish: Option<&'static str>,
}

impl Answer {
    /// Adds what came in one message.
    pub fn extend(&mut self, outputs: Vec<TokenOutput>) {
        for output in outputs {
            self.tokens.push(output.token);
            let logprobs = output.logprobs.unwrap_or_default();
            self.logprob_bits.push(bits(output.token, &logprobs));
            let prompt = output.prompt_logprobs.iter();
            // Which tokens these are the prompt says.
            self.prompt_bits.extend(prompt.map(|logprobs| bits(u32::MAX, logprobs)));
            self.finish = output.finish.map(|finish| match finish {
                FinishReason::Stop | FinishReason::Complete => "stop",
                FinishReason::Length => "length",
            });
        }
    }
}

fn bits(token: u32, logprobs: &TokenLogprobs) -> Vec<(u32, u32)> {
    let own = (token, logprobs.logprob.to_bits());
    let top = logprobs.top.iter().map(|&(token, logprob)| (token, logprob.to_bits()));
    std::iter::once(own).chain(top).collect()
}

/// The `number`th sequence of a fixed mix: prompts of 1 to 90 tokens below `vocab`, greedy and
/// drawn, 4 to 27 new tokens.
#[must_use]
pub fn sequence(number: u32, vocab: u32) -> SequenceRequest {
    let length = 1 + number * 37 % 90;
    let tokens: Vec<u32> =
        (0..length).map(|at| (number * 7919 + at * 104_729 + 13) % vocab).collect();
    SequenceRequest {
        id: format!("sequence-{number}"),
        prompt_len: length,
        tokens,
        sampling: SamplingParams {
            temperature: if number.is_multiple_of(2) { 0.0 } else { 0.9 },
            top_p: if number.is_multiple_of(3) { 0.8 } else { 1.0 },
            repetition_penalty: if number.is_multiple_of(5) { 1.3 } else { 1.0 },
            seed: u64::from(number),
            tokens_max: 4 + number % 24,
            ignore_eos: true,
            logprobs: Some(3),
            ..SamplingParams::default()
        },
    }
}
