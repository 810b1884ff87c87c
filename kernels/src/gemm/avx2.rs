//! Block kernel for AVX2 and FMA: a register row is two 256-bit registers.

use super::Block;
#[cfg(not(target_arch = "x86_64"))]
pub(super) use super::portable::block;

#[cfg(target_arch = "x86_64")]
pub(super) use x86::block;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::LANES;
    use super::super::fma::{Lanes, dispatch};
    use super::Block;

    struct Avx2;

    impl Lanes for Avx2 {
        type Row = (__m256, __m256);
        type Scalar = __m256;

        #[inline(always)]
        unsafe fn zero() -> Self::Row {
            // SAFETY: the trait's contract: AVX2 is there.
            unsafe { (_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn widen(line: *const u8) -> (Self::Row, Self::Row) {
            // SAFETY: AVX2 is there and 64 bytes are readable.
            unsafe {
                let low = _mm256_loadu_si256(line.cast());
                let high = _mm256_loadu_si256(line.add(32).cast());
                let odd = _mm256_set1_epi32(-0x1_0000);
                let evens = |half| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(half));
                let odds = |half| _mm256_castsi256_ps(_mm256_and_si256(half, odd));
                ((evens(low), evens(high)), (odds(low), odds(high)))
            }
        }

        #[inline(always)]
        unsafe fn load(line: *const u8) -> Self::Row {
            let line = line.cast::<f32>();
            // SAFETY: AVX2 is there and 64 bytes are readable.
            unsafe { (_mm256_loadu_ps(line), _mm256_loadu_ps(line.add(8))) }
        }

        #[inline(always)]
        unsafe fn splat(value: *const f32) -> __m256 {
            // SAFETY: AVX2 is there and the float is readable.
            unsafe { _mm256_broadcast_ss(&*value) }
        }

        #[inline(always)]
        unsafe fn fma(weights: Self::Row, value: __m256, sum: Self::Row) -> Self::Row {
            // SAFETY: FMA is there.
            unsafe {
                (_mm256_fmadd_ps(weights.0, value, sum.0), _mm256_fmadd_ps(weights.1, value, sum.1))
            }
        }

        #[inline(always)]
        unsafe fn store(row: Self::Row, out: *mut f32) {
            // SAFETY: AVX2 is there and 16 floats are writable.
            unsafe {
                _mm256_storeu_ps(out, row.0);
                _mm256_storeu_ps(out.add(8), row.1);
            }
        }

        #[inline(always)]
        unsafe fn prefetch(line: *const u8) {
            // SAFETY: a hint; no address faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
        }
    }

    /// # Safety
    /// As [`super::super::fma::multiply`], on a machine with AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(in crate::gemm) unsafe fn block(block: &Block, sums: *mut f32) {
        if block.tokens <= 2 && block.count == 2 {
            // SAFETY: the caller's promise.
            return unsafe { dispatch!(Avx2, block, sums, [(2, 1), (2, 2)]) };
        }
        // More tokens leave registers for one panel at a time.
        for panel in 0..block.count {
            let one = block.single(panel);
            // SAFETY: the caller's promise; each panel has its own part of the sums.
            unsafe {
                let sums = sums.add(panel * block.tokens * LANES);
                dispatch!(Avx2, &one, sums, [(1, 1), (1, 2), (1, 3), (1, 4)]);
            }
        }
    }
}
