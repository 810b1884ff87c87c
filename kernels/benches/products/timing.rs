//! Many short samples of one call, and what they say.

use std::time::{Duration, Instant};

/// Calls per figure at most, and the time they may take together.
const SAMPLES: usize = 4000;
const BUDGET: Duration = Duration::from_millis(1500);

/// Seconds of a call: the median and the fast tenth.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seconds {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
}

/// Times `f(call)` again and again.
pub(crate) fn sample(mut f: impl FnMut(usize)) -> Seconds {
    for call in 0..3 {
        f(call);
    }
    let begun = Instant::now();
    let mut seconds = Vec::with_capacity(SAMPLES);
    while seconds.len() < SAMPLES && (begun.elapsed() < BUDGET || seconds.len() < 20) {
        let start = Instant::now();
        f(seconds.len() + 3);
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Seconds { p50: seconds[seconds.len() / 2], p90: seconds[seconds.len() / 10] }
}

impl Seconds {
    /// `amount` per second, in billions: median, fast tenth.
    pub(crate) fn giga(self, amount: f64) -> (f64, f64) {
        (amount / self.p50 / 1e9, amount / self.p90 / 1e9)
    }
}
