//! Finds a chat template and the special tokens' texts among a model's files.

use std::path::Path;

use serde_json::Value;

use super::DEFAULT;
use crate::model::{LoadError, read_json};

/// What the files say about chat.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// (name, source); the one named `default` is there unless this is empty.
    pub(super) templates: Vec<(String, String)>,
    /// (variable, text), such as `bos_token`.
    pub(super) special_tokens: Vec<(String, String)>,
}

/// Looks at `file` if given, else at `chat_template.jinja`, `chat_template.json` and
/// `tokenizer_config.json`, in the order transformers does.
pub(super) fn find(folder: &Path, file: Option<&Path>) -> Result<Found, LoadError> {
    let config_path = folder.join("tokenizer_config.json");
    let config = read_if_present(&config_path)?.unwrap_or(Value::Null);
    let mut found = Found { special_tokens: special_tokens(&config), ..Found::default() };
    let jinja = folder.join("chat_template.jinja");
    let json = folder.join("chat_template.json");
    if let Some(path) = file {
        found.templates = vec![(DEFAULT.to_string(), read(path)?)];
    } else if jinja.is_file() {
        found.templates = vec![(DEFAULT.to_string(), read(&jinja)?)];
    } else if let Some(content) = read_if_present(&json)? {
        found.templates = templates(&content, &json)?;
    } else {
        found.templates = templates(&config, &config_path)?;
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(path)
        .map_err(|error| LoadError::Read { path: path.to_path_buf(), error })
}

fn read_if_present(path: &Path) -> Result<Option<Value>, LoadError> {
    if path.is_file() { read_json(path).map(Some) } else { Ok(None) }
}

/// `chat_template`: absent, a string, or a list of `{name, template}` with one named `default`.
fn templates(config: &Value, path: &Path) -> Result<Vec<(String, String)>, LoadError> {
    let wrong = |found: &Value| LoadError::Content {
        path: path.to_path_buf(),
        expected: "`chat_template` as a string, or a list of {name, template} with a `default`",
        found: crate::model::shorten(&found.to_string()),
    };
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(source)) => Ok(vec![(DEFAULT.to_string(), source.clone())]),
        Some(Value::Array(named)) => {
            let entry = |entry: &Value| {
                let text = |key| entry.get(key).and_then(Value::as_str).map(str::to_string);
                text("name").zip(text("template")).ok_or_else(|| wrong(entry))
            };
            let named = named.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
            if named.iter().any(|(name, _)| name == DEFAULT) {
                Ok(named)
            } else {
                Err(wrong(&config["chat_template"]))
            }
        }
        Some(other) => Err(wrong(other)),
    }
}

/// The texts of `*_token` entries: a string, or an object with `content`.
fn special_tokens(config: &Value) -> Vec<(String, String)> {
    let entries = config.as_object().into_iter().flatten();
    entries
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, value)| {
            let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((key.clone(), text.to_string()))
        })
        .collect()
}
