//! Tool calls: what a client lets the model do, makes it do, and how the calls are found in what it writes.

mod reader;
#[cfg(test)]
mod tests;

use domain::Constraint;
use serde_json::{Map, Value, json};

use crate::refusal::Refusal;

pub(crate) use reader::{Call, Heard, Reader};

/// How a model's own template has it write a call, between `<tool_call>` and `</tool_call>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notation {
    /// `{"name": …, "arguments": {…}}`, as Hermes, Qwen2 and Qwen3 do.
    Json,
    /// The name, then `<arg_key>` and `<arg_value>` by turns, as GLM-4.5 does.
    Keys,
}

/// What stands in the text of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Calls {
    /// None: the text is the answer.
    #[default]
    Never,
    /// The model calls tools or does not.
    Free(Notation),
    /// An array of calls and nothing else.
    Required,
    /// The arguments of this function.
    Named(String),
}

impl Calls {
    /// What a choice makes of the text, for a model that writes calls in `notation`.
    pub(crate) fn of(choice: Choice, notation: Option<Notation>) -> Self {
        match choice {
            Choice::Auto => notation.map_or(Self::Never, Self::Free),
            Choice::Required => Self::Required,
            Choice::Named(name) => Self::Named(name),
        }
    }
}

/// What a client asks for, by `tools` and `tool_choice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// `auto`: the model decides.
    Auto,
    /// `required`: one tool at least.
    Required,
    /// This tool.
    Named(String),
}

impl Notation {
    /// How a template has calls written, if it is in one of the known ways.
    pub(crate) fn of(template: &str) -> Option<Self> {
        if !template.contains(reader::OPEN) {
            return None;
        }
        Some(if template.contains(reader::KEY_OPEN) { Self::Keys } else { Self::Json })
    }
}

/// The form that a forced call's text has to keep; none where the model decides. `several` lets it call more than one.
pub(crate) fn constraint(
    tools: &[Value],
    choice: &Choice,
    several: bool,
) -> Result<Option<Constraint>, Refusal> {
    let schema = match choice {
        Choice::Auto => return Ok(None),
        Choice::Named(name) => {
            let tool = tools.iter().find(|tool| name_of(tool) == Some(name));
            parameters(tool.ok_or_else(|| {
                Refusal::field("tool_choice", "a function among `tools`", format!("`{name}`"))
            })?)
        }
        Choice::Required => any_call(tools, several)?,
    };
    Ok(Some(Constraint::JsonSchema(schema.to_string())))
}

/// The name of a tool's function.
fn name_of(tool: &Value) -> Option<&str> {
    tool.get("function")?.get("name")?.as_str()
}

/// The schema of a tool's arguments.
fn parameters(tool: &Value) -> Value {
    let stated = tool.get("function").and_then(|function| function.get("parameters"));
    let stated = stated.filter(|parameters| !parameters.is_null()).cloned();
    stated.unwrap_or_else(|| json!({"type": "object", "properties": {}}))
}

/// The schema of an array of calls of any of the tools.
fn any_call(tools: &[Value], several: bool) -> Result<Value, Refusal> {
    let mut definitions = Map::new();
    let mut calls = Vec::new();
    for tool in tools {
        let name = name_of(tool)
            .ok_or_else(|| Refusal::field("tools", "functions with a name", "one without"))?;
        let mut parameters = parameters(tool);
        lift_definitions(&mut parameters, &mut definitions)?;
        calls.push(json!({
            "type": "object",
            "properties": {"name": {"const": name}, "parameters": parameters},
            "required": ["name", "parameters"],
            "additionalProperties": false,
        }));
    }
    if calls.is_empty() {
        return Err(Refusal::field(
            "tools",
            "a tool to call, which `tool_choice` asks for",
            "none",
        ));
    }
    let mut schema = json!({"type": "array", "minItems": 1, "items": {"anyOf": calls}});
    if !several {
        schema["maxItems"] = 1.into();
    }
    if !definitions.is_empty() {
        schema["$defs"] = definitions.into();
    }
    Ok(schema)
}

/// References within a schema name its root: what it defines has to go along when it becomes part of another.
fn lift_definitions(
    schema: &mut Value,
    definitions: &mut Map<String, Value>,
) -> Result<(), Refusal> {
    let own = schema.as_object_mut().and_then(|schema| schema.remove("$defs"));
    let Some(Value::Object(own)) = own else { return Ok(()) };
    for (name, definition) in own {
        if definitions.get(&name).is_some_and(|other| *other != definition) {
            let found = format!("two of `{name}`");
            return Err(Refusal::field("tools", "one definition of a name in all `$defs`", found));
        }
        definitions.insert(name, definition);
    }
    Ok(())
}
