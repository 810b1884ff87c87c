//! Constraints on generated text in the forms that clients state them in.

use domain::Constraint;
use serde_json::Value;

use crate::refusal::Refusal;

/// Longest constraint, in bytes: compiling it takes an attention node's time.
pub(crate) const CONSTRAINT_BYTES_MAX: usize = 256 << 10;

/// Any JSON object.
pub(crate) fn any_object() -> Constraint {
    Constraint::JsonSchema(r#"{"type": "object"}"#.into())
}

/// One of these texts.
pub(crate) fn choice(param: &'static str, texts: &[String]) -> Result<Constraint, Refusal> {
    if texts.is_empty() || texts.iter().any(String::is_empty) {
        return Err(Refusal::field(
            param,
            "at least one text, and none of them empty",
            "otherwise",
        ));
    }
    // A grammar quotes its texts as JSON does.
    let quoted: Vec<_> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
    Ok(Constraint::Lark(format!("start: {}", quoted.join(" | "))))
}

/// How many bytes a constraint has.
pub(crate) fn size(constraint: &Constraint) -> usize {
    let (Constraint::JsonSchema(text) | Constraint::Regex(text) | Constraint::Lark(text)) =
        constraint;
    text.len()
}
