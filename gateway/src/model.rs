//! The model as the public sees it: its names, tokenizer, chat template and longest sequence.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use crate::{
    chat::ChatTemplate,
    config::ModelConfig,
    defaults::Defaults,
    refusal::{Kind, Refusal},
    request::{Sampling, Wishes},
    tokenizer::Tokenizer,
};

/// Why a model's text files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is not there or not readable.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The file is there, but not what it should be.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What belongs there.
        expected: &'static str,
        /// What is there instead.
        found: String,
    },
}

/// Everything the gateway knows about the model it serves.
#[derive(Debug)]
pub(crate) struct ServedModel {
    names: Vec<String>,
    /// Shared with the decoders of all choices.
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Why there is none is a sentence for clients.
    pub(crate) template: Result<ChatTemplate, String>,
    /// Longest sequence, prompt and generated tokens.
    pub(crate) positions_max: u32,
    /// Token ids are below this.
    pub(crate) vocab: u32,
    defaults: Defaults,
    /// When the model was loaded, in seconds since 1970.
    pub(crate) created_s: u64,
}

impl ServedModel {
    /// Reads a model's folder; weights are not touched.
    pub(crate) fn load(config: &ModelConfig) -> Result<Self, LoadError> {
        let folder = &config.path;
        let tokenizer = Tokenizer::load(folder)?;
        let shape = read_json(&folder.join("config.json"))?;
        let size = |key: &'static str| {
            // Models that also see or hear keep the text half's numbers one level down.
            let value = shape.get(key).or_else(|| shape.get("text_config")?.get(key));
            value.and_then(Value::as_u64).and_then(|size| u32::try_from(size).ok())
        };
        let missing = |key| LoadError::Content {
            path: folder.join("config.json"),
            expected: key,
            found: "no such number".to_string(),
        };
        let trained = size("max_position_embeddings")
            .ok_or_else(|| missing("`max_position_embeddings`, the longest sequence"))?;
        let positions_max = config.positions_max.unwrap_or(trained);
        if positions_max > trained || positions_max < 2 {
            return Err(LoadError::Content {
                path: folder.join("config.json"),
                expected: "a configured longest sequence of 2 to `max_position_embeddings` tokens",
                found: format!("{positions_max}, where `max_position_embeddings` is {trained}"),
            });
        }
        let template = ChatTemplate::load(folder, config.chat_template.as_deref())?;
        if let Err(reason) = &template {
            tracing::warn!(%reason, "chat requests will be refused");
        }
        let vocab = size("vocab_size").ok_or_else(|| missing("`vocab_size`"))?;
        Ok(Self {
            names: names(config),
            vocab,
            defaults: Defaults::load(folder, config.sampling_defaults, vocab)?,
            tokenizer: Arc::new(tokenizer),
            template,
            positions_max,
            created_s: crate::clock::unix_s(),
        })
    }

    /// The name of metrics and of requests that name none.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        &self.names[0]
    }

    /// All names that requests may use; at least one.
    #[must_use]
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// How a request wants to sample, checked; what it leaves open is as the model's defaults are.
    pub(crate) fn sampling(&self, wishes: Wishes) -> Result<Sampling, Refusal> {
        self.defaults.fill(wishes).check(self.vocab)
    }

    /// Checks the name in a request.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), Refusal> {
        if self.names.iter().any(|served| served == name) {
            return Ok(());
        }
        Err(Refusal {
            param: Some("model".into()),
            ..Refusal::new(
                Kind::UnknownModel,
                format!(
                    "the model `{}` does not exist here; served: {}",
                    shorten(name),
                    self.names.join(", ")
                ),
            )
        })
    }
}

/// A client's text within a sentence, not longer than a sentence bears.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN_MAX: usize = 100;
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

fn names(config: &ModelConfig) -> Vec<String> {
    if config.served_names.is_empty() {
        let folder = config.path.file_name();
        let name = folder.map_or_else(|| "model".into(), |name| name.to_string_lossy());
        return vec![name.into_owned()];
    }
    config.served_names.clone()
}

/// Reads one of the model's JSON files.
pub(crate) fn read_json(path: &Path) -> Result<Value, LoadError> {
    let bytes =
        std::fs::read(path).map_err(|error| LoadError::Read { path: path.to_path_buf(), error })?;
    serde_json::from_slice(&bytes).map_err(|error| LoadError::Content {
        path: path.to_path_buf(),
        expected: "JSON",
        found: error.to_string(),
    })
}
