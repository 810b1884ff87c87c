//! The two products of attention with fused multiply-adds: scores from keys, sums from values.
//!
//! Both are `C[rows, 16 wide] += A[rows, deep] * B[deep, 16 wide]` with B read straight from the cache, one
//! accumulator per result and steps in ascending order, however many rows share a load.

use std::marker::PhantomData;
use std::ops::Range;

use super::{Line, Products, SCORES_STRIDE, Worker, floats};
use crate::kv::{BLOCK_TOKENS, Element, KvLayout, VALUE_TILE, WIDE};
use crate::lanes::{LANES, Lanes};

/// The products over a cache of `T`.
pub(super) struct Fma<T>(PhantomData<T>);

/// A stored element that loads two steps of sixteen results at a time.
pub(super) trait Pairs: Copy {
    /// # Safety
    /// The processor has the instruction set of `L` and 32 elements are readable at `from`.
    unsafe fn load<L: Lanes>(from: *const Self) -> [L; 2];
}

impl Pairs for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> [L; 2] {
        // SAFETY: the caller's promise.
        unsafe { L::load_bf16_pairs(from) }
    }
}

impl Pairs for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> [L; 2] {
        // SAFETY: the caller's promise.
        unsafe { [L::load(from), L::load(from.add(LANES))] }
    }
}

/// Something done to `M` rows from `row` on.
trait Step {
    /// # Safety
    /// The processor has the instruction set the step is written for, and its rows exist.
    unsafe fn rows<const M: usize>(&mut self, row: usize);
}

/// Does `step` to `rows` rows, as many at once as the registers of `L` hold.
///
/// # Safety
/// As [`Step::rows`].
#[inline(always)]
unsafe fn climb<L: Lanes>(rows: usize, step: &mut impl Step) {
    let mut row = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while L::ROWS >= 8 && rows - row >= 8 {
            step.rows::<8>(row);
            row += 8;
        }
        while L::ROWS >= 4 && rows - row >= 4 {
            step.rows::<4>(row);
            row += 4;
        }
        while rows - row >= 2 {
            step.rows::<2>(row);
            row += 2;
        }
        if row < rows {
            step.rows::<1>(row);
        }
    }
}

/// `sums[m][n] += a[m][..deep] * b[n][..deep][16]`, `deep` even.
///
/// # Safety
/// The processor has the instruction set of `L`; `a` has M rows of `stride` floats; each of `b` has `16 * deep`.
#[inline(always)]
unsafe fn accumulate<L: Lanes, T: Pairs, const M: usize>(
    (a, stride): (*const f32, usize),
    b: [*const T; 2],
    deep: usize,
    sums: &mut [[L; 2]; M],
) {
    for pair in 0..deep / 2 {
        let step = 2 * pair;
        // SAFETY: step < deep, and the caller vouches for the extents.
        unsafe {
            // No closures here: one that is not inlined loses the instruction set.
            let left = T::load::<L>(b[0].add(step * WIDE));
            let right = T::load::<L>(b[1].add(step * WIDE));
            for (m, sums) in sums.iter_mut().enumerate() {
                let a = a.add(m * stride + step);
                let (first, second) = (L::splat(*a), L::splat(*a.add(1)));
                sums[0] = second.mul_add(left[1], first.mul_add(left[0], sums[0]));
                sums[1] = second.mul_add(right[1], first.mul_add(right[0], sums[1]));
            }
        }
    }
}

/// Stores `sums` to rows of `stride` floats.
///
/// # Safety
/// `to` has M rows with room for 32 floats.
#[inline(always)]
unsafe fn store<L: Lanes, const M: usize>((to, stride): (*mut f32, usize), sums: &[[L; 2]; M]) {
    for (m, [left, right]) in sums.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            left.store(to.add(m * stride));
            right.store(to.add(m * stride + LANES));
        }
    }
}

struct Scores<L, T> {
    queries: *const f32,
    keys: *const T,
    /// Dims as stored, and dims that are not all padding.
    k_dims: (usize, usize),
    to: *mut f32,
    lanes: PhantomData<L>,
}

impl<L: Lanes, T: Pairs> Step for Scores<L, T> {
    #[inline(always)]
    unsafe fn rows<const M: usize>(&mut self, row: usize) {
        let (stored, used) = self.k_dims;
        // SAFETY: the caller of `scores` vouches for the buffers.
        unsafe {
            let mut sums = [[L::splat(0.0); 2]; M];
            let halves = [self.keys, self.keys.add(stored * WIDE)];
            accumulate((self.queries.add(row * stored), stored), halves, used, &mut sums);
            store((self.to.add(row * SCORES_STRIDE), SCORES_STRIDE), &sums);
        }
    }
}

struct Values<'a, L, T> {
    weights: *const f32,
    blocks: &'a [*const T],
    /// Elements from the start of a head's block to the first of two value tiles.
    offset: usize,
    to: *mut f32,
    stride: usize,
    lanes: PhantomData<L>,
}

impl<L: Lanes, T: Pairs> Step for Values<'_, L, T> {
    #[inline(always)]
    unsafe fn rows<const M: usize>(&mut self, row: usize) {
        // SAFETY: the caller of `values` vouches for the buffers.
        unsafe {
            let mut sums = [[L::splat(0.0); 2]; M];
            for (i, block) in self.blocks.iter().enumerate() {
                let weights = self.weights.add(row * SCORES_STRIDE + i * BLOCK_TOKENS);
                let tiles = [block.add(self.offset), block.add(self.offset + VALUE_TILE)];
                accumulate((weights, SCORES_STRIDE), tiles, BLOCK_TOKENS, &mut sums);
            }
            store((self.to.add(row * self.stride), self.stride), &sums);
        }
    }
}

impl<T: Element + Pairs> Products for Fma<T> {
    type Stored = T;

    #[inline(always)]
    unsafe fn load_query<L: Lanes>(
        worker: &mut Worker,
        (row, _): (usize, usize),
        query: &[f32],
        stored: usize,
    ) {
        let to = &mut floats(&mut worker.queries)[row * stored..][..stored];
        to[..query.len()].copy_from_slice(query);
        to[query.len()..].fill(0.0);
    }

    #[inline(always)]
    unsafe fn scores<L: Lanes>(
        worker: &mut Worker,
        layout: &KvLayout,
        blocks: &[*const T],
        tile: Range<usize>,
    ) {
        let k_dims = (layout.stored_k_dim(), layout.k_dim.next_multiple_of(2));
        let queries = floats(&mut worker.queries)[tile.start * k_dims.0..].as_ptr();
        let scores = start(&mut worker.scores);
        for (i, &keys) in blocks.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let to = scores.add(i * BLOCK_TOKENS);
                let mut step = Scores { queries, keys, k_dims, to, lanes: PhantomData::<L> };
                climb::<L>(tile.len(), &mut step);
            }
        }
    }

    #[inline(always)]
    unsafe fn values<L: Lanes>(
        worker: &mut Worker,
        layout: &KvLayout,
        blocks: &[*const T],
        rows: usize,
    ) {
        let (keys, stride) = (layout.stored_k_dim() * BLOCK_TOKENS, layout.stored_v_dim());
        let weights = start(&mut worker.scores).cast_const();
        let part = start(&mut worker.part);
        for dim in (0..stride).step_by(2 * WIDE) {
            let offset = keys + dim * BLOCK_TOKENS;
            // SAFETY: the caller's promise; stored dims come in pairs of tiles.
            unsafe {
                let to = part.add(dim);
                let lanes = PhantomData::<L>;
                let mut step = Values { weights, blocks, offset, to, stride, lanes };
                climb::<L>(rows, &mut step);
            }
        }
    }
}

fn start(lines: &mut [Line]) -> *mut f32 {
    lines.as_mut_ptr().cast()
}
