//! One choice's text as it grows: tokens in, pieces of text out, and where a stop string ends it.

use std::sync::Arc;

use domain::{FinishReason, TokenOutput};

use crate::{detokenizer::Detokenizer, request::Shown, stop::StopStrings, tokenizer::Tokenizer};

/// What made a choice stop, besides the model's end token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StopCause {
    /// One of the request's stop strings.
    Text(String),
    /// One of the request's stop tokens.
    Token(u32),
}

/// How a choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Why.
    pub(crate) reason: FinishReason,
    /// What stopped it, unless that was the model's own end token or the length.
    pub(crate) cause: Option<StopCause>,
}

/// What some tokens brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Piece {
    /// New text; may be empty while a character or a possible stop string is incomplete.
    pub(crate) text: String,
    /// The tokens, with log-probabilities where asked for.
    pub(crate) tokens: Vec<TokenOutput>,
    /// Present on the last piece.
    pub(crate) ending: Option<Ending>,
}

/// The state of one choice's text.
#[derive(Debug)]
pub(crate) struct Output {
    detokenizer: Detokenizer,
    stops: StopStrings,
    stop_tokens: Vec<u32>,
    tokens_min: usize,
    tokens: usize,
    stop_shown: bool,
}

/// What ends an output, as the request states it.
#[derive(Debug, Default)]
pub(crate) struct Stops {
    pub(crate) strings: Vec<String>,
    pub(crate) tokens: Vec<u32>,
    /// No stop string counts before this many tokens.
    pub(crate) tokens_min: u32,
}

impl Output {
    pub(crate) fn new(
        tokenizer: Arc<Tokenizer>,
        prompt: &[u32],
        stops: Stops,
        shown: Shown,
    ) -> Self {
        Self {
            detokenizer: Detokenizer::new(tokenizer, prompt, shown.special),
            stops: StopStrings::new(stops.strings),
            stop_tokens: stops.tokens,
            tokens_min: usize::try_from(stops.tokens_min).unwrap_or(usize::MAX),
            tokens: 0,
            stop_shown: shown.stop,
        }
    }

    /// Takes the tokens of one message. After a piece with an ending nothing more may follow.
    pub(crate) fn push(&mut self, tokens: Vec<TokenOutput>) -> Piece {
        let mut piece = Piece::default();
        for token in tokens {
            self.tokens += 1;
            let (id, finish) = (token.token, token.finish);
            piece.tokens.push(token);
            // The token that ended the sequence is not part of its text, unless the client wants it.
            let mut text = match finish {
                Some(FinishReason::Stop) if !self.stop_shown => String::new(),
                _ => self.detokenizer.push(id),
            };
            if finish.is_some() {
                text.push_str(&self.detokenizer.finish());
            }
            if let Some(stop) = self.scan(text, &mut piece.text) {
                piece.ending =
                    Some(Ending { reason: FinishReason::Stop, cause: Some(StopCause::Text(stop)) });
                return piece;
            }
            if let Some(reason) = finish {
                piece.text.push_str(&self.stops.finish());
                let stopped = reason == FinishReason::Stop && self.stop_tokens.contains(&id);
                piece.ending =
                    Some(Ending { reason, cause: stopped.then_some(StopCause::Token(id)) });
                return piece;
            }
        }
        piece
    }

    /// Lets text through to `out`; the stop string that it completed, if it did.
    fn scan(&mut self, text: String, out: &mut String) -> Option<String> {
        if self.tokens <= self.tokens_min {
            out.push_str(&text);
            return None;
        }
        if text.is_empty() {
            return None;
        }
        let scan = self.stops.push(text);
        out.push_str(&scan.text);
        if let Some(stop) = scan.hit.as_ref().filter(|_| self.stop_shown) {
            out.push_str(stop);
        }
        scan.hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::byte_level;

    const END: u32 = 258;

    fn output(stops: Stops) -> Output {
        showing(stops, Shown::default())
    }

    fn showing(stops: Stops, shown: Shown) -> Output {
        Output::new(Arc::new(byte_level()), &[], stops, shown)
    }

    fn stop_at(text: &str, tokens_min: u32) -> Stops {
        Stops { strings: vec![text.to_string()], tokens_min, ..Stops::default() }
    }

    fn tokens(text: &str, last: Option<(u32, FinishReason)>) -> Vec<TokenOutput> {
        let plain = |token, finish| TokenOutput {
            token,
            logprobs: None,
            finish,
            cached_tokens: 0,
            prompt_logprobs: Vec::new(),
        };
        let mut out: Vec<_> = text.bytes().map(|b| plain(b.into(), None)).collect();
        out.extend(last.map(|(token, reason)| plain(token, Some(reason))));
        out
    }

    #[test]
    fn the_token_that_completes_a_text_is_shown() {
        let last = (u32::from(b'}'), FinishReason::Complete);
        let piece = output(Stops::default()).push(tokens("{", Some(last)));
        assert_eq!(piece.text, "{}");
        assert_eq!(piece.ending.unwrap().reason, FinishReason::Complete);
    }

    #[test]
    fn the_ending_token_is_counted_but_not_shown() {
        let piece = output(Stops::default()).push(tokens("hi", Some((END, FinishReason::Stop))));
        assert_eq!(piece.text, "hi");
        assert_eq!(piece.tokens.len(), 3);
        let ending = piece.ending.unwrap();
        assert_eq!((ending.reason, ending.cause), (FinishReason::Stop, None));
    }

    #[test]
    fn a_stop_token_is_named_and_not_shown() {
        let stops = Stops { tokens: vec![u32::from(b'!')], ..Stops::default() };
        let last = (u32::from(b'!'), FinishReason::Stop);
        let piece = output(stops).push(tokens("hi", Some(last)));
        assert_eq!(piece.text, "hi");
        assert_eq!(piece.ending.unwrap().cause, Some(StopCause::Token(u32::from(b'!'))));
    }

    #[test]
    fn what_stopped_it_is_shown_if_wanted() {
        let shown = Shown { stop: true, special: false };
        let piece = showing(stop_at("b", 0), shown).push(tokens("abc", None));
        assert_eq!(piece.text, "ab");
        let stops = Stops { tokens: vec![u32::from(b'!')], ..Stops::default() };
        let last = (u32::from(b'!'), FinishReason::Stop);
        let piece = showing(stops, shown).push(tokens("hi", Some(last)));
        assert_eq!(piece.text, "hi!");
        // An end token is special: it shows if special tokens do.
        let end = || tokens("hi", Some((END, FinishReason::Stop)));
        assert_eq!(showing(Stops::default(), shown).push(end()).text, "hi");
        let shown = Shown { stop: true, special: true };
        assert_eq!(showing(Stops::default(), shown).push(end()).text, "hi<|end|>");
        let shown = Shown { stop: false, special: true };
        assert_eq!(showing(Stops::default(), shown).push(end()).text, "hi");
    }

    #[test]
    fn the_last_token_within_the_length_is_shown() {
        let last = (u32::from(b'!'), FinishReason::Length);
        let piece = output(Stops::default()).push(tokens("hi", Some(last)));
        assert_eq!(piece.text, "hi!");
        assert_eq!(piece.ending.unwrap().reason, FinishReason::Length);
    }

    #[test]
    fn a_stop_string_ends_it_even_on_the_last_token() {
        let last = (u32::from(b'D'), FinishReason::Length);
        let piece = output(stop_at("END", 0)).push(tokens("a EN", Some(last)));
        assert_eq!(piece.text, "a ");
        let ending = piece.ending.unwrap();
        assert_eq!(ending.reason, FinishReason::Stop);
        assert_eq!(ending.cause, Some(StopCause::Text("END".into())));
    }

    #[test]
    fn held_text_is_let_go_at_the_end() {
        let mut output = output(stop_at("END", 0));
        assert_eq!(output.push(tokens("a EN", None)).text, "a ");
        let piece = output.push(tokens("", Some((END, FinishReason::Stop))));
        assert_eq!(piece.text, "EN");
        assert_eq!(piece.ending.unwrap().cause, None);
    }

    #[test]
    fn stop_strings_do_not_count_before_the_least_length() {
        let mut output = output(stop_at("b", 3));
        let piece = output.push(tokens("abcab", None));
        assert_eq!(piece.text, "abca");
        assert!(piece.ending.is_some());
    }
}
