//! Durations counted in buckets that are at most 1.6 % wide, for means and percentiles without keeping every value.

use serde::Serialize;

/// Bits of a value that are kept below its leading one.
const BITS: u32 = 6;

/// Counts of nanosecond values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: u128,
    max: u64,
}

/// What a histogram has to say, in milliseconds; zeros when nothing was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Durations {
    /// Mean.
    pub mean: f64,
    /// Half took at most this.
    pub p50: f64,
    /// 90 % took at most this.
    pub p90: f64,
    /// 99 % took at most this.
    pub p99: f64,
    /// The longest.
    pub max: f64,
    /// How many were counted.
    pub count: u64,
}

// === impl Histogram ===

impl Histogram {
    /// Counts a value.
    pub(crate) fn add(&mut self, ns: u64) {
        let bucket = bucket(ns);
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
        self.sum += u128::from(ns);
        self.max = self.max.max(ns);
    }

    /// Mean, percentiles and maximum.
    #[expect(clippy::cast_precision_loss, reason = "a report, not a decision")]
    pub(crate) fn durations(&self) -> Durations {
        if self.count == 0 {
            return Durations::default();
        }
        Durations {
            mean: self.sum as f64 / self.count as f64 / 1e6,
            p50: self.quantile_ns(0.5) / 1e6,
            p90: self.quantile_ns(0.9) / 1e6,
            p99: self.quantile_ns(0.99) / 1e6,
            max: self.max as f64 / 1e6,
            count: self.count,
        }
    }

    /// The middle of the bucket below whose end the share `q` of all values lies.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a report, not a decision"
    )]
    fn quantile_ns(&self, q: f64) -> f64 {
        let rank = (self.count as f64 * q).ceil() as u64;
        let mut seen = 0;
        for (bucket, &count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank.max(1) {
                let (low, high) = (first(bucket), first(bucket + 1));
                return ((low + high - 1) as f64 / 2.0).min(self.max as f64);
            }
        }
        self.max as f64
    }
}

/// Values below 2^BITS have a bucket each; above, every doubling has 2^BITS.
fn bucket(ns: u64) -> usize {
    if ns < 1 << BITS {
        return usize::try_from(ns).unwrap_or(0);
    }
    let shift = ns.ilog2() - BITS;
    let kept = usize::try_from(ns >> shift).unwrap_or(0);
    (shift as usize) * (1 << BITS) + kept
}

/// The lowest value of a bucket.
fn first(bucket: usize) -> u64 {
    let per_doubling = 1 << BITS;
    if bucket < 2 * per_doubling {
        return bucket as u64;
    }
    let shift = bucket / per_doubling - 1;
    ((bucket % per_doubling + per_doubling) as u64) << shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_and_their_first_values_agree() {
        for ns in [0, 1, 63, 64, 127, 128, 129, 1000, 123_456_789, u64::MAX / 4] {
            let at = bucket(ns);
            assert!(first(at) <= ns && ns < first(at + 1), "{ns} in {at}");
        }
    }

    #[test]
    fn quantiles_are_within_a_bucket() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|ms| histogram.add(ms * 1_000_000));
        let durations = histogram.durations();
        assert!((durations.mean - 500.5).abs() < 1e-6);
        assert!((durations.p50 - 500.0).abs() < 8.0, "{}", durations.p50);
        assert!((durations.p99 - 990.0).abs() < 16.0, "{}", durations.p99);
        assert!((durations.max - 1000.0).abs() < 1e-9);
        assert_eq!(Histogram::default().durations(), Durations::default());
    }
}
