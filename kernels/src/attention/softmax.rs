//! The softmax of one stretch, and the merging of stretches.

use super::{STRETCH, Worker, floats};
use crate::kv::BLOCK_TOKENS;
use crate::lanes::{LANES, Lanes};

/// One row's softmax so far. `sum` is relative to `max`; scores are before scaling.
#[derive(Clone, Copy, Default)]
pub(super) struct Merged {
    max: f32,
    sum: f32,
    /// The same of the stretch at hand; `None` when the row sees nothing of it.
    part: Option<(f32, f32)>,
}

/// Turns the scores of one row into weights `2^((score - max) * scale)`, zero from `visible` on.
///
/// # Safety
/// The processor has the instruction set of `L`; the worker's buffers hold the row.
#[inline(always)]
pub(super) unsafe fn weigh<L: Lanes>(
    worker: &mut Worker,
    row: usize,
    visible: usize,
    blocks: usize,
    scale: f32,
) {
    let scores = &mut floats(&mut worker.scores)[row * STRETCH..][..blocks * BLOCK_TOKENS];
    let visible = visible.min(scores.len());
    if visible == 0 {
        scores.fill(0.0);
        worker.merged[row].part = None;
        return;
    }
    // SAFETY: the caller vouches for the instruction set; chunks have 16 floats.
    unsafe {
        let lowest = L::splat(f32::NEG_INFINITY);
        let mut largest = lowest;
        for (i, chunk) in scores.chunks_exact(LANES).enumerate().take(visible.div_ceil(LANES)) {
            let score = L::load(chunk.as_ptr()).first(visible - i * LANES, lowest);
            largest = largest.max(score);
        }
        let max = largest.largest();
        let (max_lanes, zero) = (L::splat(max), L::splat(0.0));
        let scale = L::splat(scale * std::f32::consts::LOG2_E);
        let mut sum = zero;
        for (i, chunk) in scores.chunks_exact_mut(LANES).enumerate() {
            let seen = visible.saturating_sub(i * LANES);
            let score = L::load(chunk.as_ptr());
            let weight = score.sub(max_lanes).mul(scale).exp2().first(seen, zero);
            weight.store(chunk.as_mut_ptr());
            sum = sum.add(weight);
        }
        worker.merged[row].part = Some((max, sum.sum()));
    }
}

/// Adds the stretch at hand to what each row has: the larger maximum rules, the other side shrinks.
///
/// # Safety
/// The processor has the instruction set of `L`; the worker's buffers hold `rows` rows of `v_dim`.
#[inline(always)]
pub(super) unsafe fn merge<L: Lanes>(
    worker: &mut Worker,
    rows: usize,
    v_dim: usize,
    scale: f32,
    first: bool,
) {
    let part = floats(&mut worker.part);
    let total = floats(&mut worker.total);
    for (row, merged) in worker.merged.iter_mut().enumerate().take(rows) {
        let Some((max, sum)) = merged.part else { continue };
        let part = &part[row * v_dim..][..v_dim];
        let total = &mut total[row * v_dim..][..v_dim];
        if first {
            total.copy_from_slice(part);
            (merged.max, merged.sum) = (max, sum);
            continue;
        }
        let largest = merged.max.max(max);
        // SAFETY: the caller vouches for the instruction set; chunks have 16 floats.
        unsafe {
            let shrink = |from: f32| {
                let power = (from - largest) * (scale * std::f32::consts::LOG2_E);
                L::splat(power).exp2()
            };
            let (keep, take) = (shrink(merged.max), shrink(max));
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
