//! The model's tokenizer: text to token ids and back, and the bytes of a single token.

use std::{collections::HashMap, fmt, path::Path};

use crate::model::LoadError;

/// How a token's entry in the vocabulary spells its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// GPT-2's alphabet: each byte is one printable character.
    ByteLevel,
    /// `▁` is a space and `<0xE2>` a byte.
    SentencePiece,
}

/// A tokenizer in the Hugging Face form (`tokenizer.json`).
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    spelling: Spelling,
    /// Byte-level character to byte.
    alphabet: HashMap<char, u8>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab", &self.vocab())
            .field("spelling", &self.spelling)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model's folder.
    pub(crate) fn load(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join("tokenizer.json");
        let bytes =
            std::fs::read(&path).map_err(|error| LoadError::Read { path: path.clone(), error })?;
        Self::from_json(&bytes).map_err(|error| LoadError::Content {
            path,
            expected: "a tokenizer in the Hugging Face form",
            found: error.to_string(),
        })
    }

    fn from_json(bytes: &[u8]) -> tokenizers::Result<Self> {
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
        // A prompt is never cut or filled up in silence.
        inner.with_truncation(None)?;
        inner.with_padding(None);
        let json: serde_json::Value = serde_json::from_slice(bytes)?;
        let spelling = if json["decoder"].to_string().contains("ByteLevel") {
            Spelling::ByteLevel
        } else {
            Spelling::SentencePiece
        };
        Ok(Self { inner, spelling, alphabet: byte_level_alphabet() })
    }

    /// Entries, added tokens among them.
    #[must_use]
    pub(crate) fn vocab(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The tokens of a text. `special` lets the tokenizer add its own, such as a beginning token.
    pub(crate) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, tokenizers::Error> {
        let encoding = self.inner.encode_fast(text, special)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of some tokens, without special ones. Bytes that form no character become U+FFFD.
    #[must_use]
    pub(crate) fn decode(&self, tokens: &[u32]) -> String {
        self.decode_with(tokens, false)
    }

    /// The same, with special tokens spelled out if `special`.
    #[must_use]
    pub(crate) fn decode_with(&self, tokens: &[u32], special: bool) -> String {
        self.inner.decode(tokens, !special).unwrap_or_else(|error| {
            tracing::warn!(%error, ?tokens, "the tokenizer cannot decode tokens");
            String::new()
        })
    }

    /// A token as the vocabulary spells it.
    #[must_use]
    pub(crate) fn entry(&self, token: u32) -> Option<String> {
        self.inner.id_to_token(token)
    }

    /// The bytes a token stands for; none for an id without an entry.
    #[must_use]
    pub(crate) fn bytes(&self, token: u32) -> Vec<u8> {
        let Some(entry) = self.entry(token) else {
            return Vec::new();
        };
        match self.spelling {
            Spelling::ByteLevel => entry
                .chars()
                .map(|c| self.alphabet.get(&c).copied())
                .collect::<Option<_>>()
                // Added tokens are spelled plainly.
                .unwrap_or_else(|| entry.into_bytes()),
            Spelling::SentencePiece => match byte_entry(&entry) {
                Some(byte) => vec![byte],
                None => entry.replace('▁', " ").into_bytes(),
            },
        }
    }
}

/// The byte of an entry such as `<0xE2>`.
fn byte_entry(entry: &str) -> Option<u8> {
    let hex = entry.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 2)
}

/// GPT-2's table: printable Latin-1 characters stand for themselves, all other bytes for the
/// characters from U+0100 on, in ascending order.
fn byte_level_alphabet() -> HashMap<char, u8> {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let shifted = (0..=u8::MAX).filter(|&byte| !plain(byte)).zip('\u{100}'..);
    (0..=u8::MAX)
        .filter(|&byte| plain(byte))
        .map(|byte| (char::from(byte), byte))
        .chain(shifted.map(|(byte, c)| (c, byte)))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A byte-level tokenizer whose tokens are the 256 bytes, then a few merged words, then an
    /// end token: small enough to reason about, real enough to cut characters in the middle.
    pub(crate) fn byte_level() -> Tokenizer {
        let mut alphabet: Vec<(char, u8)> = byte_level_alphabet().into_iter().collect();
        alphabet.sort_by_key(|&(_, byte)| byte);
        let mut vocab: serde_json::Map<String, serde_json::Value> =
            alphabet.iter().map(|&(c, byte)| (c.to_string(), byte.into())).collect();
        vocab.insert("he".into(), 256.into());
        vocab.insert("Ġt".into(), 257.into());
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [{"id": 258, "content": "<|end|>", "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false,
                "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": [["h", "e"], ["Ġ", "t"]]},
        });
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
    }

    /// A SentencePiece-like tokenizer with byte fallback, as Mixtral and Llama 2 have it.
    pub(crate) fn sentence_piece() -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        for (id, entry) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
            vocab.insert((*entry).into(), id.into());
        }
        for byte in 0..=255_usize {
            vocab.insert(format!("<0x{byte:02X}>"), (byte + 3).into());
        }
        let words = ["▁", "a", "b", "▁a", "▁b", "ab", "▁ab"];
        for (id, entry) in words.iter().enumerate() {
            vocab.insert((*entry).into(), (id + 259).into());
        }
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [{"id": 2, "content": "</s>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab,
                "merges": [["▁", "a"], ["▁", "b"], ["a", "b"], ["▁a", "b"]]},
        });
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_alphabet_names_every_byte_once() {
        let alphabet = byte_level_alphabet();
        assert_eq!(alphabet.len(), 256);
        assert_eq!(alphabet[&'Ġ'], b' ');
        assert_eq!(alphabet[&'Ċ'], b'\n');
        assert_eq!(alphabet[&'a'], b'a');
    }

    #[test]
    fn token_bytes_are_exact_for_both_spellings() {
        let byte_level = byte_level();
        assert_eq!(byte_level.bytes(0xE2), [0xE2]);
        assert_eq!(byte_level.bytes(257), b" t");
        assert_eq!(byte_level.bytes(258), b"<|end|>");
        assert!(byte_level.bytes(9999).is_empty());
        let sentence_piece = sentence_piece();
        assert_eq!(sentence_piece.bytes(3 + 0xE2), [0xE2]);
        assert_eq!(sentence_piece.bytes(262), b" a");
    }

    #[test]
    fn text_comes_back() {
        for tokenizer in [byte_level(), sentence_piece()] {
            for text in ["the hen", "ab b a", "né €", "👩‍👩‍👧"] {
                let tokens = tokenizer.encode(text, true).unwrap();
                assert_eq!(tokenizer.decode(&tokens), text);
            }
        }
    }

    #[test]
    fn a_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(missing.contains("tokenizer.json"), "{missing}");
        std::fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
        let broken = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(broken.contains("expected a tokenizer"), "{broken}");
    }
}
