//! Reads a TOML file, lays `AMOE_` environment variables over it, and names file, key and expectation when it is wrong.
//!
//! `AMOE_ENGINE__DRAIN_CAP=64` sets `drain_cap` of `[engine]`; a key outside every section is written
//! `AMOE__NAME`. Variables without the double underscore are not ours (Kubernetes puts
//! `AMOE_GATEWAY_PORT` and the like into every pod) and are left alone. A value is read as TOML
//! (`64`, `true`, `["a", "b"]`) and, where it is not TOML, as plain text.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

#[cfg(test)]
mod tests;

const PREFIX: &str = "AMOE_";
const SEPARATOR: &str = "__";
/// What other programs call `tracing.otlp_endpoint`; counts where that is not set.
const COLLECTOR: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Why a configuration was refused; each message is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}: line {line} is not TOML: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("environment variable {variable}: {reason}")]
    Variable { variable: String, reason: &'static str },
    #[error("{origin}: {key}: {expected}")]
    Value { origin: String, key: String, expected: String },
    /// It is of the right type, and still cannot be meant.
    #[error("{origin}: {reason}")]
    Nonsense { origin: String, reason: String },
}

/// The layers of a configuration, merged, before they become a type.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    table: Table,
    file: Option<PathBuf>,
    /// Dotted key → the variable that set it, with its text.
    variables: BTreeMap<String, Variable>,
}

#[derive(Debug)]
struct Variable {
    name: String,
    text: String,
}

/// Reads `path` (or nothing but the environment) into `T`.
///
/// `T` should carry `#[serde(deny_unknown_fields)]`, so that a misspelt key is an error and not a default.
pub fn load<T: DeserializeOwned>(path: Option<&Path>) -> Result<T, ConfigError> {
    Layers::read(path)?.decode()
}

impl Layers {
    /// The file, with this process's environment over it.
    pub(crate) fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let environment = std::env::vars_os()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
        Self::merge(path, environment)
    }

    fn merge(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut layers = Self { file: path.map(Path::to_owned), ..Self::default() };
        if let Some(path) = path {
            layers.table = read_file(path)?;
        }
        let mut collector = None;
        for (name, text) in environment {
            if let Some(keys) = keys_of(&name) {
                layers.set(name, text, &keys)?;
            } else if name == COLLECTOR {
                collector = Some(text);
            }
        }
        let keys = ["tracing", "otlp_endpoint"];
        let named = layers.table.get(keys[0]).is_some_and(|section| section.get(keys[1]).is_some());
        if let Some(text) = collector.filter(|text| !text.is_empty() && !named) {
            layers.set(COLLECTOR.to_owned(), text, &keys.map(str::to_owned))?;
        }
        Ok(layers)
    }

    fn set(&mut self, name: String, text: String, keys: &[String]) -> Result<(), ConfigError> {
        let (last, sections) = keys.split_last().ok_or_else(|| ConfigError::Variable {
            variable: name.clone(),
            reason: "names no key; expected AMOE_SECTION__KEY",
        })?;
        if keys.iter().any(String::is_empty) {
            let reason = "has an empty part in its name; expected AMOE_SECTION__KEY";
            return Err(ConfigError::Variable { variable: name, reason });
        }
        let mut table = &mut self.table;
        for section in sections {
            let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = entry else {
                let reason = "names a key below one that is not a section";
                return Err(ConfigError::Variable { variable: name, reason });
            };
            table = inner;
        }
        table.insert(last.clone(), parse(&text));
        self.variables.insert(keys.join("."), Variable { name, text });
        Ok(())
    }

    /// Takes one top-level section out and decodes it; a missing section is `T::default()`.
    pub(crate) fn take<T: DeserializeOwned + Default>(
        &mut self,
        section: &str,
    ) -> Result<T, ConfigError> {
        match self.table.remove(section) {
            None => Ok(T::default()),
            Some(value) => self.decode_value(value, section),
        }
    }

    /// Everything that is left, as `T`.
    pub(crate) fn decode<T: DeserializeOwned>(mut self) -> Result<T, ConfigError> {
        let table = Value::Table(std::mem::take(&mut self.table));
        self.decode_value(table, "")
    }

    /// What to call these layers in a message.
    pub(crate) fn origin(&self) -> String {
        self.file.as_ref().map_or("configuration".to_owned(), |file| file.display().to_string())
    }

    fn decode_value<T: DeserializeOwned>(
        &self,
        mut value: Value,
        section: &str,
    ) -> Result<T, ConfigError> {
        // A variable holding digits is a number first; where text is wanted, it is text.
        // Each turn makes one variable textual, so the number of turns is bounded.
        for _ in 0..=self.variables.len() {
            let error = match serde_path_to_error::deserialize(value.clone()) {
                Ok(decoded) => return Ok(decoded),
                Err(error) => error,
            };
            let path = error.path().to_string();
            let key = match (section, path.as_str()) {
                (section, ".") => section.to_owned(),
                ("", path) => path.to_owned(),
                (section, path) => format!("{section}.{path}"),
            };
            let variable = self.variables.get(&key);
            let retry =
                variable.filter(|variable| make_text(&mut value, &path, &variable.text)).is_some();
            if !retry {
                return Err(self.explain(variable, &key, &error.into_inner()));
            }
        }
        unreachable!("a variable becomes text at most once");
    }

    fn explain(
        &self,
        variable: Option<&Variable>,
        key: &str,
        error: &toml::de::Error,
    ) -> ConfigError {
        // A section that nobody knows may be one that a variable has made.
        let unknown = error.message().starts_with("unknown field");
        let below = format!("{key}.");
        let made = |(path, _): &(&String, &Variable)| unknown && path.starts_with(&below);
        let maker = || self.variables.iter().find(made).map(|(_, variable)| variable);
        let origin = match variable.or_else(maker) {
            Some(variable) => format!("environment variable {}", variable.name),
            None => self.origin(),
        };
        let key = if key.is_empty() { "top level".to_owned() } else { format!("key `{key}`") };
        ConfigError::Value { origin, key, expected: error.message().trim().replace('\n', " ") }
    }
}

fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let text = fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    text.parse::<Table>().map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        ConfigError::Syntax {
            path: path.to_owned(),
            line: text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1,
            message: error.message().replace('\n', " "),
        }
    })
}

/// The key path that a variable sets, or nothing when the variable is not ours.
fn keys_of(name: &str) -> Option<Vec<String>> {
    let rest = name.strip_prefix(PREFIX)?;
    let path = match rest.strip_prefix('_') {
        Some(top_level) => top_level,
        None if rest.contains(SEPARATOR) => rest,
        None => return None,
    };
    Some(path.split(SEPARATOR).map(str::to_lowercase).collect())
}

fn parse(text: &str) -> Value {
    let document = format!("value = {text}").parse::<Table>();
    document
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Replaces the value at `path` by `text`; says whether that changed anything.
fn make_text(value: &mut Value, path: &str, text: &str) -> bool {
    let found = path.split('.').try_fold(value, |value, key| value.get_mut(key));
    match found {
        Some(Value::String(_)) | None => false,
        Some(other) => {
            *other = Value::String(text.to_owned());
            true
        }
    }
}
