//! `/tokenize` and `/detokenize`, in vLLM's shapes.

use std::sync::Arc;

use axum::{Json, extract::State};
use bytes::Bytes;
use serde::Serialize;

use super::{Problem, conversation, fields::Fields};
use crate::{
    refusal::{Kind, Refusal},
    request::token_ids,
    requests::{Requests, TEXT_INLINE_MAX, off_worker},
    server::Body,
};

#[derive(Debug, Serialize)]
pub(super) struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
pub(super) struct Detokenized {
    prompt: String,
}

async fn parse(requests: &Requests, body: Bytes) -> Result<Fields, Refusal> {
    let mut fields = Fields::read_body(body).await?;
    if let Some(name) = fields.string("model")? {
        requests.model.check_name(&name)?;
    }
    Ok(fields)
}

/// Tokens of `prompt`, or of `messages` as the chat template renders them.
pub(super) async fn tokenize(
    State(requests): State<Arc<Requests>>,
    Body(body): Body,
) -> Result<Json<Tokenized>, Problem> {
    let bytes = body.len();
    let long = bytes > TEXT_INLINE_MAX;
    let mut fields = parse(&requests, body).await?;
    let special = fields.flag("add_special_tokens")?;
    let strings = fields.flag("return_token_strs")?.unwrap_or(false);
    let (text, special) = match fields.string("prompt")? {
        Some(text) => (text, special.unwrap_or(true)),
        None => {
            let (conversation, _) = conversation::read(&mut fields)?;
            let text = requests.render(conversation, bytes).await?;
            (text, special.unwrap_or(false))
        }
    };
    let model = Arc::clone(&requests.model);
    let work = move || {
        let tokens = model.tokenizer.encode(&text, special).map_err(|error| {
            Refusal::new(Kind::Invalid, format!("`prompt`: cannot be tokenized: {error}"))
        })?;
        let entry = |&token: &u32| model.tokenizer.entry(token).unwrap_or_default();
        Ok(Tokenized {
            count: tokens.len(),
            max_model_len: model.positions_max,
            token_strs: strings.then(|| tokens.iter().map(entry).collect()),
            tokens,
        })
    };
    Ok(Json(off_worker(long, work).await?))
}

/// The text of `tokens`, special ones spelled out.
pub(super) async fn detokenize(
    State(requests): State<Arc<Requests>>,
    Body(body): Body,
) -> Result<Json<Detokenized>, Problem> {
    let long = body.len() > TEXT_INLINE_MAX;
    let mut fields = parse(&requests, body).await?;
    let tokens = fields
        .integers("tokens")?
        .ok_or_else(|| Refusal::field("tokens", "an array of token ids", "nothing"))?;
    let tokens = token_ids("tokens", &tokens, requests.model.vocab)?;
    let model = Arc::clone(&requests.model);
    let work = move || Ok(Detokenized { prompt: model.tokenizer.decode_with(&tokens, true) });
    Ok(Json(off_worker(long, work).await?))
}
