//! `/v1/chat/completions`.

use std::{
    collections::{HashMap, VecDeque},
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
    calls::ToolCall,
    conversation,
    fields::Fields,
    logprobs::{Rows, rows},
    sampling::wishes,
    stream::{Chunks, Streaming, json, respond},
};
use crate::{
    chat::{ChatTemplate, Conversation},
    output::{Ending, Piece},
    refusal::Refusal,
    request::{Prompt, Request, Wishes},
    requests::{Requests, Running},
    server::{Body, FirstToken, RequestId},
    tokenizer::Tokenizer,
    tools::{self, Calls, Heard, Reader},
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
    content: Option<String>,
    refusal: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
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
    let mut wishes = read(&mut fields)?;
    let (conversation, choice) = conversation::read(&mut fields)?;
    let several = fields.flag("parallel_tool_calls")?.unwrap_or(true);
    force(&mut wishes, &conversation, choice.as_ref(), several)?;
    let notation = model.template.as_ref().ok().and_then(ChatTemplate::notation);
    let writer = Writer {
        head: Head::new("chatcmpl", &id, name),
        tokenizer: Arc::clone(&model.tokenizer),
        logprobs: wishes.top_logprobs.is_some(),
        token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
        calls: choice.map(|choice| Calls::of(choice, notation)).unwrap_or_default(),
        several,
    };
    let sampling = model.sampling(wishes)?;
    // A template writes the special tokens itself.
    let special = fields.flag("add_special_tokens")?.unwrap_or(false);
    let text = requests.render(conversation, body_bytes).await?;
    let prompts = vec![Prompt::Text { text, special }];
    let running =
        requests.start(Request { id, prompts, sampling, first_token, traceparent }).await?;
    match streaming {
        Streaming::On(usage) => {
            Ok(respond(running, Stream { writer, readers: HashMap::new() }, usage))
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

/// Holds the text to the form of the call that is forced, if one is.
fn force(
    wishes: &mut Wishes,
    conversation: &Conversation,
    choice: Option<&tools::Choice>,
    several: bool,
) -> Result<(), Refusal> {
    let Some(choice) = choice else { return Ok(()) };
    let Some(forced) = tools::constraint(&conversation.tools, choice, several)? else {
        return Ok(());
    };
    if wishes.constraint.replace(forced).is_some() {
        let message = "a call cannot be forced where the text has to be something else";
        return Err(Refusal::unsupported("tool_choice", message));
    }
    Ok(())
}

/// Turns pieces into messages or parts of them.
struct Writer {
    head: Head,
    tokenizer: Arc<Tokenizer>,
    logprobs: bool,
    token_ids: bool,
    calls: Calls,
    /// Whether there may be more than one call.
    several: bool,
}

impl Writer {
    /// Reads a choice's text.
    fn reader(&self) -> Reader {
        Reader::new(self.calls.clone(), self.several)
    }

    fn logprobs(&self, piece: &Piece) -> Option<Rows> {
        self.logprobs.then(|| rows(&self.tokenizer, &piece.tokens))
    }

    fn token_ids(&self, piece: &Piece) -> Option<Vec<u32>> {
        let ids = || piece.tokens.iter().map(|token| token.token).collect();
        self.token_ids.then(ids)
    }

    async fn whole(self, mut running: Running) -> Result<Response, Refusal> {
        let pieces = running.collect().await?;
        let choice = |(index, mut piece): (u32, Piece)| {
            let mut reader = self.reader();
            let heard = reader.push(std::mem::take(&mut piece.text), true);
            Choice {
                index,
                logprobs: self.logprobs(&piece),
                token_ids: self.token_ids(&piece),
                finish: finish(piece.ending, &reader),
                message: Message::from(heard),
            }
        };
        let choices = (0..).zip(pieces).map(choice).collect();
        let usage = Some(Some(Usage::from(&running)));
        let answer = self.head.answer("chat.completion", choices, usage);
        Ok(Json(answer).into_response())
    }
}

impl From<Heard> for Message {
    /// Beside calls, text is only told if there is some.
    fn from(Heard { text, calls }: Heard) -> Self {
        let silent = text.trim().is_empty() && !calls.is_empty();
        let tool_calls = calls.into_iter().map(ToolCall::whole).collect();
        Self { role: ROLE, content: (!silent).then_some(text), refusal: None, tool_calls }
    }
}

fn finish(ending: Option<Ending>, reader: &Reader) -> Finish {
    let finish = Finish::from(ending);
    if reader.has_called() { finish.in_calls() } else { finish }
}

struct Stream {
    writer: Writer,
    /// Of the choices that have begun.
    readers: HashMap<u32, Reader>,
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
        mut piece: Piece,
        usage: Option<Option<Usage>>,
        out: &mut VecDeque<String>,
    ) {
        if !self.readers.contains_key(&index) {
            let role =
                Delta { role: Some(ROLE), content: Some(String::new()), tool_calls: Vec::new() };
            let change = Change {
                index,
                delta: role,
                logprobs: None,
                finish: Finish::default(),
                token_ids: None,
            };
            out.push_back(self.chunk(change, usage));
        }
        let reader = self.readers.entry(index).or_insert_with(|| self.writer.reader());
        let Heard { text, calls } =
            reader.push(std::mem::take(&mut piece.text), piece.ending.is_some());
        // Tokens that show no text yet are told too, so that a client sees every step.
        let silent = text.is_empty() && !calls.is_empty();
        let tool_calls = calls.into_iter().map(ToolCall::part).collect();
        let change = Change {
            index,
            logprobs: self.writer.logprobs(&piece),
            token_ids: self.writer.token_ids(&piece),
            delta: Delta { role: None, content: (!silent).then_some(text), tool_calls },
            finish: finish(piece.ending, reader),
        };
        out.push_back(self.chunk(change, usage));
    }

    fn usage(&self, usage: Usage) -> String {
        let none = Vec::<Change>::new();
        json(&self.writer.head.answer(CHUNK, none, Some(Some(usage))))
    }
}
