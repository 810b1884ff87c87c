//! The plans a node follows: the one that is served and the one that is prepared.

use std::sync::Arc;

use domain::{ClusterView, Epoch, Plan};

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

    /// Takes over the plans of a view; whether they were, for a node refuses a serving plan that is
    /// older than the one it knows.
    pub fn follow(&mut self, view: &ClusterView) -> bool {
        if view.serving.as_deref().map_or(Epoch(0), Plan::epoch) < self.epoch() {
            return false;
        }
        self.serving.clone_from(&view.serving);
        self.target.clone_from(&view.target);
        true
    }
}

#[cfg(test)]
mod tests {
    use domain::ModelShape;

    use super::*;

    #[test]
    fn an_older_plan_is_refused() {
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
        assert!(plans.follow(&ClusterView::default()));
        assert!(plans.follow(&view(3, 4)));
        assert_eq!((plans.epoch(), plans.newest().map(Plan::epoch)), (Epoch(3), Some(Epoch(4))));
        assert!(!plans.follow(&view(2, 5)) && !plans.follow(&ClusterView::default()));
        assert_eq!(plans.iter().map(Plan::epoch).collect::<Vec<_>>(), [Epoch(3), Epoch(4)]);
        assert!(plans.follow(&view(4, 4)));
    }
}
