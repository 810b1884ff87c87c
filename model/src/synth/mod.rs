//! Writes random checkpoints of a given shape, with routing as skewed as asked, for benchmarks and tests.
//!
//! Residual channel 0 is held constant: the embedding's column 0 is a constant and row 0 of every
//! matrix that writes to the residual is zero. Column 0 of a gate is then a bias per expert, and the
//! biases are solved so that the popularity of experts follows a Zipf law.

mod blocks;
mod calibrate;
mod normal;
mod tensors;
mod texts;

use std::{fs, io, path::Path, sync::Arc};

use kernels::{Compute, Cpu, CpuOptions};
use thiserror::Error;

use self::tensors::TensorsFile;
use crate::ModelError;

/// A Qwen3-MoE to be drawn at random. The default is `m12`, the shape of the CPU benchmarks: 0.7 billion weights.
#[derive(Clone, Debug, PartialEq)]
pub struct SynthSpec {
    /// Equal seeds and shapes give equal files.
    pub seed: u64,
    /// Decoder layers, all with experts.
    pub layers: usize,
    /// Experts per layer.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Width of a hidden state.
    pub hidden: usize,
    /// Width of an expert.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Entries of the vocabulary; at least the 259 of the tokenizer.
    pub vocab: usize,
    /// Longest sequence.
    pub positions_max: usize,
    /// Exponent of the popularity of experts; 0 is even.
    pub zipf: f64,
    /// Largest share of tokens that one expert may get.
    pub share_max: f64,
    /// The constant in residual channel 0.
    pub carrier: f32,
    /// Projections and experts in fp8, with a scale for each block of 128 x 128; the rest stays in bf16.
    pub fp8: bool,
}

impl Default for SynthSpec {
    fn default() -> Self {
        Self {
            seed: 7,
            layers: 12,
            experts: 32,
            top_k: 4,
            hidden: 1024,
            width: 512,
            heads: 16,
            kv_heads: 4,
            head_dim: 64,
            vocab: 32_000,
            positions_max: 32_768,
            zipf: 0.0,
            share_max: 0.9,
            carrier: 6.0,
            fp8: false,
        }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct SynthReport {
    /// Weights of the model.
    pub parameters: usize,
    /// Bytes of `model.safetensors`.
    pub bytes: usize,
    /// Per layer, how the tokens of the calibration spread over the experts.
    pub layers: Vec<LayerShares>,
}

/// The shares of tokens that choose each expert of a layer; they sum to top-k.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerShares {
    /// As asked.
    pub target: Vec<f64>,
    /// As reached on random tokens.
    pub reached: Vec<f64>,
}

/// Why a checkpoint was not written.
#[derive(Debug, Error)]
pub enum SynthError {
    /// The shape contradicts itself.
    #[error("{0}")]
    Shape(String),
    /// The folder or a file in it could not be written.
    #[error("cannot write the checkpoint: {0}")]
    Write(io::Error),
    /// What was written cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Writes a checkpoint to `dir`, which is made if it is not there, with `threads` threads.
///
/// It takes the time to write the weights and to run 2,048 tokens through them, and the memory of
/// the attention half and one layer's experts.
///
/// # Errors
/// If the shape contradicts itself or `dir` cannot be written.
pub fn synth(spec: &SynthSpec, dir: &Path, threads: usize) -> Result<SynthReport, SynthError> {
    spec.check()?;
    // In f32, which gives the same bits on every machine.
    let options = CpuOptions { threads, compute: Compute::F32, isa: None, pin: false };
    let cpu = Arc::new(Cpu::new(&options).map_err(ModelError::from)?);
    fs::create_dir_all(dir).map_err(SynthError::Write)?;
    for (name, text) in texts::all(spec) {
        fs::write(dir.join(name), format!("{text:#}\n")).map_err(SynthError::Write)?;
    }
    let path = dir.join("model.safetensors");
    let file = TensorsFile::write(spec, &cpu, &path).map_err(SynthError::Write)?;
    let layers = calibrate::calibrate(spec, dir, &cpu, &file)?;
    Ok(SynthReport { parameters: file.parameters, bytes: file.bytes, layers })
}

impl SynthSpec {
    /// What the loader would not say in terms of this shape.
    fn check(&self) -> Result<(), SynthError> {
        let wrong = |text: String| Err(SynthError::Shape(text));
        let sizes = [
            ("layers", self.layers),
            ("experts", self.experts),
            ("top_k", self.top_k),
            ("hidden", self.hidden),
            ("width", self.width),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return wrong(format!("{name} is 0, expected at least 1"));
        }
        if self.vocab < texts::VOCAB_MIN {
            let least = texts::VOCAB_MIN;
            return wrong(format!("vocab is {}, expected at least {least}", self.vocab));
        }
        if self.positions_max < calibrate::SEQUENCE {
            let least = calibrate::SEQUENCE;
            return wrong(format!(
                "positions_max is {}, expected at least {least}",
                self.positions_max
            ));
        }
        if !(self.zipf.is_finite() && self.zipf >= 0.0) {
            return wrong(format!("zipf is {}, expected a number from 0 up", self.zipf));
        }
        let least = self.top_k as f64 / self.experts as f64;
        if !(self.share_max >= least && self.share_max <= 1.0) {
            let share = self.share_max;
            return wrong(format!("share_max is {share}, expected top_k / experts to 1"));
        }
        Ok(())
    }
}
