//! Buffers that the layer functions reuse, so that a warm engine allocates nothing per call.

use kernels::AttentionScratch;

use super::gpu::Memory;

/// Working memory of an attention engine: one per thread that calls the layer functions.
///
/// On a processor it grows to the largest batch seen and holds nothing between calls; that of a GPU is made by
/// [`AttentionHalf::new_scratch`](super::AttentionHalf::new_scratch) and holds the batch between the calls of a layer.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The position of every row.
    pub(super) positions: Vec<u32>,
    /// Rows after a norm, `[rows, hidden]`.
    pub(super) normed: Vec<f32>,
    /// A fused projection's output.
    pub(super) projected: Vec<f32>,
    /// Latent attention: queries before they are absorbed, `[rows, heads * (nope + rope)]`.
    pub(super) queries: Vec<f32>,
    /// Latent attention: the compressed query, then absorbed queries, `[rows, heads * (kv_rank + rope)]`.
    pub(super) absorbed: Vec<f32>,
    /// Latent attention: inputs and outputs of the heads' own projections, head after head.
    pub(super) by_head: Vec<f32>,
    /// Latent attention: what the heads saw, `[rows, heads * kv_rank]`.
    pub(super) latents: Vec<f32>,
    /// What attention gives to the output projection, `[rows, heads * value width]`.
    pub(super) attended: Vec<f32>,
    /// The gate's logits, `[rows, experts]`, or the shared experts' gate, `[rows]`.
    pub(super) gate: Vec<f32>,
    /// Logits, `[rows, vocab]`.
    pub(super) logits: Vec<f32>,
    pub(super) attention: AttentionScratch,
    /// What a GPU works in instead of all that.
    pub(super) gpu: Option<Box<Memory>>,
}

impl Scratch {
    pub(super) fn gpu(&mut self) -> &mut Memory {
        self.gpu.as_deref_mut().expect("a half on a GPU has made its scratch itself")
    }
}

/// The buffer at exactly `len` elements; it never gives memory back.
pub(super) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}
