//! What clients ask, and what the answers have to be: greedy requests, answered once before any fault.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{bench::events::Events, http::Server};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
/// Different requests.
const QUESTIONS: usize = 24;
const OPENINGS: [&str; 6] = [
    "And God said",
    "In the beginning",
    "And it came to pass, that when they had heard these words",
    "O",
    "The LORD is my",
    "Blessed are they which",
];

/// A request that is sent again and again.
#[derive(Clone, Debug)]
pub(super) struct Question {
    path: &'static str,
    body: Value,
}

/// What a whole answer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    text: String,
    tokens: Vec<u64>,
    finish: String,
    /// Tokens of the prompt and of the answer, as the server counted them.
    usage: (u64, u64),
}

/// All requests, those of chat among them if the server can chat.
pub(super) fn questions(chat: bool) -> Vec<Question> {
    (0..QUESTIONS).map(|number| Question::new(number, chat && number % 3 == 2)).collect()
}

// === impl Question ===

impl Question {
    fn new(number: usize, chat: bool) -> Self {
        let opening = OPENINGS[number % OPENINGS.len()];
        // Some prompts take several chunks' worth of rows.
        let prompt = vec![opening; if number.is_multiple_of(5) { 24 } else { 1 }].join(" ");
        let mut body = json!({
            "max_tokens": 16 + 37 * number % 145,
            "temperature": 0.0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
            "return_token_ids": true,
        });
        if chat {
            body["messages"] = json!([{"role": "user", "content": prompt}]);
            return Self { path: CHAT, body };
        }
        body["prompt"] = json!(prompt);
        Self { path: COMPLETIONS, body }
    }

    /// Asks a server under a request id. `told` hears of every event: how many tokens it has, and
    /// none for the head of the answer.
    pub(super) async fn ask(
        &self,
        server: &Server,
        id: &str,
        mut told: impl FnMut(Option<usize>),
    ) -> Result<Answer> {
        let response = server.post_as(Some(id), self.path, &self.body).await?;
        told(None);
        let (mut events, mut answer) = (Events::new(response), Answer::default());
        while let Some(event) = events.next().await? {
            told(Some(answer.extend(&event)?));
        }
        ensure!(!answer.finish.is_empty(), "an answer has no finish reason");
        Ok(answer)
    }
}

// === impl Answer ===

impl Answer {
    /// Adds an event of the stream; how many tokens it has.
    fn extend(&mut self, event: &Value) -> Result<usize> {
        if let usage @ Value::Object(_) = &event["usage"] {
            let count = |name: &str| usage[name].as_u64().context("a usage counts tokens");
            self.usage = (count("prompt_tokens")?, count("completion_tokens")?);
        }
        let Some(choice) = event["choices"].as_array().and_then(|choices| choices.first()) else {
            return Ok(0);
        };
        let text = [&choice["text"], &choice["delta"]["content"]];
        self.text.extend(text.into_iter().filter_map(Value::as_str));
        self.finish += choice["finish_reason"].as_str().unwrap_or_default();
        let tokens = choice["token_ids"].as_array().map_or(&[][..], Vec::as_slice);
        self.tokens.extend(tokens.iter().filter_map(Value::as_u64));
        Ok(tokens.len())
    }

    /// Where another answer to the same question differs, for people.
    pub(super) fn difference(&self, other: &Self) -> String {
        let at = self.tokens.iter().zip(&other.tokens).position(|(one, other)| one != other);
        match at {
            Some(at) => {
                format!("token {at} is {}, expected {}", other.tokens[at], self.tokens[at])
            }
            None => format!(
                "{} tokens, {} of them counted, ended by {}; expected {}, {}, {}",
                other.tokens.len(),
                other.usage.1,
                other.finish,
                self.tokens.len(),
                self.usage.1,
                self.finish
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Answer, CHAT, questions};

    #[test]
    fn questions_differ_and_some_are_chats() {
        let asked = questions(true);
        let chats = asked.iter().filter(|question| question.path == CHAT).count();
        assert_eq!(chats, asked.len() / 3);
        for (at, question) in asked.iter().enumerate() {
            assert!(asked[..at].iter().all(|other| other.body != question.body), "{question:?}");
        }
        assert!(questions(false).iter().all(|question| question.path != CHAT));
    }

    #[test]
    fn answers_are_put_together_and_told_apart() {
        let mut answer = Answer::default();
        let first = json!({"choices": [{"text": "a", "token_ids": [1, 2], "finish_reason": null}]});
        assert_eq!(answer.extend(&first).unwrap(), 2);
        let mut other = answer.clone();
        let last = |token: u64| json!({"choices": [{"text": "b", "token_ids": [token], "finish_reason": "length"}]});
        answer.extend(&last(3)).unwrap();
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}});
        assert_eq!(answer.extend(&usage).unwrap(), 0);
        assert_eq!((&*answer.text, &answer.tokens, answer.usage), ("ab", &vec![1, 2, 3], (4, 3)));
        other.extend(&last(9)).unwrap();
        assert_ne!(answer, other);
        assert_eq!(answer.difference(&other), "token 2 is 9, expected 3");
    }
}
