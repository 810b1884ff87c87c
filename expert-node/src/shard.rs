//! The experts this node holds, brought step by step to what the cluster's plans ask of it.

use std::collections::{BTreeSet, VecDeque};

use domain::{ClusterView, Epoch, Expert, Layer, NodeId};
use model::{ExpertHalf, ModelError};
use node::Plans;

/// Resident experts and the plans they are resident for.
#[derive(Debug)]
pub(crate) struct Shard {
    node: NodeId,
    half: ExpertHalf,
    plans: Plans,
    missing: VecDeque<(Layer, Expert)>,
    /// The newest plan whose experts are all here.
    ready: Epoch,
}

// === impl Shard ===

impl Shard {
    pub(crate) fn new(node: NodeId, half: ExpertHalf) -> Self {
        Self {
            node,
            half,
            plans: Plans::default(),
            missing: VecDeque::new(),
            ready: Epoch::default(),
        }
    }

    pub(crate) fn half(&self) -> &ExpertHalf {
        &self.half
    }

    /// The newest plan whose experts are all here.
    pub(crate) fn ready(&self) -> Epoch {
        self.ready
    }

    /// Whether dispatches of this epoch are served: not older than the one before the serving plan.
    pub(crate) fn serves(&self, epoch: Epoch) -> bool {
        let oldest = self.plans.serving().map(|plan| plan.parent().unwrap_or(plan.epoch()));
        oldest.is_some_and(|oldest| epoch >= oldest) || self.plans.target().is_some()
    }

    /// Takes over the plans of a view, unless they are older than those known.
    pub(crate) fn follow(&mut self, view: &ClusterView) {
        let before = self.plans.epoch();
        if !self.plans.follow(view) {
            return;
        }
        let flipped = self.plans.epoch() > before;
        let wanted = self.wanted();
        let missing = wanted.iter().filter(|&&(layer, expert)| !self.half.holds(layer, expert));
        self.missing = missing.copied().collect();
        if flipped && self.plans.target().is_none() {
            self.unload_all_but(&wanted);
        }
        self.note_ready();
    }

    /// What the serving and the target plan together place here.
    fn wanted(&self) -> BTreeSet<(Layer, Expert)> {
        self.plans.iter().flat_map(|plan| plan.resident_on(self.node)).collect()
    }

    fn unload_all_but(&mut self, wanted: &BTreeSet<(Layer, Expert)>) {
        let resident: Vec<_> = self.half.resident().collect();
        for (layer, expert) in resident {
            if !wanted.contains(&(layer, expert)) {
                self.half.unload(layer, expert);
            }
        }
    }

    /// Loads one missing expert; whether there was one.
    ///
    /// One at a time, so that queued tokens are served in between.
    ///
    /// # Errors
    /// The checkpoint cannot give the expert; it is not tried again for this view.
    pub(crate) fn load_next(&mut self) -> Result<bool, ModelError> {
        let Some((layer, expert)) = self.missing.pop_front() else { return Ok(false) };
        self.half.load_expert(layer, expert)?;
        if self.missing.is_empty() {
            self.note_ready();
        }
        Ok(true)
    }

    /// The newest plan counts as ready once everything it places here is held.
    fn note_ready(&mut self) {
        let Some(newest) = self.plans.newest() else { return };
        if newest.resident_on(self.node).all(|(layer, expert)| self.half.holds(layer, expert)) {
            self.ready = self.ready.max(newest.epoch());
        }
    }
}
