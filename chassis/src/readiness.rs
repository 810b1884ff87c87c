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
    conditions: Arc<watch::Sender<Conditions>>,
    part: Arc<str>,
}

/// (part of the process, condition) → whether it is met.
type Conditions = BTreeMap<(Arc<str>, &'static str), Condition>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Met,
    Unmet,
    /// Unmet, and why.
    Lacks(Box<str>),
}

impl Default for Readiness {
    fn default() -> Self {
        Self { conditions: Arc::new(watch::Sender::new(Conditions::new())), part: "".into() }
    }
}

impl Readiness {
    /// The same conditions, seen from a part of the process: what it sets, it sets for itself, so that two expert
    /// nodes in one process do not speak for each other.
    #[must_use]
    pub fn part(&self, name: &str) -> Self {
        Self { conditions: Arc::clone(&self.conditions), part: name.into() }
    }

    /// States whether `condition` (for example `"weights"`, `"plan"`) is met.
    pub fn set(&self, condition: &'static str, met: bool) {
        self.state(condition, &if met { Condition::Met } else { Condition::Unmet });
    }

    /// States that `condition` is not met and why: `reason` follows it in brackets where it is shown.
    pub fn lack(&self, condition: &'static str, reason: &str) {
        self.state(condition, &Condition::Lacks(reason.into()));
    }

    fn state(&self, condition: &'static str, state: &Condition) {
        let key = (Arc::clone(&self.part), condition);
        self.conditions.send_if_modified(|conditions| {
            match conditions.insert(key, state.clone()) {
                Some(before) => before != *state,
                None => true,
            }
        });
    }

    /// Whether every condition of every part is met.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        all_met(&self.conditions.borrow())
    }

    /// What is not met, in alphabetical order: `"plan"`, or `"expert-1: plan (no coordinator)"` for a part of the
    /// process that said why.
    #[must_use]
    pub fn unmet(&self) -> Vec<String> {
        let conditions = self.conditions.borrow();
        let sentence = |((part, condition), state): (&(Arc<str>, &str), &Condition)| {
            let part = if part.is_empty() { String::new() } else { format!("{part}: ") };
            match state {
                Condition::Met => None,
                Condition::Unmet => Some(format!("{part}{condition}")),
                Condition::Lacks(reason) => Some(format!("{part}{condition} ({reason})")),
            }
        };
        conditions.iter().filter_map(sentence).collect()
    }

    /// Waits until the process is ready.
    pub async fn ready(&self) {
        self.becomes(true).await;
    }

    /// Logs when the process becomes ready and when it stops being so. Never returns.
    pub async fn log(&self) {
        loop {
            self.becomes(true).await;
            tracing::info!("ready");
            self.becomes(false).await;
            tracing::info!(waiting_for = self.unmet().join(", "), "not ready any more");
        }
    }

    async fn becomes(&self, ready: bool) {
        let mut receiver = self.conditions.subscribe();
        // The sender lives in `self`, so the channel cannot close while this waits.
        let _ = receiver.wait_for(|conditions| all_met(conditions) == ready).await;
    }
}

fn all_met(conditions: &Conditions) -> bool {
    !conditions.is_empty() && conditions.values().all(|state| *state == Condition::Met)
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
        assert!(!readiness.is_ready());
        assert_eq!(readiness.unmet(), ["weights"]);
    }

    #[test]
    fn parts_of_a_process_speak_for_themselves() {
        let readiness = Readiness::default();
        let (first, second) = (readiness.part("expert-0"), readiness.part("expert-1"));
        first.set("plan", false);
        second.set("plan", true);
        assert_eq!(readiness.unmet(), ["expert-0: plan"]);
        first.lack("plan", "no coordinator");
        assert_eq!(readiness.unmet(), ["expert-0: plan (no coordinator)"]);
        assert!(!readiness.is_ready());
        first.set("plan", true);
        assert!(readiness.is_ready());
    }
}
