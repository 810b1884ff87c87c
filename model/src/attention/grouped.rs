//! Attention with keys and values per head: fused q|k|v, optional norms and clamp, RoPE, cache, attention.

use kernels::{
    Columns, ColumnsMut, KvCache, Linear, Span, attend, linear, rms_norm_heads, write_kv,
};

use super::{Scratch, host::Host, scratch::sized};
use crate::{GroupedSpec, rows::for_each_row};

/// The weights of one layer's grouped attention, but for the output projection.
#[derive(Debug)]
pub(super) struct Grouped {
    pub(super) spec: GroupedSpec,
    /// Queries, keys and values of all heads, one after another.
    pub(super) qkv: Linear,
    /// Weights of the query and the key norm: a head's width, or that of all heads.
    pub(super) norms: Option<[Vec<f32>; 2]>,
}

impl Grouped {
    pub(super) fn bytes(&self) -> usize {
        self.qkv.bytes()
    }

    /// From `scratch.normed` to `scratch.attended`.
    pub(super) fn attend(
        &self,
        half: &Host,
        (layer, spans): (usize, &[Span<'_>]),
        kv: &mut KvCache,
        scratch: &mut Scratch,
    ) {
        let cpu = &half.cpu;
        let rows = scratch.normed.len() / half.spec.hidden;
        let width = self.qkv.outputs();
        let queries = 0..self.spec.heads * self.spec.head_dim;
        let keys = queries.end..queries.end + self.spec.kv_heads * self.spec.head_dim;
        let values = keys.end..width;

        let qkv = sized(&mut scratch.projected, rows * width);
        linear(cpu, &self.qkv, &scratch.normed, qkv);
        if let Some(norms) = &self.norms {
            for (columns, weight) in [&queries, &keys].into_iter().zip(norms) {
                let part = ColumnsMut::part(qkv, width, columns.clone());
                rms_norm_heads(cpu, part, weight, half.spec.norm_eps);
            }
        }
        if let Some(clip) = self.spec.clip {
            for_each_row(cpu, qkv, width, |_, row| {
                for value in row {
                    *value = value.clamp(-clip, clip);
                }
            });
        }
        // Queries and keys lie side by side and turn alike.
        let turned = ColumnsMut::part(qkv, width, 0..keys.end);
        half.rope.apply(cpu, turned, (self.spec.head_dim, 0), &scratch.positions);
        let qkv = Columns::dense(qkv, width);
        write_kv(cpu, kv, layer, spans, qkv.narrow(keys), qkv.narrow(values));
        attend(
            cpu,
            kv,
            (layer, spans),
            qkv.narrow(queries.clone()),
            half.spec.softmax_scale,
            sized(&mut scratch.attended, rows * queries.end),
            &mut scratch.attention,
        );
    }
}
