//! Tool calls as OpenAI's API shows them, whole or in parts.

use serde::Serialize;

use crate::tools::Call;

/// A call in a message, or a part of one in a stream.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ToolCall {
    /// Its number among the message's calls; whole messages need none.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// Absent where a call goes on, as `type` and the function's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: Function,
}

#[derive(Clone, Debug, Serialize)]
struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl ToolCall {
    /// The call in a whole message.
    pub(super) fn whole(call: Call) -> Self {
        Self { index: None, ..Self::part(call) }
    }

    /// The call, or what there is of it, in a stream.
    pub(super) fn part(call: Call) -> Self {
        let begins = call.name.is_some();
        Self {
            index: Some(call.index),
            id: begins.then(|| format!("call_{}", crate::random::request_id())),
            kind: begins.then_some("function"),
            function: Function { name: call.name, arguments: call.arguments },
        }
    }
}
