//! The experts this node holds, brought step by step to what the cluster's plans ask of it.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use domain::{ClusterView, Epoch, Expert, Layer, NodeId};
use model::{ExpertHalf, ModelError};
use node::{Followed, Plans, Progress};

use crate::loader::Loader;

/// How long experts that no plan wants here any more are held: attention nodes hear of a plan at
/// different times, and what they send by the one before is served.
const FAREWELL: Duration = Duration::from_secs(2);

/// Resident experts and the plans they are resident for.
#[derive(Debug)]
pub(crate) struct Shard {
    node: NodeId,
    half: ExpertHalf,
    loader: Loader,
    progress: Progress,
    plans: Plans,
    missing: VecDeque<(Layer, Expert)>,
    /// Whether tokens stand still until what is missing is here.
    urgent: bool,
    /// Whether an expert could not be read; it is tried again with the next view.
    failed: bool,
    leaving: Leaving,
    /// The newest plan whose experts are all here.
    ready: Epoch,
}

/// Resident experts that no plan wants here, and until when they are held nevertheless.
#[derive(Debug, Default)]
struct Leaving {
    experts: Vec<(Layer, Expert)>,
    until: Option<Instant>,
}

// === impl Shard ===

impl Shard {
    pub(crate) fn new(node: NodeId, half: ExpertHalf, loader: Loader) -> Self {
        Self {
            node,
            half,
            loader,
            progress: Progress::new("experts"),
            plans: Plans::default(),
            missing: VecDeque::new(),
            urgent: false,
            failed: false,
            leaving: Leaving::default(),
            ready: Epoch::default(),
        }
    }

    pub(crate) fn half(&self) -> &ExpertHalf {
        &self.half
    }

    /// The half, to compute with.
    pub(crate) fn half_mut(&mut self) -> &mut ExpertHalf {
        &mut self.half
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
        match self.plans.follow(view) {
            Followed::Refused => return,
            Followed::Unchanged if !self.failed => return,
            Followed::Unchanged | Followed::Changed => {}
        }
        self.failed = false;
        self.urgent = self.plans.serving().is_some_and(|plan| {
            plan.table().any(|nodes| !nodes.iter().any(|&node| view.member(node).is_some()))
        });
        let wanted = self.wanted();
        let missing = wanted.iter().filter(|&&(layer, expert)| !self.half.holds(layer, expert));
        self.missing = missing.copied().collect();
        let surplus = self.half.resident().filter(|expert| !wanted.contains(expert));
        self.leaving.experts = surplus.collect();
        let leaves = !self.leaving.experts.is_empty();
        self.leaving.until = leaves.then(|| Instant::now() + FAREWELL);
        self.note_ready();
    }

    /// What the serving and the target plan together place here.
    fn wanted(&self) -> BTreeSet<(Layer, Expert)> {
        self.plans.iter().flat_map(|plan| plan.resident_on(self.node)).collect()
    }

    /// Goes on loading what is missing; whether anything has changed.
    ///
    /// A node that has never served anything loads on the engine's processor, which has nothing else
    /// to do, one expert per turn. Later the loader reads beside the engine.
    ///
    /// # Errors
    /// The checkpoint cannot give an expert.
    pub(crate) fn load(&mut self) -> Result<bool, ModelError> {
        let outcome = self.loader.outcome();
        let mut changed = outcome.is_some();
        if let Some(outcome) = outcome {
            let installed = outcome.and_then(|loaded| self.half.install(loaded));
            installed.inspect_err(|_| self.failed = true)?;
        }
        if self.loader.is_free() {
            changed |= self.load_next()?;
        }
        if changed && self.missing.is_empty() && self.loader.is_free() {
            self.note_ready();
        }
        Ok(changed)
    }

    fn load_next(&mut self) -> Result<bool, ModelError> {
        let (half, missing) = (&self.half, &mut self.missing);
        // What was under way when the plans changed may have come meanwhile.
        let next = std::iter::from_fn(|| missing.pop_front())
            .find(|&(layer, expert)| !half.holds(layer, expert));
        let Some((layer, expert)) = next else { return Ok(false) };
        if self.ready > Epoch(0) {
            self.loader.ask(layer, expert, self.urgent);
            return Ok(false);
        }
        let loaded = self.half.load_expert(layer, expert);
        loaded.inspect_err(|_| self.failed = true)?;
        self.progress.left(self.missing.len());
        Ok(true)
    }

    /// When there is something to free, if nothing happens before.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.leaving.until
    }

    /// Frees what no plan wants here any more and nobody waits for.
    pub(crate) fn free(&mut self, waits: impl Fn(Layer, Expert) -> bool) {
        if self.leaving.until.is_none_or(|until| until > Instant::now()) {
            return;
        }
        let half = &mut self.half;
        self.leaving.experts.retain(|&(layer, expert)| {
            let held = waits(layer, expert);
            if !held {
                half.unload(layer, expert);
            }
            held
        });
        let left = !self.leaving.experts.is_empty();
        self.leaving.until = left.then(|| Instant::now() + FAREWELL);
    }

    /// The newest plan counts as ready once everything it places here is held.
    fn note_ready(&mut self) {
        let Some(newest) = self.plans.newest() else { return };
        if newest.resident_on(self.node).all(|(layer, expert)| self.half.holds(layer, expert)) {
            self.ready = self.ready.max(newest.epoch());
        }
    }
}
