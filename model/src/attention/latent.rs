//! Latent attention in its absorbed form (DeepSeek-V2, section 2.1.2): queries go to the compressed keys, not keys to the heads.

use std::ops::Range;

use kernels::{
    Columns, ColumnsMut, Cpu, KvCache, Linear, Span, attend, linear, rms_norm_heads, write_kv,
};

use super::{AttentionHalf, Scratch, scratch::sized};
use crate::LatentSpec;

/// Epsilon of the norms of compressed rows, which the reference does not take from the configuration.
const COMPRESSED_NORM_EPS: f32 = 1e-6;

/// The weights of one layer's latent attention, but for the output projection.
#[derive(Debug)]
pub(super) struct Latent {
    pub(super) spec: LatentSpec,
    /// The query (compressed if the model compresses it), the compressed key-value row and the key's turned part.
    pub(super) down: Linear,
    /// Norm of the compressed query and its projection to the heads.
    pub(super) query: Option<(Vec<f32>, Linear)>,
    /// Norm of the compressed key-value row.
    pub(super) kv_norm: Vec<f32>,
    /// Per head: from the query's unturned part to the compressed key, `nope_dim` to `kv_rank`.
    pub(super) absorb: Vec<Linear>,
    /// Per head: from the compressed value to the head's, `kv_rank` to `value_dim`.
    pub(super) expand: Vec<Linear>,
}

impl Latent {
    pub(super) fn bytes(&self) -> usize {
        let query = self.query.as_ref().map_or(0, |(_, linear)| linear.bytes());
        let heads = self.absorb.iter().chain(&self.expand);
        self.down.bytes() + query + heads.map(Linear::bytes).sum::<usize>()
    }

    /// From `scratch.normed` to `scratch.attended`.
    pub(super) fn attend(
        &self,
        half: &AttentionHalf,
        (layer, spans): (usize, &[Span<'_>]),
        kv: &mut KvCache,
        scratch: &mut Scratch,
    ) {
        let cpu = &*half.cpu;
        let rows = scratch.normed.len() / half.spec.hidden;
        let width = self.down.outputs();
        let (rank, heads) = (self.spec.kv_rank, self.spec.heads);
        let compressed = width - rank - self.spec.rope_dim..width - self.spec.rope_dim;
        let turned = compressed.end..width;

        let down = sized(&mut scratch.projected, rows * width);
        linear(cpu, &self.down, &scratch.normed, down);
        let part = ColumnsMut::part(down, width, compressed.clone());
        rms_norm_heads(cpu, part, &self.kv_norm, COMPRESSED_NORM_EPS);
        let part = ColumnsMut::part(down, width, turned);
        half.rope.apply(cpu, part, (self.spec.rope_dim, 0), &scratch.positions);
        let keys = Columns::part(down, width, compressed.start..width);
        write_kv(cpu, kv, layer, spans, keys, keys.narrow(0..rank));

        self.queries(half, rows, scratch);
        attend(
            cpu,
            kv,
            (layer, spans),
            Columns::dense(&scratch.absorbed, heads * (rank + self.spec.rope_dim)),
            half.spec.softmax_scale,
            sized(&mut scratch.latents, rows * heads * rank),
            &mut scratch.attention,
        );
        self.values(cpu, rows, scratch);
    }

    /// From `scratch.projected` to `scratch.absorbed`: each head's query over the compressed keys and their turned part.
    fn queries(&self, half: &AttentionHalf, rows: usize, scratch: &mut Scratch) {
        let cpu = &*half.cpu;
        let LatentSpec { heads, nope_dim, rope_dim, kv_rank, .. } = self.spec;
        let head_dim = nope_dim + rope_dim;
        let queries = sized(&mut scratch.queries, rows * heads * head_dim);
        let width = self.down.outputs();
        let given = width - kv_rank - rope_dim;
        if let Some((norm, up)) = &self.query {
            let part = ColumnsMut::part(&mut scratch.projected, width, 0..given);
            rms_norm_heads(cpu, part, norm, COMPRESSED_NORM_EPS);
            let compressed = sized(&mut scratch.absorbed, rows * given);
            copy(&scratch.projected, width, 0..given, compressed, given, 0);
            linear(cpu, up, compressed, queries);
        } else {
            copy(&scratch.projected, width, 0..given, queries, given, 0);
        }
        let all = ColumnsMut::dense(queries, heads * head_dim);
        half.rope.apply(cpu, all, (head_dim, nope_dim), &scratch.positions);

        let absorbed = sized(&mut scratch.absorbed, rows * heads * (kv_rank + rope_dim));
        let head_in = sized(&mut scratch.head_in, rows * nope_dim);
        let head_out = sized(&mut scratch.head_out, rows * kv_rank);
        let (from, to) = (heads * head_dim, heads * (kv_rank + rope_dim));
        for (head, absorb) in self.absorb.iter().enumerate() {
            let (first, place) = (head * head_dim, head * (kv_rank + rope_dim));
            let split = first + nope_dim;
            copy(queries, from, first..split, head_in, nope_dim, 0);
            linear(cpu, absorb, head_in, head_out);
            copy(head_out, kv_rank, 0..kv_rank, absorbed, to, place);
            copy(queries, from, split..first + head_dim, absorbed, to, place + kv_rank);
        }
    }

    /// From `scratch.latents` to `scratch.attended`: each head's value out of the compressed one.
    fn values(&self, cpu: &Cpu, rows: usize, scratch: &mut Scratch) {
        let LatentSpec { heads, kv_rank, value_dim, .. } = self.spec;
        let attended = sized(&mut scratch.attended, rows * heads * value_dim);
        let head_in = sized(&mut scratch.head_in, rows * kv_rank);
        let head_out = sized(&mut scratch.head_out, rows * value_dim);
        let (from, to) = (heads * kv_rank, heads * value_dim);
        for (head, expand) in self.expand.iter().enumerate() {
            let first = head * kv_rank;
            copy(&scratch.latents, from, first..first + kv_rank, head_in, kv_rank, 0);
            linear(cpu, expand, head_in, head_out);
            copy(head_out, value_dim, 0..value_dim, attended, to, head * value_dim);
        }
    }
}

/// Copies some columns of a matrix to those of another from column `place` on.
fn copy(
    from: &[f32],
    from_width: usize,
    columns: Range<usize>,
    to: &mut [f32],
    to_width: usize,
    place: usize,
) {
    let len = columns.len();
    for (from, to) in from.chunks_exact(from_width).zip(to.chunks_exact_mut(to_width)) {
        to[place..place + len].copy_from_slice(&from[columns.clone()]);
    }
}
