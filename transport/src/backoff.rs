//! Pauses between attempts: doubling up to a bound, shortened at random so that peers do not march in step.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// The pauses of one retry loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first pause.
    pub first: Duration,
    /// No pause is longer.
    pub max: Duration,
}

/// The next pauses.
#[derive(Debug)]
pub(crate) struct Pauses {
    backoff: Backoff,
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(50), max: Duration::from_secs(2) }
    }
}

impl Backoff {
    pub(crate) fn pauses(self) -> Pauses {
        Pauses { backoff: self, next: self.first }
    }
}

impl Pauses {
    /// The next pause: between half of the current step and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let step = self.next.min(self.backoff.max);
        self.next = step.saturating_mul(2);
        step.mul_f64(0.5 + 0.5 * chance())
    }

    /// Something worked; start over.
    pub(crate) fn reset(&mut self) {
        self.next = self.backoff.first;
    }
}

/// A random number in [0, 1): the standard library keys every hasher differently.
fn chance() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_bound_and_start_over() {
        let ms = Duration::from_millis;
        let backoff = Backoff { first: ms(10), max: ms(35) };
        let mut pauses = backoff.pauses();
        for step in [10, 20, 35, 35] {
            let pause = pauses.next();
            assert!((ms(step) / 2..=ms(step)).contains(&pause), "{pause:?} of {step} ms");
        }
        pauses.reset();
        assert!(pauses.next() <= ms(10));
    }
}
