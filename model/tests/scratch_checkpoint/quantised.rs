//! Quantises the projections of a checkpoint by blocks, with arithmetic of its own.

use std::collections::BTreeMap;

use half::bf16;
use serde_json::{Value, json};

use crate::stored::Stored;

/// What `config.json` says of such a checkpoint.
pub(crate) fn config() -> Value {
    json!({
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"],
    })
}

/// Whether published checkpoints have a tensor in fp8: projections, and an expert's three matrices.
fn is_projection(name: &str, tensor: &Stored) -> bool {
    let parts = ["_proj.weight", "_mqa.weight", ".w1.weight", ".w2.weight", ".w3.weight"];
    tensor.shape.len() == 2 && parts.iter().any(|part| name.ends_with(part))
}

/// Replaces each bf16 projection by codes and scales. The values those stand for, in f32, are returned by name.
pub(crate) fn quantise(tensors: &mut BTreeMap<String, Stored>) -> BTreeMap<String, Vec<f32>> {
    let sizes: Vec<f64> = (0..0x7f).map(size).collect();
    let (mut scales_of, mut values_of) = (BTreeMap::new(), BTreeMap::new());
    for (name, tensor) in tensors.iter_mut().filter(|(name, tensor)| is_projection(name, tensor)) {
        let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
        let wide: Vec<f32> = tensor
            .bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| bf16::from_le_bytes(*b).to_f32())
            .collect();
        let blocks = [rows.div_ceil(128), cols.div_ceil(128)];
        let mut scales = vec![0_f32; blocks[0] * blocks[1]];
        let block = |at: usize| at / cols / 128 * blocks[1] + at % cols / 128;
        for (at, value) in wide.iter().enumerate() {
            scales[block(at)] = scales[block(at)].max(value.abs() / 448.0);
        }
        let codes: Vec<u8> = wide
            .iter()
            .enumerate()
            .map(|(at, value)| code(&sizes, f64::from(*value) / f64::from(scales[block(at)])))
            .collect();
        let value = |(at, code): (usize, &u8)| {
            let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
            (sign * sizes[usize::from(code & 0x7f)]) as f32 * scales[block(at)]
        };
        values_of.insert(name.clone(), codes.iter().enumerate().map(value).collect());
        let bytes = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let scales = Stored { dtype: "F32".to_owned(), shape: blocks.into(), bytes };
        scales_of.insert(format!("{name}_scale_inv"), scales);
        (tensor.dtype, tensor.bytes) = ("F8_E4M3".to_owned(), codes);
    }
    tensors.extend(scales_of);
    values_of
}

/// Puts values, which a type holds or is rounded to, in the place of projections.
pub(crate) fn write_out(
    tensors: &mut BTreeMap<String, Stored>,
    values: &BTreeMap<String, Vec<f32>>,
    dtype: &str,
) {
    for (name, values) in values {
        let tensor = tensors.get_mut(name).unwrap();
        let halves = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes());
        let floats = values.iter().flat_map(|value| value.to_le_bytes());
        tensor.bytes = if dtype == "BF16" { halves.collect() } else { floats.collect() };
        dtype.clone_into(&mut tensor.dtype);
    }
}

/// The number that a code without its sign stands for.
fn size(code: u8) -> f64 {
    let fraction = f64::from(code & 7);
    match i32::from(code >> 3) {
        0 => fraction * 2_f64.powi(-9),
        exponent => (8.0 + fraction) * 2_f64.powi(exponent - 10),
    }
}

/// The code of the number nearest to `value`.
fn code(sizes: &[f64], value: f64) -> u8 {
    let above = sizes.partition_point(|&size| size < value.abs()).min(sizes.len() - 1);
    let below = above.saturating_sub(1);
    let nearest =
        if value.abs() - sizes[below] < sizes[above] - value.abs() { below } else { above };
    nearest as u8 | if value < 0.0 { 0x80 } else { 0 }
}
