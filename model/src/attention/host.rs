//! The attention half's layers on the processor.

use std::sync::Arc;

use domain::Layer;
use kernels::{
    Columns, Cpu, Dtype, KvCache, Linear, MatrixView, Rope, Span, linear, linear_add, rms_norm,
};

use super::{
    Routed, Scratch, feed_forward::FeedForward, grouped::Grouped, latent::Latent, scratch::sized,
};
use crate::{ModelError, ModelSpec};

/// Weights of all layers, packed for the processor's kernels.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) cpu: Arc<Cpu>,
    /// For latent attention, one processor of one thread for every thread of `cpu`: heads are computed side by side.
    pub(super) workers: Vec<Cpu>,
    pub(super) spec: Arc<ModelSpec>,
    pub(super) layers: Vec<DecoderLayer>,
    pub(super) rope: Rope,
    pub(super) norm: Vec<f32>,
    pub(super) head: Linear,
}

#[derive(Debug)]
pub(super) struct DecoderLayer {
    pub(super) input_norm: Vec<f32>,
    pub(super) attention: Attention,
    pub(super) output: Linear,
    pub(super) post_norm: Vec<f32>,
    pub(super) feed_forward: FeedForward,
}

#[derive(Debug)]
pub(super) enum Attention {
    Grouped(Grouped),
    Latent(Latent),
}

impl Host {
    pub(super) fn bytes(&self) -> usize {
        self.layers.iter().map(DecoderLayer::bytes).sum::<usize>() + self.head.bytes()
    }

    pub(super) fn attend(
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
        linear_add(&self.cpu, &weights.output, &scratch.attended, residual);
    }

    pub(super) fn route(
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

    pub(super) fn gate<'a>(
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

    pub(super) fn replace_gate(&mut self, layer: Layer, stored: &[u8]) -> Result<(), ModelError> {
        let (experts, hidden) = (self.spec.moe.experts, self.spec.hidden);
        let matrix = MatrixView::new(stored, Dtype::Bf16, experts, hidden)?;
        let gate = Linear::pack_f32(&self.cpu, &[matrix], None)?;
        self.layers[layer.index()].feed_forward.replace_gate(gate);
        Ok(())
    }

    pub(super) fn local_mlp(&self, layer: Layer, residual: &mut [f32], scratch: &mut Scratch) {
        let weights = &self.layers[layer.index()];
        if weights.feed_forward.is_local() {
            self.normalise(residual, &weights.post_norm, &mut scratch.normed);
            weights.feed_forward.local(self, residual, scratch);
        }
    }

    pub(super) fn logits<'a>(&self, residual: &[f32], scratch: &'a mut Scratch) -> &'a mut [f32] {
        self.normalise(residual, &self.norm, &mut scratch.normed);
        let rows = residual.len() / self.spec.hidden;
        let logits = sized(&mut scratch.logits, rows * self.spec.vocab);
        linear(&self.cpu, &self.head, &scratch.normed, logits);
        logits
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
