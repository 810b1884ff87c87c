//! Parts of an answer that completions and chat share.

use domain::FinishReason;
use serde::Serialize;

use crate::{
    output::{Ending, StopCause},
    requests::Running,
};

/// Tokens that went in and came out.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
    prompt_tokens_details: PromptTokens,
}

/// Of the tokens that went in.
#[derive(Clone, Copy, Debug, Serialize)]
struct PromptTokens {
    /// Those that needed no computing, because an earlier prompt began alike.
    cached_tokens: usize,
}

impl From<&Running> for Usage {
    fn from(running: &Running) -> Self {
        let (prompt_tokens, completion_tokens) =
            (running.prompt_tokens(), running.completion_tokens());
        Self {
            prompt_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            completion_tokens,
            prompt_tokens_details: PromptTokens { cached_tokens: running.cached_tokens() },
        }
    }
}

/// What names an answer in all its chunks.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

impl Head {
    pub(super) fn new(prefix: &str, request_id: &str, model: String) -> Self {
        Self { id: format!("{prefix}-{request_id}"), created: crate::clock::unix_s(), model }
    }
}

/// The frame of an answer or a chunk around its choices.
#[derive(Debug, Serialize)]
pub(super) struct Answer<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    /// Absent, null, or the usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

impl Head {
    pub(super) fn answer<C>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Option<Usage>>,
    ) -> Answer<'_, C> {
        Answer { id: &self.id, object, created: self.created, model: &self.model, choices, usage }
    }
}

/// `stop_reason`, vLLM's word for the stop string or token.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum StopReason {
    Text(String),
    Token(u32),
}

const STOP: &str = "stop";

/// `finish_reason` and `stop_reason` of a choice.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Finish {
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
}

impl Finish {
    /// The same for a text that is, or ends in, tool calls.
    pub(super) fn in_calls(mut self) -> Self {
        if self.finish_reason == Some(STOP) {
            self.finish_reason = Some("tool_calls");
        }
        self
    }
}

impl From<Option<Ending>> for Finish {
    fn from(ending: Option<Ending>) -> Self {
        let Some(Ending { reason, cause }) = ending else {
            return Self::default();
        };
        Self {
            finish_reason: Some(match reason {
                FinishReason::Stop | FinishReason::Complete => STOP,
                FinishReason::Length => "length",
            }),
            stop_reason: cause.map(|cause| match cause {
                StopCause::Text(text) => StopReason::Text(text),
                StopCause::Token(token) => StopReason::Token(token),
            }),
        }
    }
}
