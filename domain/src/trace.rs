//! What routing did over time: how many tokens each expert got, step by step.

use thiserror::Error;

/// Token counts per (step, MoE layer, expert), the recent past that placement looks at.
///
/// A step is whatever was counted together: one batch in lockstep, one sampling interval otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    layers: usize,
    experts: usize,
    /// `[step][moe layer][expert]`, flattened.
    tokens: Vec<u32>,
}

/// Counts that do not fit the trace they were to be part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a step of {layers} MoE layers of {experts} experts has {expected} counts, found {found}")]
pub struct TraceShapeError {
    /// MoE layers.
    pub layers: usize,
    /// Experts per layer.
    pub experts: usize,
    /// Counts that were expected.
    pub expected: usize,
    /// Counts that were given.
    pub found: usize,
}

impl Trace {
    /// A trace without steps for `layers` MoE layers of `experts` experts.
    #[must_use]
    pub fn new(layers: usize, experts: usize) -> Self {
        Self { layers, experts, tokens: Vec::new() }
    }

    /// Adds a step: counts `[moe layer][expert]`, flattened.
    pub fn push(&mut self, counts: &[u32]) -> Result<(), TraceShapeError> {
        let Self { layers, experts, .. } = *self;
        let expected = layers * experts;
        if counts.len() != expected {
            return Err(TraceShapeError { layers, experts, expected, found: counts.len() });
        }
        self.tokens.extend_from_slice(counts);
        Ok(())
    }

    /// Forgets all steps but the newest `keep`.
    pub fn truncate_front(&mut self, keep: usize) {
        let surplus = self.steps().saturating_sub(keep) * self.layers * self.experts;
        self.tokens.drain(..surplus);
    }

    /// Steps counted.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.tokens.len().checked_div(self.layers * self.experts).unwrap_or(0)
    }

    /// MoE layers, in the order of the model's.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Experts per layer.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Tokens per expert in one step of one MoE layer (an index among MoE layers).
    ///
    /// # Panics
    /// For a step or layer that is not in the trace.
    #[must_use]
    pub fn counts(&self, step: usize, layer: usize) -> &[u32] {
        assert!(layer < self.layers, "MoE layer {layer} of {}", self.layers);
        &self.tokens[(step * self.layers + layer) * self.experts..][..self.experts]
    }

    /// Tokens per expert of one MoE layer over all steps.
    #[must_use]
    pub fn totals(&self, layer: usize) -> Vec<u64> {
        let mut totals = vec![0; self.experts];
        for step in 0..self.steps() {
            for (total, &tokens) in totals.iter_mut().zip(self.counts(step, layer)) {
                *total += u64::from(tokens);
            }
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_come_back_as_they_were_pushed_and_the_oldest_go_first() {
        let mut trace = Trace::new(2, 3);
        trace.push(&[1, 2, 3, 4, 5, 6]).unwrap();
        trace.push(&[7, 8, 9, 10, 11, 12]).unwrap();
        assert_eq!(trace.counts(1, 0), [7, 8, 9]);
        assert_eq!(trace.totals(1), [14, 16, 18]);
        trace.truncate_front(1);
        assert_eq!((trace.steps(), trace.counts(0, 1)), (1, &[10, 11, 12][..]));
        assert_eq!(trace.push(&[1]).unwrap_err().expected, 6);
    }
}
