//! The attention half: everything of a model but its routed experts, as functions of one layer over a batch of rows.

mod feed_forward;
mod grouped;
mod latent;
mod load;
mod scratch;

use std::sync::Arc;

use domain::Layer;
use kernels::{
    Columns, Cpu, Dtype, KvCache, KvLayout, Linear, MatrixView, Rope, Span, add_wire_rows, linear,
    rms_norm,
};

use self::{feed_forward::FeedForward, grouped::Grouped, latent::Latent};
pub use self::{feed_forward::Routed, scratch::Scratch};
use crate::{LayerKind, ModelError, ModelSpec, rows, weights::widen};

/// Elements that are summed at a time when outputs of experts are absorbed; fits the first-level cache.
const ABSORB: usize = 512;

/// The attention half of a model, loaded.
///
/// A batch is a matrix of rows, one token each, `[rows, hidden]` in f32: the residual stream. The
/// caller owns it, and calls for every layer [`attend`](Self::attend), then
/// [`route`](Self::route) and [`local_mlp`](Self::local_mlp) for an MoE layer or `local_mlp` alone
/// for a dense one, then [`absorb`](Self::absorb) for every row when its experts have answered.
/// A row's result does not depend on the rows beside it.
#[derive(Debug)]
pub struct AttentionHalf {
    cpu: Arc<Cpu>,
    /// For latent attention, one processor of one thread for every thread of `cpu`: heads are computed side by side.
    workers: Vec<Cpu>,
    spec: ModelSpec,
    embedding: Embedding,
    layers: Vec<DecoderLayer>,
    rope: Rope,
    norm: Vec<f32>,
    head: Linear,
}

/// The embedding's rows as the checkpoint stores them.
#[derive(Debug)]
struct Embedding {
    dtype: Dtype,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct DecoderLayer {
    input_norm: Vec<f32>,
    attention: Attention,
    output: Linear,
    post_norm: Vec<f32>,
    feed_forward: FeedForward,
}

#[derive(Debug)]
enum Attention {
    Grouped(Grouped),
    Latent(Latent),
}

impl AttentionHalf {
    /// The model this is a half of.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The processor it computes on.
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

    /// Bytes of its weights as they are resident.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let layers: usize = self.layers.iter().map(DecoderLayer::bytes).sum();
        self.embedding.bytes.len() + layers + self.head.bytes()
    }

    /// A KV cache of `blocks` blocks of [`BLOCK_TOKENS`](kernels::BLOCK_TOKENS) positions.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn new_kv(&self, blocks: usize) -> Result<KvCache, ModelError> {
        Ok(KvCache::new(&self.cpu, self.kv_layout(), blocks)?)
    }

    /// Bytes that one KV block takes over all layers.
    #[must_use]
    pub fn kv_bytes_per_block(&self) -> usize {
        self.kv_layout().block_bytes(self.cpu.compute())
    }

    fn kv_layout(&self) -> KvLayout {
        load::kv_layout(&self.spec)
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
    /// `spans` say which rows of `residual`, `[rows, hidden]`, are which positions of which sequence;
    /// their blocks in `kv` cover those positions.
    ///
    /// # Panics
    /// If rows, spans and blocks do not fit each other.
    pub fn attend(
        &self,
        layer: Layer,
        spans: &[Span<'_>],
        kv: &mut KvCache,
        residual: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let weights = &self.layers[layer.index()];
        positions(spans, residual.len() / self.spec.hidden, &mut scratch.positions);
        self.normalise(residual, &weights.input_norm, &mut scratch.normed);
        match &weights.attention {
            Attention::Grouped(grouped) => {
                grouped.attend(self, (layer.index(), spans), kv, scratch);
            }
            Attention::Latent(latent) => latent.attend(self, (layer.index(), spans), kv, scratch),
        }
        kernels::linear_add(&self.cpu, &weights.output, &scratch.attended, residual);
    }

    /// The gate of an MoE layer: writes the rows to dispatch and each row's experts to `routed`.
    ///
    /// Call it before [`local_mlp`](Self::local_mlp), which changes `residual`.
    ///
    /// # Panics
    /// If the layer is dense.
    pub fn route(
        &self,
        layer: Layer,
        residual: &[f32],
        routed: &mut Routed,
        scratch: &mut Scratch,
    ) {
        let weights = &self.layers[layer.index()];
        self.normalise(residual, &weights.post_norm, &mut scratch.normed);
        weights.feed_forward.route(self, routed, scratch);
    }

    /// The normalised rows and the gate's logits, `[rows, experts]`, of an MoE layer.
    pub(crate) fn gate<'a>(
        &self,
        layer: Layer,
        residual: &[f32],
        scratch: &'a mut Scratch,
    ) -> (&'a [f32], &'a [f32]) {
        let weights = &self.layers[layer.index()];
        self.normalise(residual, &weights.post_norm, &mut scratch.normed);
        weights.feed_forward.gate(self, scratch);
        (&scratch.normed, &scratch.gate)
    }

    /// Takes other weights, `[experts, hidden]` in bf16, for the gate of an MoE layer.
    pub(crate) fn replace_gate(&mut self, layer: Layer, stored: &[u8]) -> Result<(), ModelError> {
        let (experts, hidden) = (self.spec.moe.experts, self.spec.hidden);
        let matrix = MatrixView::new(stored, Dtype::Bf16, experts, hidden)?;
        let gate = Linear::pack_f32(&self.cpu, &[matrix], None)?;
        self.layers[layer.index()].feed_forward.replace_gate(gate);
        Ok(())
    }

    /// Adds the dense MLP of a dense layer, or the shared experts of an MoE layer; nothing if there are none.
    pub fn local_mlp(&self, layer: Layer, residual: &mut [f32], scratch: &mut Scratch) {
        let weights = &self.layers[layer.index()];
        if weights.feed_forward.is_local() {
            self.normalise(residual, &weights.post_norm, &mut scratch.normed);
            weights.feed_forward.local(self, residual, scratch);
        }
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

    /// The logits of `residual`, `[rows, hidden]`, after the last layer: replaces `out` by `[rows, vocab]`.
    pub fn logits(&self, residual: &[f32], out: &mut Vec<f32>, scratch: &mut Scratch) {
        self.normalise(residual, &self.norm, &mut scratch.normed);
        let rows = residual.len() / self.spec.hidden;
        out.resize(rows * self.spec.vocab, 0.0);
        linear(&self.cpu, &self.head, &scratch.normed, out);
    }

    fn normalise(&self, rows: &[f32], weight: &[f32], into: &mut Vec<f32>) {
        into.resize(rows.len(), 0.0);
        let rows = Columns::dense(rows, weight.len());
        rms_norm(&self.cpu, rows, weight, self.spec.norm_eps, into);
    }
}

/// The position of every row of a batch; rows outside all spans stand at 0 and are nobody's.
fn positions(spans: &[Span<'_>], rows: usize, into: &mut Vec<u32>) {
    into.clear();
    into.resize(rows, 0);
    for span in spans {
        for (position, row) in (span.first_position..).zip(span.rows.clone()) {
            into[row] = position as u32;
        }
    }
}

impl DecoderLayer {
    fn bytes(&self) -> usize {
        let attention = match &self.attention {
            Attention::Grouped(grouped) => grouped.bytes(),
            Attention::Latent(latent) => latent.bytes(),
        };
        attention + self.output.bytes() + self.feed_forward.bytes()
    }
}
