//! The logits of a prompt, computed in this process without a cluster.

use std::{path::Path, sync::Arc};

use anyhow::{Result, anyhow};
use model::{AttentionHalf, BLOCK_TOKENS, Checkpoint, Cpu, Gpu, Reference};
use node::open_gpu;
use safetensors::{Dtype, tensor::TensorView};

use crate::local::{LocalFlags, processor};

/// Tokens that run at once; how many does not change a bit of the logits.
const CHUNK: usize = 512;

/// Writes the logits of all positions of `tokens` to `file` as tensor `logits`, f32 `[positions, vocab]`.
///
/// They have the same bits as the cluster's.
pub(crate) fn write(file: &Path, flags: &LocalFlags, tokens: &[u32]) -> Result<()> {
    let options = processor(flags);
    let gpu = open_gpu(&flags.device.device, &flags.device.gpu(), options.compute)?;
    let cpu = Arc::new(Cpu::new(&options)?);
    let checkpoint = Checkpoint::open(&flags.model)?;
    let blocks = tokens.len().div_ceil(BLOCK_TOKENS);
    let mut model = match gpu {
        None => Reference::load(&Arc::new(checkpoint), &cpu, blocks)?,
        Some(gpu) => on_gpu(checkpoint, (&cpu, &gpu), blocks, flags)?,
    };
    let logits = model.logits(tokens, CHUNK)?;
    let bytes: Vec<u8> = logits.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    let shape = vec![tokens.len(), model.spec().vocab];
    let tensor = TensorView::new(Dtype::F32, shape, &bytes)?;
    safetensors::serialize_to_file([("logits", tensor)], None, file)
        .map_err(|error| anyhow!("{}: cannot be written: {error}", file.display()))
}

/// Both halves on a GPU, with all experts.
fn on_gpu(
    checkpoint: Checkpoint,
    (cpu, gpu): (&Arc<Cpu>, &Arc<Gpu>),
    blocks: usize,
    flags: &LocalFlags,
) -> Result<Reference> {
    let attention =
        AttentionHalf::on_gpu(&checkpoint, Arc::clone(cpu), Arc::clone(gpu), |_, _| ())?;
    let pairs = expert_node::config::default_batching().drain_max;
    let part = Some((gpu, &flags.device.gpu()));
    let mut experts = expert_node::open_half(checkpoint, cpu, part, pairs)?;
    for (layer, expert) in attention.spec().shape().slots() {
        experts.load_expert(layer, expert)?;
    }
    Ok(Reference::of(attention, experts, (blocks, CHUNK))?)
}
