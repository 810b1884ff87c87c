//! Finds tool calls in a text that comes in pieces.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Calls, Notation};

pub(super) const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
pub(super) const KEY_OPEN: &str = "<arg_key>";
const KEY_CLOSE: &str = "</arg_key>";
const VALUE_OPEN: &str = "<arg_value>";
const VALUE_CLOSE: &str = "</arg_value>";

/// A call, or more of the last one's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// Its number in the answer.
    pub(crate) index: usize,
    /// The function; none where a call goes on.
    pub(crate) name: Option<String>,
    /// JSON, or the next part of it.
    pub(crate) arguments: String,
}

/// What a piece of text brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Text that belongs to no call.
    pub(crate) text: String,
    pub(crate) calls: Vec<Call>,
}

/// Reads one choice's text.
#[derive(Debug)]
pub(crate) struct Reader {
    calls: Calls,
    /// Whether the text may have more than one.
    several: bool,
    /// What is not understood yet: the beginning of a mark, or of a call.
    held: String,
    /// In an array of calls: how far `held` was looked at, and where that was.
    braces: Braces,
    count: usize,
}

/// A call as a model writes it.
#[derive(Deserialize)]
struct Written {
    name: String,
    #[serde(alias = "parameters", default)]
    arguments: Value,
}

// === impl Reader ===

impl Reader {
    pub(crate) fn new(calls: Calls, several: bool) -> Self {
        Self { calls, several, held: String::new(), braces: Braces::default(), count: 0 }
    }

    /// Whether the text so far is, or ends in, calls that the model chose to make.
    pub(crate) fn has_called(&self) -> bool {
        self.count > 0 && !matches!(self.calls, Calls::Named(_))
    }

    /// Takes the next piece, or the last. What looked like a call and was none is text.
    pub(crate) fn push(&mut self, piece: String, last: bool) -> Heard {
        let mut heard = Heard::default();
        match &self.calls {
            Calls::Never => heard.text = piece,
            Calls::Named(name) => {
                let name = (self.count == 0).then(|| name.clone());
                self.count = 1;
                if name.is_some() || !piece.is_empty() {
                    heard.calls.push(Call { index: 0, name, arguments: piece });
                }
            }
            Calls::Required => self.read_array(&piece, &mut heard),
            &Calls::Free(notation) => self.read_marked(notation, &piece, &mut heard),
        }
        if last {
            heard.text.push_str(&std::mem::take(&mut self.held));
        }
        heard
    }

    /// Takes calls out of an array, each when it is whole.
    fn read_array(&mut self, piece: &str, heard: &mut Heard) {
        self.held.push_str(piece);
        while let Some(end) = self.braces.close(&self.held) {
            let element: String = self.held.drain(..end).collect();
            let object = element.trim_start_matches(['[', ',', ' ']);
            match serde_json::from_str(object) {
                Ok(written) => self.call(written, heard),
                Err(_) => heard.text.push_str(&element),
            }
        }
        // The end of the array says nothing.
        if self.count > 0 && self.held.trim() == "]" {
            self.held.clear();
            self.braces = Braces::default();
        }
    }

    /// Takes calls out of their marks.
    fn read_marked(&mut self, notation: Notation, piece: &str, heard: &mut Heard) {
        self.held.push_str(piece);
        loop {
            let Some(open) = self.held.find(OPEN) else {
                let kept = begun(&self.held, OPEN);
                let text: String = self.held.drain(..self.held.len() - kept).collect();
                self.say(&text, heard);
                return;
            };
            let text: String = self.held.drain(..open).collect();
            self.say(&text, heard);
            let Some(close) = self.held.find(CLOSE) else { return };
            let marked: String = self.held.drain(..close + CLOSE.len()).collect();
            let written = match notation {
                Notation::Json => serde_json::from_str(&marked[OPEN.len()..close]).ok(),
                Notation::Keys => by_keys(&marked[OPEN.len()..close]),
            };
            match written {
                Some(written) => self.call(written, heard),
                None => heard.text.push_str(&marked),
            }
        }
    }

    /// Text beside calls; line breaks around them are none.
    fn say(&self, text: &str, heard: &mut Heard) {
        if self.count == 0 || !text.trim().is_empty() {
            heard.text.push_str(text);
        }
    }

    fn call(&mut self, written: Written, heard: &mut Heard) {
        if self.count > 0 && !self.several {
            return;
        }
        let arguments = match written.arguments {
            Value::Null => Map::new().into(),
            other => other,
        };
        heard.calls.push(Call {
            index: self.count,
            name: Some(written.name),
            arguments: arguments.to_string(),
        });
        self.count += 1;
    }
}

/// Bytes at the end of `text` that `mark` begins with.
fn begun(text: &str, mark: &str) -> usize {
    let len = mark.len().min(text.len() + 1);
    (1..len).rev().find(|&len| text.ends_with(&mark[..len])).unwrap_or(0)
}

/// A call by keys and values. A value is JSON, or else the text that it is.
fn by_keys(text: &str) -> Option<Written> {
    let (name, mut rest) = text.split_once(KEY_OPEN).unwrap_or((text, ""));
    let mut arguments = Map::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once(KEY_CLOSE)?;
        let (_, after) = after.split_once(VALUE_OPEN)?;
        let (value, after) = after.split_once(VALUE_CLOSE)?;
        let parsed = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        arguments.insert(key.trim().to_owned(), parsed);
        rest = after.split_once(KEY_OPEN).map_or("", |(_, rest)| rest);
    }
    let name = name.trim();
    (!name.is_empty()).then(|| Written { name: name.to_owned(), arguments: arguments.into() })
}

/// Looks for the end of a JSON object in a text that grows.
#[derive(Debug, Default)]
struct Braces {
    seen: usize,
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Braces {
    /// Where the first object of `text` ends, which is then taken away.
    fn close(&mut self, text: &str) -> Option<usize> {
        for &byte in &text.as_bytes()[self.seen..] {
            self.seen += 1;
            if self.escaped {
                self.escaped = false;
                continue;
            }
            match byte {
                b'\\' if self.quoted => self.escaped = true,
                b'"' => self.quoted = !self.quoted,
                b'{' if !self.quoted => self.depth += 1,
                b'}' if !self.quoted => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(std::mem::take(&mut self.seen));
                    }
                }
                _ => {}
            }
        }
        None
    }
}
