//! Whether tokens come back: when the next canary is due, and what rows have waited for longer than they should.

use std::time::{Duration, Instant};

use serde::Deserialize;

/// Between two looks at what is under way.
const LOOK: Duration = Duration::from_millis(500);

/// Section `[canary]`: a token of the node's own that goes through all layers while there are no others.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CanaryConfig {
    /// From the last token to the next canary, while nothing else is under way.
    pub every_ms: u64,
    /// How long rows may be with experts; after that the node is not ready until a token comes back.
    pub patience_ms: u64,
}

impl Default for CanaryConfig {
    fn default() -> Self {
        Self { every_ms: 1000, patience_ms: 3000 }
    }
}

impl CanaryConfig {
    /// Checks what the type alone does not say.
    ///
    /// # Errors
    /// One sentence that names the key and what was expected.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (key, found) in [("every_ms", self.every_ms), ("patience_ms", self.patience_ms)] {
            if found == 0 {
                return Err(format!("key `canary.{key}` is 0, expected at least 1"));
            }
        }
        Ok(())
    }
}

/// The state behind a node's readiness: a token has been through all layers, and no row waits for longer than
/// `patience`.
#[derive(Debug)]
pub(crate) struct Pulse {
    every: Duration,
    patience: Duration,
    /// When a token or a chunk of a prompt was last through all layers.
    passed: Option<Instant>,
    next_look: Instant,
    /// Since when nothing has come back that should have; none if all is well.
    lacking: Option<Instant>,
}

// === impl Pulse ===

impl Pulse {
    /// Nothing has come back yet, and a canary is due at once.
    pub(crate) fn new(config: CanaryConfig, now: Instant) -> Self {
        Self {
            every: Duration::from_millis(config.every_ms),
            patience: Duration::from_millis(config.patience_ms),
            passed: None,
            next_look: now,
            lacking: Some(now),
        }
    }

    /// A span has passed all layers.
    pub(crate) fn pass(&mut self, now: Instant) {
        self.passed = Some(now);
        if self.lacking.is_some() {
            self.next_look = now;
        }
    }

    /// When a span last passed all layers.
    pub(crate) fn passed(&self) -> Option<Instant> {
        self.passed
    }

    /// Whether a canary should go if nothing is under way.
    pub(crate) fn is_canary_due(&self, now: Instant) -> bool {
        self.passed.is_none_or(|passed| now >= passed + self.every)
    }

    /// When the engine has to turn for its pulse's sake.
    pub(crate) fn wake_at(&self) -> Instant {
        self.next_look
    }

    /// Whether it is time to look at what is under way; once per wish.
    pub(crate) fn takes_look(&mut self, now: Instant) -> bool {
        let due = now >= self.next_look;
        if due {
            self.next_look = now + LOOK.min(self.every);
        }
        due
    }

    /// Whether rows that left at `since` have been away for too long.
    pub(crate) fn is_overdue(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) > self.patience
    }

    /// What a look found: whether any row is overdue. Once one was, a token has to come back before all is well.
    pub(crate) fn judge(&mut self, overdue: bool, now: Instant) {
        if overdue {
            self.lacking = Some(now);
        } else if self.lacking.is_some_and(|since| self.passed.is_some_and(|at| at > since)) {
            self.lacking = None;
        }
    }

    /// Whether tokens come back.
    pub(crate) fn is_well(&self) -> bool {
        self.lacking.is_none()
    }

    /// How long rows may be away.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_overdue_is_well_only_when_a_token_has_come_back() {
        let ms = Duration::from_millis;
        let began = Instant::now();
        let mut pulse = Pulse::new(CanaryConfig { every_ms: 1000, patience_ms: 5000 }, began);
        pulse.judge(false, began + ms(1));
        assert!(!pulse.is_well(), "nothing has come back so far");
        assert!(pulse.is_canary_due(began));
        pulse.pass(began + ms(2));
        pulse.judge(false, began + ms(3));
        assert!(pulse.is_well());
        assert!(!pulse.is_canary_due(began + ms(1001)) && pulse.is_canary_due(began + ms(1002)));

        let left = began + ms(1002);
        assert!(
            !pulse.is_overdue(left, left + ms(5000)) && pulse.is_overdue(left, left + ms(5001))
        );
        // Tokens of others still come back, but this one's rows do not.
        pulse.pass(left + ms(5000));
        pulse.judge(true, left + ms(5001));
        pulse.pass(left + ms(5002));
        pulse.judge(true, left + ms(5003));
        // Nobody waits for them any more, which proves nothing.
        pulse.judge(false, left + ms(5004));
        assert!(!pulse.is_well());
        pulse.pass(left + ms(5005));
        pulse.judge(false, left + ms(5006));
        assert!(pulse.is_well());
    }

    #[test]
    fn looks_are_rare() {
        let now = Instant::now();
        let mut pulse = Pulse::new(CanaryConfig::default(), now);
        assert!(pulse.takes_look(now) && !pulse.takes_look(now));
        assert!(pulse.takes_look(pulse.wake_at()));
    }
}
