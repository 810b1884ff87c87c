//! What operators watch of a cluster: how it goes, and why things were decided as they were.

use std::{sync::Arc, time::Duration};

use domain::{Leased, Load, NodeId};

use super::{Cluster, Effect};
use crate::console::{Journal, Live, Totals};

/// A node that takes so many times as long as it should is named where a lease is explained.
const SLOW: f64 = 1.5;

impl Cluster {
    /// Rates, and the last minutes.
    pub(crate) fn live(&self) -> &Live {
        &self.live
    }

    /// What was decided and what happened.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// How often nodes report what they see; 0: never.
    pub(crate) fn report_ms(&self) -> u32 {
        self.advice.map_or(0, |every| u32::try_from(every.as_millis()).unwrap_or(u32::MAX))
    }

    /// Writes down what was or will be done.
    pub(crate) fn note(&mut self, now: Duration, effects: &[Effect]) {
        let (at, registry) = (self.clock(now), &self.registry);
        for effect in effects {
            self.journal.note(at, effect, &|id| registry.called(id));
        }
    }

    /// Writes down the lease, unless it is still the one of `before`.
    pub(super) fn note_lease(
        &mut self,
        now: Duration,
        before: Option<&Arc<Leased>>,
        tokens: &[u32],
        nodes: &[NodeId],
    ) {
        let (at, lease) = (self.clock(now), self.guide.lease());
        if lease.map(Arc::as_ptr) != before.map(Arc::as_ptr) {
            let why = self.grounds(now, tokens, nodes);
            self.journal.leased(at, before, lease, why);
        }
    }

    /// What a lease is made by, in a sentence.
    fn grounds(&self, now: Duration, tokens: &[u32], nodes: &[NodeId]) -> String {
        let wanted: u64 = tokens.iter().copied().map(u64::from).sum();
        let (policy, count) = (self.guide.policy(), nodes.len());
        let mut why = format!("by {policy}: {wanted} tokens wanted lately, {count} nodes at work");
        for &id in nodes {
            let slowdown = self.observations.slowdown(now, id);
            if slowdown >= SLOW {
                why += &format!(", {} {slowdown:.1} times slower", self.registry.called(id));
            }
        }
        why
    }

    /// Takes a sample of how it goes.
    pub(super) fn watch(&mut self, now: Duration) {
        let (at, totals) = (self.clock(now), self.totals(now));
        self.live.tick(now, at, totals);
    }

    fn totals(&self, now: Duration) -> Totals {
        let Some(shape) = self.registry.shape() else { return Totals::default() };
        let digest = self.observations.digest(now, shape);
        let loads: Vec<Load> = self.registry.snapshot().iter().map(|member| member.load).collect();
        Totals {
            running: sum(loads.iter().map(|load| load.running)),
            waiting: sum(loads.iter().map(|load| load.waiting)),
            rows: sum(digest.rows.into_iter()),
            pairs: sum(digest.pairs.into_iter()),
        }
    }
}

/// Nodes may say what they like.
fn sum(counts: impl Iterator<Item = u32>) -> u32 {
    counts.fold(0, u32::saturating_add)
}
