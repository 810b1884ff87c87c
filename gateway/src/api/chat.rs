//! `/v1/chat/completions`.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    Problem,
    answer::{Finish, Head, Usage},
    conversation,
    fields::Fields,
    logprobs::{Rows, rows},
    sampling::wishes,
    stream::{Chunks, Streaming, json, respond},
};
use crate::{
    output::Piece,
    refusal::Refusal,
    request::{Prompt, Request, Wishes},
    requests::{Requests, Running},
    server::{Body, FirstToken, RequestId},
    tokenizer::Tokenizer,
    trace::Traceparent,
};

#[derive(Debug, Serialize)]
struct Choice {
    index: u32,
    message: Message,
    logprobs: Option<Rows>,
    #[serde(flatten)]
    finish: Finish,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

#[derive(Debug, Serialize)]
struct Change {
    index: u32,
    delta: Delta,
    logprobs: Option<Rows>,
    #[serde(flatten)]
    finish: Finish,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

const ROLE: &str = "assistant";
const CHUNK: &str = "chat.completion.chunk";

pub(super) async fn create(
    State(requests): State<Arc<Requests>>,
    Extension(RequestId(id)): Extension<RequestId>,
    Extension(FirstToken(first_token)): Extension<FirstToken>,
    Extension(traceparent): Extension<Traceparent>,
    Body(body): Body,
) -> Result<Response, Problem> {
    let body_bytes = body.len();
    let mut fields = Fields::read_body(body).await?;
    let model = &requests.model;
    let name = fields.string("model")?.unwrap_or_else(|| model.name().to_string());
    model.check_name(&name)?;
    let streaming = Streaming::read(&mut fields)?;
    let wishes = read(&mut fields)?;
    let writer = Writer {
        head: Head::new("chatcmpl", &id, name),
        tokenizer: Arc::clone(&model.tokenizer),
        logprobs: wishes.top_logprobs.is_some(),
        token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
    };
    let sampling = model.sampling(wishes)?;
    // A template writes the special tokens itself.
    let special = fields.flag("add_special_tokens")?.unwrap_or(false);
    let conversation = conversation::read(&mut fields)?;
    let text = requests.render(conversation, body_bytes).await?;
    let prompts = vec![Prompt::Text { text, special }];
    let running =
        requests.start(Request { id, prompts, sampling, first_token, traceparent }).await?;
    match streaming {
        Streaming::On(usage) => {
            Ok(respond(running, Stream { writer, begun: HashSet::new() }, usage))
        }
        Streaming::Off => Ok(writer.whole(running).await?),
    }
}

fn read(fields: &mut Fields) -> Result<Wishes, Refusal> {
    let mut wishes = wishes(fields)?;
    let on = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs")?;
    if top.is_some_and(|top| top != 0) && !on {
        return Err(Refusal::unsupported("top_logprobs", "only allowed when `logprobs` is true"));
    }
    wishes.top_logprobs = on.then(|| top.unwrap_or(0));
    Ok(wishes)
}

/// Turns pieces into messages or parts of them.
struct Writer {
    head: Head,
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
    token_ids: bool,
}

impl Writer {
    fn logprobs(&self, piece: &Piece) -> Option<Rows> {
        self.logprobs.then(|| rows(&self.tokenizer, &piece.tokens))
    }

    fn token_ids(&self, piece: &Piece) -> Option<Vec<u32>> {
        let ids = || piece.tokens.iter().map(|token| token.token).collect();
        self.token_ids.then(ids)
    }

    async fn whole(self, mut running: Running) -> Result<Response, Refusal> {
        let pieces = running.collect().await?;
        let choice = |(index, piece): (u32, Piece)| Choice {
            index,
            logprobs: self.logprobs(&piece),
            token_ids: self.token_ids(&piece),
            message: Message { role: ROLE, content: piece.text, refusal: None },
            finish: piece.ending.into(),
        };
        let choices = (0..).zip(pieces).map(choice).collect();
        let usage = Some(Some(Usage::from(&running)));
        let answer = self.head.answer("chat.completion", choices, usage);
        Ok(Json(answer).into_response())
    }
}

struct Stream {
    writer: Writer,
    begun: HashSet<u32>,
}

impl Stream {
    fn chunk(&self, change: Change, usage: Option<Option<Usage>>) -> String {
        json(&self.writer.head.answer(CHUNK, vec![change], usage))
    }
}

impl Chunks for Stream {
    fn piece(
        &mut self,
        index: u32,
        piece: Piece,
        usage: Option<Option<Usage>>,
        out: &mut VecDeque<String>,
    ) {
        if self.begun.insert(index) {
            let change = Change {
                index,
                delta: Delta { role: Some(ROLE), content: Some(String::new()) },
                logprobs: None,
                finish: Finish::default(),
                token_ids: None,
            };
            out.push_back(self.chunk(change, usage));
        }
        // Tokens that show no text yet are told too, so that a client sees every step.
        let change = Change {
            index,
            logprobs: self.writer.logprobs(&piece),
            token_ids: self.writer.token_ids(&piece),
            delta: Delta { role: None, content: Some(piece.text) },
            finish: piece.ending.into(),
        };
        out.push_back(self.chunk(change, usage));
    }

    fn usage(&self, usage: Usage) -> String {
        let none = Vec::<Change>::new();
        json(&self.writer.head.answer(CHUNK, none, Some(Some(usage))))
    }
}
