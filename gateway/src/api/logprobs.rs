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
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<Map<String, serde_json::Value>>>,
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

impl Columns {
    /// Adds generated tokens. `offset` counts the characters of the choice's text before them.
    pub(super) fn add(
        &mut self,
        tokenizer: &Tokenizer,
        tokens: &[TokenOutput],
        offset: &mut usize,
    ) {
        for (token, logprobs) in reported(tokens) {
            self.add_one(tokenizer, token, Some(logprobs), offset);
        }
    }

    /// Adds a prompt, of whose tokens all but the first have `logprobs`.
    pub(super) fn add_prompt(
        &mut self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        logprobs: &[TokenLogprobs],
        offset: &mut usize,
    ) {
        for (at, &token) in prompt.iter().enumerate() {
            let logprobs = at.checked_sub(1).and_then(|at| logprobs.get(at));
            self.add_one(tokenizer, token, logprobs, offset);
        }
    }

    fn add_one(
        &mut self,
        tokenizer: &Tokenizer,
        token: u32,
        logprobs: Option<&TokenLogprobs>,
        offset: &mut usize,
    ) {
        let shown = text(tokenizer, token);
        self.text_offset.push(*offset);
        *offset += shown.chars().count();
        self.token_logprobs.push(logprobs.map(|logprobs| logprobs.logprob.max(LEAST)));
        self.tokens.push(shown);
        // The token itself is among its alternatives, as in vLLM.
        let top = |logprobs: &TokenLogprobs| {
            let own = std::iter::once((token, logprobs.logprob));
            let mut top = Map::new();
            for (alternative, logprob) in own.chain(logprobs.top.iter().copied()) {
                let value = logprob.max(LEAST).into();
                top.entry(text(tokenizer, alternative)).or_insert(value);
            }
            top
        };
        self.top_logprobs.push(logprobs.map(top));
    }
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
