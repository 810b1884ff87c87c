//! When sequences arrive and how long they are: Poisson arrivals, recorded traces, a fixed number in flight.

mod recorded;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use serde::Deserialize;

/// A sequence to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it arrives.
    pub at_ns: u64,
    /// Tokens of its prompt, at least 1.
    pub prompt: u32,
    /// Tokens it will generate, at least 1.
    pub output: u32,
}

/// What arrives.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Spec {
    /// Independent arrivals at a mean rate.
    Poisson {
        /// Sequences per second.
        rate: f64,
        /// How long they are.
        lengths: Lengths,
    },
    /// A fixed number in flight: whoever ends is followed by the next at once.
    Closed {
        /// How many.
        in_flight: u32,
        /// How long they are.
        lengths: Lengths,
    },
    /// Lines of the Mooncake traces (milliseconds, input and output lengths).
    Mooncake {
        /// The file.
        file: PathBuf,
        /// How many times as fast as it was recorded.
        #[serde(default = "one")]
        speed: f64,
    },
    /// Rows of the Azure LLM inference traces (time stamp, context and generated tokens).
    Azure {
        /// The file.
        file: PathBuf,
        /// How many times as fast as it was recorded.
        #[serde(default = "one")]
        speed: f64,
    },
}

/// Lengths of prompts and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "lengths are \"short\", \"medium\", \"reasonable\" or { prompt = [low, high], output = [low, high] }"
)]
pub enum Lengths {
    /// One of AMoE's three.
    Named(Named),
    /// Uniform between two bounds, both included.
    Uniform(Ranges),
}

/// The lengths that AMoE measures with (section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Named {
    /// Prompts of 30–70 tokens, outputs of 70–130.
    Short,
    /// Prompts of 50–150, outputs of 50–250.
    Medium,
    /// Prompts of 100–300, outputs of 100–500.
    Reasonable,
}

/// Bounds, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ranges {
    /// Tokens of a prompt.
    pub prompt: [u32; 2],
    /// Tokens of an output.
    pub output: [u32; 2],
}

/// Sequences in order of arrival. Those drawn from lengths never end; a trace does.
#[derive(Debug)]
pub struct Arrivals {
    source: Source,
    now_ns: u64,
}

#[derive(Debug)]
enum Source {
    Drawn { random: SmallRng, mean_gap_ns: f64, ranges: Ranges },
    Recorded { requests: std::vec::IntoIter<Request>, speed: f64 },
}

// === impl Spec ===

impl Spec {
    /// How many sequences are to be in flight; none if they arrive by themselves.
    #[must_use]
    pub fn in_flight(&self) -> Option<u32> {
        match self {
            Self::Closed { in_flight, .. } => Some(*in_flight),
            Self::Poisson { .. } | Self::Mooncake { .. } | Self::Azure { .. } => None,
        }
    }

    /// The same arrivals at another rate: `rate` sequences per second, or as many times as fast for
    /// a trace, or as many in flight.
    #[must_use]
    pub fn at(&self, load: f64) -> Self {
        let mut spec = self.clone();
        match &mut spec {
            Self::Poisson { rate, .. } => *rate = load,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a number of sequences; too large or small a load saturates"
            )]
            Self::Closed { in_flight, .. } => *in_flight = load.round() as u32,
            Self::Mooncake { speed, .. } | Self::Azure { speed, .. } => *speed = load,
        }
        spec
    }

    /// The arrivals. Files are looked up from `folder`.
    ///
    /// # Errors
    /// One sentence: a parameter out of range, or a trace that cannot be read.
    pub fn arrivals(&self, folder: &Path, seed: u64) -> Result<Arrivals, String> {
        let source = match self {
            Self::Poisson { rate, lengths } => {
                let rate = positive("workload.rate", *rate)?;
                Source::drawn(1e9 / rate, *lengths, seed)?
            }
            Self::Closed { in_flight, lengths } => {
                positive("workload.in_flight", f64::from(*in_flight))?;
                Source::drawn(0.0, *lengths, seed)?
            }
            Self::Mooncake { file, speed } => {
                Source::recorded(&folder.join(file), *speed, recorded::mooncake)?
            }
            Self::Azure { file, speed } => {
                Source::recorded(&folder.join(file), *speed, recorded::azure)?
            }
        };
        Ok(Arrivals { source, now_ns: 0 })
    }
}

// === impl Lengths ===

impl Lengths {
    /// The bounds.
    #[must_use]
    pub fn ranges(self) -> Ranges {
        let (prompt, output) = match self {
            Self::Uniform(ranges) => return ranges,
            Self::Named(Named::Short) => ([30, 70], [70, 130]),
            Self::Named(Named::Medium) => ([50, 150], [50, 250]),
            Self::Named(Named::Reasonable) => ([100, 300], [100, 500]),
        };
        Ranges { prompt, output }
    }
}

// === impl Source ===

impl Source {
    fn drawn(mean_gap_ns: f64, lengths: Lengths, seed: u64) -> Result<Self, String> {
        let ranges = lengths.ranges();
        for (name, [low, high]) in [("prompt", ranges.prompt), ("output", ranges.output)] {
            if low == 0 || low > high {
                return Err(format!(
                    "workload.lengths.{name} is [{low}, {high}], expected [low, high] with 1 <= low <= high"
                ));
            }
        }
        Ok(Self::Drawn { random: SmallRng::seed_from_u64(seed), mean_gap_ns, ranges })
    }

    fn recorded(
        path: &Path,
        speed: f64,
        parse: impl Fn(&str) -> Result<Vec<Request>, String>,
    ) -> Result<Self, String> {
        let speed = positive("workload.speed", speed)?;
        let place = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read trace {place}: {error}"))?;
        let requests = parse(&text).map_err(|error| format!("trace {place}: {error}"))?;
        Ok(Self::Recorded { requests: requests.into_iter(), speed })
    }
}

// === impl Arrivals ===

impl Iterator for Arrivals {
    type Item = Request;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "gaps are not negative, and times far below 2^52 ns"
    )]
    fn next(&mut self) -> Option<Request> {
        match &mut self.source {
            Source::Drawn { random, mean_gap_ns, ranges } => {
                // 1 − u lies above 0, so that its logarithm is finite.
                let gap = -(1.0 - random.random::<f64>()).ln() * *mean_gap_ns;
                self.now_ns += gap as u64;
                let mut between = |[low, high]: [u32; 2]| random.random_range(low..=high);
                let (prompt, output) = (between(ranges.prompt), between(ranges.output));
                Some(Request { at_ns: self.now_ns, prompt, output })
            }
            Source::Recorded { requests, speed } => {
                let request = requests.next()?;
                Some(Request { at_ns: (request.at_ns as f64 / *speed) as u64, ..request })
            }
        }
    }
}

fn positive(name: &str, value: f64) -> Result<f64, String> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(format!("{name} is {value}, expected a number above 0"))
    }
}

fn one() -> f64 {
    1.0
}
