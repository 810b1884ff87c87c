//! Draws from a fixed distribution in constant time (Walker's alias method, as Vose builds it).

use super::mix;

/// Draws that may meet an expert already chosen before the rest is drawn by hand.
const REDRAWS_MAX: u32 = 32;

/// A distribution over experts.
#[derive(Clone, Debug)]
pub(super) struct Alias {
    /// Per column: its own expert is taken below this threshold, its alias from there on.
    columns: Vec<(u32, u16)>,
    weights: Vec<f32>,
}

impl Alias {
    /// The distribution in proportion to `weights`, which are not negative and not all 0.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "probabilities as fractions of 2^32; a layer has at most 2^16 experts"
    )]
    pub(super) fn new(weights: &[f64]) -> Self {
        let total: f64 = weights.iter().sum();
        let mut scaled: Vec<f64> =
            weights.iter().map(|weight| weight / total * weights.len() as f64).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..scaled.len()).partition(|&at| scaled[at] < 1.0);
        let mut columns: Vec<(u32, u16)> =
            (0..scaled.len()).map(|at| (u32::MAX, at as u16)).collect();
        while let (Some(low), Some(&high)) = (small.pop(), large.last()) {
            columns[low] = ((scaled[low] * f64::from(u32::MAX)) as u32, high as u16);
            scaled[high] -= 1.0 - scaled[low];
            if scaled[high] < 1.0 {
                large.pop();
                small.push(high);
            }
        }
        Self { columns, weights: weights.iter().map(|&weight| weight as f32).collect() }
    }

    /// Fills `out` with distinct experts; `key` decides which.
    pub(super) fn draw(&self, key: u64, out: &mut [u16]) {
        assert!(out.len() <= self.columns.len(), "a layer has {} experts", self.columns.len());
        let mut draws = 0;
        for at in 0..out.len() {
            let mut redraws = 0;
            out[at] = loop {
                let expert = self.one(mix(key, draws));
                draws += 1;
                if !out[..at].contains(&expert) {
                    break expert;
                }
                redraws += 1;
                if redraws == REDRAWS_MAX {
                    break self.among_others(mix(key, draws), &out[..at]);
                }
            };
        }
    }

    fn one(&self, random: u64) -> u16 {
        // The upper half names the column, the lower the height in it.
        let column = ((random >> 32) * self.columns.len() as u64) >> 32;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "halves; a column is below their number"
        )]
        let (column, height) = (column as u16, random as u32);
        let (threshold, alias) = self.columns[usize::from(column)];
        if height < threshold { column } else { alias }
    }

    /// One draw among the experts not yet chosen, in time proportional to all of them.
    fn among_others(&self, random: u64, chosen: &[u16]) -> u16 {
        let others = || (0u16..).zip(&self.weights).filter(|(expert, _)| !chosen.contains(expert));
        let total: f32 = others().map(|(_, &weight)| weight).sum();
        #[expect(clippy::cast_precision_loss, reason = "a fraction with 24 bits")]
        let mut left = (random >> 40) as f32 / (1u64 << 24) as f32 * total;
        let drawn = others().find(|&(_, &weight)| {
            left -= weight;
            left < 0.0
        });
        // Without any weight left, whoever comes first.
        drawn.or_else(|| others().next()).map_or(0, |(expert, _)| expert)
    }
}
