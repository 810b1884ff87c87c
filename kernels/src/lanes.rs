//! Sixteen f32 lanes under one name for every instruction set, and the exponential built on them.
//!
//! An operator is written once over [`Lanes`] and [`run`] picks the compiled copy for the machine. Every copy
//! does the same operations in the same order, so all instruction sets give the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::Isa;
use crate::wire::{round_bf16, widen_bf16};

/// Number of f32 lanes.
pub(crate) const LANES: usize = 16;

/// `2^f = 1 + f * Q(f)` on [-0.5, 0.5]; Q is interpolated at the Chebyshev nodes, relative error 9e-9.
const EXP2_Q: [f32; 6] = [
    std::f32::consts::LN_2,
    0.240_226_5,
    0.055_503_57,
    0.009_618_082,
    0.001_339_091,
    0.000_154_532_03,
];

/// Below this power of two a weight is rounding noise; it also keeps denormals out of the sums.
const EXP2_MIN: f32 = -126.0;

/// Sixteen f32 values.
///
/// A value exists only inside code that [`run`] entered after the instruction set was detected; the
/// constructors are unsafe for that reason, and the operations on a value are safe.
pub(crate) trait Lanes: Copy {
    /// Query vectors that the attention kernel holds in registers at once.
    const ROWS: usize;

    /// All lanes equal `x`.
    ///
    /// # Safety
    /// The processor has this instruction set.
    unsafe fn splat(x: f32) -> Self;

    /// Sixteen floats from any alignment.
    ///
    /// # Safety
    /// The processor has this instruction set and 16 floats are readable at `from`.
    unsafe fn load(from: *const f32) -> Self;

    /// Sixteen pairs of bf16 as the first halves and the second halves of the pairs.
    ///
    /// # Safety
    /// The processor has this instruction set and 32 values are readable at `from`.
    unsafe fn load_bf16_pairs(from: *const u16) -> [Self; 2];

    /// Sixteen bf16 from any alignment.
    ///
    /// # Safety
    /// The processor has this instruction set and 16 values are readable at `from`.
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller vouches for both.
        unsafe {
            let wide = from.cast::<[u16; LANES]>().read_unaligned().map(widen_bf16);
            Self::load(wide.as_ptr())
        }
    }

    /// Writes sixteen bf16 to any alignment, each rounded to the nearest (ties to even).
    ///
    /// # Safety
    /// 16 values are writable at `to`.
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: the caller vouches for 16 places.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(self.array().map(round_bf16)) };
    }

    /// Writes sixteen floats to any alignment.
    ///
    /// # Safety
    /// 16 floats are writable at `to`.
    unsafe fn store(self, to: *mut f32);

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// The larger of both; `other` where `self` is not a number.
    fn max(self, other: Self) -> Self;
    /// Each lane where `key` is at least `bound`, 0 elsewhere (and where either is not a number).
    fn where_at_least(self, key: Self, bound: Self) -> Self;
    /// `self * by + plus`, rounded once.
    fn mul_add(self, by: Self, plus: Self) -> Self;
    /// To the nearest integer, ties to even.
    fn round(self) -> Self;
    /// `self * 2^n` for whole `n` in [-126, 127].
    fn times_power_of_two(self, n: Self) -> Self;
    /// The first `n` lanes of `self`, the rest of `other`.
    fn first(self, n: usize, other: Self) -> Self;

    /// `2^self`, to 1e-7 relative; inputs below -126 count as -126. Exactly 1 at 0.
    #[inline(always)]
    fn exp2(self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        let splat = |x| unsafe { Self::splat(x) };
        let x = self.max(splat(EXP2_MIN));
        let whole = x.round();
        let f = x.sub(whole);
        let mut q = splat(EXP2_Q[5]);
        q = q.mul_add(f, splat(EXP2_Q[4]));
        q = q.mul_add(f, splat(EXP2_Q[3]));
        q = q.mul_add(f, splat(EXP2_Q[2]));
        q = q.mul_add(f, splat(EXP2_Q[1]));
        q = q.mul_add(f, splat(EXP2_Q[0]));
        q.mul_add(f, splat(1.0)).times_power_of_two(whole)
    }

    /// The lanes as an array.
    #[inline(always)]
    fn array(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: the array has 16 places.
        unsafe { self.store(out.as_mut_ptr()) };
        out
    }

    /// The sum of all lanes, folded in halves.
    #[inline(always)]
    fn sum(self) -> f32 {
        fold(self.array(), |a, b| a + b)
    }

    /// The largest lane.
    #[inline(always)]
    fn largest(self) -> f32 {
        fold(self.array(), f32::max)
    }
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The first up to 16 floats of a slice, `fill` in the lanes beyond its end.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn load_or<L: Lanes>(from: &[f32], fill: f32) -> L {
    if from.len() >= LANES {
        // SAFETY: 16 floats are there; the caller vouches for the instruction set.
        return unsafe { L::load(from.as_ptr()) };
    }
    let mut padded = [fill; LANES];
    padded[..from.len()].copy_from_slice(from);
    // SAFETY: the array has 16 floats; the caller vouches for the instruction set.
    unsafe { L::load(padded.as_ptr()) }
}

/// Work that is compiled once for each instruction set.
pub(crate) trait Kernel {
    type Output;

    /// Does the work. Implementations are `#[inline(always)]`, and so is what they call, or the copy would
    /// lose the instruction set it is compiled for.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs the copy of `kernel` for `isa`, which must come from a [`crate::Cpu`] (and so is present).
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        // SAFETY: the `Cpu` that reported the instruction set has detected it.
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => unsafe { avx512::run_with_bf16(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::run(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::run(kernel) },
        // SAFETY: needs nothing beyond the target's baseline.
        _ => unsafe { kernel.run::<portable::Portable>() },
    }
}
