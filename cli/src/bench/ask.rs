//! One request of a load, and what it took.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{events::Events, stats::Timing};
use crate::http::Server;

/// What all requests of a load have in common.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) endpoint: String,
    pub(super) model: String,
    pub(super) output_tokens: u32,
    pub(super) ignore_eos: bool,
}

/// Sends a prompt and reads the answer's stream to its end.
///
/// As vLLM counts, every event with a choice is a chunk of output, and tokens are counted by the
/// server.
pub(super) async fn ask(server: &Server, wish: &Wish, prompt: &[u32]) -> Result<Timing> {
    let body = body(wish, prompt);
    let sent = Instant::now();
    let mut events = Events::new(server.post(&wish.endpoint, &body).await?);
    let (mut chunks, mut usage) = (Vec::new(), None);
    while let Some(event) = events.next().await? {
        if event["choices"].as_array().is_some_and(|choices| !choices.is_empty()) {
            chunks.push(sent.elapsed());
        }
        usage = Some(&event["usage"]).filter(|usage| usage.is_object()).cloned().or(usage);
    }
    let usage = usage.context("the answer has no usage, which stream_options asked for")?;
    timing(&chunks, &usage)
}

fn body(wish: &Wish, prompt: &[u32]) -> Value {
    let mut body = json!({
        "model": wish.model,
        "prompt": prompt,
        "max_tokens": wish.output_tokens,
        "temperature": 0.0,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    if wish.ignore_eos {
        body["ignore_eos"] = true.into();
    }
    body
}

/// `chunks` came so long after the request was sent.
fn timing(chunks: &[Duration], usage: &Value) -> Result<Timing> {
    let (Some(&ttft), Some(&e2el)) = (chunks.first(), chunks.last()) else {
        bail!("the answer has no tokens");
    };
    let count = |name: &str| usage[name].as_u64().with_context(|| format!("usage has no {name}"));
    Ok(Timing {
        prompt_tokens: count("prompt_tokens")?,
        output_tokens: count("completion_tokens")?,
        ttft,
        itl: chunks.windows(2).map(|pair| pair[1] - pair[0]).collect(),
        e2el,
    })
}
