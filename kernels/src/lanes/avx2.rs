//! Sixteen lanes in two AVX2 registers.
use std::arch::x86_64::{
    __m256, _CMP_GE_OQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm256_add_epi32,
    _mm256_add_ps, _mm256_and_ps, _mm256_and_si256, _mm256_blendv_ps, _mm256_castsi256_ps,
    _mm256_cmp_ps, _mm256_cmpgt_epi32, _mm256_cvtps_epi32, _mm256_div_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_max_ps, _mm256_mul_ps, _mm256_round_ps,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_slli_epi32, _mm256_storeu_ps,
    _mm256_sub_ps,
};

use super::{Kernel, Lanes};

/// # Safety
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the instruction set.
    unsafe { kernel.run::<Avx2>() }
}

#[derive(Clone, Copy)]
pub(super) struct Avx2([__m256; 2]);

impl Avx2 {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(__m256, __m256) -> __m256) -> Self {
        Self([f(self.0[0], other.0[0]), f(self.0[1], other.0[1])])
    }
}

impl Lanes for Avx2 {
    // 2 rows x 2 x 2 registers of sums leave room for the operands in 16 registers.
    const ROWS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        Self([unsafe { _mm256_set1_ps(x) }; 2])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for the instruction set and for 16 floats.
        Self(unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] })
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u16) -> [Self; 2] {
        // SAFETY: the caller vouches for the instruction set and for 32 values.
        unsafe {
            let low = _mm256_loadu_si256(from.cast());
            let high = _mm256_loadu_si256(from.add(16).cast());
            let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            let first = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x));
            let second = |x| _mm256_castsi256_ps(_mm256_and_si256(x, upper));
            [Self([first(low), first(high)]), Self([second(low), second(high)])]
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: a value exists, so the instruction set is there; the caller vouches for 16 places.
        unsafe {
            _mm256_storeu_ps(to, self.0[0]);
            _mm256_storeu_ps(to.add(8), self.0[1]);
        }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        self.zip(other, |a, b| unsafe { _mm256_add_ps(a, b) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        self.zip(other, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        self.zip(other, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        self.zip(other, |a, b| unsafe { _mm256_div_ps(a, b) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        self.zip(other, |a, b| unsafe { _mm256_max_ps(a, b) })
    }

    #[inline(always)]
    fn where_at_least(self, key: Self, bound: Self) -> Self {
        let keep = key.zip(bound, |key, bound| {
            // SAFETY: a value exists, so the instruction set is there.
            unsafe { _mm256_cmp_ps::<_CMP_GE_OQ>(key, bound) }
        });
        // SAFETY: as above.
        self.zip(keep, |x, keep| unsafe { _mm256_and_ps(x, keep) })
    }

    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        let one = |i: usize| {
            // SAFETY: a value exists, so the instruction set is there.
            unsafe { _mm256_fmadd_ps(self.0[i], by.0[i], plus.0[i]) }
        };
        Self([one(0), one(1)])
    }

    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: a value exists, so the instruction set is there.
        Self(self.0.map(|x| unsafe { _mm256_round_ps::<NEAREST>(x) }))
    }

    #[inline(always)]
    fn times_power_of_two(self, n: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        self.zip(n, |x, n| unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
        })
    }

    #[inline(always)]
    fn first(self, n: usize, other: Self) -> Self {
        let n = i32::try_from(n).unwrap_or(i32::MAX);
        // SAFETY: a value exists, so the instruction set is there.
        unsafe {
            let limit = _mm256_set1_epi32(n);
            let low = _mm256_cmpgt_epi32(limit, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let high = _mm256_cmpgt_epi32(limit, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
            Self([
                _mm256_blendv_ps(other.0[0], self.0[0], _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(other.0[1], self.0[1], _mm256_castsi256_ps(high)),
            ])
        }
    }
}
