//! The two products of attention with fused multiply-adds: scores from keys, sums from values.
//!
//! Both are `C[rows, 16 wide] += A[rows, deep] * B[deep, 16 wide]` with B read straight from the cache, one
//! accumulator per result and steps in ascending order, however many rows share a load.

use super::{Line, STRETCH, Worker};
use crate::kv::{BLOCK_TOKENS, KvLayout, VALUE_TILE, WIDE};
use crate::lanes::{LANES, Lanes};

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
    // SAFETY (all): the caller's promise.
    while L::ROWS >= 8 && rows - row >= 8 {
        unsafe { step.rows::<8>(row) };
        row += 8;
    }
    while L::ROWS >= 4 && rows - row >= 4 {
        unsafe { step.rows::<4>(row) };
        row += 4;
    }
    while rows - row >= 2 {
        unsafe { step.rows::<2>(row) };
        row += 2;
    }
    if row < rows {
        unsafe { step.rows::<1>(row) };
    }
}

/// `sums[m][n] += a[m][..deep] * b[n][..deep][16]`, `deep` even.
///
/// # Safety
/// The processor has the instruction set of `L`; `a` has M rows of `stride` floats; each of `b` has `16 * deep`.
#[inline(always)]
unsafe fn accumulate<L: Lanes, T: Pairs, const M: usize, const N: usize>(
    (a, stride): (*const f32, usize),
    b: [*const T; N],
    deep: usize,
    sums: &mut [[L; N]; M],
) {
    for step in (0..deep).step_by(2) {
        // SAFETY: step < deep, and the caller vouches for the extents.
        unsafe {
            let b = b.map(|b| T::load::<L>(b.add(step * WIDE)));
            for (m, sums) in sums.iter_mut().enumerate() {
                let a = a.add(m * stride + step);
                let (first, second) = (L::splat(*a), L::splat(*a.add(1)));
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = second.mul_add(b[1], first.mul_add(b[0], *sum));
                }
            }
        }
    }
}

/// Stores `sums` to rows of `stride` floats.
///
/// # Safety
/// `to` has M rows with room for `16 * N` floats.
#[inline(always)]
unsafe fn store<L: Lanes, const M: usize, const N: usize>(
    (to, stride): (*mut f32, usize),
    sums: [[L; N]; M],
) {
    for (m, row) in sums.into_iter().enumerate() {
        for (n, sum) in row.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { sum.store(to.add(m * stride + n * LANES)) };
        }
    }
}

struct Scores<L, T> {
    queries: *const f32,
    keys: *const T,
    /// Dims as stored, and dims that are not all padding.
    k_dims: (usize, usize),
    to: *mut f32,
    lanes: std::marker::PhantomData<L>,
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
            store((self.to.add(row * STRETCH), STRETCH), sums);
        }
    }
}

/// `scores[row][position] = queries[row] . key[position]` for all positions of `blocks`.
///
/// # Safety
/// The processor has the instruction set of `L`, the worker's buffers hold `rows` rows and each block starts a
/// head's keys.
#[inline(always)]
pub(super) unsafe fn scores<L: Lanes, T: Pairs>(
    worker: &mut Worker,
    layout: &KvLayout,
    blocks: &[*const T],
    rows: usize,
) {
    let k_dims = (layout.stored_k_dim(), layout.k_dim.next_multiple_of(2));
    let queries = start(&mut worker.queries).cast_const();
    let scores = start(&mut worker.scores);
    for (i, &keys) in blocks.iter().enumerate() {
        // SAFETY: the caller's promise; i < STRETCH_BLOCKS.
        unsafe {
            let to = scores.add(i * BLOCK_TOKENS);
            let lanes = std::marker::PhantomData::<L>;
            climb::<L>(rows, &mut Scores { queries, keys, k_dims, to, lanes });
        }
    }
}

struct Values<'a, L, T, const N: usize> {
    weights: *const f32,
    blocks: &'a [*const T],
    /// Elements from the start of a head's block to the first of N value tiles.
    offset: usize,
    to: *mut f32,
    stride: usize,
    lanes: std::marker::PhantomData<L>,
}

impl<L: Lanes, T: Pairs, const N: usize> Step for Values<'_, L, T, N> {
    #[inline(always)]
    unsafe fn rows<const M: usize>(&mut self, row: usize) {
        // SAFETY: the caller of `values` vouches for the buffers.
        unsafe {
            let mut sums = [[L::splat(0.0); N]; M];
            for (i, block) in self.blocks.iter().enumerate() {
                let weights = self.weights.add(row * STRETCH + i * BLOCK_TOKENS);
                let tiles = std::array::from_fn(|n| block.add(self.offset + n * VALUE_TILE));
                accumulate((weights, STRETCH), tiles, BLOCK_TOKENS, &mut sums);
            }
            store((self.to.add(row * self.stride), self.stride), sums);
        }
    }
}

/// `part[row][dim] = sum over positions of weights[row][position] * value[position][dim]`.
///
/// # Safety
/// As [`scores`]; weights beyond a row's own position are zero.
#[inline(always)]
pub(super) unsafe fn values<L: Lanes, T: Pairs>(
    worker: &mut Worker,
    layout: &KvLayout,
    blocks: &[*const T],
    rows: usize,
) {
    let (keys, stride) = (layout.stored_k_dim() * BLOCK_TOKENS, layout.stored_v_dim());
    let weights = start(&mut worker.scores).cast_const();
    let part = start(&mut worker.part);
    let lanes = std::marker::PhantomData::<L>;
    let tiles = stride / WIDE;
    for tile in (0..tiles).step_by(2) {
        let offset = keys + tile * VALUE_TILE;
        // SAFETY: the caller's promise; tile < tiles.
        unsafe {
            let to = part.add(tile * WIDE);
            if tile + 1 < tiles {
                let mut step = Values::<L, T, 2> { weights, blocks, offset, to, stride, lanes };
                climb::<L>(rows, &mut step);
            } else {
                let mut step = Values::<L, T, 1> { weights, blocks, offset, to, stride, lanes };
                climb::<L>(rows, &mut step);
            }
        }
    }
}

fn start(lines: &mut [Line]) -> *mut f32 {
    lines.as_mut_ptr().cast()
}
