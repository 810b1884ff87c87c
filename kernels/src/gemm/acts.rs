//! Activations packed for a kernel: tiles of a few tokens, padded to whole steps.

use std::ops::Range;

use super::{LANES, STEP};
use crate::cpu::Compute;
use crate::disjoint::DisjointMut;
use crate::isa::Isa;
use crate::lanes::{self, Kernel, Lanes};

/// The rows of one product, `[tile][step][token][STEP]` bf16 for tiles,
/// `[tile][segment][token][LANES]` f32 for vectors. Several tasks may fill different segments at once.
pub(crate) struct Acts<'a> {
    bytes: &'a DisjointMut<'a, u8>,
    /// Where this product's tiles begin.
    start: usize,
    kernel: Isa,
    compute: Compute,
    rows: usize,
    steps: usize,
}

/// [`LANES`] inputs of some rows, computed as they are stored.
pub(crate) trait Column {
    /// Those of a row.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`.
    unsafe fn row<L: Lanes>(&self, row: usize) -> L;
}

/// A row to be packed.
#[derive(Clone, Copy)]
pub(crate) enum Row<'a> {
    /// As it is between operators.
    F32(&'a [f32]),
    /// As it travels, in this precision.
    Wire(Compute, &'a [u8]),
}

impl<'a> Acts<'a> {
    /// Bytes for `rows` rows of `inputs` elements, a multiple of a cache line.
    pub(crate) fn bytes(kernel: Isa, rows: usize, inputs: usize) -> usize {
        let unit = if full_tiles(kernel, rows) { tile_tokens(kernel) } else { 1 };
        rows.next_multiple_of(unit) * inputs.next_multiple_of(STEP) * element_bytes(kernel)
    }

    /// Uses [`Acts::bytes`] of a cache-line aligned buffer, from `start` on (whole cache lines).
    pub(crate) fn new(
        bytes: &'a DisjointMut<'a, u8>,
        start: usize,
        kernel: Isa,
        compute: Compute,
        rows: usize,
        inputs: usize,
    ) -> Self {
        assert!(start + Self::bytes(kernel, rows, inputs) <= bytes.len());
        assert_eq!(start % 64, 0);
        Self { bytes, start, kernel, compute, rows, steps: inputs.div_ceil(STEP) }
    }

    pub(crate) fn kernel(&self) -> Isa {
        self.kernel
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// Rows that a kernel works on for `rows` of these, from a tile's first on.
    pub(super) fn padded(&self, rows: usize) -> usize {
        let full = full_tiles(self.kernel, self.rows);
        if full { rows.next_multiple_of(tile_tokens(self.kernel)) } else { rows }
    }

    /// Segments of [`LANES`] inputs per row, padding included.
    pub(crate) fn segments(&self) -> usize {
        self.steps * STEP / LANES
    }

    /// The tile that begins with token `row` (a multiple of the kernel's tile height).
    pub(super) fn tile(&self, row: usize) -> *const u8 {
        debug_assert_eq!(row % tile_tokens(self.kernel), 0);
        let at = self.start + row * self.steps * STEP * element_bytes(self.kernel);
        // SAFETY: an empty part overlaps nothing.
        unsafe { self.bytes.part(at..at) }.as_ptr()
    }

    /// Stores [`LANES`] inputs of one row, rounded to the precision.
    ///
    /// # Safety
    /// No other thread may store the same segment or read the tile at the same time.
    #[inline(always)]
    pub(crate) unsafe fn put<L: Lanes>(&self, row: usize, segment: usize, values: L) {
        if self.kernel == Isa::Amx {
            // SAFETY: 16 values inside the row's line, which only the caller stores now.
            unsafe { values.store_bf16(self.line(row, segment / 2).add(segment % 2 * LANES)) };
            return;
        }
        let unit = tile_tokens(self.kernel);
        let first = row / unit * unit;
        let tokens = unit.min(self.rows - first);
        let token = row - first;
        let mut values = values;
        if self.compute == Compute::Bf16 {
            let mut bits = [0; LANES];
            // SAFETY: the array has 16 places, and a value exists.
            unsafe {
                values.store_bf16(bits.as_mut_ptr());
                values = L::load_bf16(bits.as_ptr());
            }
        }
        let at = first * self.steps * STEP + (segment * tokens + token) * LANES;
        let last = self.bytes.at(self.start + (at + LANES) * 4 - 1);
        // SAFETY: the 16 elements of this segment, up to the checked last byte.
        unsafe { values.store(last.wrapping_sub(LANES * 4 - 1).cast()) };
    }

    /// Stores [`LANES`] inputs of `count` rows from `first` on: the first, the second and so on of
    /// `column`.
    ///
    /// # Safety
    /// As [`Acts::put`] for each of them, and the processor has the instruction set of `L`.
    #[inline(always)]
    pub(crate) unsafe fn put_column<L: Lanes>(
        &self,
        first: usize,
        count: usize,
        segment: usize,
        column: &impl Column,
    ) {
        if self.kernel != Isa::Amx {
            for row in 0..count {
                // SAFETY: the caller's promise.
                unsafe { self.put(first + row, segment, column.row::<L>(row)) };
            }
            return;
        }
        let tile = tile_tokens(Isa::Amx);
        let mut done = 0;
        while done < count {
            let rows = (tile - (first + done) % tile).min(count - done);
            let line = self.line(first + done, segment / 2);
            self.line(first + done + rows - 1, segment / 2);
            for row in 0..rows {
                // SAFETY: the lines of a tile's rows stand one behind the other, and both ends are
                // checked; only the caller stores this segment of them now.
                unsafe {
                    let line = line.add(row * STEP + segment % 2 * LANES);
                    column.row::<L>(done + row).store_bf16(line);
                }
            }
            done += rows;
        }
    }

    /// The [`STEP`] elements of one row in one step of a tile of bf16, bounds checked.
    #[inline(always)]
    fn line(&self, row: usize, step: usize) -> *mut u16 {
        let unit = tile_tokens(Isa::Amx);
        let first = row / unit * unit;
        let tokens = unit.min(self.padded(self.rows) - first);
        assert!(step < self.steps && row < self.rows);
        let at = first * self.steps + step * tokens + row - first;
        let last = self.bytes.at(self.start + (at + 1) * STEP * 2 - 1);
        last.wrapping_sub(STEP * 2 - 1).cast()
    }

    /// Stores whole rows of at most the padded inputs; what they lack becomes zero.
    ///
    /// # Safety
    /// No other thread may store the same rows or read their tiles at the same time.
    pub(crate) unsafe fn put_rows<'r>(&self, rows: Range<usize>, from: impl Fn(usize) -> Row<'r>) {
        for first in rows.clone().step_by(ROWS_AT_ONCE) {
            let rows = first..rows.end.min(first + ROWS_AT_ONCE);
            let mut all = [Row::F32(&[]); ROWS_AT_ONCE];
            for (place, row) in all.iter_mut().zip(rows.clone()) {
                *place = from(row);
            }
            lanes::run(self.kernel, PutRows { acts: self, first, rows: &all[..rows.len()] });
        }
    }
}

/// Rows that are stored side by side: more would come from places that share a cache set, fewer
/// would be stored in pieces too short to be fetched ahead.
const ROWS_AT_ONCE: usize = 8;

/// [`Acts::put_rows`], compiled for each instruction set.
struct PutRows<'a> {
    acts: &'a Acts<'a>,
    first: usize,
    rows: &'a [Row<'a>],
}

impl Kernel for PutRows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        if self.acts.kernel != Isa::Amx {
            for (row, from) in self.rows.iter().enumerate() {
                for segment in 0..self.acts.segments() {
                    // SAFETY: the caller vouches for the instruction set, the caller of `put_rows`
                    // for the rows.
                    unsafe {
                        let values = from.load::<L>(segment * LANES);
                        self.acts.put(self.first + row, segment, values);
                    }
                }
            }
            return;
        }
        let last = self.first + self.rows.len() - 1;
        let tile = tile_tokens(Isa::Amx);
        assert_eq!(self.first / tile, last / tile, "rows of one tile");
        // Step by step: the rows of a step stand side by side.
        for step in 0..self.acts.steps {
            let line = self.acts.line(self.first, step);
            self.acts.line(last, step);
            for (row, from) in self.rows.iter().enumerate() {
                // SAFETY: as above; the lines from the first row's to the last one's stand one
                // behind the other, and both ends are checked.
                unsafe {
                    let line = line.add(row * STEP);
                    from.load::<L>(step * STEP).store_bf16(line);
                    from.load::<L>(step * STEP + LANES).store_bf16(line.add(LANES));
                }
            }
        }
    }
}

impl Row<'_> {
    /// [`LANES`] elements from `first` on, zero past the end of the row.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`.
    #[inline(always)]
    unsafe fn load<L: Lanes>(self, first: usize) -> L {
        // SAFETY: the caller vouches for the instruction set; 16 elements are there.
        unsafe {
            match self {
                Row::F32(row) => lanes::load_or::<L>(row.get(first..).unwrap_or(&[]), 0.0),
                Row::Wire(Compute::Bf16, row) => {
                    let values = padded(row.as_chunks::<2>().0, first);
                    L::load_bf16(values.as_ptr().cast())
                }
                Row::Wire(Compute::F32, row) => {
                    let values = padded(row.as_chunks::<4>().0, first);
                    L::load(values.as_ptr().cast())
                }
            }
        }
    }
}

/// [`LANES`] little-endian elements from `first` on in native order, zero past the end of the row.
#[inline(always)]
fn padded<const SIZE: usize>(row: &[[u8; SIZE]], first: usize) -> [[u8; SIZE]; LANES] {
    let rest = row.get(first..).unwrap_or(&[]);
    let mut values = [[0; SIZE]; LANES];
    match rest.first_chunk::<LANES>() {
        Some(full) => values = *full,
        None => values[..rest.len()].copy_from_slice(rest),
    }
    if cfg!(target_endian = "big") {
        values.iter_mut().for_each(|value| value.reverse());
    }
    values
}

/// Tokens of a full tile.
pub(crate) fn tile_tokens(kernel: Isa) -> usize {
    match kernel {
        Isa::Amx => 16,
        Isa::Avx512 => 8,
        Isa::Avx2 | Isa::Portable => 4,
    }
}

/// Whether all tiles are full, with anything in the rows that are not there: AMX, beyond one tile.
fn full_tiles(kernel: Isa, rows: usize) -> bool {
    kernel == Isa::Amx && rows > tile_tokens(kernel)
}

fn element_bytes(kernel: Isa) -> usize {
    if kernel == Isa::Amx { 2 } else { 4 }
}
