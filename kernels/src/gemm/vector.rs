//! The block kernel of every instruction set with vector multiply-add: 16 outputs per register,
//! activations broadcast, each output summed in order of the inner index.
//!
//! bf16 weights are widened and multiplied as f32: the bf16 dot product instruction has half that
//! rate on the processors measured.

use super::{Block, LANES, STEP, Storage};
use crate::lanes::{Kernel, Lanes};
use crate::memory::fetch_to_read;

/// Bytes from the line in use to the line being fetched, per stream.
const AHEAD: usize = 2048;

/// A block and the place of its sums.
pub(super) struct Product<'a> {
    block: &'a Block,
    sums: *mut f32,
}

impl<'a> Product<'a> {
    /// # Safety
    /// `block` describes readable panels and a readable tile of f32 tokens, all of `block.steps`
    /// steps; `sums` is writable for `block.count * block.tokens * LANES` floats.
    pub(super) unsafe fn new(block: &'a Block, sums: *mut f32) -> Self {
        Self { block, sums }
    }

    /// Picks the copy for the block's number of tokens.
    ///
    /// # Safety
    /// The processor has the instruction set of `L`, and the block has `P` panels.
    #[inline(always)]
    unsafe fn tokens<L: Lanes, const P: usize>(self) {
        // SAFETY: the caller's promise and that of `new`.
        unsafe {
            match self.block.tokens {
                1 => self.multiply::<L, P, 1>(),
                2 => self.multiply::<L, P, 2>(),
                3 => self.multiply::<L, P, 3>(),
                4 => self.multiply::<L, P, 4>(),
                tokens if P < 4 && L::ROWS >= 8 => match tokens {
                    5 => self.multiply::<L, P, 5>(),
                    6 => self.multiply::<L, P, 6>(),
                    7 => self.multiply::<L, P, 7>(),
                    8 => self.multiply::<L, P, 8>(),
                    _ => unreachable!("no vector kernel for {tokens} tokens"),
                },
                tokens => unreachable!("no vector kernel for {tokens} tokens"),
            }
        }
    }

    /// # Safety
    /// The processor has the instruction set of `L`, and the block has `P` panels and `T` tokens.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "panel numbers index weights and sums alike")]
    unsafe fn multiply<L: Lanes, const P: usize, const T: usize>(self) {
        let Block { panels, steps, acts, storage, .. } = *self.block;
        let mut x = acts.cast::<f32>();
        // SAFETY: every pointer below stays inside the operands of `new`: a bf16 panel has 64 bytes
        // per pair of inputs, an f32 panel 64 per input, a tile `T` times 16 floats per segment.
        unsafe {
            let mut sums = [[L::splat(0.0); T]; P];
            for segment in 0..steps * STEP / LANES {
                match storage {
                    Storage::Bf16 => {
                        for pair in 0..LANES / 2 {
                            for p in 0..P {
                                let line = panels[p].add((segment * LANES / 2 + pair) * 64);
                                fetch_to_read(line.wrapping_add(AHEAD));
                                let [even, odd] = L::load_bf16_pairs(line.cast());
                                for t in 0..T {
                                    let x = L::splat(*x.add(t * LANES + 2 * pair));
                                    sums[p][t] = even.mul_add(x, sums[p][t]);
                                }
                                for t in 0..T {
                                    let x = L::splat(*x.add(t * LANES + 2 * pair + 1));
                                    sums[p][t] = odd.mul_add(x, sums[p][t]);
                                }
                            }
                        }
                    }
                    Storage::F32 => {
                        for input in 0..LANES {
                            for p in 0..P {
                                let line = panels[p].add((segment * LANES + input) * 64);
                                fetch_to_read(line.wrapping_add(AHEAD));
                                let weights = L::load(line.cast());
                                for t in 0..T {
                                    let x = L::splat(*x.add(t * LANES + input));
                                    sums[p][t] = weights.mul_add(x, sums[p][t]);
                                }
                            }
                        }
                    }
                }
                x = x.add(T * LANES);
            }
            for p in 0..P {
                for t in 0..T {
                    sums[p][t].store(self.sums.add((p * T + t) * LANES));
                }
            }
        }
    }
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller's promise; a single panel has its own part of the sums.
        unsafe {
            match self.block.count {
                4 if L::ROWS >= 8 => self.tokens::<L, 4>(),
                2 if L::ROWS >= 8 => self.tokens::<L, 2>(),
                // Sixteen registers hold the sums of one panel.
                count => {
                    for panel in 0..count {
                        let sums = self.sums.add(panel * self.block.tokens * LANES);
                        Product { block: &self.block.single(panel), sums }.tokens::<L, 1>();
                    }
                }
            }
        }
    }
}
