//! Latent attention in its absorbed form (DeepSeek-V2, section 2.1.2): queries go to the compressed keys, not keys to the heads.

use kernels::{
    Columns, ColumnsMut, Cpu, KvCache, Linear, Span, attend, linear, rms_norm_heads, write_kv,
};

use super::{Scratch, host::Host, scratch::sized};
use crate::{
    LatentSpec,
    rows::{for_each_part, for_each_row},
};

/// Epsilon of the norms of compressed rows, which the reference does not take from the configuration.
pub(super) const COMPRESSED_NORM_EPS: f32 = 1e-6;

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
        half: &Host,
        (layer, spans): (usize, &[Span<'_>]),
        kv: &mut KvCache,
        scratch: &mut Scratch,
    ) {
        let cpu = &*half.cpu;
        let LatentSpec { heads, kv_rank, rope_dim, value_dim, .. } = self.spec;
        let rows = scratch.normed.len() / half.spec.hidden;
        let width = self.down.outputs();
        let compressed = width - kv_rank - rope_dim..width - rope_dim;

        let down = sized(&mut scratch.projected, rows * width);
        linear(cpu, &self.down, &scratch.normed, down);
        let part = ColumnsMut::part(down, width, compressed.clone());
        rms_norm_heads(cpu, part, &self.kv_norm, COMPRESSED_NORM_EPS);
        let turned = ColumnsMut::part(down, width, compressed.end..width);
        half.rope.apply(cpu, turned, (rope_dim, 0), &scratch.positions);
        let keys = Columns::part(down, width, compressed.start..width);
        write_kv(cpu, kv, layer, spans, keys, keys.narrow(0..kv_rank));

        self.project_queries(half, rows, scratch);
        self.absorb_queries(half, rows, scratch);
        attend(
            cpu,
            kv,
            (layer, spans),
            Columns::dense(&scratch.absorbed, heads * (kv_rank + rope_dim)),
            half.spec.softmax_scale,
            sized(&mut scratch.latents, rows * heads * kv_rank),
            &mut scratch.attention,
        );

        let (from, to) = (heads * kv_rank, heads * value_dim);
        let latents = &scratch.latents;
        per_head(half, &self.expand, rows, &mut scratch.by_head, |row, head, into| {
            into.copy_from_slice(&latents[row * from + head * kv_rank..][..kv_rank]);
        });
        let (heads, attended) = (&scratch.by_head, sized(&mut scratch.attended, rows * to));
        for_each_row(cpu, attended, to, |row, values| {
            for (head, value) in values.chunks_exact_mut(value_dim).enumerate() {
                value.copy_from_slice(output(heads, &self.expand[0], rows, (head, row)));
            }
        });
    }

    /// From `scratch.projected` to `scratch.queries`, turned: `[rows, heads * (nope_dim + rope_dim)]`.
    fn project_queries(&self, half: &Host, rows: usize, scratch: &mut Scratch) {
        let cpu = &*half.cpu;
        let LatentSpec { heads, nope_dim, rope_dim, kv_rank, .. } = self.spec;
        let head_dim = nope_dim + rope_dim;
        let queries = sized(&mut scratch.queries, rows * heads * head_dim);
        let width = self.down.outputs();
        let given = width - kv_rank - rope_dim;
        let projected = &mut scratch.projected;
        if let Some((norm, up)) = &self.query {
            let part = ColumnsMut::part(projected, width, 0..given);
            rms_norm_heads(cpu, part, norm, COMPRESSED_NORM_EPS);
            let compressed = sized(&mut scratch.absorbed, rows * given);
            for_each_row(cpu, compressed, given, |row, query| {
                query.copy_from_slice(&projected[row * width..][..given]);
            });
            linear(cpu, up, compressed, queries);
        } else {
            for_each_row(cpu, queries, given, |row, query| {
                query.copy_from_slice(&projected[row * width..][..given]);
            });
        }
        let all = ColumnsMut::dense(queries, heads * head_dim);
        half.rope.apply(cpu, all, (head_dim, nope_dim), &scratch.positions);
    }

    /// From `scratch.queries` to `scratch.absorbed`: each head's query over the compressed keys and their turned part.
    fn absorb_queries(&self, half: &Host, rows: usize, scratch: &mut Scratch) {
        let LatentSpec { heads, nope_dim, rope_dim, kv_rank, .. } = self.spec;
        let (head_dim, wide) = (nope_dim + rope_dim, kv_rank + rope_dim);
        let queries = &scratch.queries;
        let query =
            |row: usize, head: usize| &queries[(row * heads + head) * head_dim..][..head_dim];
        per_head(half, &self.absorb, rows, &mut scratch.by_head, |row, head, into| {
            into.copy_from_slice(&query(row, head)[..nope_dim]);
        });
        let by_head = &scratch.by_head;
        let absorbed = sized(&mut scratch.absorbed, rows * heads * wide);
        for_each_row(&half.cpu, absorbed, heads * wide, |row, absorbed| {
            for (head, absorbed) in absorbed.chunks_exact_mut(wide).enumerate() {
                let (over_keys, turned) = absorbed.split_at_mut(kv_rank);
                over_keys.copy_from_slice(output(by_head, &self.absorb[0], rows, (head, row)));
                turned.copy_from_slice(&query(row, head)[nope_dim..]);
            }
        });
    }
}

/// Applies each head's own projection to its rows, heads in parallel.
///
/// `input(row, head, into)` writes one input row. `by_head` gets, head after head, the `rows` inputs
/// and then the `rows` outputs; [`output`] finds one.
fn per_head(
    half: &Host,
    projections: &[Linear],
    rows: usize,
    by_head: &mut Vec<f32>,
    input: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let (inputs, outputs) = (projections[0].inputs(), projections[0].outputs());
    let by_head = sized(by_head, projections.len() * rows * (inputs + outputs));
    for_each_part(&half.cpu, by_head, rows * (inputs + outputs), |head, worker, part| {
        let (x, y) = part.split_at_mut(rows * inputs);
        for (row, into) in x.chunks_exact_mut(inputs).enumerate() {
            input(row, head, into);
        }
        let cpu: &Cpu = &half.workers[worker];
        linear(cpu, &projections[head], x, y);
    });
}

/// The output row that [`per_head`] computed for a head.
fn output<'a>(
    by_head: &'a [f32],
    projection: &Linear,
    rows: usize,
    (head, row): (usize, usize),
) -> &'a [f32] {
    let (inputs, outputs) = (projection.inputs(), projection.outputs());
    let begin = head * rows * (inputs + outputs) + rows * inputs + row * outputs;
    &by_head[begin..begin + outputs]
}
