//! Hugging Face checkpoints of mixture-of-experts models as an attention half and an expert half, in layer functions that a node's engine calls.

mod arch;
mod attention;
mod checkpoint;
mod config;
mod error;
mod experts;
mod fingerprint;
mod quantization;
mod reference;
mod rope;
mod rows;
mod safetensors;
mod spec;
mod synth;
mod tensor;
mod weights;

pub use attention::{AttentionHalf, BatchBounds, KvCache, Routed, Scratch};
pub use checkpoint::Checkpoint;
pub use error::ModelError;
pub use experts::{ExpertHalf, ExpertLoader, ExpertWork, LoadedExpert};
// What engines hand to the halves; they know the kernels by these names only.
pub use kernels::cuda::{CudaError, Device as Gpu};
pub use kernels::{
    BLOCK_TOKENS, Compute, Cpu, CpuError, CpuOptions, Draw, FfnRow, Isa, RopeSpec, Sampled,
    SamplingScratch, SamplingSpec, Span, TokenCounts, sample,
};
pub use reference::Reference;
pub use spec::{
    AttentionSpec, GroupLimit, GroupedSpec, LatentSpec, LayerKind, ModelSpec, MoeSpec, QkNorm,
    Scoring, SharedSpec,
};
pub use synth::{LayerShares, SynthError, SynthReport, SynthSpec, synth};
