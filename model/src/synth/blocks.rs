//! From drawn bf16 weights to E4M3 codes and the scales of their blocks.

use half::bf16;
use kernels::{FP8_BLOCK, fp8_blocks, to_fp8};

/// The largest number that a code stands for.
const CODE_MAX: f32 = 448.0;

/// Some rows in fp8, as they are stored.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    pub(super) codes: Vec<u8>,
    /// f32, row of blocks after row of blocks.
    pub(super) scales: Vec<u8>,
}

impl Blocks {
    /// Takes the rows of `cols` bf16 values in `drawn`, which begin with a row of blocks. The largest of a block gets the
    /// largest code.
    pub(super) fn quantise(&mut self, drawn: &[[u8; 2]], cols: usize) {
        self.codes.clear();
        self.scales.clear();
        let [_, across] = fp8_blocks(1, cols);
        let mut scales = vec![0.0_f32; across];
        for rows in drawn.chunks(FP8_BLOCK * cols) {
            scales.fill(0.0);
            for row in rows.chunks_exact(cols) {
                for (scale, part) in scales.iter_mut().zip(row.chunks(FP8_BLOCK)) {
                    *scale = part.iter().fold(*scale, |most, value| most.max(wide(value).abs()));
                }
            }
            for scale in &mut scales {
                // Zeros stay zeros with any scale.
                *scale = if *scale == 0.0 { 1.0 } else { *scale / CODE_MAX };
            }
            for row in rows.chunks_exact(cols) {
                for (scale, part) in scales.iter().zip(row.chunks(FP8_BLOCK)) {
                    self.codes.extend(part.iter().map(|value| to_fp8(wide(value) / scale)));
                }
            }
            self.scales.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
        }
    }
}

fn wide(value: &[u8; 2]) -> f32 {
    bf16::from_le_bytes(*value).to_f32()
}
