//! Which tokens a sequence has seen, kept up to date token by token for the penalties.

use std::collections::HashMap;

/// Tokens of a prompt and how often each was generated since.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenCounts {
    generated: HashMap<u32, u32>,
}

impl TokenCounts {
    /// The counts of a sequence with this prompt.
    #[must_use]
    pub fn new(prompt: &[u32]) -> Self {
        Self { generated: prompt.iter().map(|&token| (token, 0)).collect() }
    }

    /// Notes a generated token.
    pub fn record(&mut self, token: u32) {
        *self.generated.entry(token).or_default() += 1;
    }

    /// Each token seen, once, with how often it was generated; in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.generated.iter().map(|(&token, &count)| (token, count))
    }
}
