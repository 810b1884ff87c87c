//! Activations packed for a kernel: tiles of a few tokens, padded to whole steps.

use super::{LANES, STEP};
use crate::cpu::Compute;
use crate::disjoint::DisjointMut;
use crate::isa::Isa;
use crate::wire::{round_bf16, widen_bf16};

/// The rows of one product, `[tile][step][token][STEP]` bf16 for tiles, `[tile][input][token]` f32
/// for vectors. Several tasks may fill different segments at once.
pub(crate) struct Acts<'a> {
    bytes: &'a DisjointMut<'a, u8>,
    /// Where this product's tiles begin.
    start: usize,
    kernel: Isa,
    compute: Compute,
    rows: usize,
    steps: usize,
}

impl<'a> Acts<'a> {
    /// Bytes for `rows` rows of `inputs` elements, a multiple of a cache line.
    pub(crate) fn bytes(kernel: Isa, rows: usize, inputs: usize) -> usize {
        rows * inputs.next_multiple_of(STEP) * element_bytes(kernel)
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
    pub(crate) unsafe fn put(&self, row: usize, segment: usize, values: &[f32; LANES]) {
        let unit = tile_tokens(self.kernel);
        let first = row / unit * unit;
        let tokens = unit.min(self.rows - first);
        let token = row - first;
        let tile = first * self.steps * STEP;
        let input = segment * LANES;
        if self.kernel == Isa::Amx {
            let at = tile + (input / STEP * tokens + token) * STEP + input % STEP;
            // SAFETY: this row's segment, which only the caller stores now.
            let out =
                unsafe { self.bytes.part(self.start + at * 2..self.start + (at + LANES) * 2) };
            for (out, &value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *out = round_bf16(value).to_ne_bytes();
            }
            return;
        }
        for (i, &value) in values.iter().enumerate() {
            let value = match self.compute {
                Compute::Bf16 => widen_bf16(round_bf16(value)),
                Compute::F32 => value,
            };
            let at = self.start + (tile + (input + i) * tokens + token) * 4;
            // SAFETY: one element of this row's segment.
            unsafe { self.bytes.part(at..at + 4) }.copy_from_slice(&value.to_ne_bytes());
        }
    }

    /// Stores a whole row; `read(first input, out)` fills up to [`LANES`] inputs at a time.
    ///
    /// # Safety
    /// No other thread may store the same row or read the tile at the same time.
    pub(crate) unsafe fn put_row(
        &self,
        row: usize,
        inputs: usize,
        mut read: impl FnMut(usize, &mut [f32]),
    ) {
        for segment in 0..self.segments() {
            let first = segment * LANES;
            let mut values = [0.0; LANES];
            let count = inputs.saturating_sub(first).min(LANES);
            if count > 0 {
                read(first, &mut values[..count]);
            }
            // SAFETY: the caller's promise.
            unsafe { self.put(row, segment, &values) };
        }
    }
}

/// Tokens of a full tile.
pub(crate) fn tile_tokens(kernel: Isa) -> usize {
    match kernel {
        Isa::Amx => 16,
        Isa::Avx512 => 8,
        Isa::Avx2 | Isa::Portable => 4,
    }
}

fn element_bytes(kernel: Isa) -> usize {
    if kernel == Isa::Amx { 2 } else { 4 }
}
