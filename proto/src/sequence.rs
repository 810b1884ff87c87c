//! Conversions of sequences and their output.

use domain::{
    Constraint, FinishReason, SamplingParams, SequenceRequest, TokenLogprobs, TokenOutput,
};

use crate::{Invalid, internal as wire};

impl From<SequenceRequest> for wire::SequenceRequest {
    fn from(request: SequenceRequest) -> Self {
        Self {
            id: request.id,
            tokens: request.tokens,
            prompt_len: request.prompt_len,
            sampling: Some(request.sampling.into()),
        }
    }
}

impl TryFrom<wire::SequenceRequest> for SequenceRequest {
    type Error = Invalid;

    fn try_from(request: wire::SequenceRequest) -> Result<Self, Invalid> {
        let count = request.tokens.len();
        if count == 0 {
            return Err(Invalid::new("tokens", "is empty, expected at least one token"));
        }
        if request.prompt_len == 0 || request.prompt_len as usize > count {
            return Err(Invalid::new(
                "prompt_len",
                format!("is {}, expected 1 to the {count} tokens given", request.prompt_len),
            ));
        }
        Ok(Self {
            id: request.id,
            tokens: request.tokens,
            prompt_len: request.prompt_len,
            sampling: request.sampling.ok_or_else(|| Invalid::missing("sampling"))?.try_into()?,
        })
    }
}

impl From<SamplingParams> for wire::Sampling {
    fn from(sampling: SamplingParams) -> Self {
        Self {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            repetition_penalty: sampling.repetition_penalty,
            logit_bias: sampling
                .logit_bias
                .into_iter()
                .map(|(token, bias)| wire::LogitBias { token, bias })
                .collect(),
            seed: sampling.seed,
            tokens_max: sampling.tokens_max,
            tokens_min: sampling.tokens_min,
            stop_tokens: sampling.stop_tokens,
            ignore_eos: sampling.ignore_eos,
            logprobs: sampling.logprobs,
            prompt_logprobs: sampling.prompt_logprobs,
            constraint: sampling.constraint.map(Into::into),
        }
    }
}

impl From<Constraint> for wire::sampling::Constraint {
    fn from(constraint: Constraint) -> Self {
        match constraint {
            Constraint::JsonSchema(schema) => Self::JsonSchema(schema),
            Constraint::Regex(regex) => Self::Regex(regex),
            Constraint::Lark(grammar) => Self::Lark(grammar),
        }
    }
}

impl From<wire::sampling::Constraint> for Constraint {
    fn from(constraint: wire::sampling::Constraint) -> Self {
        use wire::sampling::Constraint as Wire;
        match constraint {
            Wire::JsonSchema(schema) => Self::JsonSchema(schema),
            Wire::Regex(regex) => Self::Regex(regex),
            Wire::Lark(grammar) => Self::Lark(grammar),
        }
    }
}

impl TryFrom<wire::Sampling> for SamplingParams {
    type Error = Invalid;

    fn try_from(sampling: wire::Sampling) -> Result<Self, Invalid> {
        within("sampling.temperature", sampling.temperature, 0.0, f32::MAX)?;
        within("sampling.top_p", sampling.top_p, f32::MIN_POSITIVE, 1.0)?;
        within("sampling.min_p", sampling.min_p, 0.0, 1.0)?;
        within("sampling.presence_penalty", sampling.presence_penalty, -2.0, 2.0)?;
        within("sampling.frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)?;
        within(
            "sampling.repetition_penalty",
            sampling.repetition_penalty,
            f32::MIN_POSITIVE,
            f32::MAX,
        )?;
        if sampling.tokens_max == 0 {
            return Err(Invalid::new("sampling.tokens_max", "is 0, expected at least 1"));
        }
        if let Some(odd) = sampling.logit_bias.iter().find(|bias| !bias.bias.is_finite()) {
            let problem = format!("is {} for token {}, expected a number", odd.bias, odd.token);
            return Err(Invalid::new("sampling.logit_bias", problem));
        }
        Ok(Self {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            repetition_penalty: sampling.repetition_penalty,
            logit_bias: sampling
                .logit_bias
                .into_iter()
                .map(|bias| (bias.token, bias.bias))
                .collect(),
            seed: sampling.seed,
            tokens_max: sampling.tokens_max,
            tokens_min: sampling.tokens_min,
            stop_tokens: sampling.stop_tokens,
            ignore_eos: sampling.ignore_eos,
            logprobs: sampling.logprobs,
            prompt_logprobs: sampling.prompt_logprobs,
            constraint: sampling.constraint.map(Into::into),
        })
    }
}

fn within(field: &'static str, value: f32, min: f32, max: f32) -> Result<(), Invalid> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Invalid::new(field, format!("is {value}, expected {min} to {max}")))
}

impl From<TokenOutput> for wire::Token {
    fn from(output: TokenOutput) -> Self {
        let finish = match output.finish {
            None => wire::Finish::Unspecified,
            Some(FinishReason::Stop) => wire::Finish::Stop,
            Some(FinishReason::Complete) => wire::Finish::Complete,
            Some(FinishReason::Length) => wire::Finish::Length,
        };
        Self {
            token: output.token,
            logprobs: output.logprobs.map(Into::into),
            finish: finish.into(),
            cached_tokens: output.cached_tokens,
            prompt_logprobs: output.prompt_logprobs.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<TokenLogprobs> for wire::Logprobs {
    fn from(logprobs: TokenLogprobs) -> Self {
        let (top_tokens, top_logprobs) = logprobs.top.into_iter().unzip();
        Self { logprob: logprobs.logprob, top_tokens, top_logprobs }
    }
}

impl TryFrom<wire::Token> for TokenOutput {
    type Error = Invalid;

    fn try_from(token: wire::Token) -> Result<Self, Invalid> {
        let finish = match wire::Finish::try_from(token.finish) {
            Ok(wire::Finish::Unspecified) => None,
            Ok(wire::Finish::Stop) => Some(FinishReason::Stop),
            Ok(wire::Finish::Complete) => Some(FinishReason::Complete),
            Ok(wire::Finish::Length) => Some(FinishReason::Length),
            Err(_) => {
                return Err(Invalid::new("token.finish", format!("is unknown: {}", token.finish)));
            }
        };
        let prompt = token.prompt_logprobs.into_iter().map(TokenLogprobs::try_from);
        Ok(Self {
            token: token.token,
            logprobs: token.logprobs.map(TokenLogprobs::try_from).transpose()?,
            finish,
            cached_tokens: token.cached_tokens,
            prompt_logprobs: prompt.collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<wire::Logprobs> for TokenLogprobs {
    type Error = Invalid;

    fn try_from(logprobs: wire::Logprobs) -> Result<Self, Invalid> {
        let (tokens, values) = (logprobs.top_tokens, logprobs.top_logprobs);
        if tokens.len() != values.len() {
            let problem = format!("has {} tokens and {} values", tokens.len(), values.len());
            return Err(Invalid::new("token.logprobs.top", problem));
        }
        Ok(Self { logprob: logprobs.logprob, top: tokens.into_iter().zip(values).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> SequenceRequest {
        SequenceRequest {
            id: "r-0".into(),
            tokens: vec![1, 2, 3],
            prompt_len: 2,
            sampling: SamplingParams {
                logit_bias: vec![(7, -1.5)],
                stop_tokens: vec![9],
                logprobs: Some(3),
                prompt_logprobs: Some(1),
                constraint: Some(Constraint::Regex("[ab]+".into())),
                ..SamplingParams::default()
            },
        }
    }

    #[test]
    fn requests_and_tokens_survive_the_wire() {
        let wire = wire::SequenceRequest::from(request());
        assert_eq!(SequenceRequest::try_from(wire), Ok(request()));
        let reasons = [FinishReason::Stop, FinishReason::Complete, FinishReason::Length];
        for finish in [None].into_iter().chain(reasons.map(Some)) {
            let logprobs = TokenLogprobs { logprob: -0.5, top: vec![(1, -0.5), (2, -1.0)] };
            let prompt_logprobs = vec![logprobs.clone(), TokenLogprobs::default()];
            let logprobs = Some(logprobs);
            let token =
                TokenOutput { token: 5, logprobs, finish, cached_tokens: 48, prompt_logprobs };
            assert_eq!(TokenOutput::try_from(wire::Token::from(token.clone())), Ok(token));
        }
    }

    #[test]
    fn a_bad_request_is_one_sentence() {
        let check = |change: &dyn Fn(&mut SequenceRequest), expected: &str| {
            let mut request = request();
            change(&mut request);
            let wire = wire::SequenceRequest::from(request);
            assert_eq!(SequenceRequest::try_from(wire).unwrap_err().to_string(), expected);
        };
        check(&|r| r.tokens.clear(), "tokens: is empty, expected at least one token");
        check(&|r| r.prompt_len = 4, "prompt_len: is 4, expected 1 to the 3 tokens given");
        check(
            &|r| r.sampling.presence_penalty = 3.0,
            "sampling.presence_penalty: is 3, expected -2 to 2",
        );
        check(&|r| r.sampling.tokens_max = 0, "sampling.tokens_max: is 0, expected at least 1");
        check(
            &|r| r.sampling.logit_bias[0].1 = f32::INFINITY,
            "sampling.logit_bias: is inf for token 7, expected a number",
        );
    }
}
