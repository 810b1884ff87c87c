//! `/v1/completions`.

use std::{
    collections::{HashSet, VecDeque},
    iter::repeat_n,
    sync::Arc,
};

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use domain::FinishReason;
use serde::Serialize;
use serde_json::Value;

use super::{
    Problem,
    answer::{Finish, Head, Usage},
    fields::{Fields, found, integers},
    logprobs::Columns,
    sampling::wishes,
    stream::{Chunks, Streaming, json, respond},
};
use crate::{
    output::{Ending, Piece},
    refusal::Refusal,
    request::{Prompt, Request, Wishes, token_ids},
    requests::{Requests, Running},
    server::{Body, FirstToken, RequestId},
    tokenizer::Tokenizer,
    trace::Traceparent,
};

/// What OpenAI's API generates when nothing is said.
const TOKENS_MAX: i64 = 16;
const OBJECT: &str = "text_completion";

#[derive(Debug, Serialize)]
struct Choice {
    index: u32,
    text: String,
    logprobs: Option<Columns>,
    #[serde(flatten)]
    finish: Finish,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// What shapes the answer, apart from its text.
#[derive(Clone, Copy, Debug)]
struct Options {
    echo: bool,
    /// The prompt is all that is wanted: of what is generated, which has to be something, nothing is told.
    only_echo: bool,
    logprobs: bool,
    token_ids: bool,
}

pub(super) async fn create(
    State(requests): State<Arc<Requests>>,
    Extension(RequestId(id)): Extension<RequestId>,
    Extension(FirstToken(first_token)): Extension<FirstToken>,
    Extension(traceparent): Extension<Traceparent>,
    Body(body): Body,
) -> Result<Response, Problem> {
    let mut fields = Fields::read_body(body).await?;
    let model = &requests.model;
    let name = fields.string("model")?.unwrap_or_else(|| model.name().to_string());
    model.check_name(&name)?;
    let streaming = Streaming::read(&mut fields)?;
    let prompts = prompts(&mut fields, model.vocab)?;
    let mut wishes = read(&mut fields)?;
    let options = options(&mut fields, &wishes)?;
    if options.only_echo {
        wishes.max_tokens = Some(1);
    }
    // What is echoed is told of as what is generated.
    wishes.prompt_logprobs = wishes.logprobs.filter(|_| options.echo);
    let head = Head::new("cmpl", &id, name);
    let sampling = model.sampling(wishes)?;
    let running =
        requests.start(Request { id, prompts, sampling, first_token, traceparent }).await?;
    let writer = Writer::new(head, options, &running, Arc::clone(&model.tokenizer));
    match streaming {
        Streaming::On(usage) => {
            Ok(respond(running, Stream { writer, begun: HashSet::new() }, usage))
        }
        Streaming::Off => Ok(writer.whole(running).await?),
    }
}

fn read(fields: &mut Fields) -> Result<Wishes, Refusal> {
    fields.refuse("suffix", |suffix| suffix == "", "inserting before a suffix is not offered")?;
    let mut wishes = wishes(fields)?;
    if wishes.max_completion_tokens.is_none() {
        wishes.max_tokens.get_or_insert(TOKENS_MAX);
    }
    wishes.logprobs = fields.integer("logprobs")?;
    Ok(wishes)
}

fn options(fields: &mut Fields, wishes: &Wishes) -> Result<Options, Refusal> {
    let echo = fields.flag("echo")?.unwrap_or(false);
    let nothing = wishes.max_completion_tokens.is_none() && wishes.max_tokens == Some(0);
    Ok(Options {
        echo,
        only_echo: echo && nothing,
        logprobs: wishes.logprobs.is_some(),
        token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
    })
}

/// `prompt`: a string, strings, token ids, or arrays of token ids.
fn prompts(fields: &mut Fields, vocab: u32) -> Result<Vec<Prompt>, Refusal> {
    const EXPECTED: &str = "a string, an array of strings, an array of token ids, or an array of \
                            such arrays";
    let special = fields.flag("add_special_tokens")?.unwrap_or(true);
    let wrong = |found: String| Refusal::field("prompt", EXPECTED, found);
    let text = |text| Prompt::Text { text, special };
    let items = match fields.take("prompt") {
        Some(Value::String(one)) => return Ok(vec![text(one)]),
        Some(Value::Array(items)) if items.is_empty() => {
            return Err(wrong("an empty array".into()));
        }
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong(found(&other))),
        None => return Err(wrong("nothing".into())),
    };
    if items[0].is_number() {
        let tokens = token_ids("prompt", &integers("prompt", &items)?, vocab)?;
        return Ok(vec![Prompt::Tokens(tokens)]);
    }
    items
        .into_iter()
        .map(|item| match item {
            Value::String(one) => Ok(text(one)),
            Value::Array(tokens) => {
                token_ids("prompt", &integers("prompt", &tokens)?, vocab).map(Prompt::Tokens)
            }
            other => Err(wrong(format!("an array with {}", found(&other)))),
        })
        .collect()
}

/// Turns pieces into choices.
struct Writer {
    head: Head,
    options: Options,
    tokenizer: Arc<Tokenizer>,
    /// What is echoed: the prompt of each choice.
    echoed: Vec<Arc<Vec<u32>>>,
    /// Characters of each choice so far.
    offsets: Vec<usize>,
}

impl Writer {
    fn new(head: Head, options: Options, running: &Running, tokenizer: Arc<Tokenizer>) -> Self {
        let n = running.n as usize;
        let prompts = running.prompts.iter().filter(|_| options.echo);
        let prompts = prompts.map(|prompt| Arc::new(prompt.clone()));
        let echoed = prompts.flat_map(|prompt| repeat_n(prompt, n)).collect();
        Self { head, options, tokenizer, echoed, offsets: vec![0; n * running.prompts.len()] }
    }

    /// A choice's next piece, after its prompt if that is echoed and this is the `first` piece.
    fn choice(&mut self, index: u32, mut piece: Piece, first: bool) -> Choice {
        let mut columns = Columns::default();
        let offset = &mut self.offsets[index as usize];
        if self.options.only_echo {
            piece.text.clear();
            piece.ending = Some(Ending { reason: FinishReason::Length, cause: None });
        }
        if let Some(prompt) = self.echoed.get(index as usize).filter(|_| first) {
            piece.text.insert_str(0, &self.tokenizer.decode(prompt));
            let scores = piece.tokens.first().map_or(&[][..], |first| &first.prompt_logprobs);
            columns.add_prompt(&self.tokenizer, prompt, scores, offset);
        }
        if self.options.only_echo {
            piece.tokens.clear();
        }
        columns.add(&self.tokenizer, &piece.tokens, offset);
        let ids = || piece.tokens.iter().map(|token| token.token).collect();
        Choice {
            index,
            logprobs: self.options.logprobs.then_some(columns),
            token_ids: self.options.token_ids.then(ids),
            text: piece.text,
            finish: piece.ending.into(),
        }
    }

    async fn whole(mut self, mut running: Running) -> Result<Response, Refusal> {
        let pieces = running.collect().await?;
        let choices =
            (0..).zip(pieces).map(|(index, piece)| self.choice(index, piece, true)).collect();
        let usage = Some(Some(Usage::from(&running)));
        Ok(Json(self.head.answer(OBJECT, choices, usage)).into_response())
    }
}

struct Stream {
    writer: Writer,
    begun: HashSet<u32>,
}

impl Chunks for Stream {
    fn piece(
        &mut self,
        index: u32,
        piece: Piece,
        usage: Option<Option<Usage>>,
        out: &mut VecDeque<String>,
    ) {
        let first = self.begun.insert(index);
        // Tokens that show no text yet are told too, so that a client sees every step.
        let choice = self.writer.choice(index, piece, first);
        out.push_back(json(&self.writer.head.answer(OBJECT, vec![choice], usage)));
    }

    fn usage(&self, usage: Usage) -> String {
        json(&self.writer.head.answer(OBJECT, Vec::<Choice>::new(), Some(Some(usage))))
    }
}
