//! Elementwise functions with the same bits on every machine and in every vector width.

/// `e^x` within 2 units in the last place; 0 below about -87, infinity above about 88.7.
///
/// Only additions, multiplications and bit operations, each rounded on its own, so that compilers
/// may vectorise it without changing a bit.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2, ln 2 in two parts so that n ln 2 is exact enough.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 89.0);
    let n = clamped * std::f32::consts::LOG2_E + ROUND - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let series =
        ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r
            + 1.666_666_5e-1)
            * r
            + 0.5;
    let fraction = series * r * r + r + 1.0;
    // 2^n in two factors: n = 128 has no float of its own.
    let half = (n * 0.5) as i32;
    let rest = n as i32 - half;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let result = fraction * power(half) * power(rest);
    if x < -87.3 {
        0.0
    } else if x.is_nan() {
        x
    } else {
        result
    }
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `x * sigmoid(alpha * x)`.
#[inline(always)]
pub(crate) fn clamped_swish(x: f32, alpha: f32) -> f32 {
    x / (1.0 + exp(-alpha * x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        let mut x = -87.0f32;
        while x < 88.7 {
            let exact = f64::from(x).exp();
            let error = ((f64::from(exp(x)) - exact) / exact).abs();
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}) is off by {error}");
            x += 0.003_7;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(200.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn silu_at_the_ends() {
        assert_eq!(silu(100.0), 100.0);
        assert_eq!(silu(-100.0), 0.0);
        assert_eq!(silu(0.0), 0.0);
        assert!((silu(1.0) - 0.731_058_6).abs() < 1e-6);
    }
}
