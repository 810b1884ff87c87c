//! The gRPC API, `amoe.v1.Inference`: an adapter to the same requests as HTTP.

use std::{sync::Arc, time::Duration};

use domain::{Constraint, FinishReason, TokenOutput};
use futures::stream::BoxStream;
use proto::v1::{
    self as wire, generate_request::Prompt as WirePrompt,
    sampling_params::Constraint as WireConstraint,
};
use serde_json::json;
use tonic::{Response, Status};

use crate::{
    chat::Conversation,
    constraint::choice,
    output::Piece,
    refusal::Refusal,
    request::{Prompt, Request, Wishes, token_ids},
    requests::{Requests, Running},
    server::{FirstToken, RequestId},
    trace::Traceparent,
};

/// The service.
#[derive(Debug)]
pub(crate) struct Inference {
    requests: Arc<Requests>,
}

/// A call that runs.
struct Call {
    id: String,
    model: String,
    logprobs: bool,
    running: Running,
}

impl Inference {
    pub(crate) fn new(requests: Arc<Requests>) -> Self {
        Self { requests }
    }

    async fn start(&self, call: tonic::Request<wire::GenerateRequest>) -> Result<Call, Status> {
        let header = call.extensions().get::<RequestId>().map(|id| id.0.clone());
        let first_token = call.extensions().get::<FirstToken>().and_then(|wanted| wanted.0);
        let traceparent = call.extensions().get::<Traceparent>().cloned().unwrap_or_default();
        let begun = self.begin(header, first_token, traceparent, call.into_inner()).await;
        begun.map_err(|refusal| {
            self.requests.metrics.refused(refusal.kind);
            refusal.into()
        })
    }

    async fn begin(
        &self,
        header: Option<String>,
        first_token: Option<Duration>,
        traceparent: Traceparent,
        call: wire::GenerateRequest,
    ) -> Result<Call, Refusal> {
        let served = &self.requests.model;
        let model = if call.model.is_empty() { served.name().to_string() } else { call.model };
        served.check_name(&model)?;
        let id = request_id(&call.request_id, header)?;
        let wishes = wishes(call.sampling.unwrap_or_default(), call.stop)?;
        let logprobs = wishes.logprobs.is_some();
        let sampling = served.sampling(wishes)?;
        let prompts = vec![self.prompt(call.prompt).await?];
        let request = Request { id: id.clone(), prompts, sampling, first_token, traceparent };
        let running = self.requests.start(request).await?;
        Ok(Call { id, model, logprobs, running })
    }

    async fn prompt(&self, prompt: Option<WirePrompt>) -> Result<Prompt, Refusal> {
        match prompt {
            Some(WirePrompt::Text(text)) => Ok(Prompt::Text { text, special: true }),
            Some(WirePrompt::Tokens(tokens)) => {
                let ids: Vec<i64> = tokens.ids.into_iter().map(i64::from).collect();
                token_ids("prompt", &ids, self.requests.model.vocab).map(Prompt::Tokens)
            }
            Some(WirePrompt::Chat(chat)) => {
                let bytes = chat.messages.iter().map(|message| message.content.len()).sum();
                let text = self.requests.render(conversation(chat)?, bytes).await?;
                Ok(Prompt::Text { text, special: false })
            }
            None => {
                let expected = "one of `text`, `tokens` and `chat`";
                Err(Refusal::field("prompt", expected, "none of them"))
            }
        }
    }
}

/// The message's own id goes over the one of the metadata.
fn request_id(stated: &str, header: Option<String>) -> Result<String, Refusal> {
    if stated.is_empty() {
        return Ok(header.unwrap_or_else(crate::random::request_id));
    }
    match RequestId::accept(stated) {
        Some(RequestId(id)) => Ok(id),
        None => Err(Refusal::field(
            "request_id",
            RequestId::EXPECTED,
            format!("{} bytes of text", stated.len()),
        )),
    }
}

fn conversation(chat: wire::Chat) -> Result<Conversation, Refusal> {
    if chat.messages.is_empty() {
        return Err(Refusal::field("messages", "at least one message", "none"));
    }
    let message =
        |message: wire::ChatMessage| json!({"role": message.role, "content": message.content});
    Ok(Conversation {
        messages: chat.messages.into_iter().map(message).collect(),
        add_generation_prompt: true,
        ..Conversation::default()
    })
}

fn wishes(sampling: wire::SamplingParams, stop: Vec<String>) -> Result<Wishes, Refusal> {
    Ok(Wishes {
        temperature: sampling.temperature.map(f64::from),
        top_p: sampling.top_p.map(f64::from),
        top_k: sampling.top_k.map(i64::from),
        min_p: sampling.min_p.map(f64::from),
        presence_penalty: sampling.presence_penalty.map(f64::from),
        frequency_penalty: sampling.frequency_penalty.map(f64::from),
        repetition_penalty: sampling.repetition_penalty.map(f64::from),
        seed: sampling.seed,
        max_tokens: sampling.max_tokens.map(i64::from),
        min_tokens: sampling.min_tokens.map(i64::from),
        stop_token_ids: sampling.stop_token_ids.into_iter().map(i64::from).collect(),
        stop,
        ignore_eos: sampling.ignore_eos,
        logprobs: sampling.logprobs.map(i64::from),
        constraint: sampling.constraint.map(constraint).transpose()?,
        ..Wishes::default()
    })
}

fn constraint(constraint: WireConstraint) -> Result<Constraint, Refusal> {
    Ok(match constraint {
        WireConstraint::JsonSchema(schema) => Constraint::JsonSchema(schema),
        WireConstraint::Regex(regex) => Constraint::Regex(regex),
        WireConstraint::Choice(choices) => choice("choice", &choices.texts)?,
        WireConstraint::Grammar(grammar) => Constraint::Lark(grammar),
    })
}

/// A count for the wire; nothing here comes near the end of the type.
fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

impl Call {
    fn usage(&self) -> wire::Usage {
        wire::Usage {
            prompt_tokens: count(self.running.prompt_tokens()),
            completion_tokens: count(self.running.completion_tokens()),
            cached_tokens: count(self.running.cached_tokens()),
        }
    }

    fn logprobs(&self, tokens: &[TokenOutput]) -> Vec<wire::TokenLogprob> {
        if !self.logprobs {
            return Vec::new();
        }
        let top = |&(token_id, logprob): &(u32, f32)| wire::TopLogprob { token_id, logprob };
        tokens
            .iter()
            .filter_map(|token| {
                let logprobs = token.logprobs.as_ref()?;
                Some(wire::TokenLogprob {
                    token_id: token.token,
                    logprob: logprobs.logprob,
                    top: logprobs.top.iter().map(top).collect(),
                })
            })
            .collect()
    }

    fn chunk(&self, piece: Piece) -> wire::GenerateStreamResponse {
        let last = piece.ending.is_some();
        wire::GenerateStreamResponse {
            request_id: self.id.clone(),
            token_ids: ids(&piece.tokens),
            logprobs: self.logprobs(&piece.tokens),
            finish_reason: finish_reason(&piece).into(),
            usage: last.then(|| self.usage()),
            text: piece.text,
        }
    }
}

fn ids(tokens: &[TokenOutput]) -> Vec<u32> {
    tokens.iter().map(|token| token.token).collect()
}

fn finish_reason(piece: &Piece) -> wire::FinishReason {
    match piece.ending.as_ref().map(|ending| ending.reason) {
        None => wire::FinishReason::Unspecified,
        Some(FinishReason::Stop | FinishReason::Complete) => wire::FinishReason::Stop,
        Some(FinishReason::Length) => wire::FinishReason::Length,
    }
}

#[tonic::async_trait]
impl wire::inference_server::Inference for Inference {
    async fn generate(
        &self,
        call: tonic::Request<wire::GenerateRequest>,
    ) -> Result<Response<wire::GenerateResponse>, Status> {
        let mut call = self.start(call).await?;
        let mut pieces = call.running.collect().await?;
        // One prompt and one choice: the message has no field to ask for more.
        let piece = pieces.pop().unwrap_or_default();
        Ok(Response::new(wire::GenerateResponse {
            finish_reason: finish_reason(&piece).into(),
            usage: Some(call.usage()),
            logprobs: call.logprobs(&piece.tokens),
            token_ids: ids(&piece.tokens),
            text: piece.text,
            request_id: call.id,
            model: call.model,
        }))
    }

    type GenerateStreamStream = BoxStream<'static, Result<wire::GenerateStreamResponse, Status>>;

    async fn generate_stream(
        &self,
        call: tonic::Request<wire::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let call = self.start(call).await?;
        let chunks = futures::stream::unfold(call, async |mut call| {
            let chunk = match call.running.next().await? {
                Ok((_, piece)) => Ok(call.chunk(piece)),
                Err(refusal) => Err(refusal.into()),
            };
            Some((chunk, call))
        });
        Ok(Response::new(Box::pin(chunks)))
    }
}
