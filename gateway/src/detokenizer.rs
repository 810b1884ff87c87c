//! Turns tokens into text one by one, never cutting a character and at a cost that does not grow.

use std::sync::Arc;

use crate::tokenizer::Tokenizer;

/// Tokens of the prompt that are decoded along at first, so that the first generated word keeps
/// its leading space.
const PROMPT_TOKENS: usize = 6;
/// A character has four bytes at most, so more tokens than this without a whole character are
/// no beginning of one: their bytes are shown as U+FFFD.
const PENDING_MAX: usize = 4;

/// Decoder of one choice's tokens.
///
/// `tokens[..read]` has been shown. Each token decodes `tokens`, takes off the text of the shown
/// part, and shows the rest unless it ends within a character.
#[derive(Debug)]
pub(crate) struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Whether special tokens are spelled out; else they are silent.
    special: bool,
    /// What the next piece of text depends on; older tokens have been dropped.
    tokens: Vec<u32>,
    read: usize,
    /// Bytes of text that `tokens[..read]` decodes to.
    read_bytes: usize,
}

impl Detokenizer {
    /// A decoder for what follows `prompt`.
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, prompt: &[u32], special: bool) -> Self {
        let (tokens, read_bytes) = tail(&tokenizer, prompt, special);
        Self { tokens: tokens.to_vec(), read: tokens.len(), read_bytes, tokenizer, special }
    }

    fn text(&self) -> String {
        self.tokenizer.decode_with(&self.tokens, self.special)
    }

    /// The text that `token` completes; empty while a character is incomplete.
    pub(crate) fn push(&mut self, token: u32) -> String {
        self.tokens.push(token);
        let text = self.text();
        let pending = self.tokens.len() - self.read;
        let open = text.ends_with(char::REPLACEMENT_CHARACTER) && pending <= PENDING_MAX;
        match text.get(self.read_bytes..) {
            Some(new) if !open && !new.is_empty() => {
                let new = new.to_string();
                self.advance();
                new
            }
            _ => String::new(),
        }
    }

    /// Bytes of a character that never became whole, when the choice is over.
    pub(crate) fn finish(&mut self) -> String {
        if self.tokens.len() == self.read {
            return String::new();
        }
        let text = self.text();
        let rest = text.get(self.read_bytes..).unwrap_or("").to_string();
        self.advance();
        rest
    }

    /// Everything is shown now; what was shown before is no longer needed.
    fn advance(&mut self) {
        self.tokens.drain(..self.read);
        self.read = self.tokens.len();
        self.read_bytes = self.text().len();
    }
}

/// The prompt's last tokens from the beginning of a character on, and the bytes of their text: a
/// piece of a character in front would spoil what is decoded after it.
fn tail<'a>(tokenizer: &Tokenizer, prompt: &'a [u32], special: bool) -> (&'a [u32], usize) {
    let mut tail = (prompt, 0);
    for tokens in PROMPT_TOKENS..PROMPT_TOKENS + PENDING_MAX {
        let tokens = &prompt[prompt.len().saturating_sub(tokens)..];
        let text = tokenizer.decode_with(tokens, special);
        tail = (tokens, text.len());
        if !text.starts_with(char::REPLACEMENT_CHARACTER) {
            break;
        }
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::{byte_level, sentence_piece};

    fn pieces(tokenizer: Tokenizer, prompt: &[u32], tokens: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(Arc::new(tokenizer), prompt, false);
        let mut out: Vec<_> = tokens.iter().map(|&t| detokenizer.push(t)).collect();
        out.push(detokenizer.finish());
        out
    }

    #[test]
    fn a_character_comes_whole_or_not_yet() {
        let euro: Vec<u32> = "a€b".bytes().map(u32::from).collect();
        assert_eq!(pieces(byte_level(), &[], &euro), ["a", "", "", "€", "b", ""]);
        let euro: Vec<u32> = euro.iter().map(|byte| byte + 3).collect();
        assert_eq!(pieces(sentence_piece(), &[], &euro), ["a", "", "", "€", "b", ""]);
    }

    #[test]
    fn an_unfinished_character_shows_at_the_end() {
        assert_eq!(pieces(byte_level(), &[], &[97, 0xE2]), ["a", "", "\u{FFFD}"]);
    }

    #[test]
    fn bytes_that_never_form_a_character_are_not_held_for_ever() {
        let shown = pieces(byte_level(), &[], &[0xFF; 12]).concat();
        assert_eq!(shown.chars().count(), 12);
        let after = pieces(byte_level(), &[], &[0xFF, 97]);
        assert_eq!(after.concat(), "\u{FFFD}a");
    }

    #[test]
    fn the_first_word_after_a_prompt_keeps_its_space() {
        assert_eq!(pieces(sentence_piece(), &[262], &[263, 260]), [" b", "a", ""]);
        // At the very beginning the tokenizer's own rule holds: no leading space.
        assert_eq!(pieces(sentence_piece(), &[], &[263, 260]), ["b", "a", ""]);
    }

    #[test]
    fn special_tokens_are_silent() {
        assert_eq!(pieces(byte_level(), &[258], &[97, 258, 98]), ["a", "", "b", ""]);
    }

    #[test]
    fn special_tokens_are_spelled_out_if_wanted() {
        let mut detokenizer = Detokenizer::new(Arc::new(byte_level()), &[258], true);
        let shown = [97, 258, 98].map(|token| detokenizer.push(token)).concat();
        assert_eq!(shown + &detokenizer.finish(), "a<|end|>b");
    }

    #[test]
    fn any_split_of_any_text_comes_back() {
        let text = "né €uro 👩‍👩‍👧 the hen\n\tĀ \u{FFFD} end";
        for tokenizer in [byte_level(), sentence_piece()].map(Arc::new) {
            let tokens = tokenizer.encode(text, false).unwrap();
            for at in 0..tokens.len() {
                let (prompt, rest) = tokens.split_at(at);
                let whole_prompt = tokenizer.decode(prompt);
                if whole_prompt.ends_with('\u{FFFD}') {
                    continue;
                }
                let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), prompt, false);
                let mut out = whole_prompt;
                for &token in rest {
                    out.push_str(&detokenizer.push(token));
                }
                out.push_str(&detokenizer.finish());
                assert_eq!(out, text, "split at {at}");
            }
        }
    }
}
