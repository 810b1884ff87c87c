//! Attention in two launches, whatever the form of its keys: stretches of sequences by themselves, then their merge.

use cudarc::driver::{CudaFunction, DeviceRepr, LaunchConfig};
use half::bf16;

use super::device::{Buffer, Device, grid};
use super::error::{CudaError, require, size};
use super::paged::{PagedRows, Tiles};

/// The most floats between the two launches, unless one tile needs more.
const PART_MOST: usize = 16 << 20;
/// The most blocks of a grid's second dimension.
const GRID_Y_MOST: usize = 65_535;

/// How a kernel of the first launch is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) name: &'static str,
    pub(super) threads: u32,
    /// Bytes of shared memory.
    pub(super) shared: u32,
}

/// Who attends to what, as the kernels have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// Query heads.
    pub(super) heads: usize,
    /// Thread blocks that a tile's heads are divided among, equally.
    pub(super) slices: usize,
    /// Elements of a head's query.
    pub(super) query: usize,
    /// Elements of a head's value.
    pub(super) value: usize,
    /// Positions that one thread block attends to.
    pub(super) stretch: usize,
}

impl Form {
    /// Heads of a slice.
    pub(super) fn group(&self) -> usize {
        self.heads / self.slices
    }

    /// Floats that a tile of `rows` rows, the longest seeing `longest` positions, leaves to be merged.
    fn part(&self, rows: usize, longest: usize) -> usize {
        rows * self.heads * longest.div_ceil(self.stretch) * (self.value + 2)
    }
}

/// What a launch reads and writes.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) rows: &'a PagedRows,
    /// `[rows, heads, query]`.
    pub(super) query: &'a Buffer<bf16>,
    /// Of scores.
    pub(super) scale: f32,
    /// Addresses of the cache's keys and values; 0 for values that are parts of keys.
    pub(super) cache: [u64; 2],
    /// `[rows, heads, value]`.
    pub(super) out: &'a mut Buffer<bf16>,
}

/// The kernels of both launches and the memory between them.
#[derive(Debug)]
pub(super) struct Stretches {
    form: Form,
    /// For decoded positions and for chunks.
    kernels: [(Kernel, CudaFunction); 2],
    merge: CudaFunction,
    part: Buffer<f32>,
}

impl Stretches {
    /// With memory for `rows` rows of `longest` positions at once, or for a tile of `tile` rows at least; larger
    /// batches take several launches.
    ///
    /// # Errors
    /// When the device has no memory for it or does not know the kernels.
    pub(super) fn new(
        device: &Device,
        form: Form,
        kernels: [Kernel; 2],
        (rows, longest, tile): (usize, usize, usize),
    ) -> Result<Self, CudaError> {
        let known = |kernel: Kernel| Ok((kernel, device.kernel(kernel.name, kernel.shared)?));
        let part = form.part(rows, longest).min(PART_MOST).max(form.part(tile, longest));
        Ok(Self {
            form,
            kernels: [known(kernels[0])?, known(kernels[1])?],
            merge: device.kernel("attend_merge", 0)?,
            part: device.alloc(part)?,
        })
    }

    /// Softmax attention of each row's heads over its sequence up to its own position.
    ///
    /// # Errors
    /// When the sizes do not fit, or the driver refuses a launch.
    ///
    /// # Safety
    /// The cache's addresses are those of a live one, of this form and of the blocks that `rows` was set for.
    pub(super) unsafe fn launch(
        &mut self,
        device: &Device,
        job: &mut Job<'_>,
    ) -> Result<(), CudaError> {
        let Form { heads, slices, query, value, .. } = self.form;
        let rows = job.rows.rows();
        let fits = job.query.len() >= rows * heads * query && job.out.len() >= rows * heads * value;
        require(fits, || {
            let (from, to) = (job.query.len(), job.out.len());
            format!("{rows} rows of {from} values into {to} for {:?}", self.form)
        })?;
        for (kind, tiles) in job.rows.tiles().into_iter().enumerate() {
            if tiles.count == 0 {
                continue;
            }
            let room = self.part.len() / self.form.part(tiles.rows, tiles.longest);
            let most = room.min(GRID_Y_MOST / slices);
            require(most > 0, || format!("{} positions: not so many fit", tiles.longest))?;
            for first in (0..tiles.count).step_by(most) {
                let some = Tiles {
                    at: tiles.at + 2 * first,
                    count: most.min(tiles.count - first),
                    ..tiles
                };
                // SAFETY: the caller's promise; the sizes of the rest were compared above.
                unsafe { self.launch_tiles(device, kind, some, job)? };
            }
        }
        Ok(())
    }

    /// # Safety
    /// As for `launch`, which has compared the sizes.
    unsafe fn launch_tiles(
        &self,
        device: &Device,
        kind: usize,
        tiles: Tiles,
        job: &Job<'_>,
    ) -> Result<(), CudaError> {
        let Form { heads, slices, value, stretch, .. } = self.form;
        let (kernel, function) = &self.kernels[kind];
        let stretches = size(tiles.longest.div_ceil(stretch))?;
        let [position, table, blocks] = job.rows.pointers();
        let [keys, values] = job.cache;
        let params = AttendParams {
            query: job.query.pointer(),
            keys,
            values,
            position,
            table,
            blocks,
            tile: job.rows.word(tiles.at),
            part: self.part.pointer(),
            out: job.out.pointer(),
            heads: size(heads)?,
            kv_heads: size(slices)?,
            tile_rows: size(tiles.rows)?,
            stretches,
            stretch: size(stretch)?,
            scale: job.scale * std::f32::consts::LOG2_E,
        };
        let attend = LaunchConfig {
            grid_dim: (stretches, size(tiles.count * slices)?, 1),
            block_dim: (kernel.threads, 1, 1),
            shared_mem_bytes: kernel.shared,
        };
        let merge = grid(size(tiles.count * tiles.rows * heads)?, size(value)?, 0);
        // SAFETY: the caller's promise; rows, blocks and positions were compared when `rows` was set. The
        // second launch reads what the first one on the same stream wrote.
        unsafe {
            device.launch(function, attend, &params)?;
            device.launch(&self.merge, merge, &params)
        }
    }
}

/// Mirrors `AttendParams` in `attention.cuh`.
#[repr(C)]
#[derive(Debug)]
struct AttendParams {
    query: u64,
    keys: u64,
    values: u64,
    position: u64,
    table: u64,
    blocks: u64,
    tile: u64,
    part: u64,
    out: u64,
    heads: u32,
    kv_heads: u32,
    tile_rows: u32,
    stretches: u32,
    stretch: u32,
    scale: f32,
}

// SAFETY: plain numbers in C layout without padding.
unsafe impl DeviceRepr for AttendParams {}
