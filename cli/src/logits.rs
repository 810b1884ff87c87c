//! The logits of a prompt, computed in this process without a cluster.

use std::{path::Path, sync::Arc};

use anyhow::{Result, anyhow, ensure};
use model::{BLOCK_TOKENS, Checkpoint, Cpu, Reference};
use node::config::Device;
use safetensors::{Dtype, tensor::TensorView};

use crate::local::{LocalFlags, processor};

/// Tokens that run at once; how many does not change a bit of the logits.
const CHUNK: usize = 512;

/// Writes the logits of all positions of `tokens` to `file` as tensor `logits`, f32 `[positions, vocab]`.
///
/// They have the same bits as the cluster's.
pub(crate) fn write(file: &Path, flags: &LocalFlags, tokens: &[u32]) -> Result<()> {
    let on_gpu = matches!(flags.device.device, Device::Cuda(_));
    ensure!(!on_gpu, "logits are computed on the processor only, expected `--device cpu`");
    let checkpoint = Arc::new(Checkpoint::open(&flags.model)?);
    let cpu = Arc::new(Cpu::new(&processor(flags))?);
    let mut model = Reference::load(&checkpoint, &cpu, tokens.len().div_ceil(BLOCK_TOKENS))?;
    let logits = model.logits(tokens, CHUNK)?;
    let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    let shape = vec![tokens.len(), model.spec().vocab];
    let tensor = TensorView::new(Dtype::F32, shape, &bytes)?;
    safetensors::serialize_to_file([("logits", tensor)], None, file)
        .map_err(|error| anyhow!("{}: cannot be written: {error}", file.display()))
}
