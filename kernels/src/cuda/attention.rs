//! Decode attention over a paged cache: rows go in with [`Attention::write_kv`], and one query token
//! of each sequence attends with [`Attention::decode`].

use cudarc::driver::{CudaFunction, DeviceRepr, LaunchConfig};
use half::bf16;

use super::device::{Buffer, Device, grid};
use super::error::{CudaError, require, size};

/// Positions of one KV block.
const KV_BLOCK: usize = 32;
/// Positions that one thread block attends to.
const STRETCH: usize = 16 * KV_BLOCK;
/// Query heads that may share a KV head.
const GROUP_MOST: usize = 16;

/// The heads of a layer and the room of its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` query heads, at most 16.
    pub kv_heads: usize,
    /// Elements of a head: 64 or 128.
    pub dim: usize,
    /// Blocks of 32 positions.
    pub blocks: usize,
}

/// Keys and values of a layer: `[blocks, kv_heads, 32, dim]` each.
#[derive(Debug)]
pub struct Cache {
    shape: CacheShape,
    keys: Buffer<bf16>,
    values: Buffer<bf16>,
}

impl Cache {
    /// # Errors
    /// When the shape is none the kernels know, or the device has no memory for it.
    pub fn new(device: &Device, shape: CacheShape) -> Result<Self, CudaError> {
        let CacheShape { heads, kv_heads, dim, blocks } = shape;
        let grouped = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        let known =
            matches!(dim, 64 | 128) && grouped && heads > 0 && heads / kv_heads <= GROUP_MOST;
        require(known && blocks > 0, || format!("no attention for {shape:?}"))?;
        let len = blocks * kv_heads * KV_BLOCK * dim;
        Ok(Self { shape, keys: device.alloc(len)?, values: device.alloc(len)? })
    }
}

/// Weights of the norms of queries and keys, `[dim]` each, and their epsilon.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms<'a> {
    /// Of each query head.
    pub query: &'a Buffer<bf16>,
    /// Of each key head.
    pub key: &'a Buffer<bf16>,
    /// Added to the mean of squares.
    pub epsilon: f32,
}

/// New positions for the cache.
#[derive(Debug, Clone, Copy)]
pub struct KvRows<'a> {
    /// `[rows, heads + 2 kv_heads, dim]`.
    pub qkv: &'a Buffer<bf16>,
    /// `[positions, dim]`: `dim / 2` cosines, then as many sines.
    pub angles: &'a Buffer<f32>,
    /// Each row's position, for which there are angles.
    pub position: &'a Buffer<u32>,
    /// Where each row's key and value go: block times 32 plus place, inside the cache.
    pub slot: &'a Buffer<u32>,
    /// Norms before the rotation, where the model has them.
    pub norms: Option<HeadNorms<'a>>,
}

/// One query token for each row.
#[derive(Debug, Clone, Copy)]
pub struct DecodeRows<'a> {
    /// `[rows, heads, dim]`.
    pub query: &'a Buffer<bf16>,
    /// `[rows, most]`: each sequence's blocks in order, inside the cache as far as its length goes.
    pub blocks: &'a Buffer<u32>,
    /// Positions to attend to, from 1 to `longest`.
    pub length: &'a Buffer<u32>,
    /// The longest of them.
    pub longest: usize,
    /// Of scores, before the softmax.
    pub scale: f32,
}

/// The kernels of attention and the memory between them.
#[derive(Debug)]
pub struct Attention {
    shape: CacheShape,
    write: CudaFunction,
    attend: CudaFunction,
    merge: CudaFunction,
    part: Buffer<f32>,
}

impl Attention {
    /// For caches of `shape` and at most `rows` rows of at most `longest` positions.
    ///
    /// # Errors
    /// When the device has no memory for it or does not know the kernels.
    pub fn new(
        device: &Device,
        shape: CacheShape,
        (rows, longest): (usize, usize),
    ) -> Result<Self, CudaError> {
        let name = if shape.dim == 64 { "attend_64" } else { "attend_128" };
        let parts = rows * shape.heads * longest.div_ceil(STRETCH);
        Ok(Self {
            shape,
            write: device.kernel("write_kv", 0)?,
            attend: device.kernel(name, shared(shape.dim))?,
            merge: device.kernel("attend_merge", 0)?,
            part: device.alloc(parts * (shape.dim + 2))?,
        })
    }

    /// Norms and rotates queries and keys, leaves queries in `query`, `[rows, heads, dim]`, and
    /// puts keys and values into the cache.
    ///
    /// # Errors
    /// When the sizes do not fit, or the driver refuses the launch.
    pub fn write_kv(
        &self,
        device: &Device,
        rows: KvRows<'_>,
        query: &mut Buffer<bf16>,
        cache: &mut Cache,
    ) -> Result<(), CudaError> {
        let CacheShape { heads, kv_heads, dim, .. } = self.shape;
        let (count, all) = (rows.slot.len(), heads + 2 * kv_heads);
        let fits = rows.qkv.len() == count * all * dim
            && rows.position.len() == count
            && query.len() >= count * heads * dim
            && rows.norms.is_none_or(|n| n.query.len() == dim && n.key.len() == dim);
        require(fits && cache.shape == self.shape, || {
            format!("{count} rows, {} values for {:?}", rows.qkv.len(), self.shape)
        })?;
        if count == 0 {
            return Ok(());
        }
        let params = KvParams {
            qkv: rows.qkv.pointer(),
            query_weight: rows.norms.map_or(0, |norms| norms.query.pointer()),
            key_weight: rows.norms.map_or(0, |norms| norms.key.pointer()),
            angles: rows.angles.pointer(),
            position: rows.position.pointer(),
            slot: rows.slot.pointer(),
            query: query.pointer(),
            keys: cache.keys.pointer(),
            values: cache.values.pointer(),
            rows: size(count)?,
            heads: size(heads)?,
            kv_heads: size(kv_heads)?,
            dim: size(dim)?,
            epsilon: rows.norms.map_or(0.0, |norms| norms.epsilon),
            padding: 0,
        };
        let blocks = size((count * all).div_ceil(4))?;
        // SAFETY: the sizes were compared above; that positions have angles and slots lie in the
        // cache is the caller's word, as documented.
        unsafe { device.launch(&self.write, grid(blocks, 128, 0), &params) }
    }

    /// Softmax attention of each row's heads over its sequence, into `out`, `[rows, heads, dim]`.
    ///
    /// A row's bits do not depend on the other rows.
    ///
    /// # Errors
    /// When the sizes do not fit, or the driver refuses a launch.
    pub fn decode(
        &mut self,
        device: &Device,
        rows: DecodeRows<'_>,
        cache: &Cache,
        out: &mut Buffer<bf16>,
    ) -> Result<(), CudaError> {
        let CacheShape { heads, kv_heads, dim, .. } = self.shape;
        let (count, stretches) = (rows.length.len(), rows.longest.div_ceil(STRETCH));
        if count == 0 {
            return Ok(());
        }
        let most = rows.blocks.len() / count;
        let fits = rows.query.len() == count * heads * dim
            && out.len() >= count * heads * dim
            && rows.blocks.len() == count * most
            && most * KV_BLOCK >= rows.longest
            && self.part.len() >= count * heads * stretches * (dim + 2);
        require(fits && cache.shape == self.shape, || {
            format!("{count} rows of up to {} positions for {:?}", rows.longest, self.shape)
        })?;
        let params = AttendParams {
            query: rows.query.pointer(),
            keys: cache.keys.pointer(),
            values: cache.values.pointer(),
            blocks: rows.blocks.pointer(),
            length: rows.length.pointer(),
            part: self.part.pointer(),
            out: out.pointer(),
            heads: size(heads)?,
            kv_heads: size(kv_heads)?,
            most_blocks: size(most)?,
            stretches: size(stretches)?,
            scale: rows.scale * std::f32::consts::LOG2_E,
            padding: 0,
        };
        let attend = LaunchConfig {
            grid_dim: (size(stretches)?, size(count * kv_heads)?, 1),
            block_dim: (128, 1, 1),
            shared_mem_bytes: shared(dim),
        };
        // SAFETY: the sizes were compared above; that the blocks lie in the cache and no length is
        // past `longest` is the caller's word, as documented. The second launch reads what the first
        // one on the same stream wrote.
        unsafe {
            device.launch(&self.attend, attend, &params)?;
            device.launch(&self.merge, grid(size(count * heads)?, size(dim)?, 0), &params)
        }
    }
}

/// `Shape::SHARED_BYTES` of `attention.cuh`: a block of keys and values for each of four warps, and 16 queries.
fn shared(dim: usize) -> u32 {
    (4 * 2 * KV_BLOCK * dim * 2 + GROUP_MOST * dim * 2) as u32
}

/// Mirrors `KvParams` in `kv.cuh`.
#[repr(C)]
#[derive(Debug)]
struct KvParams {
    qkv: u64,
    query_weight: u64,
    key_weight: u64,
    angles: u64,
    position: u64,
    slot: u64,
    query: u64,
    keys: u64,
    values: u64,
    rows: u32,
    heads: u32,
    kv_heads: u32,
    dim: u32,
    epsilon: f32,
    padding: u32,
}

// SAFETY: plain numbers in C layout, with the padding spelt out.
unsafe impl DeviceRepr for KvParams {}

/// Mirrors `AttendParams` in `attention.cuh`.
#[repr(C)]
#[derive(Debug)]
struct AttendParams {
    query: u64,
    keys: u64,
    values: u64,
    blocks: u64,
    length: u64,
    part: u64,
    out: u64,
    heads: u32,
    kv_heads: u32,
    most_blocks: u32,
    stretches: u32,
    scale: f32,
    padding: u32,
}

// SAFETY: plain numbers in C layout, with the padding spelt out.
unsafe impl DeviceRepr for AttendParams {}
