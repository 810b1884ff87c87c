//! The Jinja environment that Hugging Face templates are written for.

use minijinja::{
    Environment, Error, ErrorKind, Output, State, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde, ValueKind},
};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// An environment as transformers sets it up: blocks trimmed, Python's methods on values,
/// `raise_exception`, `strftime_now`, and `tojson` that escapes nothing for HTML.
pub(super) fn new() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(print);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise);
    environment.add_function("strftime_now", |format: String| {
        crate::clock::strftime(&format, crate::clock::unix_s())
    });
    Ok(environment)
}

/// Prints like Python: `True`, `False` and `None` are capitalised.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::None => out.write_str("None"),
        _ => return minijinja::escape_formatter(out, state, value),
    }
    .map_err(|error| Error::new(ErrorKind::WriteFailure, error.to_string()))
}

const RAISED: &str = "raised by the template";

/// A sentence by which a template refuses a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{RAISED}")]
struct Raised;

fn raise(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
}

/// Whether a template raised the error itself.
pub(super) fn is_raised(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<Raised>)
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
#[expect(clippy::needless_pass_by_value, reason = "a filter's arguments are handed over")]
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted because templates state it; the default order is kept anyway.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let value = Serde(value);
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)),
    };
    let failed = |error: String| Error::new(ErrorKind::BadSerialization, error);
    written.map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8(out).map_err(|error| failed(error.to_string()))?;
    Ok(Value::from(text))
}

/// JSON with a space after each comma and colon, as Python writes it.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Takes out `{% generation %}` and `{% endgeneration %}`, which only mark text for training; a
/// comment with the same whitespace marks stands in their place.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}").map(|end| end + 2) else {
            break;
        };
        let tag = &rest[start..start + len];
        let inner = &tag[2..len - 2];
        let word = inner.trim_matches(['-', '+', ' ', '\n', '\t']);
        out.push_str(&rest[..start]);
        if matches!(word, "generation" | "endgeneration") {
            let mark = |at: Option<char>| if at == Some('-') { "-" } else { "" };
            let (before, after) = (mark(inner.chars().next()), mark(inner.chars().last()));
            out.push_str(&format!("{{#{before} {after}#}}"));
        } else {
            out.push_str(tag);
        }
        rest = &rest[start + len..];
    }
    out + rest
}
