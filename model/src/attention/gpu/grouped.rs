//! Attention with keys and values per head on a GPU.

use half::bf16;
use kernels::cuda::{
    Attention, Buffer, Cache, CacheShape, CudaError, Device, HeadNorms, KvSteps, Matrix, Paging,
};

use super::kinds::Batch;

/// The weights of one layer's grouped attention, but for the output projection.
#[derive(Debug)]
pub(super) struct Grouped {
    /// Queries, keys and values of all heads, one after another.
    pub(super) qkv: Matrix,
    pub(super) bias: Option<Buffer<f32>>,
    /// Of queries and of keys.
    pub(super) norms: Option<[Buffer<bf16>; 2]>,
    /// Clamps all three.
    pub(super) clip: Option<f32>,
}

/// Its kernels, and the batch between them.
#[derive(Debug)]
pub(super) struct GroupedRoom {
    shape: CacheShape,
    attention: Attention,
    /// `[rows, heads + 2 kv_heads, dim]`.
    projected: Buffer<bf16>,
    /// `[rows, heads, dim]`.
    query: Buffer<bf16>,
}

impl GroupedRoom {
    /// For batches of so many rows and positions.
    pub(super) fn new(
        device: &Device,
        shape: CacheShape,
        (rows, positions): (usize, usize),
    ) -> Result<Self, CudaError> {
        let CacheShape { heads, kv_heads, dim, .. } = shape;
        Ok(Self {
            shape,
            attention: Attention::new(device, shape, (rows, positions))?,
            projected: device.alloc(rows * (heads + 2 * kv_heads) * dim)?,
            query: device.alloc(rows * heads * dim)?,
        })
    }

    pub(super) fn paging(&self) -> Paging {
        self.shape.paging()
    }

    pub(super) fn fit(&mut self, rows: usize) -> Result<(), CudaError> {
        let CacheShape { heads, kv_heads, dim, .. } = self.shape;
        self.projected.resize(rows * (heads + 2 * kv_heads) * dim)?;
        self.query.resize(rows * heads * dim)
    }
}

impl Grouped {
    pub(super) fn bytes(&self) -> usize {
        self.qkv.bytes()
    }

    /// From `batch.normed` to `batch.attended`.
    pub(super) fn attend(
        &self,
        batch: Batch<'_>,
        room: &mut GroupedRoom,
        cache: &mut Cache,
    ) -> Result<(), CudaError> {
        let Batch { device, spec, dense, paged, angles, normed, attended } = batch;
        dense.launch(device, &self.qkv, normed, &mut room.projected)?;
        let norms = self.norms.as_ref();
        let epsilon = spec.norm_eps;
        let steps = KvSteps {
            bias: self.bias.as_ref(),
            norms: norms.map(|[query, key]| HeadNorms { query, key, epsilon }),
            clip: self.clip,
            angles,
            turned: spec.rope.dim,
        };
        let projected = (paged, &room.projected);
        room.attention.write_kv(device, projected, steps, &mut room.query, cache)?;
        room.attention.attend(device, (paged, &room.query), spec.softmax_scale, cache, attended)
    }
}
