//! Sixteen lanes in one AVX-512 register.
use std::arch::x86_64::{
    __m256bh, __m512, _CMP_GE_OQ, _CMP_UNORD_Q, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT,
    _mm256_loadu_si256, _mm256_storeu_si256, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi16,
    _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh, _mm512_div_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mask_blend_epi32, _mm512_mask_blend_ps, _mm512_maskz_mov_ps,
    _mm512_max_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_roundscale_ps, _mm512_scalef_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_ps,
    _mm512_sub_ps,
};

use super::{Kernel, Lanes};

/// # Safety
/// The processor has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the instruction set.
    unsafe { kernel.run::<Avx512<false>>() }
}

/// # Safety
/// The processor has AVX-512 F, BW, DQ, VL and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn run_with_bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the caller vouches for the instruction set.
    unsafe { kernel.run::<Avx512<true>>() }
}

/// With `BF16` one instruction rounds to bf16, and makes zero of what is too small to be normal.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>(__m512);

impl<const BF16: bool> Lanes for Avx512<BF16> {
    // 8 rows x 2 registers of sums, 4 of widened keys or values, 1 broadcast.
    const ROWS: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller vouches for the instruction set.
        Self(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for the instruction set and for 16 floats.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u16) -> [Self; 2] {
        // SAFETY: the caller vouches for the instruction set and for 32 values.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            let high = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            [
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))),
                Self(_mm512_castsi512_ps(_mm512_and_si512(pairs, high))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller vouches for the instruction set and for 16 values.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u16) {
        // SAFETY: a value exists, so the instruction set is there; the caller vouches for 16 places.
        unsafe {
            if BF16 {
                to.cast::<__m256bh>().write_unaligned(_mm512_cvtneps_pbh(self.0));
                return;
            }
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let nearest = _mm512_add_epi32(bits, half);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let rounded = _mm512_mask_blend_epi32(nan, nearest, quiet);
            let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
            _mm256_storeu_si256(to.cast(), halves);
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: a value exists, so the instruction set is there; the caller vouches for 16 places.
        unsafe { _mm512_storeu_ps(to, self.0) };
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn where_at_least(self, key: Self, bound: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(key.0, bound.0);
            Self(_mm512_maskz_mov_ps(keep, self.0))
        }
    }

    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        Self(unsafe { _mm512_fmadd_ps(self.0, by.0, plus.0) })
    }

    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: a value exists, so the instruction set is there.
        Self(unsafe { _mm512_roundscale_ps::<NEAREST>(self.0) })
    }

    #[inline(always)]
    fn times_power_of_two(self, n: Self) -> Self {
        // SAFETY: a value exists, so the instruction set is there.
        Self(unsafe { _mm512_scalef_ps(self.0, n.0) })
    }

    #[inline(always)]
    fn first(self, n: usize, other: Self) -> Self {
        let mask = if n >= 16 { u16::MAX } else { (1 << n) - 1 };
        // SAFETY: a value exists, so the instruction set is there.
        Self(unsafe { _mm512_mask_blend_ps(mask, other.0, self.0) })
    }
}
