//! Which quantised checkpoints are read: those whose weights are E4M3 with a scale for each block of 128 x 128 (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).
//!
//! What a tensor is stored as says its own header, so `modules_to_not_convert` is not asked, nor is what activations
//! were meant to be rounded to: only weights are read as they were quantised.

use kernels::FP8_BLOCK;

use crate::{ModelError, config::Config};

/// Follows the name of a quantised matrix, to make that of its scales.
pub(crate) const SCALES: &str = "_scale_inv";

/// Refuses a `quantization_config` of another kind.
pub(crate) fn check(config: &Config) -> Result<(), ModelError> {
    let Some(quantization) = config.object("quantization_config")? else {
        return Ok(());
    };
    for (key, known, needed) in [("quant_method", "fp8", true), ("fmt", "e4m3", false)] {
        match quantization.optional_text(key)? {
            Some(text) if text == known => {}
            Some(other) => {
                let reason = format!(
                    "\"{other}\" is not supported; {known} is, and weights that are not quantised"
                );
                return Err(quantization.unsupported(key, reason));
            }
            None if needed => return Err(quantization.expected(key, format!("\"{known}\""))),
            None => {}
        }
    }
    let block = quantization.counts("weight_block_size", &(1..=usize::MAX))?;
    if block.is_empty() {
        let expected = format!(
            "[{FP8_BLOCK}, {FP8_BLOCK}], as other scales than those of blocks are not supported"
        );
        return Err(quantization.expected("weight_block_size", expected));
    }
    if block != [FP8_BLOCK; 2] {
        let reason =
            format!("blocks of {block:?} are not supported; [{FP8_BLOCK}, {FP8_BLOCK}] is");
        return Err(quantization.unsupported("weight_block_size", reason));
    }
    Ok(())
}
