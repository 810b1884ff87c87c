//! Reads fields out of a JSON body, with one sentence for each way in which one can be wrong.

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::{
    refusal::{Kind, Refusal},
    requests::off_worker,
};

/// Bodies up to this many bytes are parsed on the spot; larger ones would keep an async worker from
/// its streams.
const INLINE_MAX: usize = 64 << 10;

/// The fields of an object; those nobody asks for are ignored, as OpenAI's API does.
#[derive(Debug)]
pub(super) struct Fields {
    map: Map<String, Value>,
}

/// What a value is, in words.
pub(super) fn found(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".into(),
        Value::Array(_) => "an array".into(),
        Value::Object(_) => "an object".into(),
    }
}

impl Fields {
    /// A request's body, which must be an object.
    pub(super) async fn read_body(body: Bytes) -> Result<Self, Refusal> {
        off_worker(body.len() > INLINE_MAX, move || Self::parse(&body)).await
    }

    fn parse(body: &[u8]) -> Result<Self, Refusal> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { map }),
            Ok(other) => Err(Refusal::new(
                Kind::Invalid,
                format!("the body: expected a JSON object, found {}", found(&other)),
            )),
            Err(error) => {
                Err(Refusal::new(Kind::Invalid, format!("the body is not JSON: {error}")))
            }
        }
    }

    /// An object within the body.
    pub(super) fn object(&mut self, name: &'static str) -> Result<Option<Self>, Refusal> {
        self.read(name, "an object", |value| match value {
            Value::Object(map) => Ok(Self { map }),
            other => Err(other),
        })
    }

    /// All fields, for objects whose keys are the client's.
    pub(super) fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// A field's value; null counts as absent.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        // Order within the rest does not matter.
        self.map.swap_remove(name).filter(|value| !value.is_null())
    }

    fn read<T>(
        &mut self,
        name: &'static str,
        expected: &'static str,
        convert: impl FnOnce(Value) -> Result<T, Value>,
    ) -> Result<Option<T>, Refusal> {
        self.take(name)
            .map(|value| {
                convert(value).map_err(|value| Refusal::field(name, expected, found(&value)))
            })
            .transpose()
    }

    pub(super) fn flag(&mut self, name: &'static str) -> Result<Option<bool>, Refusal> {
        self.read(name, "true or false", |value| value.as_bool().ok_or(value))
    }

    pub(super) fn number(&mut self, name: &'static str) -> Result<Option<f64>, Refusal> {
        self.read(name, "a number", |value| value.as_f64().ok_or(value))
    }

    pub(super) fn integer(&mut self, name: &'static str) -> Result<Option<i64>, Refusal> {
        self.read(name, "an integer", |value| whole(&value).ok_or(value))
    }

    pub(super) fn string(&mut self, name: &'static str) -> Result<Option<String>, Refusal> {
        self.read(name, "a string", |value| match value {
            Value::String(text) => Ok(text),
            other => Err(other),
        })
    }

    pub(super) fn array(&mut self, name: &'static str) -> Result<Option<Vec<Value>>, Refusal> {
        self.read(name, "an array", |value| match value {
            Value::Array(items) => Ok(items),
            other => Err(other),
        })
    }

    pub(super) fn integers(&mut self, name: &'static str) -> Result<Option<Vec<i64>>, Refusal> {
        self.array(name)?.map(|items| integers(name, &items)).transpose()
    }

    /// A string or an array of strings.
    pub(super) fn strings(&mut self, name: &'static str) -> Result<Option<Vec<String>>, Refusal> {
        const EXPECTED: &str = "a string or an array of strings";
        let wrong = |value: &Value| Refusal::field(name, EXPECTED, found(value));
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(vec![text])),
            Some(Value::Array(items)) => items
                .into_iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text),
                    other => Err(Refusal::field(
                        name,
                        EXPECTED,
                        format!("an array with {}", found(&other)),
                    )),
                })
                .collect::<Result<_, _>>()
                .map(Some),
            Some(other) => Err(wrong(&other)),
        }
    }

    /// Refuses a field whose value asks for what is not offered.
    pub(super) fn refuse(
        &mut self,
        name: &'static str,
        harmless: impl FnOnce(&Value) -> bool,
        message: &'static str,
    ) -> Result<(), Refusal> {
        match self.take(name) {
            Some(value) if !harmless(&value) => Err(Refusal::unsupported(name, message)),
            _ => Ok(()),
        }
    }
}

/// Whether it is an array of nothing.
pub(super) fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

/// An integer, also when written with a point, as some clients do.
pub(super) fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64()?;
        // Every whole number of this size is exact as f64.
        (number.fract() == 0.0 && number.abs() < 9.0e15).then_some(number as i64)
    })
}

/// An array of integers. `name` is shown to the client.
pub(super) fn integers(name: &'static str, items: &[Value]) -> Result<Vec<i64>, Refusal> {
    let wrong = |item: &Value| {
        let expected = "an array of integers";
        Refusal::field(name, expected, format!("an array with {}", found(item)))
    };
    let integer = |item: &Value| whole(item).ok_or_else(|| wrong(item));
    items.iter().map(integer).collect()
}
