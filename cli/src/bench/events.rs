//! Server-sent events of an answer, as they come.

use anyhow::{Context, Result, bail};
use http_body_util::BodyExt;
use hyper::{Response, body::Incoming};
use serde_json::Value;

/// What the data of an event starts with.
const DATA: &[u8] = b"data:";
/// The data of the last event.
const DONE: &[u8] = b"[DONE]";

/// The events of one answer as they come.
#[derive(Debug)]
pub(crate) struct Events {
    body: Incoming,
    lines: Lines,
}

/// Bytes that become lines.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    taken: usize,
}

// === impl Events ===

impl Events {
    /// The events of an answer whose head has come.
    pub(crate) fn new(answer: Response<Incoming>) -> Self {
        Self { body: answer.into_body(), lines: Lines::default() }
    }

    /// The next event's data, or none after the last.
    ///
    /// # Errors
    /// When the connection ends before the answer does, or an event says that the answer does.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            while let Some(line) = self.lines.next() {
                let Some(data) = line.strip_prefix(DATA) else { continue };
                let data = data.trim_ascii();
                if data == DONE {
                    return Ok(None);
                }
                return event(data).map(Some);
            }
            let frame = self.body.frame().await.context("the answer ends without [DONE]")?;
            if let Ok(data) = frame?.into_data() {
                self.lines.push(&data);
            }
        }
    }
}

/// What an event says, unless it is that the answer is over before its end.
fn event(data: &[u8]) -> Result<Value> {
    let event: Value = serde_json::from_slice(data)?;
    if !event["error"].is_null() {
        bail!("the answer breaks off: {}", event["error"]);
    }
    Ok(event)
}

// === impl Lines ===

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    fn next(&mut self) -> Option<&[u8]> {
        let from = self.taken;
        let length = self.bytes[from..].iter().position(|byte| *byte == b'\n')?;
        self.taken = from + length + 1;
        Some(&self.bytes[from..from + length])
    }
}

#[cfg(test)]
mod tests {
    use super::{Lines, event};

    #[test]
    fn an_event_with_an_error_breaks_the_answer_off() {
        assert_eq!(
            event(br#"{"choices": []}"#).unwrap()["choices"].as_array().map(Vec::len),
            Some(0)
        );
        let error = event(br#"{"error": {"message": "x"}}"#).unwrap_err();
        assert!(error.to_string().contains("breaks off"), "{error}");
    }

    #[test]
    fn lines_come_whole_however_the_bytes_are_cut() {
        let text = b"data: {}\n\ndata: [DONE]\n\nrest";
        for cut in 0..text.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for part in [&text[..cut], &text[cut..]] {
                lines.push(part);
                while let Some(line) = lines.next() {
                    found.push(line.to_vec());
                }
            }
            assert_eq!(found, [&b"data: {}"[..], b"", b"data: [DONE]", b""], "cut at {cut}");
        }
    }
}
