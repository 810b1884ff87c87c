//! Reads a conversation: messages, tools and what else a chat template is given.

use serde_json::{Map, Value};

use super::fields::{Fields, found, is_empty};
use crate::{chat::Conversation, refusal::Refusal, tools::Choice};

/// Reads `messages`, `tools`, `tool_choice`, `chat_template_kwargs`, `add_generation_prompt` and
/// `continue_final_message`.
pub(super) fn read(fields: &mut Fields) -> Result<(Conversation, Option<Choice>), Refusal> {
    fields.refuse("chat_template", |_| false, "a request cannot bring its own template")?;
    fields.refuse("functions", |_| false, "use `tools`")?;
    fields.refuse("documents", is_empty, "put them into a message")?;
    fields.refuse("echo", |value| value == &Value::Bool(false), "only `/v1/completions` has it")?;
    let items = fields
        .array("messages")?
        .filter(|items| !items.is_empty())
        .ok_or_else(|| Refusal::field("messages", "an array of at least one message", "none"))?;
    let messages =
        (0..).zip(items).map(|(at, item)| message(at, item)).collect::<Result<_, _>>()?;
    let go_on = fields.flag("continue_final_message")?.unwrap_or(false);
    let new_turn = fields.flag("add_generation_prompt")?;
    if go_on && new_turn == Some(true) {
        return Err(Refusal::unsupported(
            "continue_final_message",
            "not together with `add_generation_prompt`",
        ));
    }
    let variables = fields.object("chat_template_kwargs")?;
    let tools = tools(fields)?;
    let choice = choice(fields, &tools)?;
    let conversation = Conversation {
        messages,
        // What must not be called is not shown.
        tools: if choice.is_some() { tools } else { Vec::new() },
        add_generation_prompt: new_turn.unwrap_or(!go_on),
        continue_final_message: go_on,
        variables: variables.map(Fields::into_map).unwrap_or_default(),
    };
    Ok((conversation, choice))
}

fn message(at: usize, item: Value) -> Result<Value, Refusal> {
    let Value::Object(mut message) = item else {
        let here = format!("messages[{at}]");
        return Err(Refusal::field(here, "an object", found(&item)));
    };
    match message.get("role") {
        Some(Value::String(_)) => {}
        other => {
            let here = format!("messages[{at}].role");
            return Err(Refusal::field(here, "a string", found(other.unwrap_or(&Value::Null))));
        }
    }
    let content = message.remove("content").unwrap_or(Value::Null);
    match content {
        // An assistant may have said nothing, or nothing but calls.
        Value::Null if message.get("role").is_some_and(|role| role == "assistant") => {
            message.insert("content".into(), String::new().into());
        }
        Value::String(_) => {
            message.insert("content".into(), content);
        }
        Value::Array(parts) => {
            message.insert("content".into(), text_of(at, &parts)?.into());
        }
        other => {
            return Err(Refusal::field(
                format!("messages[{at}].content"),
                "a string or an array of text parts",
                found(&other),
            ));
        }
    }
    if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
        calls.iter_mut().for_each(open_arguments);
    }
    Ok(Value::Object(message))
}

/// The text of parts such as `{"type": "text", "text": "…"}`, one per line. What an assistant refused comes back
/// as `{"type": "refusal", "refusal": "…"}`.
fn text_of(at: usize, parts: &[Value]) -> Result<String, Refusal> {
    let text = |part: &Value| match part {
        Value::String(text) => Some(text.clone()),
        Value::Object(part) => {
            let kind = part.get("type")?.as_str().filter(|kind| ["text", "refusal"].contains(kind));
            part.get(kind?)?.as_str().map(str::to_string)
        }
        _ => None,
    };
    let wrong = |part: &Value| {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("unknown");
        Refusal::field(
            format!("messages[{at}].content"),
            "text parts only",
            format!("a part of type `{}`", crate::model::shorten(kind)),
        )
    };
    let texts: Result<Vec<_>, _> =
        parts.iter().map(|part| text(part).ok_or_else(|| wrong(part))).collect();
    Ok(texts?.join("\n"))
}

/// Clients send a call's arguments as JSON text, templates want the object.
fn open_arguments(call: &mut Value) {
    let arguments = call.get_mut("function").and_then(|function| function.get_mut("arguments"));
    if let Some(arguments) = arguments
        && let Some(text) = arguments.as_str()
        && let Ok(object) = serde_json::from_str::<Map<String, Value>>(text)
    {
        *arguments = Value::Object(object);
    }
}

/// The tools that the template shall render.
fn tools(fields: &mut Fields) -> Result<Vec<Value>, Refusal> {
    let tools = fields.array("tools")?.unwrap_or_default();
    if let Some(tool) = tools.iter().find(|tool| !tool.is_object()) {
        return Err(Refusal::field(
            "tools",
            "an array of objects",
            format!("an array with {}", found(tool)),
        ));
    }
    Ok(tools)
}

/// What the model is to do with the tools, if anything.
fn choice(fields: &mut Fields, tools: &[Value]) -> Result<Option<Choice>, Refusal> {
    const NAME: &str = "tool_choice";
    let wrong = |found| {
        let expected = "\"auto\", \"none\", \"required\" or a function by its name";
        Refusal::field(NAME, expected, found)
    };
    match fields.take(NAME) {
        None => Ok((!tools.is_empty()).then_some(Choice::Auto)),
        Some(Value::String(choice)) => match choice.as_str() {
            "none" => Ok(None),
            "auto" => Ok((!tools.is_empty()).then_some(Choice::Auto)),
            "required" => Ok(Some(Choice::Required)),
            other => Err(wrong(format!("`{}`", crate::model::shorten(other)))),
        },
        Some(choice) => {
            let name = choice.get("function").and_then(|function| function.get("name")?.as_str());
            let name = name.ok_or_else(|| wrong(found(&choice)))?;
            Ok(Some(Choice::Named(name.to_owned())))
        }
    }
}
