//! Whether a process can take work: named conditions that its components meet or lose at any time.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

/// The conditions of one process, cheap to clone and to set from any thread.
///
/// A process is ready when it has named at least one condition and all are met. Whoever needs a
/// condition names it unmet before the process starts serving, so that "nobody said otherwise" never
/// counts as ready.
#[derive(Clone, Debug)]
pub struct Readiness {
    conditions: Arc<watch::Sender<BTreeMap<&'static str, bool>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { conditions: Arc::new(watch::Sender::new(BTreeMap::new())) }
    }
}

impl Readiness {
    /// States whether `condition` (for example `"weights"`, `"plan"`) is met.
    pub fn set(&self, condition: &'static str, met: bool) {
        self.conditions
            .send_if_modified(|conditions| conditions.insert(condition, met) != Some(met));
    }

    #[must_use]
    pub fn is_ready(&self) -> bool {
        all_met(&self.conditions.borrow())
    }

    /// The conditions that are not met, in alphabetical order.
    #[must_use]
    pub fn unmet(&self) -> Vec<&'static str> {
        let conditions = self.conditions.borrow();
        conditions.iter().filter(|(_, met)| !**met).map(|(condition, _)| *condition).collect()
    }

    /// Waits until the process is ready.
    pub async fn ready(&self) {
        self.reach(true).await;
    }

    /// Waits until the process is not ready; with [`Readiness::ready`], what a health service streams.
    pub async fn unready(&self) {
        self.reach(false).await;
    }

    async fn reach(&self, wanted: bool) {
        let mut receiver = self.conditions.subscribe();
        // The sender lives in `self`, so the channel cannot close while this waits.
        let _ = receiver.wait_for(|conditions| all_met(conditions) == wanted).await;
    }
}

fn all_met(conditions: &BTreeMap<&'static str, bool>) -> bool {
    !conditions.is_empty() && conditions.values().all(|met| *met)
}

#[cfg(test)]
mod tests {
    use super::Readiness;

    #[tokio::test]
    async fn ready_needs_every_condition_and_at_least_one() {
        let readiness = Readiness::default();
        assert!(!readiness.is_ready(), "nothing was promised yet");
        readiness.set("weights", true);
        readiness.set("plan", false);
        assert!(!readiness.is_ready());
        assert_eq!(readiness.unmet(), ["plan"]);

        let waiter = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        readiness.set("plan", true);
        waiter.await.unwrap();
        assert!(readiness.is_ready());

        readiness.set("weights", false);
        readiness.unready().await;
        assert_eq!(readiness.unmet(), ["weights"]);
    }
}
