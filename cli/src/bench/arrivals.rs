//! When requests arrive and what they ask, drawn from a seed.

use std::time::Duration;

use anyhow::{Result, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, Gamma};

/// When `count` requests arrive, counted from the start: `rate` a second on average.
///
/// The pauses follow a gamma distribution of shape `burstiness`: 1 makes a Poisson process, less
/// comes in bursts, more comes evenly. They are stretched so that the last request arrives at
/// `count / rate`, whatever was drawn.
pub(super) fn arrivals(
    count: usize,
    rate: f64,
    burstiness: f64,
    seed: u64,
) -> Result<Vec<Duration>> {
    ensure!(rate > 0.0, "--request-rate is {rate}, expected more than 0");
    let pauses = Gamma::new(burstiness, 1.0);
    let pauses = pauses
        .map_err(|_| anyhow::anyhow!("--burstiness is {burstiness}, expected a number above 0"))?;
    if rate.is_infinite() {
        return Ok(vec![Duration::ZERO; count]);
    }
    let mut total = 0.0;
    let drawn = pauses.sample_iter(StdRng::seed_from_u64(seed)).take(count);
    let times: Vec<f64> = drawn
        .map(|pause| {
            total += pause;
            total
        })
        .collect();
    let stretch = if total > 0.0 { count as f64 / rate / total } else { 0.0 };
    Ok(times.into_iter().map(|time| Duration::from_secs_f64(time * stretch)).collect())
}

/// The prompt of request `index`: `length` token ids below `vocab`.
pub(super) fn prompt(length: usize, vocab: u32, seed: u64, index: usize) -> Vec<u32> {
    let mut random = StdRng::seed_from_u64(seed.rotate_left(32) ^ index as u64);
    (0..length).map(|_| random.random_range(0..vocab)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{arrivals, prompt};

    /// The square of the pauses' standard deviation over their mean.
    fn variation(burstiness: f64) -> f64 {
        let times = arrivals(4000, 50.0, burstiness, 3).unwrap();
        assert!(times.is_sorted());
        let last = times.last().unwrap().as_secs_f64();
        assert!((last - 80.0).abs() < 1e-6, "the last of 4000 at 50 a second comes at {last} s");
        let pauses = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 50.0);
        pauses.map(|pause| (pause - 1.0).powi(2)).sum::<f64>() / 3999.0
    }

    #[test]
    fn pauses_vary_as_asked() {
        for burstiness in [0.5, 1.0, 4.0] {
            let found = variation(burstiness) * burstiness;
            assert!((found - 1.0).abs() < 0.15, "{burstiness}: {found}");
        }
    }

    #[test]
    fn without_a_rate_all_come_at_once() {
        assert_eq!(arrivals(3, f64::INFINITY, 1.0, 0).unwrap(), [Duration::ZERO; 3]);
    }

    #[test]
    fn rates_and_bursts_are_above_0() {
        let line = |rate, burstiness| arrivals(1, rate, burstiness, 0).unwrap_err().to_string();
        assert_eq!(line(0.0, 1.0), "--request-rate is 0, expected more than 0");
        assert_eq!(line(1.0, 0.0), "--burstiness is 0, expected a number above 0");
    }

    #[test]
    fn prompts_differ_and_come_again() {
        assert_eq!(prompt(20, 100, 1, 2), prompt(20, 100, 1, 2));
        assert_ne!(prompt(20, 100, 1, 2), prompt(20, 100, 1, 3));
        assert_ne!(prompt(20, 100, 1, 2), prompt(20, 100, 2, 2));
        assert!(prompt(500, 7, 1, 0).iter().all(|id| *id < 7));
    }
}
