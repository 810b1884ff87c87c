//! Which experts a token chooses: the skews that the papers measure under.
//!
//! A choice is a function of the seed, the layer, the sequence and the position, whatever was asked
//! before: two schedules that are compared route the same tokens to the same experts.

mod alias;
mod popularity;
mod recorded;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use domain::Trace;
use serde::Deserialize;

use alias::Alias;
use popularity::Weights;
pub use recorded::parse as parse_trace;

/// How experts are chosen.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Spec {
    /// Every expert equally.
    Uniform {},
    /// The expert of rank r (from 1) with a weight of 1 / r^s.
    Zipf {
        /// The exponent, at least 0.
        s: f64,
    },
    /// A few experts share a part of all tokens equally, the others the rest.
    KHot {
        /// How many are hot.
        hot: u16,
        /// Their part together, 0 to 1.
        share: f64,
    },
    /// The expert of rank r (from 0, of E) with a weight of exp(−steepness · r / E): the shape that
    /// AMoE fits to a profile of Mixtral on Dolly.
    Exponential {
        /// How steep, at least 0; see the scenarios for how theirs was found.
        steepness: f64,
    },
    /// Experts that are in use at most times, and others that are not but then take more tokens and
    /// come together (GEM, sections 3.2 and 3.3).
    Correlated(Correlated),
    /// The counts of a recorded trace: position t of a sequence chooses by the counts of step t.
    Recorded {
        /// A file of lines `{"step":t,"layer":l,"tokens":[n per expert]}`.
        file: PathBuf,
    },
}

/// GEM's consistent and temporal experts. Positions are the clock: sequences that start together see
/// the same burst.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Correlated {
    /// Exponent of the Zipf popularity among consistent experts.
    pub s: f64,
    /// Part of a layer's experts that are temporal.
    pub temporal: f64,
    /// Temporal experts that fire together.
    pub group: u16,
    /// Part of the steps at which a consistent expert is in use.
    pub consistent_on: f64,
    /// Part of the steps at which a temporal expert is in use.
    pub temporal_on: f64,
    /// Tokens of a temporal expert in use, as a multiple of a mean consistent one's.
    pub burst: f64,
    /// Positions that a burst lasts.
    pub window: u32,
}

impl Default for Correlated {
    /// What GEM saw: 85 % and 17 % of the steps, 3 times the tokens.
    fn default() -> Self {
        Self {
            s: 0.5,
            temporal: 0.25,
            group: 4,
            consistent_on: 0.85,
            temporal_on: 0.17,
            burst: 3.0,
            window: 4,
        }
    }
}

/// Which of a layer's tables counts at a position.
#[derive(Clone, Copy, Debug)]
enum Clock {
    /// There is one.
    Still,
    /// One drawn for each window of positions.
    Drawn { window: u32 },
    /// One after the other, from the start again after the last.
    Recorded,
}

/// Draws the experts of tokens.
#[derive(Clone, Debug)]
pub struct Chooser {
    /// `[layer][pattern]`, flattened.
    tables: Vec<Alias>,
    patterns: usize,
    clock: Clock,
    seed: u64,
}

impl Chooser {
    /// A chooser for `layers` layers of `experts` experts. Every layer has its own order of
    /// popularity, drawn from the seed. Files are looked up from `folder`.
    ///
    /// # Errors
    /// One sentence: a parameter out of range, or a trace that cannot be read or does not fit.
    pub fn new(
        spec: &Spec,
        layers: u16,
        experts: u16,
        seed: u64,
        folder: &Path,
    ) -> Result<Self, String> {
        if let Spec::Recorded { file } = spec {
            return Self::recorded(&read(&folder.join(file), layers, experts)?, seed);
        }
        let weights = Weights::new(spec, experts)?;
        let patterns = weights.patterns();
        let mut tables = Vec::with_capacity(usize::from(layers) * patterns);
        for layer in 0..layers {
            weights.layer(mix(seed, u64::from(layer)), |weights| tables.push(Alias::new(weights)));
        }
        let clock = weights.window().map_or(Clock::Still, |window| Clock::Drawn { window });
        Ok(Self { tables, patterns, clock, seed })
    }

    /// A chooser that follows a trace: its layers, its experts, its steps one after the other.
    ///
    /// # Errors
    /// The trace has no step, or a layer without any token.
    pub fn recorded(trace: &Trace, seed: u64) -> Result<Self, String> {
        let mut tables = Vec::with_capacity(trace.layers() * trace.steps());
        for layer in 0..trace.layers() {
            let totals: Vec<f64> =
                trace.totals(layer).into_iter().map(popularity::weight).collect();
            if totals.iter().sum::<f64>() == 0.0 {
                return Err(format!("layer {layer} of the trace has no tokens"));
            }
            for step in 0..trace.steps() {
                let counts = trace.counts(step, layer);
                // A step at which nothing came through the layer is as good as any other.
                let idle = counts.iter().all(|&tokens| tokens == 0);
                let now: Vec<f64> = counts.iter().copied().map(f64::from).collect();
                tables.push(Alias::new(if idle { &totals } else { &now }));
            }
        }
        Ok(Self { tables, patterns: trace.steps(), clock: Clock::Recorded, seed })
    }

    /// Fills `out` with distinct experts for one token in one layer: drawn one by one, without
    /// putting back (what Gumbel noise on the logarithms gives).
    ///
    /// # Panics
    /// For a layer beyond the last, or for more experts than a layer has.
    pub fn choose(&mut self, layer: u16, sequence: u64, position: u32, out: &mut [u16]) {
        let layer = u64::from(layer);
        let pattern = match self.clock {
            Clock::Still => 0,
            Clock::Drawn { window } => {
                let at = u64::from(position / window);
                usize::try_from(mix(mix(self.seed, !layer), at) % self.patterns as u64).unwrap_or(0)
            }
            Clock::Recorded => position as usize % self.patterns,
        };
        let table =
            &self.tables[usize::try_from(layer).unwrap_or(usize::MAX) * self.patterns + pattern];
        let key = mix(self.seed ^ sequence, layer << 32 | u64::from(position));
        table.draw(key, out);
    }
}

fn read(path: &Path, layers: u16, experts: u16) -> Result<Trace, String> {
    let place = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read trace {place}: {error}"))?;
    let trace = parse_trace(&text).map_err(|error| format!("trace {place}: {error}"))?;
    if (trace.layers(), trace.experts()) != (usize::from(layers), usize::from(experts)) {
        return Err(format!(
            "trace {place} has {} layers of {} experts, expected {layers} of {experts}",
            trace.layers(),
            trace.experts()
        ));
    }
    Ok(trace)
}

/// A well-mixed function of two numbers (SplitMix64's finalizer).
fn mix(seed: u64, value: u64) -> u64 {
    let mut z = seed.wrapping_add(value.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
