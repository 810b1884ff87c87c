//! Latent attention over a paged cache of compressed rows: rows go in with [`LatentAttention::write`], queries are
//! turned with [`LatentAttention::turn`], and each attends to all positions up to its own.

use cudarc::driver::{CudaFunction, DeviceRepr, LaunchConfig};
use half::bf16;

use super::attention::KV_BLOCK;
use super::device::{Buffer, Device, grid};
use super::error::{CudaError, require, size};
use super::heads::HeadsView;
use super::paged::{PagedRows, Paging};
use super::stretches::{Form, Job, Kernel, Stretches};

/// Elements of a key that turn.
const TURNED: usize = 64;
/// Queries, each a position and a head, of a thread block.
const QUERIES: usize = 64;
/// Positions that one thread block attends to: more than grouped attention has, since what it leaves to the merge,
/// a row of `rank` floats for each query, is large against the rows that it reads.
const STRETCH: usize = 32 * KV_BLOCK;

/// The heads of a layer and the room of its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentShape {
    /// Query heads, which share a position's one row.
    pub heads: usize,
    /// Elements of a compressed key and value: 128 or 512.
    pub rank: usize,
    /// Elements of a key that turn, behind them: 64.
    pub turned: usize,
    /// Blocks of 32 positions.
    pub blocks: usize,
}

impl LatentShape {
    /// Whether there are kernels for it.
    ///
    /// # Errors
    /// When there are none.
    pub fn check(&self) -> Result<(), CudaError> {
        let Self { heads, rank, turned, blocks } = *self;
        let known = matches!(rank, 128 | 512) && turned == TURNED;
        require(known && heads > 0 && blocks > 0, || {
            format!(
                "no attention for {heads} heads over {rank} compressed and {turned} turned elements in {blocks} \
                 blocks: 128 or 512 are compressed, and {TURNED} turned"
            )
        })
    }

    /// Elements of a position's row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.rank + self.turned
    }

    /// How batches are cut up for it.
    #[must_use]
    pub fn paging(&self) -> Paging {
        Paging { blocks: self.blocks, tile_rows: QUERIES / self.form().group() }
    }

    /// Bytes of one block's rows.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        KV_BLOCK * self.width() * size_of::<bf16>()
    }

    /// Heads in the fewest slices that a thread block has queries for.
    fn form(&self) -> Form {
        let Self { heads, rank, .. } = *self;
        let fits = |slices: &usize| heads.is_multiple_of(*slices) && heads / slices <= QUERIES;
        let slices = (1..=heads).find(fits).unwrap_or(heads);
        Form { heads, slices, query: self.width(), value: rank, stretch: STRETCH }
    }

    fn kernel(&self) -> Kernel {
        let name = if self.rank == 128 { "attend_latent_128" } else { "attend_latent_512" };
        Kernel { name, threads: 256, shared: shared(self.width()) }
    }
}

/// `Shape::SHARED_BYTES` of `attention_latent.cuh`: queries, two tiles of rows, two halves of scores, and what is rescaled.
fn shared(width: usize) -> u32 {
    (QUERIES * width * 2 + 2 * KV_BLOCK * width * 2 + 2 * QUERIES * KV_BLOCK * 4 + QUERIES * 4)
        as u32
}

/// The rows of a layer: `[blocks, 32, rank + turned]`.
#[derive(Debug)]
pub struct LatentCache {
    shape: LatentShape,
    rows: Buffer<bf16>,
}

impl LatentCache {
    /// # Errors
    /// When the shape is none the kernels know, or the device has no memory for it.
    pub fn new(device: &Device, shape: LatentShape) -> Result<Self, CudaError> {
        shape.check()?;
        Ok(Self { shape, rows: device.alloc(shape.blocks * KV_BLOCK * shape.width())? })
    }
}

/// What is done to compressed rows on their way.
#[derive(Debug, Clone, Copy)]
pub struct LatentSteps<'a> {
    /// Added to projected rows, `[width]`.
    pub bias: Option<&'a Buffer<f32>>,
    /// Norm of compressed queries, the first columns of a projected row; none if queries are not compressed.
    pub query_norm: Option<&'a Buffer<bf16>>,
    /// Norm of compressed keys and values, `[rank]`.
    pub key_norm: &'a Buffer<bf16>,
    /// Added to the means of squares.
    pub epsilon: f32,
}

/// How keys and queries turn.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// `[positions, turned]`: `turned / 2` cosines and as many sines.
    pub angles: &'a Buffer<f32>,
    /// Element 2i turns with 2i + 1, and not i with i + `turned` / 2.
    pub neighbours: bool,
}

/// The kernels of latent attention and the memory between them.
#[derive(Debug)]
pub struct LatentAttention {
    shape: LatentShape,
    write: CudaFunction,
    turn: CudaFunction,
    stretches: Stretches,
}

impl LatentAttention {
    /// For caches of `shape`, with memory for `rows` rows of `longest` positions at once; larger batches
    /// take several launches.
    ///
    /// # Errors
    /// When the device has too little memory for it, shared memory too, or does not know the kernels.
    pub fn new(
        device: &Device,
        shape: LatentShape,
        (rows, longest): (usize, usize),
    ) -> Result<Self, CudaError> {
        shape.check()?;
        let room = (rows, longest, shape.paging().tile_rows);
        Ok(Self {
            shape,
            write: device.kernel("write_latent", 64)?,
            turn: device.kernel("turn_query", 0)?,
            stretches: Stretches::new(device, shape.form(), [shape.kernel(); 2], room)?,
        })
    }

    /// Takes the last `rank + turned` columns of `projected`, `[rows, width]`, through `steps` into the cache, and
    /// leaves compressed queries, if there are such, in `query`, `[rows, query_norm.len()]`.
    ///
    /// # Errors
    /// When the sizes do not fit, or the driver refuses the launch.
    pub fn write(
        &self,
        device: &Device,
        (rows, projected): (&PagedRows, &Buffer<bf16>),
        (steps, turn): (LatentSteps<'_>, Turn<'_>),
        query: &mut Buffer<bf16>,
        cache: &mut LatentCache,
    ) -> Result<(), CudaError> {
        let LatentShape { rank, turned, .. } = self.shape;
        let count = rows.rows();
        if count == 0 {
            return Ok(());
        }
        let width = projected.len() / count;
        let query_rank = steps.query_norm.map_or(0, Buffer::len);
        let fits = projected.len() == count * width
            && width >= query_rank + rank + turned
            && query.len() >= count * query_rank
            && steps.key_norm.len() == rank
            && steps.bias.is_none_or(|bias| bias.len() == width)
            && self.serves(rows, cache);
        require(fits, || {
            let have = projected.len();
            format!("{count} rows, {have} values, {query_rank} of queries, for {:?}", self.shape)
        })?;
        self.check(turn, rows.longest())?;
        let [position, table, blocks] = rows.pointers();
        let params = WriteParams {
            projected: projected.pointer(),
            bias: steps.bias.map_or(0, Buffer::pointer),
            query_weight: steps.query_norm.map_or(0, Buffer::pointer),
            key_weight: steps.key_norm.pointer(),
            angles: turn.angles.pointer(),
            position,
            table,
            blocks,
            query: query.pointer(),
            cache: cache.rows.pointer(),
            width: size(width)?,
            query_rank: size(query_rank)?,
            rank: size(rank)?,
            turned: size(turned)?,
            neighbours: u32::from(turn.neighbours),
            epsilon: steps.epsilon,
        };
        let config = LaunchConfig {
            grid_dim: (size(count)?, 1 + u32::from(query_rank > 0), 1),
            block_dim: (256, 1, 1),
            shared_mem_bytes: 64,
        };
        // SAFETY: the sizes were compared above, and blocks and positions when `rows` was set.
        unsafe { device.launch(&self.write, config, &params) }
    }

    /// Turns what of the queries in `from` turns, `turned` elements of each head, into the last columns of `query`,
    /// `[rows, heads, rank + turned]`; the others stay.
    ///
    /// # Errors
    /// When the sizes do not fit, or the driver refuses the launch.
    pub fn turn(
        &self,
        device: &Device,
        (rows, turn): (&PagedRows, Turn<'_>),
        (from, view): (&Buffer<bf16>, HeadsView),
        query: &mut Buffer<bf16>,
    ) -> Result<(), CudaError> {
        let LatentShape { heads, rank, turned, .. } = self.shape;
        let (count, width) = (rows.rows(), self.shape.width());
        if count == 0 {
            return Ok(());
        }
        let inside = view.fits((count, heads, turned), from.len());
        require(inside && query.len() >= count * heads * width, || {
            let (from, query) = (from.len(), query.len());
            format!("{count} rows, {view:?} of {from} into {query} for {:?}", self.shape)
        })?;
        self.check(turn, rows.longest())?;
        let [position, ..] = rows.pointers();
        let params = TurnParams {
            from: view.of(from),
            angles: turn.angles.pointer(),
            position,
            to: query.pointer() + (rank * size_of::<bf16>()) as u64,
            rows: size(count)?,
            heads: size(heads)?,
            from_row: size(view.row)?,
            from_head: size(view.head)?,
            to_head: size(width)?,
            turned: size(turned)?,
            neighbours: u32::from(turn.neighbours),
            padding: 0,
        };
        let blocks = size((count * heads).div_ceil(4))?;
        // SAFETY: the sizes were compared above, and positions when `rows` was set.
        unsafe { device.launch(&self.turn, grid(blocks, 128, 0), &params) }
    }

    /// Softmax attention of each row's heads over its sequence up to its own position: from `query`,
    /// `[rows, heads, rank + turned]`, into `out`, `[rows, heads, rank]`; `scale` multiplies scores.
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
        cache: &LatentCache,
        out: &mut Buffer<bf16>,
    ) -> Result<(), CudaError> {
        require(self.serves(rows, cache), || {
            format!("rows or a cache of {:?} for {:?}", cache.shape, self.shape)
        })?;
        let cache = [cache.rows.pointer(), 0];
        // SAFETY: the cache is alive, and of the shape that the kernels were made for.
        unsafe { self.stretches.launch(device, &mut Job { rows, query, scale, cache, out }) }
    }

    /// Whether rows were set for the cache, and the cache made for this.
    fn serves(&self, rows: &PagedRows, cache: &LatentCache) -> bool {
        cache.shape == self.shape && rows.is_for(self.shape.paging())
    }

    fn check(&self, turn: Turn<'_>, longest: usize) -> Result<(), CudaError> {
        require(turn.angles.len() >= longest * self.shape.turned, || {
            let positions = turn.angles.len() / self.shape.turned;
            format!("position {longest} where there are angles for {positions}")
        })
    }
}

/// Mirrors `LatentParams` in `latent.cuh`.
#[repr(C)]
#[derive(Debug)]
struct WriteParams {
    projected: u64,
    bias: u64,
    query_weight: u64,
    key_weight: u64,
    angles: u64,
    position: u64,
    table: u64,
    blocks: u64,
    query: u64,
    cache: u64,
    width: u32,
    query_rank: u32,
    rank: u32,
    turned: u32,
    neighbours: u32,
    epsilon: f32,
}

// SAFETY: plain numbers in C layout without padding.
unsafe impl DeviceRepr for WriteParams {}

/// Mirrors `TurnParams` in `latent.cuh`.
#[repr(C)]
#[derive(Debug)]
struct TurnParams {
    from: u64,
    angles: u64,
    position: u64,
    to: u64,
    rows: u32,
    heads: u32,
    from_row: u32,
    from_head: u32,
    to_head: u32,
    turned: u32,
    neighbours: u32,
    padding: u32,
}

// SAFETY: plain numbers in C layout, with the padding spelt out.
unsafe impl DeviceRepr for TurnParams {}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(heads: usize) -> LatentShape {
        LatentShape { heads, rank: 512, turned: 64, blocks: 7 }
    }

    #[test]
    fn heads_are_cut_into_the_fewest_equal_slices_of_at_most_64() {
        for (heads, slices, tile_rows) in [
            (1, 1, 64),
            (4, 1, 16),
            (48, 1, 1),
            (64, 1, 1),
            (65, 5, 4),
            (96, 2, 1),
            (128, 2, 1),
            (67, 67, 64),
        ] {
            let form = shape(heads).form();
            assert_eq!((form.slices, form.slices * form.group()), (slices, heads), "{heads} heads");
            assert_eq!(shape(heads).paging(), Paging { blocks: 7, tile_rows }, "{heads} heads");
        }
    }

    #[test]
    fn the_largest_kernel_has_room_in_the_shared_memory_of_an_a100() {
        let Kernel { name, shared, .. } = shape(128).kernel();
        assert_eq!((name, shared), ("attend_latent_512", 164_096));
        assert!(shared <= 163 << 10);
    }

    #[test]
    fn other_sizes_are_refused_in_a_sentence() {
        assert!(shape(128).check().is_ok());
        let refused = LatentShape { rank: 24, turned: 16, ..shape(4) }.check().unwrap_err();
        let want = "no attention for 4 heads over 24 compressed and 16 turned elements in 7 blocks: 128 or 512 are \
                    compressed, and 64 turned";
        assert_eq!(refused.to_string(), want);
        assert!(shape(0).check().is_err());
    }
}
