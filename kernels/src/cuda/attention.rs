//! Attention over a paged cache: rows go in with [`Attention::write_kv`], and each attends to all
//! positions up to its own with [`Attention::attend`].

use cudarc::driver::{CudaFunction, DeviceRepr};
use half::bf16;

use super::device::{Buffer, Device, grid};
use super::error::{CudaError, require, size};
use super::paged::{PagedRows, Paging};
use super::stretches::{Form, Job, Kernel, Stretches};

/// Positions of one KV block.
pub(super) const KV_BLOCK: usize = crate::BLOCK_TOKENS;
/// Positions that one thread block attends to.
const STRETCH: usize = 16 * KV_BLOCK;
/// Query heads that may share a KV head.
const GROUP_MOST: usize = 16;
/// Queries, each a position and a head, that a thread block has of a decoded position and of a chunk.
const QUERIES: [usize; 2] = [16, 32];
/// The heads of a layer and the room of its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` query heads, at most 16.
    pub kv_heads: usize,
    /// Elements of a head: 32, 64 or 128.
    pub dim: usize,
    /// Blocks of 32 positions.
    pub blocks: usize,
}

impl CacheShape {
    /// Whether there are kernels for it.
    ///
    /// # Errors
    /// When there are none.
    pub fn check(&self) -> Result<(), CudaError> {
        let Self { heads, kv_heads, dim, blocks } = *self;
        let grouped = kv_heads > 0 && heads.is_multiple_of(kv_heads);
        let known =
            matches!(dim, 32 | 64 | 128) && grouped && heads > 0 && heads / kv_heads <= GROUP_MOST;
        require(known && blocks > 0, || {
            format!(
                "no attention for {heads} heads of {dim} over {kv_heads} in {blocks} blocks: heads \
                 are of 32, 64 or 128, and at most {GROUP_MOST} share keys"
            )
        })
    }

    /// How batches are cut up for it.
    #[must_use]
    pub fn paging(&self) -> Paging {
        Paging { blocks: self.blocks, tile_rows: QUERIES[1] / self.form().group() }
    }

    /// Bytes of one block's keys and values.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        2 * KV_BLOCK * self.kv_heads * self.dim * size_of::<bf16>()
    }

    fn form(&self) -> Form {
        let Self { heads, kv_heads, dim, .. } = *self;
        Form { heads, slices: kv_heads, query: dim, value: dim, stretch: STRETCH }
    }
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
        shape.check()?;
        let len = shape.blocks * shape.kv_heads * KV_BLOCK * shape.dim;
        Ok(Self { shape, keys: device.alloc(len)?, values: device.alloc(len)? })
    }
}

/// Weights of the norms of queries and keys: `[dim]` each for a norm of each head by itself, or
/// `[heads, dim]` and `[kv_heads, dim]` for one over all heads together.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms<'a> {
    /// Of queries.
    pub query: &'a Buffer<bf16>,
    /// Of keys.
    pub key: &'a Buffer<bf16>,
    /// Added to the mean of squares.
    pub epsilon: f32,
}

/// What is done to queries, keys and values on their way, in this order.
#[derive(Debug, Clone, Copy)]
pub struct KvSteps<'a> {
    /// Added to all three, `[heads + 2 kv_heads, dim]`.
    pub bias: Option<&'a Buffer<f32>>,
    /// Norms of queries and keys.
    pub norms: Option<HeadNorms<'a>>,
    /// Clamps all three to `[-clip, clip]`.
    pub clip: Option<f32>,
    /// Rotates the first `turned` elements of queries and keys, i with i + `turned` / 2:
    /// `[positions, turned]`, `turned / 2` cosines and as many sines.
    pub angles: &'a Buffer<f32>,
    /// Even, and at most a head.
    pub turned: usize,
}

/// The kernels of attention and the memory between them.
#[derive(Debug)]
pub struct Attention {
    shape: CacheShape,
    write: CudaFunction,
    stretches: Stretches,
}

impl Attention {
    /// For caches of `shape`, with memory for `rows` rows of `longest` positions at once; larger batches
    /// take several launches.
    ///
    /// # Errors
    /// When the device has no memory for it or does not know the kernels.
    pub fn new(
        device: &Device,
        shape: CacheShape,
        (rows, longest): (usize, usize),
    ) -> Result<Self, CudaError> {
        shape.check()?;
        let names = match shape.dim {
            32 => ["attend_32", "attend_chunk_32"],
            64 => ["attend_64", "attend_chunk_64"],
            _ => ["attend_128", "attend_chunk_128"],
        };
        let kernel = |kind: usize| Kernel {
            name: names[kind],
            threads: 128,
            shared: shared(shape.dim, QUERIES[kind]),
        };
        let kernels = [kernel(0), kernel(1)];
        let room = (rows, longest, shape.paging().tile_rows);
        Ok(Self {
            shape,
            write: device.kernel("write_kv", 0)?,
            stretches: Stretches::new(device, shape.form(), kernels, room)?,
        })
    }

    /// Takes `qkv`, `[rows, heads + 2 kv_heads, dim]`, through `steps`, leaves queries in `query`,
    /// `[rows, heads, dim]`, and puts keys and values into the cache.
    ///
    /// # Errors
    /// When the sizes do not fit, or the driver refuses the launch.
    pub fn write_kv(
        &self,
        device: &Device,
        (rows, qkv): (&PagedRows, &Buffer<bf16>),
        steps: KvSteps<'_>,
        query: &mut Buffer<bf16>,
        cache: &mut Cache,
    ) -> Result<(), CudaError> {
        let CacheShape { heads, kv_heads, dim, .. } = self.shape;
        let (count, all) = (rows.rows(), heads + 2 * kv_heads);
        let fits = qkv.len() == count * all * dim && query.len() >= count * heads * dim;
        require(fits && self.serves(rows, cache), || {
            format!("{count} rows, {} values for {:?}", qkv.len(), self.shape)
        })?;
        let wide = self.check(&steps, rows.longest())?;
        if count == 0 {
            return Ok(());
        }
        let [position, table, blocks] = rows.pointers();
        let params = KvParams {
            qkv: qkv.pointer(),
            bias: steps.bias.map_or(0, Buffer::pointer),
            query_weight: steps.norms.map_or(0, |norms| norms.query.pointer()),
            key_weight: steps.norms.map_or(0, |norms| norms.key.pointer()),
            angles: steps.angles.pointer(),
            position,
            table,
            blocks,
            query: query.pointer(),
            keys: cache.keys.pointer(),
            values: cache.values.pointer(),
            rows: size(count)?,
            heads: size(heads)?,
            kv_heads: size(kv_heads)?,
            dim: size(dim)?,
            turned: size(steps.turned)?,
            wide: u32::from(wide),
            epsilon: steps.norms.map_or(0.0, |norms| norms.epsilon),
            clip: steps.clip.unwrap_or(f32::INFINITY),
        };
        let blocks = size((count * all).div_ceil(4))?;
        // SAFETY: the sizes were compared above, and blocks and positions when `rows` was set.
        unsafe { device.launch(&self.write, grid(blocks, 128, 0), &params) }
    }

    /// Whether rows were set for the cache, and the cache made for this.
    fn serves(&self, rows: &PagedRows, cache: &Cache) -> bool {
        cache.shape == self.shape && rows.is_for(self.shape.paging())
    }

    /// Whether the norms are over all heads together.
    fn check(&self, steps: &KvSteps<'_>, longest: usize) -> Result<bool, CudaError> {
        let CacheShape { heads, kv_heads, dim, .. } = self.shape;
        let turned = steps.turned;
        require(turned > 0 && turned <= dim && turned.is_multiple_of(2), || {
            format!("{turned} elements of heads of {dim} to be turned")
        })?;
        require(steps.angles.len() >= longest * turned, || {
            let positions = steps.angles.len() / turned;
            format!("position {longest} where there are angles for {positions}")
        })?;
        let all = (heads + 2 * kv_heads) * dim;
        require(steps.bias.is_none_or(|bias| bias.len() == all), || {
            format!("a bias of another size than {all}")
        })?;
        let Some(norms) = steps.norms else { return Ok(false) };
        let sizes = (norms.query.len(), norms.key.len());
        let wide = sizes != (dim, dim);
        require(!wide || sizes == (heads * dim, kv_heads * dim), || {
            format!("norms of {sizes:?} for {:?}", self.shape)
        })?;
        Ok(wide)
    }

    /// Softmax attention of each row's heads over its sequence up to its own position, into `out`,
    /// `[rows, heads, dim]`; `scale` multiplies scores.
    ///
    /// A row's bits depend neither on the other rows nor on how its sequence was cut into chunks.
    ///
    /// # Errors
    /// When the sizes do not fit, or the driver refuses a launch.
    pub fn attend(
        &mut self,
        device: &Device,
        (rows, query): (&PagedRows, &Buffer<bf16>),
        scale: f32,
        cache: &Cache,
        out: &mut Buffer<bf16>,
    ) -> Result<(), CudaError> {
        require(self.serves(rows, cache), || {
            format!("rows or a cache of {:?} for {:?}", cache.shape, self.shape)
        })?;
        let cache = [cache.keys.pointer(), cache.values.pointer()];
        // SAFETY: the cache is alive, and of the shape that the kernels were made for.
        unsafe { self.stretches.launch(device, &mut Job { rows, query, scale, cache, out }) }
    }
}

/// `Shape::SHARED_BYTES` of `attention.cuh`: for each of four warps a block of keys and values, or
/// its result in their place, and the queries.
fn shared(dim: usize, queries: usize) -> u32 {
    let warp = (2 * KV_BLOCK * dim * 2).max(queries * (dim + 2) * 4);
    (4 * warp + queries * dim * 2) as u32
}

/// Mirrors `KvParams` in `kv.cuh`.
#[repr(C)]
#[derive(Debug)]
struct KvParams {
    qkv: u64,
    bias: u64,
    query_weight: u64,
    key_weight: u64,
    angles: u64,
    position: u64,
    table: u64,
    blocks: u64,
    query: u64,
    keys: u64,
    values: u64,
    rows: u32,
    heads: u32,
    kv_heads: u32,
    dim: u32,
    turned: u32,
    wide: u32,
    epsilon: f32,
    clip: f32,
}

// SAFETY: plain numbers in C layout without padding.
unsafe impl DeviceRepr for KvParams {}
