//! Latent attention on a GPU, absorbed as on the processor: queries go to the compressed keys, not keys to the heads.

use half::bf16;
use kernels::{
    Pairing,
    cuda::{
        Buffer, CudaError, Device, HeadMatrices, HeadProduct, HeadsView, LatentAttention,
        LatentCache, LatentShape, LatentSteps, Matrix, Paging, Turn,
    },
};

use super::kinds::Batch;
use crate::{LatentSpec, attention::latent::COMPRESSED_NORM_EPS};

/// The weights of one layer's latent attention, but for the output projection.
#[derive(Debug)]
pub(super) struct Latent {
    /// The query (compressed if the model compresses it), the compressed key-value row and the key's turned part.
    pub(super) down: Matrix,
    pub(super) bias: Option<Buffer<f32>>,
    /// Norm of the compressed query and its projection to the heads.
    pub(super) query: Option<(Buffer<bf16>, Matrix)>,
    /// Norm of the compressed key-value row.
    pub(super) kv_norm: Buffer<bf16>,
    /// From the query's unturned part to the compressed key, `[heads, kv_rank, nope_dim]`.
    pub(super) absorb: HeadMatrices,
    /// From the compressed value to the head's, `[heads, value_dim, kv_rank]`.
    pub(super) expand: HeadMatrices,
}

/// Its kernels, and the batch between them.
#[derive(Debug)]
pub(super) struct LatentRoom {
    spec: LatentSpec,
    shape: LatentShape,
    attention: LatentAttention,
    product: HeadProduct,
    /// What `down` gives.
    projected: Buffer<bf16>,
    /// Compressed queries after their norm, `[rows, query_rank]`, and what they become,
    /// `[rows, heads, nope_dim + rope_dim]`; empty if queries are not compressed.
    compressed: Buffer<bf16>,
    queries: Buffer<bf16>,
    /// `[rows, heads, kv_rank + rope_dim]`.
    absorbed: Buffer<bf16>,
    /// What the heads saw, `[rows, heads, kv_rank]`.
    latents: Buffer<bf16>,
}

impl LatentRoom {
    /// For batches of so many rows and positions.
    pub(super) fn new(
        device: &Device,
        spec: &LatentSpec,
        shape: LatentShape,
        (rows, positions): (usize, usize),
    ) -> Result<Self, CudaError> {
        let [projected, compressed, queries, absorbed, latents] = widths(spec);
        Ok(Self {
            spec: spec.clone(),
            shape,
            attention: LatentAttention::new(device, shape, (rows, positions))?,
            product: HeadProduct::new(device)?,
            projected: device.alloc(rows * projected)?,
            compressed: device.alloc(rows * compressed)?,
            queries: device.alloc(rows * queries)?,
            absorbed: device.alloc(rows * absorbed)?,
            latents: device.alloc(rows * latents)?,
        })
    }

    pub(super) fn paging(&self) -> Paging {
        self.shape.paging()
    }

    pub(super) fn fit(&mut self, rows: usize) -> Result<(), CudaError> {
        let [projected, compressed, queries, absorbed, latents] = widths(&self.spec);
        self.projected.resize(rows * projected)?;
        self.compressed.resize(rows * compressed)?;
        self.queries.resize(rows * queries)?;
        self.absorbed.resize(rows * absorbed)?;
        self.latents.resize(rows * latents)
    }
}

/// Values of a row in each buffer: `projected`, `compressed`, `queries`, `absorbed`, `latents`.
fn widths(spec: &LatentSpec) -> [usize; 5] {
    let LatentSpec { heads, query_rank, kv_rank, rope_dim, .. } = *spec;
    let queries = heads * (spec.nope_dim + rope_dim);
    let (first, compressed, queries) = match query_rank {
        Some(rank) => (rank, rank, queries),
        None => (queries, 0, 0),
    };
    let absorbed = heads * (kv_rank + rope_dim);
    [first + kv_rank + rope_dim, compressed, queries, absorbed, heads * kv_rank]
}

/// Heads of `width` values, side by side.
fn side_by_side(heads: usize, width: usize) -> HeadsView {
    HeadsView { first: 0, row: heads * width, head: width }
}

impl Latent {
    pub(super) fn bytes(&self) -> usize {
        let query = self.query.as_ref().map_or(0, |(_, up)| up.bytes());
        self.down.bytes() + query + self.absorb.bytes() + self.expand.bytes()
    }

    /// From `batch.normed` to `batch.attended`.
    pub(super) fn attend(
        &self,
        batch: Batch<'_>,
        room: &mut LatentRoom,
        cache: &mut LatentCache,
    ) -> Result<(), CudaError> {
        let Batch { device, spec, dense, paged, angles, normed, attended } = batch;
        let LatentSpec { heads, kv_rank, nope_dim, rope_dim, value_dim, .. } = room.spec;
        let rows = paged.rows();
        dense.launch(device, &self.down, normed, &mut room.projected)?;
        let turn = Turn { angles, neighbours: spec.rope.pairing == Pairing::Neighbours };
        let steps = LatentSteps {
            bias: self.bias.as_ref(),
            query_norm: self.query.as_ref().map(|(norm, _)| norm),
            key_norm: &self.kv_norm,
            epsilon: COMPRESSED_NORM_EPS,
        };
        let projected = (paged, &room.projected);
        room.attention.write(device, projected, (steps, turn), &mut room.compressed, cache)?;

        let mut view = side_by_side(heads, nope_dim + rope_dim);
        let queries = if let Some((_, up)) = &self.query {
            dense.launch(device, up, &room.compressed, &mut room.queries)?;
            &room.queries
        } else {
            view.row += kv_rank + rope_dim;
            &room.projected
        };
        let turned = HeadsView { first: nope_dim, ..view };
        room.attention.turn(device, (paged, turn), (queries, turned), &mut room.absorbed)?;
        let absorbed = (&mut room.absorbed, side_by_side(heads, kv_rank + rope_dim));
        room.product.launch(device, (&self.absorb, rows), (queries, view), absorbed)?;

        let (query, scale) = ((paged, &room.absorbed), spec.softmax_scale);
        room.attention.attend(device, query, scale, cache, &mut room.latents)?;
        let latents = (&room.latents, side_by_side(heads, kv_rank));
        let values = (attended, side_by_side(heads, value_dim));
        room.product.launch(device, (&self.expand, rows), latents, values)
    }
}
