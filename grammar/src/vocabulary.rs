//! The bytes of a model's tokens, from its `tokenizer.json`.

use std::{fs, path::Path, sync::Arc};

use llguidance::{
    ParserFactory, token_bytes_from_tokenizer_json,
    toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie},
};

/// Longest token that can be followed, in bytes. Some vocabularies have runs of blanks or dashes beyond it, which shorter
/// ones can write as well.
const TOKEN_BYTES_MAX: usize = 512;

/// What compiles grammars over a vocabulary of `vocab` ids; an error is half a sentence.
pub(crate) fn factory(folder: &Path, vocab: u32, ends: &[u32]) -> Result<ParserFactory, String> {
    let path = folder.join("tokenizer.json");
    let text =
        fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let wrong = |problem: String| format!("{}: {problem}", path.display());
    let json = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let mut words =
        token_bytes_from_tokenizer_json(&json).map_err(|error| wrong(error.to_string()))?;
    // Ids that the tokenizer does not know cannot be written, nor those the model does not have.
    words.resize(vocab as usize, Vec::new());
    for word in words.iter_mut().filter(|word| word.len() > TOKEN_BYTES_MAX) {
        word.clear();
    }
    // The end of a text, for a model without end tokens: an id beyond its last, which no logit belongs to.
    words.push(b"\xFF<end>".to_vec());
    let mut ends: Vec<u32> = ends.iter().copied().filter(|&end| end < vocab).collect();
    if ends.is_empty() {
        ends.push(vocab);
    }
    let trie = TokTrie::from(&TokRxInfo::new(vocab + 1, ends[0]), &words).with_eos_tokens(&ends);
    let environment: Arc<_> = Arc::new(ApproximateTokEnv::new(trie));
    let slices = llguidance::earley::SlicedBiasComputer::general_slices();
    let factory =
        ParserFactory::new(&(environment as _), InferenceCapabilities::default(), &slices);
    let mut factory = factory.map_err(|error| wrong(error.to_string()))?;
    factory.quiet().limits_mut().verbose_errors = false;
    Ok(factory)
}
