//! Root-mean-square norms: of whole rows, and of each head inside a row.

use crate::Cpu;
use crate::columns::{Columns, ColumnsMut};
use crate::lanes::{self, Kernel, LANES, Lanes};

/// `y = x / sqrt(mean(x^2) + eps) * weight` for each row of `[rows, weight.len()]`.
///
/// # Panics
/// If `x` and `y` are not the same whole number of rows.
pub fn rms_norm(cpu: &Cpu, x: Columns<'_>, weight: &[f32], eps: f32, y: &mut [f32]) {
    assert_eq!(x.width(), weight.len(), "norm width");
    assert_eq!(y.len(), x.rows() * weight.len(), "norm output");
    ColumnsMut::dense(y, weight.len()).for_each_row(cpu, |row, y| {
        lanes::run(cpu.isa(), RmsNorm { x: x.row(row), weight, eps, y });
    });
}

/// The same in place for every run of `weight.len()` columns: each head of the queries or keys (Qwen3, GLM), or
/// all of them at once (OLMoE), or a latent (DeepSeek).
///
/// # Panics
/// If the columns are not a whole number of such runs.
pub fn rms_norm_heads(cpu: &Cpu, mut x: ColumnsMut<'_>, weight: &[f32], eps: f32) {
    assert!(x.width().is_multiple_of(weight.len()), "heads of {} in {}", weight.len(), x.width());
    x.for_each_row(cpu, |_, row| {
        lanes::run(cpu.isa(), RmsNormHeads { heads: row, weight, eps });
    });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    y: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller vouches for the instruction set.
        let scale = unsafe { inverse_rms::<L>(self.x, self.eps) };
        for ((y, x), weight) in self.y.iter_mut().zip(self.x).zip(self.weight) {
            *y = x * scale * weight;
        }
    }
}

struct RmsNormHeads<'a> {
    heads: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNormHeads<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for head in self.heads.chunks_exact_mut(self.weight.len()) {
            // SAFETY: the caller vouches for the instruction set.
            let scale = unsafe { inverse_rms::<L>(head, self.eps) };
            for (x, weight) in head.iter_mut().zip(self.weight) {
                *x = *x * scale * weight;
            }
        }
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
unsafe fn inverse_rms<L: Lanes>(x: &[f32], eps: f32) -> f32 {
    // Four chains hide the latency of the multiply-add; which element joins which chain is fixed.
    // SAFETY: the caller vouches for the instruction set.
    let mut sums = [unsafe { L::splat(0.0) }; 4];
    let mut wide = x.chunks_exact(4 * LANES);
    for chunk in &mut wide {
        for (sum, part) in sums.iter_mut().zip(chunk.chunks_exact(LANES)) {
            // SAFETY: as above; a part has 16 floats.
            let x = unsafe { L::load(part.as_ptr()) };
            *sum = x.mul_add(x, *sum);
        }
    }
    for (sum, part) in sums.iter_mut().zip(wide.remainder().chunks(LANES)) {
        // SAFETY: as above.
        let x = unsafe { lanes::load_or::<L>(part, 0.0) };
        *sum = x.mul_add(x, *sum);
    }
    let sum = sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum();
    #[expect(clippy::cast_precision_loss, reason = "a row is far shorter than 2^24")]
    let mean = sum / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

#[cfg(test)]
mod tests;
