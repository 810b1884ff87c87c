//! The block kernel of every instruction set with vector multiply-add: 16 outputs per register,
//! activations broadcast, sums in order of the inner index.

use super::{Block, LANES, STEP, Storage};

/// One register row: 16 outputs of one panel.
///
/// # Safety
/// Methods need the instruction set of the implementor; pointers must be readable (or writable)
/// for one register row.
pub(super) trait Lanes {
    type Row: Copy;
    type Scalar: Copy;

    unsafe fn zero() -> Self::Row;
    /// 32 bf16: the outputs' weights for an even input and for the odd input after it.
    unsafe fn widen(line: *const u8) -> (Self::Row, Self::Row);
    unsafe fn load(line: *const u8) -> Self::Row;
    unsafe fn splat(value: *const f32) -> Self::Scalar;
    unsafe fn fma(weights: Self::Row, value: Self::Scalar, sum: Self::Row) -> Self::Row;
    unsafe fn store(row: Self::Row, out: *mut f32);
    /// Starts fetching a cache line; any address is allowed.
    unsafe fn prefetch(line: *const u8);
}

/// Bytes between the line in use and the line being fetched, per stream.
const AHEAD: usize = 2048;

/// Multiplies `P` panels with `T` tokens.
///
/// # Safety
/// The instruction set of `L` must be there; `block` describes `P` readable panels and a readable
/// tile of `T` tokens, all of `block.steps` steps; `sums` is writable for `P * T * LANES` floats.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "the panel number indexes weights and sums alike")]
pub(super) unsafe fn multiply<L: Lanes, const P: usize, const T: usize>(
    block: &Block,
    sums: *mut f32,
) {
    // SAFETY: every pointer below stays inside the operands described above: a bf16 panel has 64
    // bytes per pair of inputs, an f32 panel 64 per input, a tile `T` floats per input.
    unsafe {
        let mut acc = [[L::zero(); T]; P];
        let mut x = block.acts.cast::<f32>();
        match block.storage {
            Storage::Bf16 => {
                for pair in 0..block.steps * STEP / 2 {
                    for p in 0..P {
                        let line = block.panels[p].add(pair * 64);
                        L::prefetch(line.wrapping_add(AHEAD));
                        let (even, odd) = L::widen(line);
                        for t in 0..T {
                            acc[p][t] = L::fma(even, L::splat(x.add(t)), acc[p][t]);
                            acc[p][t] = L::fma(odd, L::splat(x.add(T + t)), acc[p][t]);
                        }
                    }
                    x = x.add(2 * T);
                }
            }
            Storage::F32 => {
                for input in 0..block.steps * STEP {
                    for p in 0..P {
                        let line = block.panels[p].add(input * 64);
                        L::prefetch(line.wrapping_add(AHEAD));
                        let weights = L::load(line);
                        for t in 0..T {
                            acc[p][t] = L::fma(weights, L::splat(x.add(t)), acc[p][t]);
                        }
                    }
                    x = x.add(T);
                }
            }
        }
        for p in 0..P {
            for t in 0..T {
                L::store(acc[p][t], sums.add((p * T + t) * LANES));
            }
        }
    }
}

/// Calls [`multiply`] with the block's numbers of panels and tokens as constants.
macro_rules! dispatch {
    ($lanes:ty, $block:expr, $sums:expr, [$(($panels:literal, $tokens:literal)),+ $(,)?]) => {
        match ($block.count, $block.tokens) {
            $(($panels, $tokens) => {
                $crate::gemm::fma::multiply::<$lanes, $panels, $tokens>($block, $sums)
            })+
            (panels, tokens) => unreachable!("no kernel for {panels} panels x {tokens} tokens"),
        }
    };
}
pub(super) use dispatch;
