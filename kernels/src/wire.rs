//! Rows of hidden states as they travel: bf16 or f32, little endian, by [`Compute`].

use half::bf16;

use crate::cpu::Compute;

/// The bf16 bits nearest to `value` (ties to even); NaN stays NaN.
///
/// Without a branch, so that loops over it become vector code.
#[inline(always)]
pub(crate) fn round_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x40_0000;
    let nan = 0u32.wrapping_sub(u32::from(bits & 0x7fff_ffff > 0x7f80_0000));
    (((nearest & !nan) | (quiet & nan)) >> 16) as u16
}

/// The value of bf16 bits.
#[inline(always)]
pub(crate) fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Writes `x` in wire form.
///
/// # Panics
/// When `out` is not [`Compute::row_bytes`] of `x.len()` long.
pub fn encode_rows(compute: Compute, x: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), compute.row_bytes(x.len()), "bytes of the wire rows");
    match compute {
        Compute::Bf16 => {
            for (out, &value) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
                *out = round_bf16(value).to_le_bytes();
            }
        }
        Compute::F32 => {
            for (out, &value) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                *out = value.to_le_bytes();
            }
        }
    }
}

/// Writes bf16 values in wire form.
///
/// # Panics
/// When `out` is not two bytes for each.
pub fn encode_bf16(x: &[bf16], out: &mut [u8]) {
    assert_eq!(out.len(), Compute::Bf16.row_bytes(x.len()), "bytes of the wire rows");
    for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
        *out = value.to_le_bytes();
    }
}

/// Reads bf16 values from wire form.
///
/// # Panics
/// When `rows` is not two bytes for each of `out`.
pub fn decode_bf16(rows: &[u8], out: &mut [bf16]) {
    assert_eq!(rows.len(), Compute::Bf16.row_bytes(out.len()), "bytes of the wire rows");
    for (out, &bytes) in out.iter_mut().zip(rows.as_chunks::<2>().0) {
        *out = bf16::from_le_bytes(bytes);
    }
}

/// Reads wire form into `out`.
///
/// # Panics
/// When `rows` is not [`Compute::row_bytes`] of `out.len()` long.
pub fn decode_rows(compute: Compute, rows: &[u8], out: &mut [f32]) {
    each(compute, rows, out, |out, value| *out = value);
}

/// Adds wire form to `acc`, element by element.
///
/// # Panics
/// When `rows` is not [`Compute::row_bytes`] of `acc.len()` long.
pub fn add_wire_rows(acc: &mut [f32], rows: &[u8], compute: Compute) {
    each(compute, rows, acc, |acc, value| *acc += value);
}

fn each(compute: Compute, rows: &[u8], out: &mut [f32], mut f: impl FnMut(&mut f32, f32)) {
    assert_eq!(rows.len(), compute.row_bytes(out.len()), "bytes of the wire rows");
    match compute {
        Compute::Bf16 => {
            for (out, &bytes) in out.iter_mut().zip(rows.as_chunks::<2>().0) {
                f(out, widen_bf16(u16::from_le_bytes(bytes)));
            }
        }
        Compute::F32 => {
            for (out, &bytes) in out.iter_mut().zip(rows.as_chunks::<4>().0) {
                f(out, f32::from_le_bytes(bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_half_for_every_exponent() {
        let patterns = (0..=u16::MAX).flat_map(|high| {
            [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| u32::from(high) << 16 | low)
        });
        for bits in patterns {
            let value = f32::from_bits(bits);
            let expected = bf16::from_f32(value);
            let got = bf16::from_bits(round_bf16(value));
            assert!(
                got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()),
                "{bits:#x}: {got} is not {expected}"
            );
        }
    }

    #[test]
    fn rows_survive_the_wire() {
        let x = [1.5, -0.0, 3.0e38, -7.25];
        for compute in [Compute::Bf16, Compute::F32] {
            let mut wire = vec![0; compute.row_bytes(x.len())];
            encode_rows(compute, &x, &mut wire);
            let mut back = [0.0; 4];
            decode_rows(compute, &wire, &mut back);
            let tolerance = if compute == Compute::F32 { 0.0 } else { 0.004 };
            for (a, b) in x.iter().zip(back) {
                assert!((a - b).abs() <= tolerance * a.abs(), "{a} came back as {b}");
            }
            add_wire_rows(&mut back, &wire, compute);
            assert_eq!(back[3], -14.5);
        }
    }
}
