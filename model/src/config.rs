//! Typed reading of a checkpoint's JSON files: every wrong value is named with its file and key.

use std::{
    fs::File,
    io::Read,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::ModelError;

/// No configuration is anywhere near this long.
pub(crate) const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// The index of a very large model is a few MB.
pub(crate) const INDEX_BYTES_MAX: u64 = 64 << 20;

/// A JSON object of a file, and where in the file it is.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    file: PathBuf,
    /// Keys of the objects around this one, each followed by a dot.
    prefix: String,
    map: Map<String, Value>,
}

impl Config {
    /// Reads a file of at most `bytes_max` bytes that holds one JSON object.
    pub(crate) fn read(file: &Path, bytes_max: u64) -> Result<Self, ModelError> {
        let bytes = read_bounded(file, bytes_max)?;
        Self::parse(file, &bytes)
    }

    /// The object in `bytes`, which came from `file`.
    pub(crate) fn parse(file: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| {
            ModelError::malformed(file, format!("expected a JSON object, found {error}"))
        })?;
        let Value::Object(map) = value else {
            return Err(ModelError::malformed(
                file,
                format!("expected a JSON object, found {}", kind(&value)),
            ));
        };
        Ok(Self { file: file.to_owned(), prefix: String::new(), map })
    }

    /// The value of a key; an explicit null counts as absent, as it does for the library that wrote it.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Every key of the object with its value.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.map.iter()
    }

    /// A whole number in `range` under the first of `keys` that is there.
    pub(crate) fn count(
        &self,
        keys: &[&str],
        range: &RangeInclusive<usize>,
    ) -> Result<usize, ModelError> {
        for key in keys {
            if let Some(value) = self.optional_count(key, range)? {
                return Ok(value);
            }
        }
        Err(self.expected(
            &keys.join(" or "),
            format!("a whole number from {} to {}", range.start(), range.end()),
        ))
    }

    /// A whole number in `range`, if the key is there.
    pub(crate) fn optional_count(
        &self,
        key: &str,
        range: &RangeInclusive<usize>,
    ) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok())
            .filter(|number| range.contains(number))
            .map(Some)
            .ok_or_else(|| {
                self.expected(
                    key,
                    format!("a whole number from {} to {}", range.start(), range.end()),
                )
            })
    }

    /// A finite number greater than zero, if the key is there.
    pub(crate) fn optional_positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_f64()
            .filter(|number| number.is_finite() && *number > 0.0)
            .map(Some)
            .ok_or_else(|| self.expected(key, "a number above 0"))
    }

    /// A finite number greater than zero.
    pub(crate) fn positive(&self, key: &str) -> Result<f64, ModelError> {
        self.optional_positive(key)?.ok_or_else(|| self.expected(key, "a number above 0"))
    }

    /// A finite number greater than zero, or `default` if the key is not there.
    pub(crate) fn positive_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        Ok(self.optional_positive(key)?.unwrap_or(default))
    }

    /// A finite number greater than zero; 0 counts as absent, as it does for the library that wrote it.
    pub(crate) fn optional_positive_or_zero(&self, key: &str) -> Result<Option<f64>, ModelError> {
        if self.get(key).and_then(Value::as_f64) == Some(0.0) {
            return Ok(None);
        }
        self.optional_positive(key)
    }

    /// True or false, or `default` if the key is not there.
    pub(crate) fn flag_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.expected(key, "true or false")),
        }
    }

    /// A text, if the key is there.
    pub(crate) fn optional_text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.expected(key, "a text")),
        }
    }

    /// A list of texts; empty if the key is not there.
    pub(crate) fn texts(&self, key: &str) -> Result<Vec<&str>, ModelError> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_str).collect())
            .ok_or_else(|| self.expected(key, "a list of texts"))
    }

    /// A list of whole numbers in `range`, or a single one; empty if the key is not there.
    pub(crate) fn counts(
        &self,
        key: &str,
        range: &RangeInclusive<usize>,
    ) -> Result<Vec<usize>, ModelError> {
        let number = |value: &Value| {
            value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
                .filter(|number| range.contains(number))
        };
        let numbers = match self.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(number).collect(),
            Some(value) => number(value).map(|number| vec![number]),
        };
        numbers.ok_or_else(|| {
            self.expected(
                key,
                format!("whole numbers from {} to {}, one or a list", range.start(), range.end()),
            )
        })
    }

    /// The object under a key, if the key is there.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>, ModelError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self {
                file: self.file.clone(),
                prefix: format!("{}{key}.", self.prefix),
                map: map.clone(),
            })),
            Some(_) => Err(self.expected(key, "an object")),
        }
    }

    /// An object without keys, for one that may be left out under `key`.
    pub(crate) fn empty_object(&self, key: &str) -> Self {
        Self { file: self.file.clone(), prefix: format!("{}{key}.", self.prefix), map: Map::new() }
    }

    /// The error for a key whose value is not `expected`.
    pub(crate) fn expected(&self, key: &str, expected: impl Into<String>) -> ModelError {
        ModelError::Key {
            file: self.file.display().to_string(),
            key: format!("{}{key}", self.prefix),
            expected: expected.into(),
            found: self.get(key).map_or_else(|| "nothing".to_owned(), shown),
        }
    }

    /// The error for a key whose value is sound but not something amoe does.
    pub(crate) fn unsupported(&self, key: &str, reason: impl Into<String>) -> ModelError {
        ModelError::Unsupported {
            file: self.file.display().to_string(),
            key: format!("{}{key}", self.prefix),
            reason: reason.into(),
        }
    }
}

/// Reads a whole file that is expected to be a modest JSON text.
pub(crate) fn read_bounded(file: &Path, bytes_max: u64) -> Result<Vec<u8>, ModelError> {
    let handle = File::open(file).map_err(|error| ModelError::io(file, error))?;
    let mut bytes = Vec::new();
    handle
        .take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| ModelError::io(file, error))?;
    if bytes.len() as u64 > bytes_max {
        return Err(ModelError::malformed(
            file,
            format!("expected at most {bytes_max} bytes of JSON"),
        ));
    }
    Ok(bytes)
}

/// A value as an error message shows it: short, on one line.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).to_owned(),
        _ => {
            let text = value.to_string();
            if text.chars().count() > 60 {
                text.chars().take(60).chain("…".chars()).collect()
            } else {
                text
            }
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
