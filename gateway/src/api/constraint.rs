//! Reads what a client wants its answer's text to be: OpenAI's `response_format`, and vLLM's `structured_outputs` with its
//! older names `guided_*`.

use domain::Constraint;
use serde_json::Value;

use super::fields::{Fields, found};
use crate::{
    constraint::{any_object, choice},
    refusal::Refusal,
};

/// Reads all fields that can bring a constraint, of which one may.
pub(super) fn read(fields: &mut Fields) -> Result<Option<Constraint>, Refusal> {
    let mut stated = Vec::new();
    stated.extend(response_format(fields)?);
    if let Some(mut outputs) = fields.object("structured_outputs")? {
        stated.extend(structured_outputs(&mut outputs)?);
    }
    stated.extend(json(fields, "guided_json")?);
    stated.extend(fields.string("guided_regex")?.map(Constraint::Regex));
    stated.extend(one_of(fields, "guided_choice")?);
    stated.extend(fields.string("guided_grammar")?.map(Constraint::Lark));
    if stated.len() > 1 {
        let message =
            "one constraint at most, in `response_format`, `structured_outputs` or `guided_*`";
        return Err(Refusal::unsupported("structured_outputs", message));
    }
    Ok(stated.pop())
}

fn response_format(fields: &mut Fields) -> Result<Option<Constraint>, Refusal> {
    const NAME: &str = "response_format";
    let Some(mut format) = fields.object(NAME)? else { return Ok(None) };
    let kind = format.string("type")?.unwrap_or_default();
    match kind.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some(any_object())),
        "json_schema" => {
            let schema = format.object("json_schema")?;
            let schema =
                schema.map(|mut schema| json(&mut schema, "schema")).transpose()?.flatten();
            let missing = || Refusal::field(NAME, "a schema as `json_schema.schema`", "none");
            schema.ok_or_else(missing).map(Some)
        }
        other => Err(Refusal::field(
            NAME,
            "a `type` of \"text\", \"json_object\" or \"json_schema\"",
            format!("`{}`", crate::model::shorten(other)),
        )),
    }
}

fn structured_outputs(outputs: &mut Fields) -> Result<Vec<Constraint>, Refusal> {
    for name in ["structural_tag", "whitespace_pattern"] {
        outputs.refuse(name, |_| false, "is not offered within `structured_outputs`")?;
    }
    let mut stated: Vec<_> = json(outputs, "json")?.into_iter().collect();
    stated.extend(outputs.flag("json_object")?.filter(|&wanted| wanted).map(|_| any_object()));
    stated.extend(outputs.string("regex")?.map(Constraint::Regex));
    stated.extend(one_of(outputs, "choice")?);
    stated.extend(outputs.string("grammar")?.map(Constraint::Lark));
    if stated.is_empty() {
        let expected = "one of `json`, `json_object`, `regex`, `choice` and `grammar`";
        return Err(Refusal::field("structured_outputs", expected, "none of them"));
    }
    Ok(stated)
}

/// A JSON Schema, as JSON or as text with JSON in it.
fn json(fields: &mut Fields, name: &'static str) -> Result<Option<Constraint>, Refusal> {
    match fields.take(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(Constraint::JsonSchema(text))),
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => {
            Ok(Some(Constraint::JsonSchema(schema.to_string())))
        }
        Some(other) => Err(Refusal::field(name, "a JSON Schema", found(&other))),
    }
}

fn one_of(fields: &mut Fields, name: &'static str) -> Result<Option<Constraint>, Refusal> {
    fields.strings(name)?.map(|texts| choice(name, &texts)).transpose()
}
