//! Hugging Face checkpoints of mixture-of-experts models as an attention half and an expert half, in layer functions that a node's engine calls.

mod arch;
mod checkpoint;
mod config;
mod error;
mod fingerprint;
mod rope;
mod safetensors;
mod spec;

pub use checkpoint::Checkpoint;
pub use error::ModelError;
pub use rope::{RopeScaling, RopeSpec};
pub use spec::{
    AttentionSpec, GroupLimit, GroupedSpec, LatentSpec, LayerKind, ModelSpec, MoeSpec, QkNorm,
    Scoring, SharedSpec,
};
