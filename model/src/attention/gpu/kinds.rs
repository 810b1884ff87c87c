//! The kinds of attention that a GPU computes: their weights, caches and memory, and which goes with which.

use half::bf16;
use kernels::cuda::{
    Buffer, Cache, CacheShape, CudaError, Dense, Device, LatentCache, LatentShape, PagedRows,
    Paging,
};

use super::{
    grouped::{Grouped, GroupedRoom},
    latent::{Latent, LatentRoom},
};
use crate::{AttentionSpec, GroupedSpec, LatentSpec, ModelSpec};

/// Weights of a layer's attention, but for the output projection.
#[derive(Debug)]
pub(super) enum Attention {
    Grouped(Box<Grouped>),
    Latent(Box<Latent>),
}

/// What a layer keeps of the positions that it has seen.
#[derive(Debug)]
pub(in crate::attention) enum LayerCache {
    Grouped(Cache),
    Latent(LatentCache),
}

/// Kernels, and the batch between them.
#[derive(Debug)]
pub(super) enum Room {
    Grouped(Box<GroupedRoom>),
    Latent(Box<LatentRoom>),
}

/// A batch on its way through a layer's attention.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    pub(super) device: &'a Device,
    pub(super) spec: &'a ModelSpec,
    pub(super) dense: &'a mut Dense,
    pub(super) paged: &'a PagedRows,
    /// `[positions, turned]`.
    pub(super) angles: &'a Buffer<f32>,
    /// `[rows, hidden]`.
    pub(super) normed: &'a Buffer<bf16>,
    /// What attention gives to the output projection, `[rows, heads * value width]`.
    pub(super) attended: &'a mut Buffer<bf16>,
}

impl Attention {
    /// From `batch.normed` to `batch.attended`.
    ///
    /// # Panics
    /// If room or cache are of another kind.
    pub(super) fn attend(
        &self,
        batch: Batch<'_>,
        room: &mut Room,
        cache: &mut LayerCache,
    ) -> Result<(), CudaError> {
        match (self, room, cache) {
            (Self::Grouped(weights), Room::Grouped(room), LayerCache::Grouped(cache)) => {
                weights.attend(batch, room, cache)
            }
            (Self::Latent(weights), Room::Latent(room), LayerCache::Latent(cache)) => {
                weights.attend(batch, room, cache)
            }
            _ => panic!("a cache that another half has made"),
        }
    }

    /// Bytes of the matrices.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Grouped(weights) => weights.bytes(),
            Self::Latent(weights) => weights.bytes(),
        }
    }
}

/// The heads of a model and the room of its caches.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Grouped(CacheShape),
    Latent(LatentShape),
}

impl Shape {
    pub(super) fn of(attention: &AttentionSpec, blocks: usize) -> Self {
        match attention {
            AttentionSpec::Grouped(spec) => Self::Grouped(grouped(spec, blocks)),
            AttentionSpec::Latent(spec) => Self::Latent(latent(spec, blocks)),
        }
    }

    /// Whether there are kernels for it.
    pub(super) fn check(&self) -> Result<(), CudaError> {
        match self {
            Self::Grouped(shape) => shape.check(),
            Self::Latent(shape) => shape.check(),
        }
    }

    /// Bytes of a layer's block.
    pub(super) fn block_bytes(&self) -> usize {
        match self {
            Self::Grouped(shape) => shape.block_bytes(),
            Self::Latent(shape) => shape.block_bytes(),
        }
    }

    /// A layer's cache.
    pub(super) fn cache(self, device: &Device) -> Result<LayerCache, CudaError> {
        Ok(match self {
            Self::Grouped(shape) => LayerCache::Grouped(Cache::new(device, shape)?),
            Self::Latent(shape) => LayerCache::Latent(LatentCache::new(device, shape)?),
        })
    }
}

impl Room {
    /// For batches of at most `rows` rows and positions.
    pub(super) fn new(
        device: &Device,
        spec: &ModelSpec,
        blocks: usize,
        most: (usize, usize),
    ) -> Result<Self, CudaError> {
        Ok(match &spec.attention {
            AttentionSpec::Grouped(spec) => {
                let room = GroupedRoom::new(device, grouped(spec, blocks), most)?;
                Self::Grouped(Box::new(room))
            }
            AttentionSpec::Latent(spec) => {
                let room = LatentRoom::new(device, spec, latent(spec, blocks), most)?;
                Self::Latent(Box::new(room))
            }
        })
    }

    /// How batches are cut up.
    pub(super) fn paging(&self) -> Paging {
        match self {
            Self::Grouped(room) => room.paging(),
            Self::Latent(room) => room.paging(),
        }
    }

    /// Makes every buffer that of a batch of `rows` rows.
    pub(super) fn fit(&mut self, rows: usize) -> Result<(), CudaError> {
        match self {
            Self::Grouped(room) => room.fit(rows),
            Self::Latent(room) => room.fit(rows),
        }
    }
}

fn grouped(spec: &GroupedSpec, blocks: usize) -> CacheShape {
    CacheShape { heads: spec.heads, kv_heads: spec.kv_heads, dim: spec.head_dim, blocks }
}

fn latent(spec: &LatentSpec, blocks: usize) -> LatentShape {
    LatentShape { heads: spec.heads, rank: spec.kv_rank, turned: spec.rope_dim, blocks }
}
