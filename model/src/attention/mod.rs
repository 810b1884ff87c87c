//! The attention half: everything of a model but its routed experts, as functions of one layer over a batch of rows.

mod feed_forward;
mod gpu;
mod grouped;
mod host;
mod kv;
mod latent;
mod load;
mod scratch;

use std::sync::Arc;

use domain::Layer;
use kernels::{Cpu, Dtype, Span, add_wire_rows};

pub use self::{feed_forward::Routed, kv::KvCache, scratch::Scratch};
use self::{gpu::Gpu, host::Host, kv::Place};
use crate::{LayerKind, ModelError, ModelSpec, rows, tensor::widen};

/// Elements that are summed at a time when outputs of experts are absorbed; fits the first-level cache.
const ABSORB: usize = 512;

/// The attention half of a model, loaded.
///
/// A batch is a matrix of rows, one token each, `[rows, hidden]` in f32: the residual stream. The
/// caller owns it, and calls for every layer [`attend`](Self::attend), then
/// [`route`](Self::route) and [`local_mlp`](Self::local_mlp) for an MoE layer or `local_mlp` alone
/// for a dense one, then [`absorb`](Self::absorb) for every row when its experts have answered.
/// A row's result does not depend on the rows beside it.
///
/// On a GPU the batch stays there from `attend` to `local_mlp`, which brings it back: in between the
/// caller's `residual` is not read and not yet right. Embedding and absorbing are the processor's.
#[derive(Debug)]
pub struct AttentionHalf {
    cpu: Arc<Cpu>,
    spec: Arc<ModelSpec>,
    embedding: Embedding,
    layers: Layers,
}

/// Where the layers and the output head are computed.
#[derive(Debug)]
enum Layers {
    Host(Box<Host>),
    Gpu(Box<Gpu>),
}

/// The embedding's rows as the checkpoint stores them.
#[derive(Debug)]
struct Embedding {
    dtype: Dtype,
    bytes: Vec<u8>,
}

/// The most that an engine asks of its half at once.
#[derive(Clone, Copy, Debug)]
pub struct BatchBounds {
    /// Rows of a batch.
    pub rows: usize,
    /// Rows whose logits are asked for at once.
    pub head_rows: usize,
    /// Positions of a sequence.
    pub positions: usize,
}

impl AttentionHalf {
    /// The model this is a half of.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The processor it computes on, or that serves its GPU.
    #[must_use]
    pub fn cpu(&self) -> &Arc<Cpu> {
        &self.cpu
    }

    /// The kind of a layer.
    ///
    /// # Panics
    /// If the model has no such layer.
    #[must_use]
    pub fn layer_kind(&self, layer: Layer) -> LayerKind {
        self.spec.layer_kind(layer)
    }

    /// Bytes of its weights as they are resident, on the GPU if that has them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let layers = match &self.layers {
            Layers::Host(host) => host.bytes(),
            Layers::Gpu(gpu) => gpu.bytes(),
        };
        self.embedding.bytes.len() + layers
    }

    /// A KV cache of `blocks` blocks of [`BLOCK_TOKENS`](kernels::BLOCK_TOKENS) positions. A GPU gives all of its
    /// memory now, a processor as it is used.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn new_kv(&self, blocks: usize) -> Result<KvCache, ModelError> {
        let place = match &self.layers {
            Layers::Host(_) => {
                let layout = load::kv_layout(&self.spec);
                Place::Host(kernels::KvCache::new(&self.cpu, layout, blocks)?)
            }
            Layers::Gpu(gpu) => Place::Gpu(gpu.new_kv(blocks)?),
        };
        Ok(KvCache { blocks, place })
    }

    /// Bytes that one KV block takes over all layers.
    #[must_use]
    pub fn kv_bytes_per_block(&self) -> usize {
        match &self.layers {
            Layers::Host(_) => load::kv_layout(&self.spec).block_bytes(self.cpu.compute()),
            Layers::Gpu(gpu) => gpu.kv_bytes_per_block(),
        }
    }

    /// Working memory for batches within `bounds` over `kv`. A GPU gives all of it now.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn new_scratch(&self, bounds: BatchBounds, kv: &KvCache) -> Result<Scratch, ModelError> {
        let gpu = match &self.layers {
            Layers::Host(_) => None,
            Layers::Gpu(gpu) => Some(Box::new(gpu.new_memory(bounds, kv.blocks)?)),
        };
        Ok(Scratch { gpu, ..Scratch::default() })
    }

    /// Writes the embeddings of `tokens` to `residual`, `[tokens, hidden]`.
    ///
    /// # Panics
    /// If a token is not below the vocabulary's size: check prompts when they are admitted.
    pub fn embed(&self, tokens: &[u32], residual: &mut [f32]) {
        let hidden = self.spec.hidden;
        assert_eq!(residual.len(), tokens.len() * hidden, "one row per token");
        let row_bytes = hidden * self.embedding.dtype.bytes();
        rows::for_each_row(&self.cpu, residual, hidden, |row, values| {
            let stored = &self.embedding.bytes[tokens[row] as usize * row_bytes..][..row_bytes];
            widen(self.embedding.dtype, stored, values);
        });
    }

    /// The attention part of a layer: norm, projections, RoPE, KV write, attention, output, residual.
    ///
    /// `spans` say which rows of `residual`, `[rows, hidden]`, are which positions of which sequence, one span after
    /// another; their blocks in `kv` cover those positions.
    ///
    /// # Errors
    /// If the GPU fails.
    ///
    /// # Panics
    /// If rows, spans and blocks do not fit each other, or `kv` or `scratch` were made by a half that computes elsewhere.
    pub fn attend(
        &self,
        layer: Layer,
        spans: &[Span<'_>],
        kv: &mut KvCache,
        residual: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ModelError> {
        match (&self.layers, &mut kv.place) {
            (Layers::Host(host), Place::Host(kv)) => {
                host.attend(layer, spans, kv, residual, scratch);
            }
            (Layers::Gpu(gpu), Place::Gpu(kv)) => {
                gpu.attend(layer, spans, kv, residual, scratch.gpu())?;
            }
            _ => panic!("a cache that another half has made"),
        }
        Ok(())
    }

    /// The gate of an MoE layer: writes the rows to dispatch and each row's experts to `routed`.
    ///
    /// Call it before [`local_mlp`](Self::local_mlp), which changes `residual`.
    ///
    /// # Errors
    /// If the GPU fails.
    ///
    /// # Panics
    /// If the layer is dense.
    pub fn route(
        &self,
        layer: Layer,
        residual: &[f32],
        routed: &mut Routed,
        scratch: &mut Scratch,
    ) -> Result<(), ModelError> {
        match &self.layers {
            Layers::Host(host) => host.route(layer, residual, routed, scratch),
            Layers::Gpu(gpu) => gpu.route(layer, routed, scratch.gpu())?,
        }
        Ok(())
    }

    /// The normalised rows and the gate's logits, `[rows, experts]`, of an MoE layer on the processor.
    pub(crate) fn gate<'a>(
        &self,
        layer: Layer,
        residual: &[f32],
        scratch: &'a mut Scratch,
    ) -> (&'a [f32], &'a [f32]) {
        match &self.layers {
            Layers::Host(host) => host.gate(layer, residual, scratch),
            Layers::Gpu(_) => panic!("gates are calibrated on processors"),
        }
    }

    /// Takes other weights, `[experts, hidden]` in bf16, for the gate of an MoE layer on the processor.
    pub(crate) fn replace_gate(&mut self, layer: Layer, stored: &[u8]) -> Result<(), ModelError> {
        match &mut self.layers {
            Layers::Host(host) => host.replace_gate(layer, stored),
            Layers::Gpu(_) => panic!("gates are calibrated on processors"),
        }
    }

    /// Adds the dense MLP of a dense layer, or the shared experts of an MoE layer; nothing if there are none.
    ///
    /// # Errors
    /// If the GPU fails, or has failed since [`attend`](Self::attend).
    pub fn local_mlp(
        &self,
        layer: Layer,
        residual: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), ModelError> {
        match &self.layers {
            Layers::Host(host) => host.local_mlp(layer, residual, scratch),
            Layers::Gpu(gpu) => gpu.local_mlp(layer, residual, scratch.gpu())?,
        }
        Ok(())
    }

    /// Adds the outputs of a row's experts to its residual.
    ///
    /// `outputs` are wire rows in ascending order of expert. They are summed first and then added,
    /// so that the result is the same for every order of arrival.
    ///
    /// # Panics
    /// If an output is not one wire row of the model.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "an iterator is handed over, and run through once per part"
    )]
    pub fn absorb<'a, I>(&self, outputs: I, residual_row: &mut [f32])
    where
        I: IntoIterator<Item = &'a [u8]> + Clone,
    {
        let compute = self.cpu.compute();
        for (part, residual) in residual_row.chunks_mut(ABSORB).enumerate() {
            let mut sum = [0.0; ABSORB];
            let sum = &mut sum[..residual.len()];
            let begin = compute.row_bytes(part * ABSORB);
            let end = begin + compute.row_bytes(residual.len());
            for output in outputs.clone() {
                add_wire_rows(sum, &output[begin..end], compute);
            }
            for (residual, sum) in residual.iter_mut().zip(sum) {
                *residual += *sum;
            }
        }
    }

    /// Calls `f(row, elements)` for every row of `residual`, `[rows, hidden]`, on all threads: for what is done to
    /// rows one by one, as [`absorb`](Self::absorb).
    pub fn for_each_row(&self, residual: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
        rows::for_each_row(&self.cpu, residual, self.spec.hidden, f);
    }

    /// The logits of `residual`, `[rows, hidden]`, after the last layer: `[rows, vocab]`, the caller's until the next
    /// call with the same scratch.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn logits<'a>(
        &self,
        residual: &[f32],
        scratch: &'a mut Scratch,
    ) -> Result<&'a mut [f32], ModelError> {
        match &self.layers {
            Layers::Host(host) => Ok(host.logits(residual, scratch)),
            Layers::Gpu(gpu) => Ok(gpu.logits(residual, scratch.gpu())?),
        }
    }
}
