//! Counter-based random numbers: a pure function of a seed and a position.

/// Step of SplitMix64: 2^64 divided by the golden ratio, made odd.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Output `position` of a SplitMix64 generator (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators)
/// whose starting point is the mixed seed, so that neighbouring seeds give unrelated streams. In [0, 1), 53 bits.
pub(super) fn uniform(seed: u64, position: u64) -> f64 {
    let start = mix(seed.wrapping_add(STEP));
    let bits = mix(start.wrapping_add(STEP.wrapping_mul(position.wrapping_add(1))));
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    let unit = (bits >> 11) as f64;
    unit / (1_u64 << 53) as f64
}

/// SplitMix64's finaliser: a bijection that spreads every bit over all.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
