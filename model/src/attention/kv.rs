//! The KV cache where the attention half computes: in the processor's memory, or on a GPU.

use super::gpu::LayerCache;

/// Keys and values of every sequence an engine holds, made by [`AttentionHalf::new_kv`](super::AttentionHalf::new_kv).
#[derive(Debug)]
pub struct KvCache {
    pub(super) blocks: usize,
    pub(super) place: Place,
}

#[derive(Debug)]
pub(super) enum Place {
    Host(kernels::KvCache),
    /// One cache for each layer.
    Gpu(Vec<LayerCache>),
}

impl KvCache {
    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.blocks
    }
}
