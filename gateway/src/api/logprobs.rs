//! Log-probabilities in the forms of completions and of chat.

use domain::{TokenLogprobs, TokenOutput};
use serde::Serialize;
use serde_json::Map;

use crate::tokenizer::Tokenizer;

/// JSON has no infinity; this is what vLLM puts in its place.
const LEAST: f32 = -9999.0;

/// The form of `/v1/completions`: four arrays with one entry per token.
#[derive(Debug, Default, Serialize)]
pub(super) struct Columns {
    text_offset: Vec<usize>,
    token_logprobs: Vec<f32>,
    tokens: Vec<String>,
    top_logprobs: Vec<Map<String, serde_json::Value>>,
}

/// The form of `/v1/chat/completions`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Rows {
    content: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    token: Entry,
    top_logprobs: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

fn text(tokenizer: &Tokenizer, token: u32) -> String {
    String::from_utf8_lossy(&tokenizer.bytes(token)).into_owned()
}

fn reported(tokens: &[TokenOutput]) -> impl Iterator<Item = (u32, &TokenLogprobs)> {
    tokens.iter().filter_map(|token| Some((token.token, token.logprobs.as_ref()?)))
}

/// The columns of some tokens. `offset` counts the characters of the choice's text before them.
pub(super) fn columns(
    tokenizer: &Tokenizer,
    tokens: &[TokenOutput],
    offset: &mut usize,
) -> Columns {
    let mut columns = Columns::default();
    for (token, logprobs) in reported(tokens) {
        let shown = text(tokenizer, token);
        let mut top = Map::new();
        // The token itself is among its alternatives, as in vLLM.
        for (alternative, logprob) in
            std::iter::once((token, logprobs.logprob)).chain(logprobs.top.iter().copied())
        {
            top.entry(text(tokenizer, alternative)).or_insert_with(|| logprob.max(LEAST).into());
        }
        columns.text_offset.push(*offset);
        *offset += shown.chars().count();
        columns.token_logprobs.push(logprobs.logprob.max(LEAST));
        columns.tokens.push(shown);
        columns.top_logprobs.push(top);
    }
    columns
}

/// The rows of some tokens.
pub(super) fn rows(tokenizer: &Tokenizer, tokens: &[TokenOutput]) -> Rows {
    let entry = |(token, logprob): (u32, f32)| Entry {
        token: text(tokenizer, token),
        logprob: logprob.max(LEAST),
        bytes: tokenizer.bytes(token),
    };
    let content = reported(tokens)
        .map(|(token, logprobs)| Row {
            token: entry((token, logprobs.logprob)),
            top_logprobs: logprobs.top.iter().copied().map(entry).collect(),
        })
        .collect();
    Rows { content }
}
