//! The plans a node follows: the one that is served and the one that is prepared.

use std::sync::Arc;

use domain::{ClusterView, Epoch, Plan};

/// What a view meant to the plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// Its serving plan is older than the one that is known: nothing of it is to be followed.
    Refused,
    /// Its plans are those that are known.
    Unchanged,
    /// At least one of its plans is new, or one is gone.
    Changed,
}

/// The plans of the newest view.
#[derive(Debug, Default)]
pub struct Plans {
    serving: Option<Arc<Plan>>,
    target: Option<Arc<Plan>>,
}

// === impl Plans ===

impl Plans {
    /// The plan that rows are routed by.
    #[must_use]
    pub fn serving(&self) -> Option<&Plan> {
        self.serving.as_deref()
    }

    /// The plan that will be served next.
    #[must_use]
    pub fn target(&self) -> Option<&Plan> {
        self.target.as_deref()
    }

    /// The newest of them.
    #[must_use]
    pub fn newest(&self) -> Option<&Plan> {
        self.target().or(self.serving())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Plan> {
        self.serving().into_iter().chain(self.target())
    }

    /// The serving plan's epoch, [`Epoch`] 0 without one.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.serving().map_or(Epoch(0), Plan::epoch)
    }

    /// Takes over the plans of a view, unless its serving plan is older than the one that is known.
    pub fn follow(&mut self, view: &ClusterView) -> Followed {
        let epoch = |plan: &Option<Arc<Plan>>| plan.as_deref().map(Plan::epoch);
        if epoch(&view.serving).unwrap_or_default() < self.epoch() {
            return Followed::Refused;
        }
        // Plans are immutable: one number is one plan.
        let same = epoch(&view.serving) == epoch(&self.serving);
        if same && epoch(&view.target) == epoch(&self.target) {
            return Followed::Unchanged;
        }
        self.serving.clone_from(&view.serving);
        self.target.clone_from(&view.target);
        Followed::Changed
    }
}

#[cfg(test)]
mod tests {
    use domain::ModelShape;

    use super::*;

    #[test]
    fn an_older_plan_is_refused_and_an_equal_one_is_no_news() {
        let shape = ModelShape {
            layers: 1,
            moe_layers: Vec::new(),
            experts: 1,
            top_k: 1,
            hidden: 1,
            expert_bytes: 1,
            vocab: 1,
            positions_max: 1,
        };
        let plan = |epoch| Plan::new(Epoch(epoch), None, &shape, Vec::new()).ok().map(Arc::new);
        let view = |serving: u64, target: u64| ClusterView {
            serving: plan(serving),
            target: plan(target),
            ..ClusterView::default()
        };
        let mut plans = Plans::default();
        assert_eq!(plans.follow(&ClusterView::default()), Followed::Unchanged);
        assert_eq!(plans.follow(&view(3, 4)), Followed::Changed);
        assert_eq!((plans.epoch(), plans.newest().map(Plan::epoch)), (Epoch(3), Some(Epoch(4))));
        assert_eq!(plans.follow(&view(2, 5)), Followed::Refused);
        assert_eq!(plans.follow(&ClusterView::default()), Followed::Refused);
        assert_eq!(plans.follow(&view(3, 4)), Followed::Unchanged);
        assert_eq!(plans.iter().map(Plan::epoch).collect::<Vec<_>>(), [Epoch(3), Epoch(4)]);
        assert_eq!(plans.follow(&view(4, 4)), Followed::Changed);
    }
}
