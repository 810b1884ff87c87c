//! Block kernel in plain Rust: the reference, on any architecture.

use super::fma::{Lanes, dispatch};
use super::{Block, LANES};

struct Portable;

impl Lanes for Portable {
    type Row = [f32; 16];
    type Scalar = f32;

    #[inline(always)]
    unsafe fn zero() -> Self::Row {
        [0.0; 16]
    }

    #[inline(always)]
    unsafe fn widen(line: *const u8) -> (Self::Row, Self::Row) {
        // SAFETY: the caller gives 64 readable bytes; weights are stored in native order.
        let pairs = unsafe { line.cast::<[[u16; 2]; 16]>().read_unaligned() };
        let wide = |which: usize| pairs.map(|pair| f32::from_bits(u32::from(pair[which]) << 16));
        (wide(0), wide(1))
    }

    #[inline(always)]
    unsafe fn load(line: *const u8) -> Self::Row {
        // SAFETY: the caller gives 64 readable bytes.
        unsafe { line.cast::<[f32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn splat(value: *const f32) -> f32 {
        // SAFETY: the caller gives a readable float.
        unsafe { *value }
    }

    #[inline(always)]
    unsafe fn fma(weights: Self::Row, value: f32, sum: Self::Row) -> Self::Row {
        std::array::from_fn(|lane| weights[lane].mul_add(value, sum[lane]))
    }

    #[inline(always)]
    unsafe fn store(row: Self::Row, out: *mut f32) {
        // SAFETY: the caller gives room for 16 floats.
        unsafe { out.cast::<[f32; 16]>().write_unaligned(row) }
    }

    #[inline(always)]
    unsafe fn prefetch(_line: *const u8) {}
}

/// # Safety
/// As [`super::fma::multiply`].
pub(super) unsafe fn block(block: &Block, sums: *mut f32) {
    for panel in 0..block.count {
        let one = block.single(panel);
        // SAFETY: the caller's promise; each panel has its own part of the sums.
        unsafe {
            let sums = sums.add(panel * block.tokens * LANES);
            dispatch!(Portable, &one, sums, [(1, 1), (1, 2), (1, 3), (1, 4)]);
        }
    }
}
