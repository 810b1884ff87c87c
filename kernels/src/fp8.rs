//! E4M3, the eight-bit floats of fp8 checkpoints: a sign, four bits of exponent and three of fraction (arXiv 2209.05433).

/// Rows and columns of a block of weights that share a scale (DeepSeek-V3, arXiv 2412.19437, section 3.3.2).
pub const FP8_BLOCK: usize = 128;

/// Codes that are looked through before the first NaN among them is asked for.
const LOOK: usize = 4096;

/// What each code stands for.
const VALUES: [f32; 256] = values();

const fn values() -> [f32; 256] {
    // The fields laid where a float has them mean 2^-120 times the value, also without a leading one.
    let up = f32::from_bits((120 + 127) << 23);
    let mut values = [f32::NAN; 256];
    let mut code = 0;
    while code < 256 {
        if code & 0x7f != 0x7f {
            let bits = (code as u32 & 0x80) << 24 | (code as u32 & 0x7f) << 20;
            values[code] = f32::from_bits(bits) * up;
        }
        code += 1;
    }
    values
}

/// Scales that a matrix of `rows x cols` has, `[rows, cols]` of blocks.
#[must_use]
pub fn fp8_blocks(rows: usize, cols: usize) -> [usize; 2] {
    [rows.div_ceil(FP8_BLOCK), cols.div_ceil(FP8_BLOCK)]
}

/// Where the first code is that stands for no number; there are two, one of each sign.
#[must_use]
pub fn fp8_nan(codes: &[u8]) -> Option<usize> {
    let is_nan = |code: u8| code & 0x7f == 0x7f;
    // Without a way out in between a chunk becomes vector code.
    let any = |codes: &[u8]| codes.iter().fold(false, |any, &code| any | is_nan(code));
    let chunk = codes.chunks(LOOK).position(any)? * LOOK;
    codes[chunk..].iter().position(|&code| is_nan(code)).map(|place| chunk + place)
}

/// The code nearest to `value`, ties to even; what is larger than 448 becomes 448. NaN has a code of its own.
#[must_use]
pub fn to_fp8(value: f32) -> u8 {
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    if value.is_nan() {
        return sign | 0x7f;
    }
    let value = value.abs().min(448.0);
    // Codes of one exponent stand 2^(exponent - 3) apart, those below the smallest normal number 2^-9.
    let exponent = ((value.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (f64::from(value) * f64::from(3 - exponent).exp2()).round_ties_even() as i32;
    sign | ((exponent + 6) * 8 + steps) as u8
}

/// The values of codes that share a scale.
#[inline]
pub(crate) fn widen(codes: &[u8], scale: f32, out: &mut [f32]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = VALUES[usize::from(code)] * scale;
    }
}

/// The value of one code.
#[inline]
pub(crate) fn value(code: u8) -> f32 {
    VALUES[usize::from(code)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stand_for_what_the_format_says() {
        for code in 0..=255_u8 {
            let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
            let size = match (exponent, code & 7) {
                (15, 7) => f64::NAN,
                (0, _) => fraction / 8.0 * 2_f64.powi(-6),
                _ => (1.0 + fraction / 8.0) * 2_f64.powi(exponent - 7),
            };
            let want = if code >= 128 { -size } else { size };
            let got = f64::from(value(code));
            assert!(got == want || got.is_nan() && want.is_nan(), "{code:#x}: {got}, not {want}");
            assert_eq!(fp8_nan(&[0, code]), want.is_nan().then_some(1), "{code:#x}");
        }
        assert_eq!(value(0x7e), 448.0);
    }

    #[test]
    fn every_value_has_its_code_and_others_the_nearest() {
        for code in (0..=255_u8).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(to_fp8(value(code)), code);
        }
        for code in 0..0x7e_u8 {
            let (low, high) = (value(code), value(code + 1));
            let middle = f32::midpoint(low, high);
            assert_eq!(to_fp8(middle), code + code % 2, "halfway between {low} and {high}");
            assert_eq!(to_fp8(middle * 0.9999), code);
            assert_eq!(to_fp8(-middle * 1.0001), 0x80 | (code + 1));
        }
        assert_eq!([to_fp8(1e9), to_fp8(f32::NEG_INFINITY), to_fp8(f32::NAN)], [0x7e, 0xfe, 0x7f]);
    }

    #[test]
    fn the_first_nan_is_found_anywhere() {
        let mut codes = vec![0x7e; 3 * LOOK + 5];
        assert_eq!(fp8_nan(&codes), None);
        for place in [3 * LOOK + 4, 2 * LOOK, LOOK - 1, 0] {
            codes[place] = 0xff;
            assert_eq!(fp8_nan(&codes), Some(place));
        }
    }
}
