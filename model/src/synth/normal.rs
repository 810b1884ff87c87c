//! Normal random numbers by counter: any element of any tensor can be drawn by itself, so all threads can draw at once.

use half::bf16;

/// Quantiles of the distribution; a draw picks one of them.
const QUANTILES: usize = 1 << 16;
/// Elements that one hash gives.
pub(super) const PER_HASH: usize = 4;

/// Draws of one distribution, already rounded to bf16: an inverse distribution function as a table.
pub(super) struct Normal {
    quantiles: Vec<[u8; 2]>,
}

impl Normal {
    pub(super) fn new(mean: f64, deviation: f64) -> Self {
        let quantile = |index: usize| {
            let probability = (index as f64 + 0.5) / QUANTILES as f64;
            let value = mean + deviation * inverse_normal(probability);
            bf16::from_f64(value).to_le_bytes()
        };
        Self { quantiles: (0..QUANTILES).map(quantile).collect() }
    }

    /// Writes elements `first..` of `stream` as bf16. `first` is a multiple of [`PER_HASH`].
    pub(super) fn fill(&self, stream: u64, first: usize, out: &mut [[u8; 2]]) {
        debug_assert!(first.is_multiple_of(PER_HASH), "hashes are not cut");
        for (index, out) in (first / PER_HASH..).zip(out.chunks_mut(PER_HASH)) {
            let mut bits = mix(stream.wrapping_add(index as u64));
            for out in out {
                *out = self.quantiles[(bits & 0xffff) as usize];
                bits >>= 16;
            }
        }
    }
}

/// The stream of a tensor: its own for every seed and name.
pub(super) fn stream(seed: u64, name: &str) -> u64 {
    // Numbered streams must not overlap for neighbouring seeds, so the seed is mixed first.
    name.bytes().fold(mix(seed), |hash, byte| mix(hash ^ u64::from(byte)))
}

/// SplitMix64 at a counter: a bijection of 64 bits that passes the usual test batteries.
pub(super) fn mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The inverse of the normal distribution function, to about nine digits (P. J. Acklam's rational fit).
fn inverse_normal(probability: f64) -> f64 {
    const CENTRE: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const CENTRE_BELOW: [f64; 6] = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
        1.0,
    ];
    const TAIL: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const TAIL_BELOW: [f64; 5] = [
        7.784_695_709_041_462e-3,
        3.224_671_290_700_398e-1,
        2.445_134_137_142_996,
        3.754_408_661_907_416,
        1.0,
    ];
    let polynomial = |terms: &[f64], x: f64| terms.iter().fold(0.0, |sum, term| sum * x + term);
    let tail = |probability: f64| {
        let x = (-2.0 * probability.ln()).sqrt();
        polynomial(&TAIL, x) / polynomial(&TAIL_BELOW, x)
    };
    if probability < 0.02425 {
        tail(probability)
    } else if probability > 1.0 - 0.02425 {
        -tail(1.0 - probability)
    } else {
        let x = probability - 0.5;
        x * polynomial(&CENTRE, x * x) / polynomial(&CENTRE_BELOW, x * x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inverse_knows_the_usual_quantiles() {
        for (probability, value) in
            [(0.5, 0.0), (0.841_344_746, 1.0), (0.022_750_132, -2.0), (0.001_349_898, -3.0)]
        {
            assert!((inverse_normal(probability) - value).abs() < 1e-7, "{probability}");
        }
    }

    #[test]
    fn draws_have_mean_and_deviation_and_do_not_depend_on_the_cut() {
        let normal = Normal::new(1.0, 0.5);
        let mut whole = vec![[0; 2]; 100_000];
        normal.fill(stream(7, "a"), 0, &mut whole);
        let mut parts = vec![[0; 2]; 100_000];
        let (head, tail) = parts.split_at_mut(4_000);
        normal.fill(stream(7, "a"), 4_000, tail);
        normal.fill(stream(7, "a"), 0, head);
        assert_eq!(whole, parts);

        let values = whole.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f64());
        let mean = values.clone().sum::<f64>() / 1e5;
        let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / 1e5;
        assert!((mean - 1.0).abs() < 0.01, "mean {mean}");
        assert!((variance.sqrt() - 0.5).abs() < 0.01, "variance {variance}");

        let mut other = vec![[0; 2]; 100_000];
        normal.fill(stream(8, "a"), 0, &mut other);
        let equal = whole.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(equal < 2_000, "{equal} of 100000 draws are those of another seed");
    }
}
