//! The weights of a layer's experts under each skew.

use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};

use super::{Correlated, Spec};

/// Patterns of bursts that a layer goes through under [`Spec::Correlated`].
const PATTERNS: usize = 64;

/// What a skew says about a layer, before chance has dealt the parts to experts.
#[derive(Debug)]
pub(super) struct Weights {
    /// By rank.
    ranks: Vec<f64>,
    correlated: Option<Correlated>,
}

impl Weights {
    pub(super) fn new(spec: &Spec, experts: u16) -> Result<Self, String> {
        let ranks = 0..experts;
        let count = f64::from(experts);
        let ranks: Vec<f64> = match spec {
            Spec::Uniform {} | Spec::Recorded { .. } => ranks.map(|_| 1.0).collect(),
            Spec::Zipf { s } => {
                within("skew.s", *s, 0.0, 16.0)?;
                ranks.map(|rank| zipf(rank, *s)).collect()
            }
            Spec::KHot { hot, share } => {
                within("skew.share", *share, 0.0, 1.0)?;
                within("skew.hot", f64::from(*hot), 1.0, count - 1.0)?;
                let (hot_each, cold_each) =
                    (share / f64::from(*hot), (1.0 - share) / (count - f64::from(*hot)));
                ranks.map(|rank| if rank < *hot { hot_each } else { cold_each }).collect()
            }
            Spec::Exponential { steepness } => {
                within("skew.steepness", *steepness, 0.0, 64.0)?;
                ranks.map(|rank| (-steepness * f64::from(rank) / count).exp()).collect()
            }
            Spec::Correlated(correlated) => {
                correlated.check()?;
                ranks.map(|rank| zipf(rank, correlated.s)).collect()
            }
        };
        let correlated = match spec {
            Spec::Correlated(correlated) => Some(*correlated),
            _ => None,
        };
        Ok(Self { ranks, correlated })
    }

    /// Tables a layer has.
    pub(super) fn patterns(&self) -> usize {
        if self.correlated.is_some() { PATTERNS } else { 1 }
    }

    /// Positions for which a pattern stays.
    pub(super) fn window(&self) -> Option<u32> {
        self.correlated.map(|correlated| correlated.window)
    }

    /// Deals the ranks of one layer to its experts and gives out the weights of each pattern.
    pub(super) fn layer(&self, seed: u64, mut table: impl FnMut(&[f64])) {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut dealt = self.ranks.clone();
        dealt.shuffle(&mut random);
        match &self.correlated {
            None => table(&dealt),
            Some(correlated) => {
                for weights in correlated.patterns(&dealt, &mut random) {
                    table(&weights);
                }
            }
        }
    }
}

impl Correlated {
    fn check(&self) -> Result<(), String> {
        within("skew.s", self.s, 0.0, 16.0)?;
        within("skew.temporal", self.temporal, 0.0, 0.9)?;
        within("skew.consistent_on", self.consistent_on, 0.01, 1.0)?;
        within("skew.temporal_on", self.temporal_on, 0.0, 1.0)?;
        within("skew.burst", self.burst, 0.0, 1000.0)?;
        within("skew.group", f64::from(self.group), 1.0, f64::from(u16::MAX))?;
        within("skew.window", f64::from(self.window), 1.0, f64::from(u32::MAX))
    }

    /// The weights of a layer in each of its patterns. Temporal are as many experts as the part
    /// says, chance having dealt the order; neighbours among them fire together.
    fn patterns(self, dealt: &[f64], random: &mut SmallRng) -> Vec<Vec<f64>> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a part of at most 2^16 experts"
        )]
        let temporal = (dealt.len() as f64 * self.temporal).round() as usize;
        let consistent = &dealt[temporal..];
        #[expect(clippy::cast_precision_loss, reason = "at most 2^16 experts")]
        let mean = consistent.iter().sum::<f64>() / consistent.len() as f64;
        let pattern = |_| {
            let mut weights = vec![0.0; dealt.len()];
            for group in weights[..temporal].chunks_mut(usize::from(self.group)) {
                if random.random_bool(self.temporal_on) {
                    group.fill(self.burst * mean);
                }
            }
            for (weight, &usual) in weights[temporal..].iter_mut().zip(consistent) {
                if random.random_bool(self.consistent_on) {
                    *weight = usual;
                }
            }
            if weights.iter().all(|&weight| weight == 0.0) {
                weights[temporal..].copy_from_slice(consistent);
            }
            weights
        };
        (0..PATTERNS).map(pattern).collect()
    }
}

/// A count as a weight.
pub(super) fn weight(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a weight needs no more than 52 bits")]
    let weight = count as f64;
    weight
}

fn zipf(rank: u16, s: f64) -> f64 {
    (f64::from(rank) + 1.0).powf(-s)
}

fn within(name: &str, value: f64, low: f64, high: f64) -> Result<(), String> {
    if (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(format!("{name} is {value}, expected {low} to {high}"))
    }
}
