//! The softmax of one stretch, and the merging of stretches.

use std::ops::Range;

use super::{Worker, floats};
use crate::lanes::{LANES, Lanes};

/// One row's softmax so far. `sum` is relative to `max`; scores are before scaling.
#[derive(Clone, Copy, Default)]
pub(super) struct Merged {
    max: f32,
    sum: f32,
    /// Maximum and sum of the stretch at hand; `None` when the row sees nothing of it.
    pub(super) part: Option<(f32, f32)>,
}

/// Turns the scores of one row into weights `2^((score - max) * scale)`, zero from `visible` on; returns the
/// maximum and the sum of the weights. There are whole blocks of scores, at least `visible`.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(super) unsafe fn weigh<L: Lanes>(
    scores: &mut [f32],
    visible: usize,
    scale: f32,
) -> Option<(f32, f32)> {
    if visible == 0 {
        scores.fill(0.0);
        return None;
    }
    // SAFETY: the caller vouches for the instruction set; chunks have 16 floats.
    unsafe {
        let (whole, rest) = (visible / LANES * LANES, visible % LANES);
        let mut largest = L::splat(f32::NEG_INFINITY);
        for chunk in scores[..whole].chunks_exact(LANES) {
            largest = largest.max(L::load(chunk.as_ptr()));
        }
        if rest > 0 {
            largest = largest.max(L::load(scores[whole..].as_ptr()).first(rest, largest));
        }
        let max = largest.largest();
        let (max_lanes, scale, zero) = (L::splat(max), L::splat(scale), L::splat(0.0));
        let mut sum = zero;
        for chunk in scores[..whole].chunks_exact_mut(LANES) {
            let weight = L::load(chunk.as_ptr()).sub(max_lanes).mul(scale).exp2();
            weight.store(chunk.as_mut_ptr());
            sum = sum.add(weight);
        }
        let mut hidden = whole;
        if rest > 0 {
            let last = &mut scores[whole..whole + LANES];
            let weight = L::load(last.as_ptr()).sub(max_lanes).mul(scale).exp2().first(rest, zero);
            weight.store(last.as_mut_ptr());
            sum = sum.add(weight);
            hidden += LANES;
        }
        scores[hidden..].fill(0.0);
        Some((max, sum.sum()))
    }
}

/// Adds the stretch at hand to what each row has: the larger maximum rules, the other side shrinks.
///
/// # Safety
/// The processor has the instruction set of `L`; the worker's buffers hold the tile's rows of `v_dim`.
#[inline(always)]
pub(super) unsafe fn merge<L: Lanes>(
    worker: &mut Worker,
    tile: Range<usize>,
    v_dim: usize,
    scale: f32,
    first: bool,
) {
    let parts = floats(&mut worker.part).chunks_exact(v_dim);
    let totals = floats(&mut worker.total)[tile.start * v_dim..].chunks_exact_mut(v_dim);
    for ((merged, part), total) in worker.merged[tile].iter_mut().zip(parts).zip(totals) {
        let Some((max, sum)) = merged.part else { continue };
        if first {
            total.copy_from_slice(part);
            (merged.max, merged.sum) = (max, sum);
            continue;
        }
        let largest = merged.max.max(max);
        // SAFETY: the caller vouches for the instruction set; chunks have 16 floats.
        unsafe {
            let keep = L::splat((merged.max - largest) * scale).exp2();
            let take = L::splat((max - largest) * scale).exp2();
            for (to, from) in total.chunks_exact_mut(LANES).zip(part.chunks_exact(LANES)) {
                let kept = L::load(to.as_ptr()).mul(keep);
                L::load(from.as_ptr()).mul_add(take, kept).store(to.as_mut_ptr());
            }
            merged.sum = take.array()[0].mul_add(sum, merged.sum * keep.array()[0]);
        }
        merged.max = largest;
    }
}

/// Divides each row by its sum of weights.
///
/// # Safety
/// As [`merge`].
#[inline(always)]
pub(super) unsafe fn divide<L: Lanes>(worker: &mut Worker, rows: usize, v_dim: usize) {
    let total = floats(&mut worker.total);
    for (row, merged) in worker.merged.iter().enumerate().take(rows) {
        // SAFETY: the caller vouches for the instruction set; chunks have 16 floats.
        unsafe {
            let by = L::splat(1.0 / merged.sum);
            for chunk in total[row * v_dim..][..v_dim].chunks_exact_mut(LANES) {
                L::load(chunk.as_ptr()).mul(by).store(chunk.as_mut_ptr());
            }
        }
    }
}
