//! Chat: a conversation becomes a prompt by the model's own template.

mod environment;
mod files;
#[cfg(test)]
mod tests;

use std::{fmt, path::Path};

use minijinja::{Environment, Value, value::Serde};
use serde_json::Map;

use crate::{
    model::LoadError,
    refusal::{Kind, Refusal},
    tools::Notation,
};

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
const DEVELOPER: &str = "developer";
/// Stands behind a message that is to be gone on with while the template renders it; a letter of nobody's, and a blank.
const MARK: &str = "\u{E0F7} ";

/// A model's chat template, compiled.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether some text of the template mentions tools.
    renders_tools: bool,
    /// Whether some text of the template mentions the role `developer`.
    knows_developer: bool,
    has_tool_use: bool,
    /// How it has tool calls written.
    notation: Option<Notation>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("renders_tools", &self.renders_tools)
            .finish_non_exhaustive()
    }
}

/// What a template is given.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Conversation {
    /// Messages as objects with at least `role`; `content` is a string or absent.
    pub(crate) messages: Vec<serde_json::Value>,
    /// Tools as the client stated them; empty for none.
    pub(crate) tools: Vec<serde_json::Value>,
    /// Whether the prompt ends with the beginning of the assistant's turn.
    pub(crate) add_generation_prompt: bool,
    /// Whether the prompt ends within the last message, for the model to go on with it.
    pub(crate) continue_final_message: bool,
    /// Further variables, such as Qwen3's `enable_thinking`.
    pub(crate) variables: Map<String, serde_json::Value>,
}

impl ChatTemplate {
    /// Finds and compiles a model's template: `file` if given, else what the folder has. The
    /// inner error is a sentence for clients of a model that cannot chat.
    pub(crate) fn load(
        folder: &Path,
        file: Option<&Path>,
    ) -> Result<Result<Self, String>, LoadError> {
        let found = files::find(folder, file)?;
        if found.templates.is_empty() {
            return Ok(Err("this model has no chat template: use completions, or start the \
                           gateway with one (`model.chat_template`, or `amoe serve --chat-template`)"
                .to_string()));
        }
        Ok(Self::compile(&found.templates, found.special_tokens)
            .map_err(|error| format!("this model's chat template cannot be compiled: {error}")))
    }

    fn compile(
        templates: &[(String, String)],
        special_tokens: Vec<(String, String)>,
    ) -> Result<Self, minijinja::Error> {
        let mut environment = environment::new()?;
        for (name, text) in special_tokens {
            environment.add_global(name, text);
        }
        for (name, source) in templates {
            let source = environment::without_generation_tags(source);
            environment.add_template_owned(name.clone(), source)?;
        }
        environment.get_template(DEFAULT)?;
        Ok(Self {
            renders_tools: templates.iter().any(|(_, source)| source.contains("tools")),
            knows_developer: templates.iter().any(|(_, source)| source.contains(DEVELOPER)),
            has_tool_use: templates.iter().any(|(name, _)| name == TOOL_USE),
            notation: templates.iter().find_map(|(_, source)| Notation::of(source)),
            environment,
        })
    }

    /// How the model writes tool calls, if that is a notation that can be read.
    pub(crate) fn notation(&self) -> Option<Notation> {
        self.notation
    }

    /// The prompt of a conversation.
    pub(crate) fn render(&self, mut conversation: Conversation) -> Result<String, Refusal> {
        if !conversation.tools.is_empty() && !self.renders_tools {
            return Err(Refusal::unsupported(
                "tools",
                "this model's chat template does not render tools",
            ));
        }
        if !self.knows_developer {
            conversation.messages.iter_mut().for_each(developer_is_system);
        }
        let name =
            if self.has_tool_use && !conversation.tools.is_empty() { TOOL_USE } else { DEFAULT };
        let refused = |error: minijinja::Error| Refusal {
            param: Some("messages".into()),
            ..Refusal::new(
                Kind::Invalid,
                format!("`messages`: the model's chat template refuses them: {}", reason(&error)),
            )
        };
        let template = self.environment.get_template(name).map_err(refused)?;
        let goes_on = conversation.continue_final_message;
        if goes_on {
            conversation.messages.last_mut().into_iter().for_each(mark_end);
        }
        let text = template.render(variables(conversation)).map_err(refused)?;
        if goes_on { up_to_mark(text) } else { Ok(text) }
    }
}

/// Puts the mark behind a message's text.
fn mark_end(message: &mut serde_json::Value) {
    if let Some(serde_json::Value::String(content)) = message.get_mut("content") {
        content.push_str(MARK);
    }
}

/// The prompt up to the mark, without what the template puts behind the last message. A template that has taken the
/// mark's blank trims messages, so what is blank before the mark is not the prompt's either.
fn up_to_mark(mut text: String) -> Result<String, Refusal> {
    let Some(at) = text.rfind(MARK.trim_end()) else {
        return Err(Refusal::unsupported(
            "continue_final_message",
            "this model's chat template leaves out the last message",
        ));
    };
    let trimmed = !text[at..].starts_with(MARK);
    text.truncate(at);
    if trimmed {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

/// Newer clients call `developer` what templates call `system`; many templates leave out, without a
/// word, what comes from a role that they do not know.
fn developer_is_system(message: &mut serde_json::Value) {
    if let Some(role) = message.get_mut("role").filter(|role| *role == DEVELOPER) {
        *role = "system".into();
    }
}

/// The error's own words, without the template's name and line when the template raised it itself.
fn reason(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) if environment::is_raised(error) => detail.to_string(),
        _ => error.to_string(),
    }
}

fn variables(conversation: Conversation) -> Value {
    let tools = if conversation.tools.is_empty() {
        Value::from(())
    } else {
        Value::from(Serde(conversation.tools))
    };
    let own = [
        ("messages", Value::from(Serde(conversation.messages))),
        ("tools", tools),
        ("documents", Value::from(())),
        ("add_generation_prompt", Value::from(conversation.add_generation_prompt)),
    ];
    let further =
        conversation.variables.into_iter().map(|(name, value)| (name, Value::from(Serde(value))));
    // A later entry replaces an earlier one: a client cannot replace what the gateway sets.
    let own = own.map(|(name, value)| (name.to_string(), value));
    further.chain(own).collect::<std::collections::BTreeMap<_, _>>().into()
}
